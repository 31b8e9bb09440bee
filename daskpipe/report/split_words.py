"""Words for what a dataset records about its splits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

TOGETHER = {
    "seed": "all frames of a seed",
    "trajectory": "all frames of a trajectory",
    "composition": "all structures of a composition",
    "cluster": "all structures of a region of feature space",
    "structure": "nothing: a random split",
}
"""What a value of ``store.split_by`` keeps in one split."""

WORDS = {
    "seed": "seed of the shuffle",
    "split_by": "kept together",
    "by": "kept together",
    "near_duplicates": "near-duplicates kept together up to",
    "clusters": "regions of feature space, for split_by=cluster",
    "n_structures": "structures",
    "n_doubled": "structures that occurred twice, left out",
    "n_conflicts": "of these with another energy",
    "n_groups": "groups",
    "largest_group": "structures of the largest group",
    "fractions": "share asked for",
    "wanted": "share asked for",
    "counts": "structures",
    "frame_distance": "distance from a frame to the next of its trajectory",
    "leakage": "with a near training neighbour",
    "leakage_random": "the same in a random split",
}
"""What the page calls a record; those of a split, such as ``counts.val``, get its name before them."""

SHARES = ("fractions", "wanted", "leakage", "leakage_random", "near_duplicates")
HIDDEN = ("unit",)
"""Records that say the same for every dataset."""
LONGEST = 200


def describe_splits(rule: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows of a table in words: how splits were made, and how they came out.

    Parameters
    ----------
    rule, report
        Root attributes ``split_rule`` and ``split_report`` of a dataset. What they hold beyond `WORDS` is listed under
        its own name.

    Returns
    -------
    list of tuple
        What, and its value; a record that both attributes hold stands once.
    """
    rows: dict[str, str] = {}
    for key, value in _flatten({**rule, **report}):
        head, _, tail = key.partition(".")
        if head in HIDDEN:
            continue
        words = WORDS.get(head, head.replace("_", " "))
        rows.setdefault(f"{tail.replace('.', ', ')}: {words}" if tail else words, _write(head, value))
    return list(rows.items())


def _write(head: str, value: Any) -> str:
    """Write a value for people."""
    if value is None:
        return "–"
    if head in ("by", "split_by"):
        return TOGETHER.get(str(value), str(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        if head in SHARES:
            unit = " % of the spread of the features" if head == "near_duplicates" else " %"
            return f"{100 * value:.3g}{unit}"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
