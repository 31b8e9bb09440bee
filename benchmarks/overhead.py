"""A real run on one worker and on two: what is not spent within units, and how much faster two are.

Run: ``python benchmarks/overhead.py [REPLICAS]``. The quickstart with REPLICAS (4) trajectories for each of its own, by
MACE, labelled by CHGNet. Overhead is the share of the workers' time, from the first event of the run to its last, in
which they were in no unit: waiting for the driver, for each other at the end of a stage, and for stages of one unit.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.core.events import Event, RunFinished, StageFinished, StageStarted, UnitCommitted


class Clock:
    """Subscriber that adds up seconds of units and of stages."""

    def __init__(self) -> None:
        self.stage, self.wall = "", 0.0
        self.stages: dict[str, tuple[int, float, float]] = {}
        self.units, self.n_units = 0.0, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self.units, self.n_units = 0.0, 0
        elif isinstance(event, UnitCommitted):
            self.units, self.n_units = self.units + event.seconds, self.n_units + 1
        elif isinstance(event, StageFinished):
            self.stages[event.stage] = (self.n_units, self.units, event.seconds)
        elif isinstance(event, RunFinished):
            self.wall = event.seconds


def run(n_workers: int, replicas: int, folder: Path) -> Clock:
    overrides = [f"explore.dynamics.replicas={replicas}", f"cluster.workers={n_workers}", "cluster.gpus=0"]
    config = load_config("quickstart", overrides)
    clock = Clock()
    with connect(config.cluster, folder / f"{n_workers}.log") as workers:
        daskpipe.run(config, run_dir=folder / str(n_workers), client=workers.client, subscribers=[clock])
    return clock


def main() -> None:
    replicas = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    print(time.strftime("%Y-%m-%d"), f"quickstart, {replicas} replicas")
    walls = {}
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        for n_workers in (1, 2):
            clock = run(n_workers, replicas, Path(folder))
            walls[n_workers] = clock.wall
            print(f"\n{n_workers} worker(s)    units   unit s   wall s   outside of units")
            for stage, (n_units, units, wall) in clock.stages.items():
                print(f"{stage:<14} {n_units:6} {units:8.1f} {wall:8.1f} {1 - units / (n_workers * wall):10.1%}")
            total = sum(units for _, units, _ in clock.stages.values())
            print(
                f"{'all':<14} {'':6} {total:8.1f} {clock.wall:8.1f} {1 - total / (n_workers * clock.wall):10.1%}",
                flush=True,
            )
    print(f"\ntwo workers are {walls[1] / walls[2]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
