"""The driver dies, by SIGKILL in every stage or by a polite signal, and `daskpipe resume` goes on."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from distributed import Client
from driver import resume, run, wait_for_the_end_of
from small_runs import UNITS, committed, files_of, last_segment, names_of
from waiting import wait_until

import daskpipe
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result
from daskpipe.runs.status import read_status

# In which stage the driver is killed, and after how many of its units. Each of these drivers has fresh workers, whose
# first unit of a stage takes as long as the imports that it needs: the stage is still under way when the signal comes.
KILLS = (
    ("generate", 0),
    ("explore", 1),
    ("describe-fit", 0),
    ("describe", 1),
    ("select", 0),
    ("label", 1),
    ("store", 0),
)


@pytest.mark.slow
def test_killed_in_every_stage_and_resumed(reference: Result, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    states: dict[str, tuple[int, int]] = {}
    for number, (stage, n_units) in enumerate(KILLS):
        driver = resume(run_dir) if number else run(run_dir)
        children = driver.wait_until(
            lambda events, stage=stage, n_units=n_units: (
                names_of(events, "StageStarted", stage) == 1 and names_of(events, "UnitCommitted", stage) >= n_units
            )
        )
        assert driver.send(signal.SIGKILL) == -signal.SIGKILL
        wait_for_the_end_of(children)
        events = last_segment(run_dir)
        assert names_of(events, "StageStarted", stage) == 1
        assert names_of(events, "StageFinished", stage) == 0, f"{stage} was over before the signal came"
        assert read_status(run_dir)["state"] == "stopped"
        now = committed(run_dir)
        assert {key: now[key] for key in states} == states  # what stood before this driver was left alone
        states = now
    last = resume(run_dir)
    assert last.finish() == 0, last.log.read_text()
    now = committed(run_dir)
    assert {key: now[key] for key in states} == states
    assert len(now) == sum(UNITS.values())
    told = Counter(event["key"] for event in read_ledger(RunDirectory(run_dir)) if event["event"] == "UnitCommitted")
    assert set(told.values()) == {1}
    assert read_status(run_dir)["state"] == "complete"
    assert read_status(run_dir)["driver_starts"] == len(KILLS) + 1
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    assert [path for path in run_dir.rglob("*attempt*")] == []


@pytest.mark.slow
def test_signals_interrupt_and_a_second_driver_is_refused(
    reference: Result, client: Client, tmp_path: Path, type_command: Callable[..., object]
) -> None:
    run_dir = tmp_path / "run"
    driver = run(run_dir)
    children = driver.wait_until(lambda events: names_of(events, "StageStarted", "explore") == 1)
    assert read_status(run_dir)["state"] == "running"
    before = files_of(run_dir / "ledger"), (run_dir / "daskpipe.log").read_bytes()
    second = type_command("resume", str(run_dir))
    assert second.code == 2
    assert "another daskpipe works in" in second.err
    assert files_of(run_dir / "ledger").keys() == before[0].keys()
    assert b"Traceback" not in (run_dir / "daskpipe.log").read_bytes()
    assert driver.send(signal.SIGTERM) == 75
    wait_for_the_end_of(children)
    said = driver.log.read_text()
    assert f"error: interrupted; to go on type: daskpipe resume {run_dir}" in said
    assert "Traceback" not in said
    states = committed(run_dir)

    driver = resume(run_dir)
    children = driver.wait_until(lambda events: names_of(events, "UnitCommitted", "explore") >= 1)
    assert driver.send(signal.SIGINT, group=True) == 75  # as Ctrl-C does: to the workers as well
    wait_for_the_end_of(children)
    assert "Traceback" not in driver.log.read_text()
    now = committed(run_dir)
    assert {key: now[key] for key in states} == states

    result = daskpipe.resume(run_dir, client=client)
    assert result.stages["explore"]["computed"] < UNITS["explore"]
    assert files_of(result.dataset) == files_of(reference.dataset)


@pytest.mark.slow
def test_interrupted_while_workers_start(tmp_path: Path) -> None:
    driver = run(tmp_path / "run")
    children = wait_until(psutil.Process(driver.process.pid).children, pause=0.01)
    assert driver.send(signal.SIGTERM) == 75, driver.log.read_text()
    wait_for_the_end_of(children)
    assert driver.log.read_text() == f"error: interrupted; to go on type: daskpipe resume {tmp_path / 'run'}\n"
    assert os.listdir(tmp_path / "run" / "ledger") == []
