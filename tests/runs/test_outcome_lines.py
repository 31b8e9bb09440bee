"""The outcome of a run in words: selection, splits, candidates."""

from __future__ import annotations

from runs.outcome_samples import REPORT, SPLIT_REPORT

from daskpipe.cli.progress import (
    format_selection,
    format_splits,
)
from daskpipe.runs.outcome_lines import format_evaluators


def test_selection_in_words() -> None:
    assert format_selection(REPORT) == [
        "near-duplicates left out: 1,234 of an earlier frame (closer than 0.001 of the pool's spread)",
        "1,500 of 12,000 frames picked by fps: they hit 75% of 256 clusters of the pool, 50% of the bins of its "
        "features, 100% of the elements",
        "distance of a frame to the nearest pick: mean 0.0123, 95 % below 0.0456, largest 1.5",
    ]


def test_an_energy_window_is_told_first() -> None:
    lines = format_selection({**REPORT, "above_energy_window": 8_000})
    assert lines[0] == "above the energy window: 8,000 of 12,000 frames left out"
    assert len(lines) == 4


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


def test_evaluators_are_counted_by_name_and_reason() -> None:
    tallies = {"evaluated_by/torch (no compiler)": 3, "evaluated_by/symmetrix 0.1.1": 1200, "swaps_tried": 9}
    line = "evaluated by symmetrix 0.1.1: 1,200 trajectories; torch (no compiler): 3 trajectories"
    assert format_evaluators(tallies) == [line]
    assert format_evaluators({"swaps_tried": 9}) == []
