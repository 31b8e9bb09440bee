"""Provide the fixtures that tests of runs share; the modules beside this file can be imported by every test."""

from __future__ import annotations

import os

# As on daskpipe's workers: numbers that are summed by several threads are not the same each time. Before any import.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import slurm
from small_runs import SMALL

import daskpipe
from daskpipe.cli.main import main

if TYPE_CHECKING:
    from distributed import Client

COMPILING = pytest.StashKey[subprocess.Popen[bytes]]()
"""Process that compiles kernels."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels of SOAP once, while tests are collected: each process would else compile them by itself."""
    options = session.config.option
    # Not in the processes of pytest-xdist, nor where there is one process.
    alone = hasattr(session.config, "workerinput") or not getattr(options, "numprocesses", None)
    if not alone and not options.collectonly:
        program = Path(__file__).with_name("compile_kernels.py")
        session.config.stash[COMPILING] = subprocess.Popen([sys.executable, program])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Wait for the process that compiles."""
    if (compiling := session.config.stash.get(COMPILING, None)) is not None:
        assert compiling.wait() == 0


@pytest.fixture(scope="session", autouse=True)
def any_port() -> Iterator[None]:
    """Give each dashboard a port of its own: tests may run several times at once on one machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daskpipe.cluster.connect.DASHBOARD_PORT", 0)
        yield


@pytest.fixture(scope="session")
def workers_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file to which the workers of `client` write what libraries print."""
    return tmp_path_factory.mktemp("workers") / "workers.log"


@pytest.fixture(scope="session")
def client(workers_log: Path) -> Iterator[Client]:
    """Start two workers, one of which offers a GPU (it need not have one: device auto then computes on the CPU).

    Their keys are in Dask's config, so that what joins them by their address in this process finds them.
    """
    import dask

    from daskpipe.cluster.connect import connect
    from daskpipe.cluster.tls import KEY_FILES, write_keys
    from daskpipe.config.load import load_config

    cluster = load_config("emt_alloy", ["cluster.workers=2", "cluster.gpus=1"]).cluster
    with connect(cluster, workers_log) as workers, write_keys(workers_log.parent, workers.client.security) as keys:
        ca, cert, key = (str(keys / name) for name in KEY_FILES)
        settings = {"tls.ca-file": ca, "tls.client.cert": cert, "tls.client.key": key}
        with dask.config.set({f"distributed.comm.{name}": value for name, value in settings.items()}):
            yield workers.client


@pytest.fixture(scope="session")
def reference(client: Client, tmp_path_factory: pytest.TempPathFactory) -> daskpipe.Result:
    """Run the small config once, undisturbed. Read only: copy the directory to change it."""
    return daskpipe.run("emt_alloy", SMALL, run_dir=tmp_path_factory.mktemp("reference") / "run", client=client)


@pytest.fixture(scope="module")
def queue() -> Iterator[slurm.Slurm]:
    """Start a real Slurm for the module; skip where none can be started."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.running() as running:
        yield running


@dataclass(frozen=True)
class Typed:
    """Hold exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def type_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Typed]]:
    """Run the command line in this process, as the console script does."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def type_command(*words: str) -> Typed:
        monkeypatch.setattr(sys, "argv", ["daskpipe", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return Typed(int(stop.value.code or 0), captured.out, captured.err)

    yield type_command
    for number, handler in handlers.items():
        signal.signal(number, handler)
