"""A run whose worker is killed every few seconds while it explores with MACE: work lost a kill, time, and the bytes.

Run: ``python benchmarks/kills.py [SECONDS [INTERVAL]]``. A small quickstart with one worker and a checkpoint each
INTERVAL seconds (2); first undisturbed, then with SIGKILL to the worker SECONDS (6) after each attempt has left its
first checkpoint, until exploration is over. Work lost is the time from the newest checkpoint to the kill; what comes
on top is the start of a new worker, which imports torch and MACE.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from distributed import Client

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.runs.run import Result


def killer(client: Client, run_dir: Path, seconds: float, over: threading.Event, lost: list[float]) -> None:
    """Kill the worker again and again; note the work that each kill has cost."""
    seen: set[Path] = set()
    while not over.wait(0.02):
        fresh = set(run_dir.glob("units/explore/*/.*-work/*-checkpoint/state")) - seen
        if not fresh:
            continue
        seen |= fresh
        if over.wait(seconds):
            return
        files = list(run_dir.glob("units/explore/*/.*-work/*-checkpoint/state"))
        if not files:  # the unit was committed meanwhile
            continue
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        lost.append(time.time() - max(file.stat().st_mtime for file in files))


def run(config: Config, run_dir: Path, seconds: float | None) -> tuple[Result, list[float]]:
    lost: list[float] = []
    over = threading.Event()
    with connect(config.cluster, run_dir.with_suffix(".log")) as workers:
        client = workers.client
        thread = threading.Thread(target=killer, args=(client, run_dir, seconds, over, lost))
        if seconds is not None:
            thread.start()
        result = daskpipe.run(config, run_dir=run_dir, client=client)
        over.set()
        if seconds is not None:
            thread.join()
    return result, lost


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
    interval = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    sources = [f"generate.sources.{name}.n=5" for name in ("alloys", "surfaces", "clusters")]
    config = load_config("quickstart", [*sources, "explore.batch_size=15", f"explore.checkpoint={interval}",
                                         "select.n=20", "describe.sample=60", "cluster.workers=1",
                                         "cluster.gpus=0"])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        calm, _ = run(config, Path(folder) / "calm", None)
        wild, lost = run(config, Path(folder) / "wild", seconds)
        same = bytes_of(calm.dataset) == bytes_of(wild.dataset)
        print(f"one unit of 15 trajectories with MACE, a checkpoint each {interval:g} s")
        print(f"exploration undisturbed: {calm.stages['explore']['seconds']:.1f} s")
        print(f"exploration with {len(lost)} kills, one {seconds:g} s after each attempt's first checkpoint: "
              f"{wild.stages['explore']['seconds']:.1f} s")  # fmt: skip
        print(f"work lost a kill: median {statistics.median(lost):.2f} s, largest {max(lost):.2f} s")
        print(f"the same bytes in dataset.zarr: {same}")


if __name__ == "__main__":
    main()
