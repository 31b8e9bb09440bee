"""Join schedulers that others started: workers that cannot compute units are named before they receive any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from small_runs import SMALL
from waiting import wait_until

import daskpipe
from daskpipe.cluster.joining import SILENT, GuestWorkers, _find_problems, join_scheduler
from daskpipe.cluster.scheduler import LOOPBACK
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Event, Notice
from daskpipe.engine.dask_pool import DaskPool, Workers
from daskpipe.engine.dispatcher import UnitCall, WorkerLost
from daskpipe.engine.units import Unit

OURS = Path(daskpipe.__file__).parents[1]
OTHER_VERSION = "9.9.9"


def make_unit(index: int) -> Unit:
    """Return a unit of labelling."""
    return Unit(stage="label", index=index, key=f"{index:032x}", n_inputs=1)


def make_call() -> Callable[[], str]:
    """Return a function that returns the address of its worker; workers cannot import this file, so it is nested."""

    def address() -> str:
        from distributed import get_worker

        return str(get_worker().address)

    return address


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a Python with all packages of this one but daskpipe."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        # Without .pth files, by one of which daskpipe may be installed.
        if "daskpipe" not in path.name and path.suffix != ".pth" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    return home / "bin" / "python"


@contextmanager
def run_program(*words: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that does not import from this checkout; end it with the block."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        words, cwd="/", env={**kept, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()  # the process of a nanny's worker sees that it is gone, and ends
        process.wait()


@contextmanager
def start_scheduler(python: Path | str, folder: Path, **environment: str) -> Iterator[Client]:
    """Start ``dask scheduler``, and yield a client of it."""
    file = folder / "scheduler.json"
    options = ("--host", LOOPBACK, "--port", "0", "--no-dashboard", "--scheduler-file", file)
    with run_program(python, "-m", "dask", "scheduler", *options, **environment):
        wait_until(file.exists)
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            yield client


@pytest.fixture
def guest_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Start a ``dask scheduler`` without workers, and yield a client of it."""
    with start_scheduler(sys.executable, tmp_path_factory.mktemp("scheduler"), PYTHONPATH=str(OURS)) as client:
        yield client


@contextmanager
def start_worker(
    client: Client,
    python: Path | str = sys.executable,
    *options: str,
    prefix: tuple[str, ...] = (),
    path: Path | None = None,
) -> Iterator[str]:
    """Start ``dask worker``, and yield its address when it has joined."""
    before = set(client.scheduler_info(n_workers=-1)["workers"])
    words = [*prefix, python, "-m", "dask", "worker", client.scheduler.address, "--host", LOOPBACK, *options]
    if "--nthreads" not in options:
        words += ["--nthreads", "1"]
    with run_program(*words, "--no-dashboard", **({} if path is None else {"PYTHONPATH": str(path)})):
        (address,) = wait_until(lambda: set(client.scheduler_info(n_workers=-1)["workers"]) - before)
        yield address
    wait_until(lambda: address not in client.scheduler_info(n_workers=-1)["workers"])


@pytest.mark.slow
def test_a_worker_without_daskpipe_is_named(
    guest_client: Client, bare_python: Path, type_command: Callable[..., Any], tmp_path: Path
) -> None:
    scheduler = guest_client.scheduler.address
    with start_worker(guest_client, path=OURS), start_worker(guest_client, bare_python) as address:
        with pytest.raises(ClusterError, match=f"Worker {address} cannot import daskpipe. Start workers in the "):
            join_scheduler(guest_client, tmp_path, print)
        typed = type_command("run", "emt_alloy", *SMALL, "--cluster", scheduler, "--run-dir", str(tmp_path / "run"))
        assert typed.code == 4
        assert f"Worker {address} cannot import daskpipe" in typed.err
        assert f"dask worker {scheduler} --nthreads 1" in typed.err
        assert not list((tmp_path / "run").glob("units/*"))
        assert not list(tmp_path.rglob(".joining-*"))
        # It was not harmed.
        assert address in guest_client.scheduler_info(n_workers=-1)["workers"]


def test_workers_with_other_versions_are_named(guest_client: Client, bare_python: Path, tmp_path: Path) -> None:
    stub = tmp_path / "stub" / "daskpipe"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(f'__version__ = "{OTHER_VERSION}"\n')
    expected = f"has daskpipe {OTHER_VERSION}, and the driver {daskpipe.__version__}"
    with (
        start_worker(guest_client, bare_python, path=stub.parent) as address,
        pytest.raises(ClusterError, match=f"Worker {address} .*{expected}"),
    ):
        join_scheduler(guest_client, tmp_path, print)


def test_a_scheduler_without_daskpipe_is_named(bare_python: Path, tmp_path: Path) -> None:
    """It unpacks units, though it does not run them."""
    with (
        start_scheduler(bare_python, tmp_path) as client,
        pytest.raises(ClusterError, match="the scheduler at tcp://.* cannot import daskpipe. .*dask scheduler --host"),
    ):
        join_scheduler(client, tmp_path, print)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_worker_that_does_not_see_the_run_directory_is_named(guest_client: Client, tmp_path: Path) -> None:
    """As on another machine: in its own mount namespace, another file system hides the folder."""
    shared = tmp_path / "shared"
    shared.mkdir()
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh")
    with start_worker(guest_client, prefix=hide, path=OURS) as address:
        with pytest.raises(ClusterError, match=f"Worker {address} cannot write to {shared}. .*file system"):
            join_scheduler(guest_client, shared, print)
        assert join_scheduler(guest_client, None, print).client is guest_client
    assert list(shared.iterdir()) == []


def test_threads_are_refused_and_the_way_out_is_named(tmp_path: Path) -> None:
    options = {"n_workers": 1, "processes": False, "dashboard_address": f"{LOOPBACK}:0"}
    with (
        LocalCluster(threads_per_worker=2, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(ClusterError, match=r"has 2 threads, .*--nthreads 1 \(in Python: Client\(threads_per_worker=1\)"),
    ):
        daskpipe.run("emt_alloy", SMALL, run_dir=tmp_path / "run", client=client)


def test_a_worker_without_nanny_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    options = {"n_workers": 1, "processes": False, "dashboard_address": f"{LOOPBACK}:0", "resources": {"GPU": 1}}
    with LocalCluster(threads_per_worker=1, **options) as cluster, Client(cluster, set_as_default=False) as client:
        (address,) = client.scheduler_info(n_workers=-1)["workers"]
        pool = DaskPool(join_scheduler(client, tmp_path, events.append), frozenset())
        handle = pool.submit_unit(make_unit(0), UnitCall("where", make_call()))
        assert client.gather(handle) == address
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert any(message.startswith(f"worker {address}: no nanny: ") for message in messages)
    if not Path("/proc/driver/nvidia/gpus").is_dir():
        assert f"worker {address}: it offers GPU=1 and sees no NVIDIA GPU" in messages
    assert list(tmp_path.iterdir()) == []


def test_other_pythons_are_not_given_functions() -> None:
    """There is one Python here, so the answer of another one is made up."""
    assert _find_problems({"python": "3.11"}, {}, None) == [
        f"has Python 3.11, and the driver {sys.version_info.major}.{sys.version_info.minor}"
    ]


@pytest.mark.slow
def test_a_worker_that_joins_late_gets_no_units_unless_it_can(
    guest_client: Client, bare_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskpipe.engine.dask_pool.SLOTS_SECONDS", 0)
    events: list[Event] = []
    n_units = 20
    with start_worker(guest_client, path=OURS) as good:
        pool = DaskPool(join_scheduler(guest_client, tmp_path, events.append), frozenset())
        one_worker = pool.count_slots("label")
        with start_worker(guest_client, bare_python) as bad:
            assert pool.count_slots("label") == one_worker
            (notice,) = events
            assert isinstance(notice, Notice)
            assert notice.message == f"worker {bad} gets no units: it cannot import daskpipe"
            with start_worker(guest_client, path=OURS) as late:
                assert pool.count_slots("label") == 2 * one_worker
                handles = [
                    pool.submit_unit(make_unit(index), UnitCall("where", make_call())) for index in range(n_units)
                ]
                assert set(guest_client.gather(handles)) == {good, late}
                pool.cancel_units(handles)
            assert pool.count_slots("label") == one_worker
            assert events == [notice]
            assert bad in guest_client.scheduler_info(n_workers=-1)["workers"]


@pytest.mark.slow
def test_units_come_back_when_all_workers_that_they_are_bound_to_are_gone(
    guest_client: Client, bare_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskpipe.engine.dask_pool.SLOTS_SECONDS", 0)
    with start_worker(guest_client, bare_python) as bad:
        guests = GuestWorkers(guest_client, tmp_path, lambda event: None)
        with start_worker(guest_client, sys.executable, "--no-nanny", path=OURS):
            pool = DaskPool(Workers(guest_client, admit=guests.admit_workers), frozenset())
            assert pool.count_slots("label") > 0
            handle = pool.submit_unit(make_unit(0), UnitCall("sleep", lambda: time.sleep(3600)))
            assert pool.wait_for_any([handle], timeout=0.5) == set()
        with start_worker(guest_client, path=OURS):
            wait_until(lambda: pool.count_slots("label") is not None and pool.wait_for_any([handle], timeout=0.5))
            with pytest.raises(WorkerLost, match="all workers that it could run on went away"):
                pool.take_receipt(handle)
            again = pool.submit_unit(make_unit(0), UnitCall("where", make_call()))
            assert guest_client.gather(again) != bad
            pool.cancel_units([again])


def test_a_silent_worker_is_named_at_first_and_asked_again_later(tmp_path: Path) -> None:
    """A worker that others keep busy in its event loop, as a library does that holds the interpreter's lock."""
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": f"{LOOPBACK}:0"}
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        (address,) = client.scheduler_info(n_workers=-1)["workers"]

        async def keep_busy() -> None:
            time.sleep(3)

        client.run(keep_busy, wait=False)
        guests = GuestWorkers(client, tmp_path, lambda event: None)
        assert guests.check_workers([address], 0.5) == {address: [SILENT]}
        assert wait_until(lambda: guests.admit_workers([address])) == {address}
