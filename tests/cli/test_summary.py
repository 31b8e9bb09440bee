"""Bars of a run, and its summary."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from runs.outcome_samples import REPORT, SPLIT_REPORT
from small_runs import UNITS

from daskpipe.cli.progress import (
    STEPS,
    ProgressBars,
    format_selection,
    format_splits,
    list_next_commands,
    print_summary,
    shorten_path,
)
from daskpipe.core import events
from daskpipe.core.errors import Rejection
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.verdict import Verdict


def told(reference: Result) -> list[events.Event]:
    """Events of the reference run, read back from its ledger."""
    rows = [
        {key: value for key, value in row.items() if key not in ("at", "segment")}
        for row in read_ledger(RunDirectory(reference.run_dir))
    ]
    return [getattr(events, row.pop("event"))(**row) for row in rows]


class Screen(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_a_stage_with_rate_and_time_left(reference: Result) -> None:
    screen = Screen()
    with ProgressBars(Console(file=screen, force_terminal=True, width=140)) as bars:
        for event in told(reference):
            bars(event)
    seen = screen.getvalue()
    for title in ("generate", "explore", "describe (axes)", "describe", "select", "label", "store"):
        assert title in seen
    assert "/s" in seen
    assert "left" in seen
    assert "4/4" in seen


def test_a_file_sees_a_line_a_stage_and_lost_workers(reference: Result) -> None:
    page = io.StringIO()
    lost = events.UnitLost(stage="label", index=3, key="k", losses=1, kind="infrastructure", reason="killed")
    with ProgressBars(Console(file=page, width=140)) as bars:
        for event in [*told(reference), lost]:
            bars(event)
    lines = page.getvalue().splitlines()
    assert sum(" out in " in line for line in lines) == len(UNITS) - len(STEPS)  # steps are told with their stage
    assert "label unit 3 lost its worker; trying again" in lines


"""What selection tells of itself."""


def test_summary_tells_the_selection(reference: Result) -> None:
    page = io.StringIO()
    print_summary(reference, Console(file=page, width=200))
    report = reference.stages["select"]["report"]
    assert (report["n_pool"], report["n_picked"]) == (8, 6)
    lines = page.getvalue().splitlines()
    assert [line for line in format_selection(report) if line not in lines] == []


def test_summary_names_what_was_quarantined(tmp_path: Path) -> None:
    row = {"inputs": 3, "out": 2, "rejected": 1, "seconds": 1.0, "counts": {"alloy": 2}, "tallies": {}}
    moves = {"swaps_tried": 640, "swaps_accepted": 184, "hops_tried": 8000, "hops_overlapping": 6780}
    stages = {
        "generate": row, "explore": {**row, "tallies": moves}, "select": {**row, "counts": {}, "report": REPORT},
        "store-plan": {**row, "seconds": 2.0, "report": SPLIT_REPORT}, "store": row,
    }  # fmt: skip
    names = [f"mix/[bold]{number}.xyz" for number in range(2)]
    RunDirectory(tmp_path).write_quarantine(
        Rejection(stage="generate", structure=name, reason="overlap", evidence="too close") for name in names
    )
    failed = Check(name="forces", verdict="fail", says="[bold]", value=12.0, threshold=10.0, unit="eV/Å")
    passed = Check(name="stress", verdict="pass", says="fine")
    verdict = Verdict(go=False, dataset="d", dataset_key="k", n_structures=2, checks=(failed, passed))
    result = Result(tmp_path, tmp_path / "dataset.zarr", stages, {"generate/overlap": 2}, 5.0, verdict)
    page = io.StringIO()
    print_summary(result, Console(file=page, width=200))
    lines = page.getvalue().splitlines()
    assert any(f"  generate/overlap: 2, e.g. {name}: too close" in lines for name in names)
    assert f"  all of them, one file each: {tmp_path}/quarantine/" in lines
    assert "trial swaps: 184 of 640 accepted (0 overlapped)" in lines
    assert "trial hops: 0 of 8,000 accepted (6,780 overlapped)" in lines
    assert [line for line in format_splits(SPLIT_REPORT) if line not in lines] == []
    assert [line.split()[-1] for line in lines if line.startswith("store")] == ["3.0"]  # its steps are part of it
    assert "Quality NO-GO: forces" in lines
    assert any(line.startswith("FAIL  forces") and line.endswith("[bold]") for line in lines)
    assert not any("stress" in line for line in lines)


"""What the splits tell of themselves."""


GO = Verdict(go=True, dataset="d", dataset_key="k", n_structures=2, checks=())


def test_commands_survive_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = Result(tmp_path / "it's mine", tmp_path / "it's mine" / "dataset.zarr", {}, {}, 0.0, GO)
    assert shorten_path(result.run_dir) == "it's mine"
    assert list_next_commands(result)[0] == """daskpipe report 'it'"'"'s mine'"""
