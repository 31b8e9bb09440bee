"""Progress of a run, read from its directory: for programs, on a terminal, and in a file."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import UNITS

from daskpipe.cli import status as cli_status
from daskpipe.core.errors import ConfigError
from daskpipe.core.events import Notice, RunStarted, StageFinished, StageStarted, UnitCommitted, UnitLost, UnitYielded
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.lease import hold_lease
from daskpipe.runs.run import Result
from daskpipe.runs.status import RunWatcher, is_driven, read_status


def test_status_of_a_complete_run(reference: Result) -> None:
    state = read_status(reference.run_dir)
    assert state["state"] == "complete"
    assert state["driver_starts"] == 1
    assert state["dataset"] == str(reference.dataset)
    assert {stage: row["committed"] for stage, row in state["stages"].items()} == UNITS
    assert {stage: row["out"] for stage, row in state["stages"].items()} == {
        stage: row["out"] for stage, row in reference.stages.items()
    }


def test_status_of_a_run_that_was_cut_off(reference: Result, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference.run_dir, run_dir)
    (ledger,) = (run_dir / "ledger").iterdir()
    lines = ledger.read_text().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if '"UnitCommitted", "stage": "label"' in line)
    ledger.write_text("".join(lines[: cut + 1]) + lines[cut + 1][:20])  # and half a line, as a crash leaves it
    state = read_status(run_dir)
    assert state["state"] == "stopped"
    assert state["stages"]["label"] == {
        "committed": 1, "planned": 6, "out": 0, "rejected": 0, "lost": 0, "suspect": 0, "yielded": 0,
    }  # fmt: skip
    assert "store" not in state["stages"]


def test_status_without_the_dataset_is_not_complete(reference: Result, tmp_path: Path) -> None:
    shutil.copytree(reference.run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("dataset.zarr"))
    assert (read_status(tmp_path / "run")["state"], read_status(tmp_path / "run")["dataset"]) == ("stopped", None)


def test_status_sees_a_driver(reference: Result, tmp_path: Path) -> None:
    shutil.copytree(reference.run_dir, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert not is_driven(directory)
    with hold_lease(directory.root):
        assert is_driven(directory)
        state = read_status(directory.root)
        assert state["state"] == "running"
        assert (state["driver"]["host"], state["driver"]["pid"]) == (os.uname().nodename, os.getpid())
    assert not is_driven(directory)
    assert read_status(directory.root)["driver"] is None


def test_status_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run directory \(it has no config.yaml\); see: ls runs"):
        read_status(tmp_path)


def test_status_in_words(type_command: Callable[..., Any], reference: Result, tmp_path: Path) -> None:
    shutil.copytree(reference.run_dir, tmp_path / "run")
    (tmp_path / "run" / "ledger" / "0001.jsonl").write_text("")
    typed = type_command("status", str(tmp_path / "run"), "--watch")
    assert typed.code == 0
    assert "is stopped; drivers started: 0" in " ".join(typed.out.split())
    assert f"daskpipe resume {tmp_path / 'run'}" in typed.out


# --- a run under way ------------------------------------------------------------------------------------


def commit_units(index: int) -> UnitCommitted:
    return UnitCommitted(
        stage="explore", index=index, key=f"{index:032x}", n_inputs=1, n_out=2, n_rejected=0, counts={}, n_bytes=1,
        seconds=1.0, worker="w",
    )  # fmt: skip


@pytest.fixture
def under_way(
    reference: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunDirectory, Callable[..., None]]:
    """A run directory in which a driver has begun, and how to tell its ledger of an event at a second of its time."""
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    shutil.copy(reference.run_dir / "config.yaml", directory.config)
    ledger = Ledger(directory)

    def tell(second: int, event: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(time, "gmtime", lambda: time.struct_time((2026, 11, 22, 8, 0, second, 6, 326, 0)))
            ledger(event)

    tell(0, RunStarted(run_dir=str(directory.root), name="n", dashboard=None, workers=["a", "b"]))
    tell(1, StageStarted(stage="explore", n_units=40, n_committed=10, n_inputs=40, what="structures"))
    return directory, tell


def test_rate_and_time_left_of_the_stage_under_way(under_way: tuple[RunDirectory, Callable[..., None]]) -> None:
    directory, tell = under_way
    with hold_lease(directory.root):
        watch = RunWatcher(directory.root)
        state = watch.read_status()
        assert (state["stage"], state["workers"], state["rate"], state["seconds_left"]) == ("explore", 2, None, None)
        for index in range(5):
            tell(3 + 2 * index, commit_units(index))
        lost = {"stage": "explore", "index": 9, "key": "9", "losses": 1, "reason": "killed", "kind": "infrastructure"}
        tell(12, UnitLost(**lost))
        for losses in (2, 3):
            tell(12, UnitLost(**{**lost, "losses": losses, "reason": "it died", "kind": "suspect"}))
        tell(12, UnitYielded(stage="explore", index=9, key="9"))
        tell(12, Notice(message="job 7 ended before a worker of it registered"))
        state = watch.read_status()
        assert state["stages"]["explore"] == {
            "committed": 15, "planned": 40, "out": 0, "rejected": 0, "lost": 1, "suspect": 2, "yielded": 1,
        }  # fmt: skip
        assert (state["rate"], state["seconds_left"]) == (0.5, 50)  # 5 units in 10 s; what stood before is no pace
        assert cli_status.format_line(state) == "explore 15/40, 1 lost, 2 suspect, 0.5 units/s, some 00:00:50 left"
        assert state["notice"] == "job 7 ended before a worker of it registered"
        assert state == read_status(directory.root)  # read at one go
        tell(13, StageFinished(stage="explore", seconds=12.0, n_out=80, n_rejected=0))
        assert watch.read_status()["stage"] is None
    state = watch.read_status()
    assert (state["state"], state["rate"], state["notice"]) == ("stopped", None, None)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_status_fits_the_terminal(
    width: int,
    under_way: tuple[RunDirectory, Callable[..., None]],
    type_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, tell = under_way
    tell(3, commit_units(0))
    tell(4, StageFinished(stage="explore", seconds=12.0, n_out=80, n_rejected=2))
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line.rstrip() for line in type_command("status", str(directory.root)).out.splitlines()]
    if width == 40:
        assert "explore: units 11, planned 40, out 80, rejected 2" in lines
        return
    heading = next(number for number, line in enumerate(lines) if line.startswith("stage"))
    assert lines[heading].split() == ["stage", "units", "planned", "out", "rejected", "lost", "suspect", "yielded"]
    assert lines[heading + 1].split() == ["explore", "11", "40", "80", "2"]


def test_half_a_line_is_read_when_it_is_whole(under_way: tuple[RunDirectory, Callable[..., None]]) -> None:
    directory, tell = under_way
    watch = RunWatcher(directory.root)
    watch.read_status()
    tell(3, commit_units(0))
    (segment,) = (directory.root / "ledger").iterdir()
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-20])
    assert watch.read_status()["stages"]["explore"]["committed"] == 10
    segment.write_bytes(whole)
    assert watch.read_status()["stages"]["explore"]["committed"] == 11


def test_watching_appends_a_line_for_what_changes_and_ends_with_the_run(
    under_way: tuple[RunDirectory, Callable[..., None]],
    type_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, tell = under_way
    monkeypatch.setattr(cli_status, "WATCH_SECONDS", 0.1)
    looked, over = threading.Event(), threading.Event()

    def drive() -> None:
        with hold_lease(directory.root):
            looked.set()
            time.sleep(1.0)
            tell(4, commit_units(0))
            tell(5, commit_units(1))
            over.wait(1.0)

    driver = threading.Thread(target=drive)
    driver.start()
    looked.wait(10)
    typed = type_command("status", str(directory.root), "--watch")
    driver.join()
    assert typed.code == 0
    lines = typed.out.splitlines()
    assert lines[:2] == ["explore 10/40", "explore 12/40, 0.5 units/s, some 00:00:56 left"]
    assert lines[2] == "stopped"
    assert f"to go on: daskpipe resume {directory.root}" in lines
    states = [
        json.loads(line) for line in type_command("status", str(directory.root), "--watch", "--json").out.splitlines()
    ]
    assert [state["state"] for state in states] == ["stopped"]


def test_watching_on_a_terminal_redraws_in_place(under_way: tuple[RunDirectory, Callable[..., None]]) -> None:
    directory, _ = under_way
    ours, theirs = pty.openpty()
    with hold_lease(directory.root):
        command = [sys.executable, "-m", "daskpipe", "status", str(directory.root), "--watch"]
        process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        seen = b""
        while seen.count(b"explore 10/40") < 2:
            seen += os.read(ours, 4096)
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
    os.close(ours)
    assert process.wait(30) == 0
    assert b"\x1b[2K" in seen  # lines are erased and drawn again
    seen = seen.replace(b"\r\n", b"")  # a long path takes more than a line
    assert b"is stopped" in seen
    assert f"process {os.getpid()}".encode() in seen


def test_names_do_not_reach_the_terminal_raw(
    under_way: tuple[RunDirectory, Callable[..., None]], type_command: Callable[..., Any]
) -> None:
    directory, tell = under_way
    with hold_lease(directory.root):
        tell(3, Notice(message="host \x1b]0;title\x07 [red]n1[/] left out"))
        out = type_command("status", str(directory.root)).out
    assert "\x1b" not in out
    assert "[red]n1[/] left out" in out
