"""A run keeps its budget of hours, bytes and labels: it stops in order, names what was spent, and can go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from small_runs import SMALL, UNITS, committed, files_of, last_segment, manifests, names_of

import daskpipe
from daskpipe.config.load import change_config, load_config
from daskpipe.config.models import Config
from daskpipe.core.errors import ConfigError, Interrupted
from daskpipe.core.events import Notice, StageStarted, UnitCommitted, UnitGivenUp, UnitLost, UnitYielded
from daskpipe.core.validation import in_bytes
from daskpipe.engine.attempts import list_given_up
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit
from daskpipe.runs.budget import BudgetLimiter, compute_limits, format_bytes, measure_spent
from daskpipe.runs.run import Result

WORKER = """
import sys, time
from pathlib import Path
from daskpipe.engine.attempts import mark_attempt
from daskpipe.engine.units import Unit

root = Path(sys.argv[1])
(root / "begun").touch()
with mark_attempt(root, Unit(stage="label", index=0, key="ab" * 16, n_inputs=1), worker="w", nanny=""):
    print("at work", flush=True)
    time.sleep(60)
"""

PAUSE = 0.5
"""Seconds that a worker works at least before its driver is killed."""

CLOCK_TICK = 0.05
"""Seconds by which times of files may be late."""


def start_stage(stage: str, n_units: int, n_committed: int = 0) -> StageStarted:
    return StageStarted(stage=stage, n_units=n_units, n_committed=n_committed, n_inputs=n_units, what="seeds")


def commit_unit(stage: str, *, seconds: float = 0.0, n_bytes: int = 0) -> UnitCommitted:
    return UnitCommitted(
        stage=stage, index=0, key="k", n_inputs=1, n_out=1, n_rejected=0, counts={}, n_bytes=n_bytes, seconds=seconds,
        worker="w",
    )  # fmt: skip


def test_what_was_spent_is_what_the_tree_says(reference: Result) -> None:
    spent = measure_spent(RunDirectory(reference.run_dir))
    receipts = [json.loads(path.read_text())["receipt"] for path in manifests(reference.run_dir)]
    assert spent.bytes.total() == sum(receipt["n_bytes"] for receipt in receipts)
    assert sum(spent.seconds.values()) == pytest.approx(sum(receipt["seconds"] for receipt in receipts))
    assert set(spent.bytes) == set(UNITS)


def test_a_run_stops_and_goes_on_to_the_same_dataset(reference: Result, client: Client, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    whole = measure_spent(RunDirectory(reference.run_dir)).bytes
    limit = whole["generate"] + whole["explore"] // 2
    with pytest.raises(Interrupted, match=rf"budget.bytes={limit}B is spent .* units of explore, then describe-fit"):
        daskpipe.run("emt_alloy", [*SMALL, f"budget.bytes={limit}B"], run_dir=run_dir, client=client)
    assert not (run_dir / "dataset.zarr").exists()
    before = committed(run_dir)
    assert len(before) >= UNITS["generate"] + 1
    with pytest.raises(Interrupted, match="is spent"):  # nothing is tried that the budget does not hold
        daskpipe.resume(run_dir, client=client)
    assert names_of(last_segment(run_dir), "UnitCommitted", "explore") == 0
    result = daskpipe.resume(run_dir, ["budget.bytes=1GB"], client=client)
    assert {key: committed(run_dir)[key] for key in before} == before
    assert files_of(result.dataset) == files_of(reference.dataset)


def test_the_hours_of_earlier_drivers_count(reference: Result, tmp_path: Path) -> None:
    directory = RunDirectory(reference.run_dir)
    hours = sum(measure_spent(directory).seconds.values()) / 3600
    assert hours > 0
    limiter = BudgetLimiter(directory, load_config("emt_alloy", [f"budget.hours={hours + 1:.6f}"]))
    limiter(start_stage("label", 3))
    limiter(commit_unit("label", seconds=3590))
    with pytest.raises(Interrupted, match=r"budget.hours=.* is spent \(1.* h of work: label .* Left to do: 1 of 3"):
        limiter(commit_unit("label", seconds=20))
    fresh = BudgetLimiter(RunDirectory(tmp_path), load_config("emt_alloy", [f"budget.hours={hours + 1:.6f}"]))
    fresh(start_stage("label", 3))
    fresh(commit_unit("label", seconds=3590))


ATTEMPTS = [
    UnitLost(stage="label", index=0, key="k", losses=1, kind="suspect", reason="it died", seconds=1000.0),
    UnitYielded(stage="label", index=0, key="k", seconds=2000.0),
    UnitGivenUp(stage="explore", key="k", seconds=500.0),
]
"""What took work and led to no commit."""


def test_attempts_that_led_nowhere_count(tmp_path: Path) -> None:
    directory, config = RunDirectory(tmp_path), load_config("emt_alloy", ["budget.hours=1"])
    limiter, ledger = BudgetLimiter(directory, config), Ledger(directory)
    limiter(start_stage("label", 3))
    for event in ATTEMPTS:
        limiter(event)
        ledger(event)
    assert measure_spent(directory).seconds == {"label": 3000.0, "explore": 500.0}
    with pytest.raises(Interrupted, match=r"is spent \(1 h of work: label 0.861, explore 0.139\)"):
        limiter(commit_unit("label", seconds=100))
    resumed = BudgetLimiter(directory, config)
    with pytest.raises(Interrupted, match=r"is spent \(1.01 h of work"):
        resumed(start_stage("label", 3)), resumed(UnitLost(**{**vars(ATTEMPTS[0]), "seconds": 150.0}))


def test_a_driver_that_is_killed_leaves_what_its_workers_did(tmp_path: Path) -> None:
    """Of marks that lie there for the next driver."""
    directory, unit = RunDirectory(tmp_path), Unit(stage="label", index=0, key="ab" * 16, n_inputs=1)
    with subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "at work\n"
        time.sleep(PAUSE)
        Ledger(directory)(Notice(message="the driver lives"))
        worker.kill()
    (left,) = list_given_up(directory)
    assert (left.stage, left.key) == (unit.stage, unit.key)
    assert PAUSE - CLOCK_TICK < left.seconds < time.time() - os.stat(tmp_path / "begun").st_mtime + CLOCK_TICK
    directory.remove_leftovers()
    assert list_given_up(directory) == []


@pytest.mark.slow
def test_work_for_a_driver_that_was_killed_counts(client: Client, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    few_steps = [word for word in SMALL if "steps" not in word and "stride" not in word]
    words = [*few_steps, "explore.dynamics.steps=100000", "explore.dynamics.stride=50000", "cluster.workers=1"]
    command = [sys.executable, "-m", "daskpipe", "run", "emt_alloy", *words, "--run-dir", str(run_dir), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        while not (running := list(run_dir.glob("units/explore/*/.*-work/*-running"))):
            assert driver.poll() is None
            time.sleep(0.05)
        (pid,) = (json.loads(mark.read_text())["pid"] for mark in running)
        time.sleep(PAUSE)
        Ledger(RunDirectory(run_dir))(Notice(message="the driver lives"))
        driver.kill()
    psutil.Process(pid).wait(60)
    (left,) = list_given_up(RunDirectory(run_dir))
    assert left.stage == "explore"
    assert left.seconds > PAUSE - CLOCK_TICK
    before = sum(measure_spent(RunDirectory(run_dir)).seconds.values())
    with pytest.raises(Interrupted, match="budget.hours=.* is spent"):
        daskpipe.resume(run_dir, [f"budget.hours={(before + left.seconds / 2) / 3600:.9f}"], client=client)
    assert measure_spent(RunDirectory(run_dir)).seconds["explore"] >= left.seconds


def test_a_run_ends_though_its_last_unit_was_one_too_many(tmp_path: Path) -> None:
    limiter = BudgetLimiter(RunDirectory(tmp_path), load_config("emt_alloy", ["budget.bytes=1kB"]))
    limiter(start_stage("store", 1))
    limiter(commit_unit("store", n_bytes=2000))
    limiter(start_stage("store", 1, n_committed=1))  # all is there: nothing to stop
    with pytest.raises(Interrupted, match=r"Left to do: 2 of 2 units of explore, .* resume .* budget.bytes=2kB"):
        limiter(start_stage("explore", 2))


def test_labels_cut_the_picks_and_decide_the_dataset() -> None:
    whole, cut = load_config("emt_alloy", ["select.n=10"]), load_config("emt_alloy", ["select.n=10", "budget.labels=4"])
    assert (whole.selection.n, cut.selection.n) == (10, 4)
    assert cut.dump_deciding() == load_config("emt_alloy", ["select.n=4"]).dump_deciding() != whole.dump_deciding()
    assert load_config("emt_alloy", ["select.n=10", "budget.labels=40"]).dump_deciding() == whole.dump_deciding()
    assert (
        load_config("emt_alloy", ["select.n=10", "budget.hours=1", "budget.bytes=1GB"]).dump_deciding()
        == whole.dump_deciding()
    )


def test_labels_cannot_be_changed_on_the_way(reference: Result, client: Client) -> None:
    with pytest.raises(ConfigError, match=r"holds a run of another config \(select.n: 2 here, 6 there\)"):
        daskpipe.resume(reference.run_dir, ["budget.labels=2"], client=client)


@pytest.mark.parametrize("override", ["select.n=3", "seed=1", "clusters.workers=2", "budget"])
def test_what_decides_the_dataset_is_refused_on_resume(
    override: str, reference: Result, type_command: Callable[..., Any]
) -> None:
    typed = type_command("resume", str(reference.run_dir), override)
    assert typed.code == 2
    assert "only cluster.KEY=VALUE and budget.KEY=VALUE can" in typed.err


def test_cluster_and_budget_change_on_resume() -> None:
    config = load_config("emt_alloy", ["budget.hours=1", "cluster.workers=2"])
    other = change_config(config, ["budget.hours=null", "budget.bytes=2GB", "cluster.memory=3GB"])
    assert (other.budget.hours, other.budget.bytes) == (None, "2GB")
    assert (other.cluster.workers, other.cluster.memory) == (2, "3GB")
    assert change_config(config, ["cluster=slurm"]).cluster.name == "slurm"
    assert other.dump_deciding() == config.dump_deciding()
    with pytest.raises(ConfigError, match=r"budget.hours: Input should be greater than 0 \(received -1\)"):
        change_config(config, ["budget.hours=-1"])
    with pytest.raises(ConfigError, match="unknown key in budget: 'hour'. Did you mean 'hours'?"):
        change_config(config, ["budget.hour=1"])


@pytest.mark.parametrize("size", ["50", "GB", "-1GB", "0GB", "1 XB"])
def test_a_wrong_size_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="budget.bytes: must be a number with a unit, e.g. 50GB"):
        load_config("emt_alloy", [f"budget.bytes='{size}'"])


def test_sizes() -> None:
    assert [in_bytes(size) for size in ("7B", "1.5kB", "2 GB", "1GiB")] == [7, 1500, 2 * 10**9, 2**30]
    assert [format_bytes(n) for n in (7, 1500, 2e9, 3e15)] == ["7 B", "1.5 kB", "2 GB", "3e+03 TB"]


def test_a_shard_has_its_share() -> None:
    config: Config = load_config("emt_alloy", ["budget.hours=8", "budget.bytes=4GB", "shard=1/4"])
    assert compute_limits(config) == (2.0, 10**9)


def test_a_spent_budget_ends_the_command_with_75(
    type_command: Callable[..., Any], tmp_path: Path, client: Client
) -> None:
    address = client.scheduler.address
    words = ["run", "emt_alloy", *SMALL, "budget.bytes=1kB", "--cluster", address, "--run-dir", str(tmp_path / "run")]
    typed = type_command(*words, "--json")
    assert typed.code == 75
    answer = json.loads(typed.out)
    assert answer["exit_code"] == 75
    assert answer["error"].endswith(f"daskpipe resume {tmp_path / 'run'} budget.bytes=2kB")
