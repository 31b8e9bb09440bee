"""Workers die at random during a run: the units that they held go elsewhere, and the bytes are the same."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from distributed import Client
from small_runs import SMALL, UNITS, committed, files_of

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.core.events import Event, UnitCommitted, UnitLost
from daskpipe.runs.run import Result

KILLED_IN = ("generate", "explore", "describe", "label")
"""After the first unit of each of these stages, of which others are then under way on both workers."""


class Killer:
    """Subscriber that kills a random worker after the first unit of some stages."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client, self.random = client, random.Random(seed)
        self.killed: dict[str, int] = {}
        self.lost: list[UnitLost] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, UnitLost):
            self.lost.append(event)
        if isinstance(event, UnitCommitted) and event.stage in KILLED_IN and event.stage not in self.killed:
            pids = sorted(self.client.run(os.getpid).values())
            self.killed[event.stage] = self.random.choice(pids)
            os.kill(self.killed[event.stage], signal.SIGKILL)


@pytest.mark.slow
def test_workers_killed_at_random(reference: Result, tmp_path: Path) -> None:
    config = load_config("emt_alloy", [*SMALL, "cluster.workers=2", "cluster.gpus=0"])
    with connect(config.cluster) as workers:
        client = workers.client
        killer = Killer(client, seed=0)
        result = daskpipe.run(config, run_dir=tmp_path / "run", client=client, subscribers=[killer])
    assert killer.killed.keys() == set(KILLED_IN)
    assert len(set(killer.killed.values())) == len(KILLED_IN)  # each time another process
    assert {event.stage for event in killer.lost} & set(KILLED_IN)
    assert len(committed(result.run_dir)) == sum(UNITS.values())
    assert files_of(result.dataset) == files_of(reference.dataset)
