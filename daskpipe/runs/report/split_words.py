"""Describe in words what a dataset records about its splits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from daskpipe.core.variables import SPLITS
from daskpipe.runs.outcome_lines import KEPT_TOGETHER

WORDS = {
    "split_by": "kept together",
    "by": "kept together",
    "near_duplicates": "near-duplicates kept together up to",
    "clusters": "regions of feature space, for split_by=cluster",
    "n_groups": "groups",
    "largest_group": "structures of the largest group",
    "n_doubled": "structures that occurred twice, left out",
    "n_conflicts": "of these with another energy",
    "n_given": "structures that came with their split",
    "n_gap": "frames between two blocks of time, left out",
    "n_reference": "isolated atoms and other reference data, which stay in train",
    "n_isolated_atoms": "isolated atoms, which stay in train",  # of earlier versions
    "frame_distance": "distance from a frame to the nearest other one of its seed",
    "seed": "seed of the shuffle",
}
"""Name of each record on the page, in the order of its table."""

OF_A_SPLIT = ("wanted", "leakage", "leakage_random")
"""Shares that are recorded for each split: asked for, with a near neighbour in train, and the latter at random."""

HIDDEN = ("unit", "n_structures", "counts", "types", "fractions", *OF_A_SPLIT)
"""Records that are the same for every dataset, or that the page shows elsewhere."""

LONGEST = 200
"""Most characters of a value."""


def describe_splits(rule: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe how splits were made, and their result, in rows of a table.

    Parameters
    ----------
    rule, report
        Root attributes ``split_rule`` and ``split_report`` of a dataset. What they hold beyond `WORDS` is listed at
        the end under its own name; shares of each split are left to `list_shares`.

    Returns
    -------
    list of tuple
        Name and value of each record; a record in both attributes is listed once.
    """
    given = {**rule, **report}
    rows = {WORDS[name]: _format_value(name, given[name]) for name in WORDS if name in given}
    if given.get("split_by") != "cluster":
        rows.pop(WORDS["clusters"], None)
    others = {name: value for name, value in given.items() if name not in WORDS and name not in HIDDEN}
    return [
        *rows.items(),
        *((name.replace("_", " "), _format_value("", value)) for name, value in _flatten_names(others)),
    ]


def list_shares(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """List the shares of each split (`OF_A_SPLIT`) in per cent, in rows of a table; a dash if not recorded."""
    records = [record if isinstance(record := report.get(name), Mapping) else {} for name in OF_A_SPLIT]
    named = dict.fromkeys(split for record in records for split in record)
    splits = sorted(named, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))
    return [(str(split), *(_format_share(record.get(split)) for record in records)) for split in splits]


def _format_share(value: Any) -> str:
    return f"{100 * value:.3g} %" if isinstance(value, int | float) else "–"


def _format_value(head: str, value: Any) -> str:
    """Write a value for people."""
    if value is None:
        return "–"
    if head in ("by", "split_by"):
        return KEPT_TOGETHER.get(str(value), str(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        if head == "near_duplicates":
            return f"{100 * value:.3g} % of the spread of the features"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _flatten_names(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten_names(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
