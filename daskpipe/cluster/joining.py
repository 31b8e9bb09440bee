"""Check the workers of a scheduler that others started, before they receive units.

A worker that cannot load a unit ends without a message, and its nanny starts another one like it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.gpus import parse_visible_gpus
from daskpipe.core.errors import ClusterError, DiskError
from daskpipe.core.events import Emit, Notice
from daskpipe.engine.dask_pool import GPU, Workers

if TYPE_CHECKING:
    from distributed import Client

JOIN_SECONDS = 60.0
"""Seconds in which each worker must answer when a run begins."""

LATE_SECONDS = 2.0
"""Seconds in which a worker that joins later must answer: the driver waits meanwhile, and asks silent ones again."""

MOST_NAMED = 3
"""Most unsuitable workers that an error describes; the others are counted."""

SAME = ("daskpipe", "dask", "distributed")
"""Packages of which driver and workers must have the same version, because units and messages consist of them."""

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Minor version of the driver's Python."""

SILENT = "does not answer"
"""Problem of a worker that did not answer in time."""


def join_scheduler(client: Client, folder: Path | None, emit: Emit) -> Workers:
    """Check the workers of a scheduler that others started, and return them.

    Workers that join later are checked, too: one that cannot compute units receives none, and a `Notice` says why.

    Parameters
    ----------
    client
        Connected client.
    folder
        Run directory, which all workers must see; None if they share no files.
    emit
        Called with a `Notice` about each worker that joins later and receives no units, and about each one that can
        compute units but differs from the driver.

    Raises
    ------
    ClusterError
        If a worker cannot compute units: it does not answer, has another Python, daskpipe or Dask, lacks a package,
        has several threads, or cannot write to the folder; or if the scheduler cannot pass units on.
    """
    guests = GuestWorkers(client, folder, emit)
    address = client.scheduler.address
    dask = Path(sys.prefix, "bin", "dask")
    if problems := guests.check_scheduler(JOIN_SECONDS):
        raise ClusterError(
            f"the scheduler at {address} {', '.join(problems)}. It unpacks all units on their way to the workers; "
            f"start it in the driver's environment: {dask} scheduler --host 127.0.0.1"
        )
    if unsuitable := guests.check_workers(list(client.scheduler_info(n_workers=-1)["workers"]), JOIN_SECONDS):
        described = [f"Worker {worker} {', '.join(problems)}. " for worker, problems in unsuitable.items()]
        more = f"Nor can {len(described) - MOST_NAMED} more. " if len(described) > MOST_NAMED else ""
        raise ClusterError(
            f"not all workers at {address} can compute units. {''.join(described[:MOST_NAMED])}{more}"
            "Start workers in the driver's environment, on a file system that both see: "
            f"{dask} worker {address} --nthreads 1 (in Python: Client(threads_per_worker=1))"
        )
    return Workers(client, admit=guests.admit_workers)


@dataclass
class GuestWorkers:
    """Workers of a scheduler that others started, with the results of their checks.

    Parameters
    ----------
    client, folder, emit
        As in `join_scheduler`.
    """

    client: Client
    folder: Path | None
    emit: Emit
    _suitable: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)

    def admit_workers(self, workers: Collection[str]) -> set[str]:
        """Return the addresses of the workers that may receive units; check new ones first."""
        if new := [address for address in workers if address not in self._suitable | self._refused]:
            for address, problems in self.check_workers(new, LATE_SECONDS).items():
                if problems != [SILENT]:
                    self._refused.add(address)
                    self.emit(Notice(message=f"worker {address} gets no units: it {', '.join(problems)}"))
        return self._suitable.intersection(workers)

    def check_workers(self, workers: list[str], patience: float) -> dict[str, list[str]]:
        """Ask workers to describe themselves; return the problems of those that cannot compute units, by address.

        Parameters
        ----------
        workers
            Addresses of the workers.
        patience
            Seconds in which each worker must answer.
        """
        packages = _required_packages()
        own = _make_question(packages, None)()
        with _make_token(self.folder) as token:
            answers = self.client.sync(_ask_all, self.client, workers, _make_question(packages, token), patience)
        unsuitable = {}
        remarks: dict[str, list[str]] = {}
        for address, answer in answers.items():
            if problems := _find_problems(answer, own, self.folder):
                unsuitable[address] = problems
                continue
            self._suitable.add(address)
            for remark in _describe_differences(answer, own):
                remarks.setdefault(remark, []).append(address)
        for remark, addresses in remarks.items():
            others = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
            self.emit(Notice(message=f"worker {addresses[0]}{others}: {remark}"))
        return unsuitable

    def check_scheduler(self, patience: float) -> list[str]:
        """Ask the scheduler to describe itself; return the problems that keep it from passing units on."""
        question = _make_question([], None)
        answer = self.client.sync(_wait_for, _ask_scheduler(self.client, question), patience)
        return _find_environment_problems(answer, question())


def _required_packages() -> list[str]:
    """Return the names of the packages that daskpipe needs; none if it is on the path but not installed."""
    try:
        required = importlib.metadata.requires("daskpipe") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]


def _make_question(packages: list[str], token: str | None) -> Callable[..., dict[str, Any]]:
    """Return a function with which a process describes itself.

    Cloudpickle sends a nested function by value, so a worker without daskpipe can run it.

    Parameters
    ----------
    packages
        Packages whose versions it returns.
    token
        File that it checks that it can write to; None for none.
    """

    def describe_process(dask_worker: Any = None) -> dict[str, Any]:
        import contextlib
        import importlib
        import importlib.metadata
        import os
        import pathlib

        versions: dict[str, str | None] = {}
        for name in ("daskpipe", "dask", "distributed"):  # the imported version counts, not the installed one
            try:
                versions[name] = importlib.import_module(name).__version__
            except ImportError:
                versions[name] = None
        read_version: Callable[[str], str] = importlib.metadata.version
        with contextlib.suppress(ImportError):
            from daskpipe.core.versions import read_version  # it remembers
        for name in packages:
            try:
                versions.setdefault(name, read_version(name))
            except ImportError:
                versions[name] = None
        seen = token is None
        if token is not None:
            for folder in reversed(pathlib.Path(token).parents):
                try:
                    # An NFS client believes that a file is not there until it opens the folder again.
                    os.scandir(folder).close()
                except OSError:
                    continue
            seen = os.access(token, os.W_OK)
        devices = pathlib.Path("/proc/driver/nvidia/gpus")
        answer = {"versions": versions, "seen": seen, "devices": devices.is_dir()}
        answer["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        if (state := getattr(dask_worker, "state", None)) is not None:  # the scheduler has none
            answer |= {"n_threads": state.nthreads, "resources": state.total_resources, "nanny": dask_worker.nanny}
        return answer

    return describe_process


async def _ask_all(
    client: Client, workers: list[str], question: Callable[..., Any], patience: float
) -> dict[str, dict[str, Any]]:
    """Ask workers at the same time; leave out those that left meanwhile, and give silent ones empty answers."""
    answers = await asyncio.gather(
        *(_wait_for(_ask_worker(client, address, question), patience) for address in workers)
    )
    return {address: answer for address, answer in zip(workers, answers, strict=True) if answer is not None}


async def _wait_for(asked: Awaitable[dict[str, Any] | None], patience: float) -> dict[str, Any] | None:
    """Wait for an answer; return an empty one if there is none in time, or the scheduler is gone."""
    try:
        return await asyncio.wait_for(asked, patience)
    except OSError:  # the base class of TimeoutError and of Dask's CommClosedError
        return {}


async def _ask_worker(client: Client, address: str, question: Callable[..., Any]) -> dict[str, Any] | None:
    """Ask one worker; return None if it has left."""
    # Another Python cannot unpickle the function, so Dask's own handler is asked for the version first.
    message = {"op": "versions", "packages": []}
    replies = await client.scheduler.broadcast(msg=message, workers=[address], on_error="ignore")
    if address not in replies:
        return None
    python = _read_python_version(replies[address])
    if python != PYTHON:
        return {"python": python}
    answer = (await client._run(question, workers=[address], on_error="return")).get(address)
    if answer is None or isinstance(answer, OSError):
        return None
    if isinstance(answer, BaseException):
        return {"python": python, "failure": f"{type(answer).__name__}: {answer}"}
    return {"python": python, **answer}


async def _ask_scheduler(client: Client, question: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Ask the scheduler."""
    python = _read_python_version(await client.scheduler.versions(packages=[]))
    if python != PYTHON:
        return {"python": python}
    try:
        return {"python": python, **await client._run_on_scheduler(question)}
    except (ValueError, ImportError, AttributeError) as error:  # its configuration may forbid pickles
        return {"python": python, "failure": f"{type(error).__name__}: {error}"}


def _read_python_version(versions: Mapping[str, Any]) -> str:
    """Read the minor version of Python from an answer of Dask's handler of versions."""
    return ".".join(versions["host"]["python"].split(".")[:2])


def _find_problems(answer: Mapping[str, Any], own: Mapping[str, Any], folder: Path | None) -> list[str]:
    """Return the problems that keep a worker from computing units, each a predicate of the worker."""
    problems = _find_environment_problems(answer, own)
    if "n_threads" in answer and answer["n_threads"] != 1:
        problems.append(f"has {answer['n_threads']} threads, and potentials are safe in one only")
    if not answer.get("seen", True):
        problems.append(f"cannot write to {folder}")
    return problems


def _find_environment_problems(answer: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the problems that keep a process from loading units, each a predicate of the process."""
    if not answer:
        return [SILENT]
    if answer["python"] != PYTHON:
        return [f"has Python {answer['python']}, and the driver {PYTHON}"]
    if "failure" in answer:
        return [f"cannot describe itself ({answer['failure']})"]
    versions = answer["versions"]
    if versions["daskpipe"] is None:
        return ["cannot import daskpipe"]
    missing = [name for name, version in versions.items() if version is None and own["versions"][name]]
    problems = [f"lacks {', '.join(missing)}"] if missing else []
    for name in SAME:
        if versions[name] != own["versions"][name]:
            problems.append(f"has {name} {versions[name]}, and the driver {own['versions'][name]}")
    return problems


def _describe_differences(answer: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on how a worker that can compute units differs from the driver."""
    differing = [
        f"{name} {version} ({own['versions'][name]})"
        for name, version in answer["versions"].items()
        if version != own["versions"][name]
    ]
    if differing:
        yield f"versions differ from the driver's (in brackets), and so may last digits: {', '.join(differing)}"
    if not answer["nanny"]:
        yield "no nanny: if its process dies, none is started in its place, and a unit that ends it is not recognised"
    has_gpu = answer["devices"] and (answer["visible"] is None or parse_visible_gpus(answer["visible"]))
    if answer["resources"].get(GPU) and not has_gpu:
        yield f"it offers {GPU}={answer['resources'][GPU]:g} and sees no NVIDIA GPU"


@contextmanager
def _make_token(folder: Path | None) -> Iterator[str | None]:
    """Make a file with a new name in a folder, yield its path, and remove it; yield None if there is no folder."""
    if folder is None:
        yield None
        return
    try:
        descriptor, token = tempfile.mkstemp(prefix=".joining-", dir=folder)
    except OSError as error:
        raise DiskError(f"cannot write into {folder}: {error.strerror}. Make room or give another --run-dir") from error
    os.close(descriptor)
    try:
        yield token
    finally:
        os.unlink(token)
