"""Units that do nothing, through window, ledger and commit: what a unit costs, and what driver and scheduler hold.

Scheduler and two workers are processes of their own, so that memory is told apart. Then a second driver goes on with
the complete run. Usage: python benchmarks/scale.py [N_UNITS ...]
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
from distributed import Client

from daskpipe import config
from daskpipe.cluster import DASK_CONFIG
from daskpipe.driving import Run
from daskpipe.jobs import LOOPBACK, scheduler
from daskpipe.ledger import Ledger
from daskpipe.placement import DaskPool, Workers
from daskpipe.work import Payload, Tree, Unit, key_of

SIZES = (10_000, 100_000)
N_WORKERS = 2
SERVE = "--serve"
MB = 1e6


def plan(n_units: int) -> list[tuple[Unit, partial[object]]]:
    # Of one number. A function of this script would travel by value, which those of rooms do not.
    lazy = dask.delayed(Payload)
    return [
        (
            Unit(stage="generate", index=index, key=key_of("generate", 1, {}, [index], 0), n_inputs=1),
            partial(lazy, arrays={"index": np.array([index])}, n_out=1),
        )
        for index in range(n_units)
    ]


def rss(pid: int | None = None) -> float:
    return psutil.Process(pid).memory_info().rss / MB


def serve() -> None:
    """Be the scheduler of a run, in this process; print its address."""
    with dask.config.set(DASK_CONFIG), scheduler(LOOPBACK, None, None) as cluster:
        print(cluster.scheduler_address, flush=True)
        signal.pause()


def start(stack: ExitStack) -> tuple[Client, int]:
    """Start scheduler and workers; return a client and the scheduler's process."""
    serving = subprocess.Popen([sys.executable, __file__, SERVE], stdout=subprocess.PIPE, text=True)
    stack.callback(serving.kill)
    assert serving.stdout is not None
    address = serving.stdout.readline().strip()
    for _ in range(N_WORKERS):
        worker = subprocess.Popen(
            [sys.executable, "-m", "dask", "worker", address, "--host", LOOPBACK, "--nthreads", "1", "--no-dashboard"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(worker.terminate)
    client = stack.enter_context(Client(address, set_as_default=False))
    client.wait_for_workers(N_WORKERS)
    return client, serving.pid


def measure(n_units: int) -> str:
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    with ExitStack() as stack, dask.config.set(DASK_CONFIG):
        stack.callback(shutil.rmtree, folder)
        client, serving = start(stack)
        settings = config.load("emt_alloy")
        begun = time.perf_counter()
        units = plan(n_units)
        planned = time.perf_counter() - begun
        before, scheduler_before = rss(), rss(serving)
        tree = Tree(folder.absolute() / "run")
        tree.root.mkdir()
        run = Run(settings, tree, DaskPool(Workers(client), frozenset()), Ledger(tree), {})
        begun = time.perf_counter()
        run.drive("generate", units, "units")
        seconds = time.perf_counter() - begun
        held, scheduler_held = rss() - before, rss(serving) - scheduler_before
        again = Run(settings, tree, DaskPool(Workers(client), frozenset()), Ledger(tree), {})
        begun = time.perf_counter()
        again.drive("generate", units, "units")
        resumed = time.perf_counter() - begun
        ledger = sum(file.stat().st_size for file in (tree.root / "ledger").iterdir())
    return (
        f"{n_units:>9,} {planned:8.1f} {seconds:9.1f} {1e6 * seconds / n_units:9.0f} {held:9.0f} {scheduler_held:9.0f} "
        f"{resumed:8.1f} {1e6 * resumed / n_units:9.0f} {ledger / MB:9.1f}"
    )


def main() -> None:
    if sys.argv[1:] == [SERVE]:
        serve()
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    print("               plan       run             driver  scheduler  resume              ledger")
    print("    units         s         s   us/unit    +MB RSS  +MB RSS        s   us/unit        MB")
    for n_units in sizes:
        print(measure(n_units), flush=True)


if __name__ == "__main__":
    main()
