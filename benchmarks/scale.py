"""Units that do nothing, through window, ledger and commit: what a unit costs, and what driver and scheduler hold.

Scheduler and two workers are processes of their own, so that memory is told apart. Then a second driver goes on with
the complete run. Usage: python benchmarks/scale.py [N_UNITS ...]
"""

from __future__ import annotations

import json
import shutil
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
from daskpipe.ledger import Ledger
from daskpipe.placement import DaskPool, Workers
from daskpipe.work import Payload, Tree, Unit, key_of

SIZES = (10_000, 100_000)
N_WORKERS = 2
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


def start(stack: ExitStack, folder: Path) -> tuple[Client, int]:
    """Start scheduler and workers; return a client and the scheduler's process."""
    command = [sys.executable, "-m", "dask"]
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*command, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        **quiet,
    )
    stack.callback(scheduler.kill)
    while not file.exists():
        time.sleep(0.05)
    address = json.loads(file.read_text())["address"]
    for _ in range(N_WORKERS):
        worker = subprocess.Popen(
            [*command, "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"], **quiet
        )
        stack.callback(worker.terminate)
    client = stack.enter_context(Client(address, set_as_default=False))
    client.wait_for_workers(N_WORKERS)
    return client, scheduler.pid


def measure(n_units: int) -> str:
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    with ExitStack() as stack, dask.config.set(DASK_CONFIG):
        stack.callback(shutil.rmtree, folder)
        client, scheduler = start(stack, folder)
        settings = config.load("emt_alloy")
        begun = time.perf_counter()
        units = plan(n_units)
        planned = time.perf_counter() - begun
        before, scheduler_before = rss(), rss(scheduler)
        tree = Tree(folder.absolute() / "run")
        tree.root.mkdir()
        run = Run(settings, tree, DaskPool(Workers(client), frozenset()), Ledger(tree), {})
        begun = time.perf_counter()
        run.drive("generate", units, "units")
        seconds = time.perf_counter() - begun
        held, scheduler_held = rss() - before, rss(scheduler) - scheduler_before
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
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    print("               plan       run             driver  scheduler  resume              ledger")
    print("    units         s         s   us/unit    +MB RSS  +MB RSS        s   us/unit        MB")
    for n_units in sizes:
        print(measure(n_units), flush=True)


if __name__ == "__main__":
    main()
