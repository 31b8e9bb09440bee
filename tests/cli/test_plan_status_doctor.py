"""The doctor's examination of this machine, and the display of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
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
from daskpipe.runs.doctor import examine_machine
from daskpipe.runs.run import Result
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.verdict import Verdict

# --- progress -------------------------------------------------------------------------------------------


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


REPORT: dict[str, Any] = {
    "method": "fps",
    "n_pool": 12_000,
    "n_picked": 1_500,
    "duplicates": {"against_pool": 1_234, "against_dataset": 0, "threshold": 0.001, "scale": 0.2},
    "candidates": {"marked": 0, "picked": 0},
    "coverage": {
        "clusters_hit": 0.75, "bins_hit": 0.504, "elements_hit": 1.0, "nearest_mean": 0.012345, "nearest_p95": 0.0456,
        "nearest_max": 1.5,
    },
}  # fmt: skip
"""What selection tells of itself."""


def test_selection_in_words() -> None:
    assert format_selection(REPORT) == [
        "near-duplicates left out: 1,234 of an earlier frame (closer than 0.001 of the pool's spread)",
        "1,500 of 12,000 frames picked by fps: they hit 75% of 256 clusters of the pool, 50% of the bins of its "
        "features, 100% of the elements",
        "distance of a frame to the nearest pick: mean 0.0123, 95 % below 0.0456, largest 1.5",
    ]


def test_selection_that_is_steered_by_a_dataset_in_words() -> None:
    duplicates = {**REPORT["duplicates"], "covered": {"n_covered": 11_000, "n_picked_elsewhere": 900, "radius": 0.1}}
    coverage = {**REPORT["coverage"], "n_clusters": 64}
    lines = format_selection({**REPORT, "duplicates": duplicates, "coverage": coverage})
    assert lines[1] == (
        "already covered by the existing dataset: 11,000 of 12,000 frames; 900 of 1,500 picks lie elsewhere"
    )
    assert "they hit 75% of 64 clusters of the pool" in lines[2]


def test_selection_against_a_dataset_of_a_small_pool_of_unknown_elements() -> None:
    duplicates = {**REPORT["duplicates"], "against_dataset": 2_000, "threshold": 0.0}
    coverage = {**REPORT["coverage"], "elements_hit": None}
    lines = format_selection({**REPORT, "n_pool": 20, "duplicates": duplicates, "coverage": coverage})
    assert lines[0] == (
        "near-duplicates left out: 1,234 of an earlier frame, 2,000 of the existing dataset "
        "(closer than 0 of the pool's spread)"
    )
    assert lines[1].endswith("75% of 20 clusters of the pool, 50% of the bins of its features")


def test_summary_tells_the_selection(reference: Result) -> None:
    page = io.StringIO()
    print_summary(reference, Console(file=page, width=200))
    report = reference.stages["select"]["report"]
    assert (report["n_pool"], report["n_picked"]) == (8, 6)
    lines = page.getvalue().splitlines()
    assert [line for line in format_selection(report) if line not in lines] == []


def test_summary_names_what_was_quarantined(tmp_path: Path) -> None:
    row = {"inputs": 3, "out": 2, "rejected": 1, "seconds": 1.0, "counts": {"alloy": 2}}
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


SPLIT_REPORT: dict[str, Any] = {
    "by": "seed", "near_duplicates": 0.01, "n_groups": 1_200, "largest_group": 40, "frame_distance": 0.1,
    "counts": {"test": 1_000, "train": 8_000, "val": 0}, "leakage": {"test": 0.004}, "leakage_random": {"test": 0.61},
}  # fmt: skip
"""What the splits tell of themselves."""


def test_splits_in_words() -> None:
    assert format_splits(SPLIT_REPORT) == [
        "splits: 8,000 train, 1,000 test; all frames of a seed and near-duplicates kept together in 1,200 groups, the "
        "largest of 40",
        "leakage: 0% of test has a training neighbour closer than a frame is to the nearest other one of its seed (in "
        "a random split 61%)",
    ]
    alone = format_splits({**SPLIT_REPORT, "by": "structure", "leakage": {}})
    assert "; nothing kept together in" in alone[0]
    assert alone[1] == "leakage: not measured, for no seed has two frames here that are described"
    for counts, why in (
        ({"train": 90, "val": 0, "test": 0}, "there is no structure to validate or test with"),
        ({"train": 0, "val": 10, "test": 80}, "there is no structure to train with"),
    ):
        assert (
            format_splits({**SPLIT_REPORT, "counts": counts, "leakage": {}})[-1] == f"leakage: not measured, for {why}"
        )


def test_given_splits_blocks_of_time_and_missing_types_in_words() -> None:
    given = format_splits({**SPLIT_REPORT, "n_given": 8_990, "n_structures": 9_000})
    assert given[0] == (
        "splits: 8,000 train, 1,000 test; as given with the frames, 10 that came without are in train "
        "(store.keep_splits=false splits anew)"
    )
    blocks = format_splits({**SPLIT_REPORT, "n_gap": 12, "gap": 0.02})
    assert blocks[0] == (
        "splits: 8,000 train, 1,000 test; blocks of time, for there are fewer seeds than splits; 12 structures of the "
        "gaps between them left out (store.gap)"
    )
    types = {"train": {"alloy": 7_000, "cluster": 1_000}, "val": {"alloy": 0, "cluster": 0}, "test": {"cluster": 0}}
    assert format_splits({**SPLIT_REPORT, "types": types})[1] == "splits: test has no cluster"


def test_candidates_are_told_where_there_are_any() -> None:
    lines = format_selection({**REPORT, "candidates": {"marked": 1_500, "picked": 72}})
    assert lines[1] == "candidates of the committee: 72 of 1,500 picked"


GO = Verdict(go=True, dataset="d", dataset_key="k", n_structures=2, checks=())


def test_commands_survive_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = Result(tmp_path / "it's mine", tmp_path / "it's mine" / "dataset.zarr", {}, {}, 0.0, GO)
    assert shorten_path(result.run_dir) == "it's mine"
    assert list_next_commands(result)[0] == """daskpipe report 'it'"'"'s mine'"""


# --- doctor ---------------------------------------------------------------------------------------------


def test_doctor_tries_every_potential(type_command: Callable[..., Any]) -> None:
    examined = examine_machine()
    assert {name: row["ok"] for name, row in examined["potentials"].items()} == {
        "emt": True, "mace (bundled)": True, "chgnet": True, "xtb": True,
    }  # fmt: skip
    assert all("eV/atom" in row["says"] for row in examined["potentials"].values())
    assert examined["machine"]["packages"]["ok"]
    json.dumps(examined)
    typed = type_command("doctor")
    assert typed.code == 0
    for name in ("GPU", "disk", "Slurm", "mace (bundled)"):
        assert name in typed.out
