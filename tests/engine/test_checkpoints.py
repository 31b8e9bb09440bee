"""Test the deadline of a worker: what its environment says, and what another job has left there."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.build import bulk

import daskpipe.core.deadline
from daskpipe.core.deadline import seconds_left, stale_deadlines
from daskpipe.core.events import Event, Notice
from daskpipe.pipeline.frames import select_files

PAST = 1_000_000_000
"""A time in 2001."""

ASK = "import json, daskpipe.core.deadline as c; print(json.dumps([c.seconds_left(), c.stale_deadlines()]))"


def ask(**variables: float) -> tuple[float, dict[str, float]]:
    """Return the seconds left and the stale deadlines of a process that begins now."""
    kept = {name: value for name, value in os.environ.items() if name not in daskpipe.core.deadline.DEADLINE}
    env = {**kept, **{name: str(value) for name, value in variables.items()}}
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True)
    left, stale = json.loads(done.stdout)
    return left, stale


def test_a_deadline_of_before_the_process_began_is_ignored() -> None:
    assert ask(SLURM_JOB_END_TIME=PAST) == (float("inf"), {"SLURM_JOB_END_TIME": PAST})
    assert ask(DASKPIPE_DEADLINE=PAST)[1] == {"DASKPIPE_DEADLINE": PAST}
    left, stale = ask(SLURM_JOB_END_TIME=PAST, DASKPIPE_DEADLINE=time.time() + 1000)
    assert 800 < left <= 1000
    assert list(stale) == ["SLURM_JOB_END_TIME"]
    assert ask() == (float("inf"), {})


def test_a_deadline_that_passes_while_the_process_runs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKPIPE_DEADLINE", str(time.time()))
    assert seconds_left() <= 0
    assert stale_deadlines() == {}


def test_a_worker_that_is_started_again_after_its_deadline_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of its nanny, which is this one, began before the deadline."""
    monkeypatch.setenv("DASKPIPE_DEADLINE", str(time.time()))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(seconds_left) <= 0
        assert pool.apply(stale_deadlines) == {}


@pytest.mark.slow
def test_local_workers_do_not_retire_for_another_jobs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ase.io import write

    monkeypatch.setenv("SLURM_JOB_END_TIME", str(PAST))
    frames = [bulk("Cu", cubic=True) for _ in range(8)]
    for number, frame in enumerate(frames):
        frame.rattle(0.05, seed=number)
    write(tmp_path / "md.extxyz", frames)
    events: list[Event] = []
    done = select_files(
        [str(tmp_path / "md.extxyz")],
        2,
        tmp_path / "picked.extxyz",
        ["cluster.workers=1", "describe.dims=4"],
        subscribers=[events.append],
    )
    assert done.n_out == 2
    (notice,) = (event.message for event in events if isinstance(event, Notice))
    assert notice.startswith("SLURM_JOB_END_TIME is ignored: the job that it was set for ended at 2001-09-0")
    assert notice.endswith("Type: unset SLURM_JOB_END_TIME")
