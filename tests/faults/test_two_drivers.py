"""Two drivers at once: the second is refused; one that stood still is taken over; one is stopped from elsewhere."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from driver import resume, run, wait_for_the_end_of
from small_runs import UNITS, committed, files_of, names_of
from waiting import wait_until

import daskpipe
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.lease import find_driver
from daskpipe.runs.run import Result
from daskpipe.runs.status import read_status

LEASE_SECONDS = 12.0
"""Longer than a second driver takes to be refused, and shorter than a person waits."""


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKPIPE_LEASE_SECONDS", str(LEASE_SECONDS))


@pytest.mark.slow
def test_one_that_stood_still_is_taken_over(
    reference: Result, tmp_path: Path, type_command: Callable[..., Any]
) -> None:
    run_dir = tmp_path / "run"
    first = run(run_dir)
    children = first.wait_until(lambda events: names_of(events, "StageStarted", "explore") == 1)
    first.process.send_signal(signal.SIGSTOP)
    try:
        refused = type_command("resume", str(run_dir))
        assert refused.code == 2
        assert f"another daskpipe works in {run_dir}" in refused.err
        assert f"process {first.process.pid}" in refused.err
        wait_until(lambda: find_driver(run_dir) is None)
        second = resume(run_dir)
        assert second.finish() == 0, second.log.read_text()
        assert read_status(run_dir)["state"] == "complete"
        states, dataset = committed(run_dir), files_of(run_dir / "dataset.zarr")
        assert len(states) == sum(UNITS.values())
        assert dataset == files_of(reference.dataset)
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert first.finish() == 75, first.log.read_text()
    wait_for_the_end_of(children)
    said = " ".join(first.log.read_text().split())
    assert f"error: another driver took over {run_dir}" in said
    assert "Traceback" not in said
    # What it had under way came to nothing, and its journal is its own.
    assert committed(run_dir) == states
    assert files_of(run_dir / "dataset.zarr") == dataset
    assert read_status(run_dir)["state"] == "complete"
    told = Counter(event["key"] for event in read_ledger(RunDirectory(run_dir)) if event["event"] == "UnitCommitted")
    assert set(told.values()) == {1}


@pytest.mark.slow
def test_cancelled_from_another_process(
    reference: Result, client: Client, tmp_path: Path, type_command: Callable[..., Any]
) -> None:
    run_dir = tmp_path / "run"
    driver = run(run_dir)
    children = driver.wait_until(lambda events: names_of(events, "UnitCommitted", "explore") >= 1)
    typed = type_command("cancel", str(run_dir), "--json")
    assert typed.code == 0
    answer = json.loads(typed.out)
    assert f"process {driver.process.pid}" in answer["driver"]
    assert answer["jobs"] == []
    assert driver.finish() == 75
    wait_for_the_end_of(children)
    said = " ".join(driver.log.read_text().split())
    assert "error: cancelled from" in said
    assert f"To go on type: daskpipe resume {run_dir}" in said
    assert "Traceback" not in said
    assert not (run_dir / "cancel").exists()
    assert read_status(run_dir)["state"] == "stopped"
    again = type_command("cancel", str(run_dir))
    assert (again.code, again.out) == (0, "nothing runs\n")

    result = daskpipe.resume(run_dir, client=client)
    assert files_of(result.dataset) == files_of(reference.dataset)
