"""Workers of a scheduler that others started: each is asked, before it gets a unit, whether it can compute one.

A worker that cannot load a unit ends without a word, and its nanny starts another one like it.
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
"""Time in which each worker must answer when a run begins."""

LATE_SECONDS = 2.0
"""The same for workers that join later: the driver waits for their answers, and asks silent ones again."""

MOST_NAMED = 3
"""Unsuitable workers that an error describes; the others are counted."""

SAME = ("daskpipe", "dask", "distributed")
"""Packages of which driver and workers must have one version: units and messages are theirs."""

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

SILENT = "does not answer"


def join_scheduler(client: Client, folder: Path | None, emit: Emit) -> Workers:
    """Check the workers of a scheduler that others started, and return them for units.

    Workers that join later are checked, too: one that cannot compute units gets none, and a `Notice` says why.

    Parameters
    ----------
    client
        A connected client.
    folder
        Run directory, which all workers must see; None if they share no files.
    emit
        Called with a `Notice` of what a person should know of a worker that can compute units.

    Raises
    ------
    ClusterError
        If a worker cannot compute units: it does not answer, has another Python, daskpipe or Dask, lacks a package,
        has several threads, or does not see the folder; or if the scheduler cannot pass them on.
    """
    guests = Guests(client, folder, emit)
    address = client.scheduler.address
    dask = Path(sys.prefix, "bin", "dask")
    if found := guests.examine_scheduler(JOIN_SECONDS):
        raise ClusterError(
            f"the scheduler at {address} {', '.join(found)}. It unpacks all units on their way to the workers; start "
            f"it in the driver's environment: {dask} scheduler --host 127.0.0.1"
        )
    if problems := guests.examine(list(client.scheduler_info(n_workers=-1)["workers"]), JOIN_SECONDS):
        described = [f"Worker {worker} {', '.join(found)}. " for worker, found in problems.items()]
        more = f"Nor can {len(described) - MOST_NAMED} more. " if len(described) > MOST_NAMED else ""
        raise ClusterError(
            f"not all workers at {address} can compute units. {''.join(described[:MOST_NAMED])}{more}"
            "Start workers in the driver's environment, on a file system that both see: "
            f"{dask} worker {address} --nthreads 1 (in Python: Client(threads_per_worker=1))"
        )
    return Workers(client, admit=guests.admit_workers)


@dataclass
class Guests:
    """The workers of a scheduler that others started, as far as they have been examined.

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
        """Return the addresses of the workers that may get units; those that are new are examined first."""
        if new := [address for address in workers if address not in self._suitable | self._refused]:
            for address, problems in self.examine(new, LATE_SECONDS).items():
                if problems != [SILENT]:
                    self._refused.add(address)
                    self.emit(Notice(message=f"worker {address} gets no units: it {', '.join(problems)}"))
        return self._suitable.intersection(workers)

    def examine(self, workers: list[str], patience: float) -> dict[str, list[str]]:
        """Ask workers what they are; return, by address, what keeps some of them from computing units.

        Parameters
        ----------
        workers
            Their addresses.
        patience
            Seconds in which each must answer.
        """
        packages = _required_packages()
        own = _question(packages, None)()
        with _token(self.folder) as token:
            answers = self.client.sync(_ask_all, self.client, workers, _question(packages, token), patience)
        unsuitable = {}
        remarks: dict[str, list[str]] = {}
        for address, answer in answers.items():
            if problems := _problems(answer, own, self.folder):
                unsuitable[address] = problems
                continue
            self._suitable.add(address)
            for remark in _remarks(answer, own):
                remarks.setdefault(remark, []).append(address)
        for remark, addresses in remarks.items():
            others = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
            self.emit(Notice(message=f"worker {addresses[0]}{others}: {remark}"))
        return unsuitable

    def examine_scheduler(self, patience: float) -> list[str]:
        """Ask the scheduler what it is; return what keeps it from passing units on."""
        question = _question([], None)
        answer = self.client.sync(_in_time, _ask_scheduler(self.client, question), patience)
        return _environment_problems(answer, question())


def _required_packages() -> list[str]:
    """Return the names of the packages that daskpipe needs; none if it was not installed but is on the path."""
    try:
        required = importlib.metadata.requires("daskpipe") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]


def _question(packages: list[str], token: str | None) -> Callable[..., dict[str, Any]]:
    """Return the function by which a process describes itself.

    A function within a function is pickled by value, so that a worker without daskpipe can run it.
    """

    def describe(dask_worker: Any = None) -> dict[str, Any]:
        import importlib
        import importlib.metadata
        import os
        import pathlib

        versions: dict[str, str | None] = {}
        for name in ("daskpipe", "dask", "distributed"):  # what is imported counts, not what is installed
            try:
                versions[name] = importlib.import_module(name).__version__
            except ImportError:
                versions[name] = None
        for name in packages:
            try:
                versions.setdefault(name, importlib.metadata.version(name))
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

    return describe


async def _ask_all(
    client: Client, workers: list[str], question: Callable[..., Any], patience: float
) -> dict[str, dict[str, Any]]:
    """Ask workers side by side; those that went away meanwhile are left out, silent ones have empty answers."""
    answers = await asyncio.gather(*(_in_time(_ask(client, address, question), patience) for address in workers))
    return {address: answer for address, answer in zip(workers, answers, strict=True) if answer is not None}


async def _in_time(asked: Awaitable[dict[str, Any] | None], patience: float) -> dict[str, Any] | None:
    """Return an answer; an empty one if there is none in time, or none at all since the scheduler went away."""
    try:
        return await asyncio.wait_for(asked, patience)
    except OSError:  # Dask's errors of connections and of time are such
        return {}


async def _ask(client: Client, address: str, question: Callable[..., Any]) -> dict[str, Any] | None:
    """Ask one worker; None if it went away."""
    # A function does not survive the way to another Python, so its version comes first, from Dask's own handler.
    message = {"op": "versions", "packages": []}
    replies = await client.scheduler.broadcast(msg=message, workers=[address], on_error="ignore")
    if address not in replies:
        return None
    python = _python_of(replies[address])
    if python != PYTHON:
        return {"python": python}
    answer = (await client._run(question, workers=[address], on_error="return")).get(address)
    if answer is None or isinstance(answer, OSError):
        return None
    if isinstance(answer, BaseException):
        return {"python": python, "failure": f"{type(answer).__name__}: {answer}"}
    return {"python": python, **answer}


async def _ask_scheduler(client: Client, question: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    python = _python_of(await client.scheduler.versions(packages=[]))
    if python != PYTHON:
        return {"python": python}
    try:
        return {"python": python, **await client._run_on_scheduler(question)}
    except (ValueError, ImportError, AttributeError) as error:  # it may be forbidden to unpack anything
        return {"python": python, "failure": f"{type(error).__name__}: {error}"}


def _python_of(versions: Mapping[str, Any]) -> str:
    """Return the minor version of Python in an answer of Dask's handler of versions."""
    return ".".join(versions["host"]["python"].split(".")[:2])


def _problems(answer: Mapping[str, Any], own: Mapping[str, Any], folder: Path | None) -> list[str]:
    """Return what keeps a worker from computing units, each a predicate of the worker."""
    problems = _environment_problems(answer, own)
    if "n_threads" in answer and answer["n_threads"] != 1:
        problems.append(f"has {answer['n_threads']} threads, and potentials are safe in one only")
    if not answer.get("seen", True):
        problems.append(f"cannot write to {folder}")
    return problems


def _environment_problems(answer: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return what keeps a process from loading units, each a predicate of the process."""
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


def _remarks(answer: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person should know of a worker that can compute units."""
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
def _token(folder: Path | None) -> Iterator[str | None]:
    """Yield the path of a file with a new name in a folder, and remove it; None if there is no folder."""
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
