"""Measure units that do nothing, through dispatcher, ledger and commit: what one costs, what driver and scheduler hold.

Scheduler and two workers are processes of their own, so that memory is told apart. Then a second driver goes on with
the complete run. Each number of units is measured without TLS and, as runs are, with it.
Usage: python benchmarks/scale.py [N_UNITS ...]
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import dask
import numpy as np
import psutil
from distributed import Client, Security

from daskpipe.cluster.dask_config import DASK_CONFIG
from daskpipe.cluster.scheduler import LOOPBACK, run_scheduler
from daskpipe.cluster.tls import KEY_FILES, make_keys, write_keys
from daskpipe.engine.dask_pool import DaskPool, Workers
from daskpipe.engine.driver import Driver
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.settings import Faults
from daskpipe.engine.units import Payload, Unit, unit_key

SIZES = (10_000, 100_000)
N_WORKERS = 2
SERVE = "--serve"
MB = 1e6


def plan(n_units: int) -> list[tuple[Unit, partial[object]]]:
    # Of one number. A function of this script would travel by value, which those of rooms do not.
    lazy = dask.delayed(Payload)
    return [
        (
            Unit(stage="generate", index=index, key=unit_key("generate", 1, {}, [index], 0), n_inputs=1),
            partial(lazy, arrays={"index": np.array([index])}, n_out=1),
        )
        for index in range(n_units)
    ]


def rss(pid: int | None = None) -> float:
    return psutil.Process(pid).memory_info().rss / MB


def serve(folder: Path, tls: bool) -> None:
    """Be the scheduler of a run, in this process; print its address and the folder of its keys."""
    security = make_keys() if tls else None
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_CONFIG))
        keys = stack.enter_context(write_keys(folder, security)) if security else ""
        cluster = stack.enter_context(run_scheduler(LOOPBACK, security, None))
        print(cluster.scheduler_address, keys, flush=True)
        signal.pause()


def start(stack: ExitStack, folder: Path, tls: bool) -> tuple[Client, int]:
    """Start scheduler and workers; return a client and the scheduler's process."""
    serving = subprocess.Popen(
        [sys.executable, __file__, SERVE, str(folder), str(int(tls))], stdout=subprocess.PIPE, text=True
    )
    stack.callback(serving.kill)
    assert serving.stdout is not None
    address, *keys = serving.stdout.readline().split()
    options: list[str] = []
    security = None
    if keys:
        ca, cert, key = (f"{keys[0]}/{name}" for name in KEY_FILES)
        options = ["--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key]
        security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
    options += ["--host", LOOPBACK, "--nthreads", "1", "--no-dashboard"]
    for _ in range(N_WORKERS):
        worker = subprocess.Popen(
            [sys.executable, "-m", "dask", "worker", address, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(worker.terminate)
    client = stack.enter_context(Client(address, set_as_default=False, security=security))
    client.wait_for_workers(N_WORKERS)
    return client, serving.pid


def measure(n_units: int, tls: bool) -> str:
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    with ExitStack() as stack, dask.config.set(DASK_CONFIG):
        stack.callback(shutil.rmtree, folder)
        client, serving = start(stack, folder, tls)
        begun = time.perf_counter()
        units = plan(n_units)
        planned = time.perf_counter() - begun
        before, scheduler_before = rss(), rss(serving)
        directory = RunDirectory(folder.absolute() / "run")
        directory.root.mkdir()
        driver = Driver(directory, DaskPool(Workers(client), frozenset()), Ledger(directory), Faults())
        begun = time.perf_counter()
        driver.run_stage("generate", units, "units")
        seconds = time.perf_counter() - begun
        held, scheduler_held = rss() - before, rss(serving) - scheduler_before
        again = Driver(directory, DaskPool(Workers(client), frozenset()), Ledger(directory), Faults())
        begun = time.perf_counter()
        again.run_stage("generate", units, "units")
        resumed = time.perf_counter() - begun
        ledger = sum(file.stat().st_size for file in (directory.root / "ledger").iterdir())
    return (
        f"{n_units:>9,}  {'TLS' if tls else '-':<4} "
        f"{planned:8.1f} {seconds:9.1f} {1e6 * seconds / n_units:9.0f} {held:9.0f} {scheduler_held:9.0f} "
        f"{resumed:8.1f} {1e6 * resumed / n_units:9.0f} {ledger / MB:9.1f}"
    )


def main() -> None:
    if sys.argv[1:2] == [SERVE]:
        serve(Path(sys.argv[2]), bool(int(sys.argv[3])))
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    print("                     plan       run             driver  scheduler  resume              ledger")
    print("    units               s         s   us/unit    +MB RSS  +MB RSS        s   us/unit        MB")
    for n_units in sizes:
        for tls in (False, True):
            print(measure(n_units, tls), flush=True)


if __name__ == "__main__":
    main()
