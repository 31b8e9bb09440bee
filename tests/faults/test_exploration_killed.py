"""The worker is killed again and again while it explores: each attempt goes on where the one before left off."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from small_runs import SMALL, files_of

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.core.events import Event, UnitCommitted, UnitLost, UnitYielded
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.budget import measure_spent
from daskpipe.runs.run import Result
from daskpipe.stages.explore.checkpoint import count_steps

INTERVAL = 0.5
"""Seconds between two checkpoints."""

N_KILLS = 2


def long_exploration() -> Config:
    """One unit of four trajectories that takes some ten seconds."""
    steps = ["explore.dynamics.steps=4000", "explore.dynamics.stride=1000", "select.n=4"]
    cluster = ["cluster.workers=1", "cluster.gpus=0", "explore.batch_size=4", f"explore.checkpoint={INTERVAL}"]
    return load_config("emt_alloy", [*SMALL, *steps, *cluster])


@dataclass
class Killer(threading.Thread):
    """Kills the worker two intervals after each attempt has left its first checkpoint."""

    client: Client
    run_dir: Path
    n_kills: int
    starts: list[int] = field(default_factory=list)
    """Steps in the first checkpoint of each attempt that was killed."""
    ends: list[int] = field(default_factory=list)
    """Steps in its last one."""
    lost: list[float] = field(default_factory=list)
    """Seconds from that to its death."""
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        attempts: set[Path] = set()
        while len(self.lost) < self.n_kills and not self.over.wait(0.01):
            fresh = set(self.run_dir.glob("units/explore/*/.*-work/*-checkpoint/state")) - attempts
            if not fresh:
                continue
            (file,) = fresh
            attempts.add(file)
            self.starts.append(count_steps(file.read_bytes()[32:]))
            time.sleep(2 * INTERVAL)
            (pid,) = self.client.run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)
            self.lost.append(time.time() - file.stat().st_mtime)
            self.ends.append(count_steps(file.read_bytes()[32:]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    config = long_exploration()
    with connect(config.cluster) as workers:
        client = workers.client
        return daskpipe.run(config, run_dir=tmp_path_factory.mktemp("undisturbed") / "run", client=client)


@pytest.mark.slow
def test_the_bytes_are_the_same_and_no_step_before_a_checkpoint_is_made_again(
    undisturbed: Result, tmp_path: Path
) -> None:
    config = long_exploration()
    lost: list[Event] = []
    with connect(config.cluster) as workers:
        client = workers.client
        killer = Killer(client, tmp_path / "run", N_KILLS)
        killer.start()
        result = daskpipe.run(config, run_dir=tmp_path / "run", client=client, subscribers=[lost.append])
        killer.over.set()
        killer.join()
    assert len(killer.lost) == N_KILLS, "the run was over before all kills"
    seconds = [event.seconds for event in lost if isinstance(event, UnitLost)]
    assert len(seconds) == N_KILLS
    # What they took counts against the budget: they were killed so long after a checkpoint.
    assert min(seconds) > 2 * INTERVAL
    kept = [event.seconds for event in lost if isinstance(event, UnitCommitted) and event.stage == "explore"]
    assert measure_spent(RunDirectory(result.run_dir)).seconds["explore"] == pytest.approx(sum(kept) + sum(seconds))
    assert files_of(result.dataset) == files_of(undisturbed.dataset)
    assert killer.starts[0] < killer.ends[0]
    # Each attempt writes its first checkpoint some time after it went on from the last one before.
    assert all(start >= end for start, end in zip(killer.starts[1:], killer.ends, strict=False))
    assert list((tmp_path / "run").rglob("*checkpoint*")) == []
    # A save and a step come on top of the interval; the machine may be slow, and the bound is not what is tested.
    print(f"seconds of work lost a kill: {np.round(killer.lost, 2).tolist()}, one checkpoint each {INTERVAL} s")


@pytest.mark.slow
def test_a_worker_that_ends_soon_hands_its_unit_on(undisturbed: Result, tmp_path: Path) -> None:
    """One of two workers is told that it has little more than the minute in which units give way."""
    config = long_exploration()
    events: list[Event] = []
    two = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": 2})})
    with connect(two.cluster) as workers:
        client = workers.client

        def tell(event: Event) -> None:
            events.append(event)
            if type(event).__name__ == "StageStarted" and getattr(event, "stage", "") == "explore":
                threading.Timer(4.0, lambda: client.run(_end_in, 61.0, workers=busy(client))).start()

        result = daskpipe.run(two, run_dir=tmp_path / "run", client=client, subscribers=[tell])
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
    (yielded,) = (event for event in events if isinstance(event, UnitYielded))
    kept = [event.seconds for event in events if isinstance(event, UnitCommitted) and event.stage == "explore"]
    assert yielded.seconds > 0
    assert measure_spent(RunDirectory(result.run_dir)).seconds["explore"] == pytest.approx(sum(kept) + yielded.seconds)
    assert files_of(result.dataset) == files_of(undisturbed.dataset)


def busy(client: Client) -> list[str]:
    """Addresses of workers that compute."""
    return [address for address, keys in client.processing().items() if keys]


def _end_in(seconds: float) -> None:
    os.environ["DASKPIPE_DEADLINE"] = str(time.time() + seconds)
