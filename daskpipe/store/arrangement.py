"""The order of a dataset and its splits: told from ids and lineage alone, whatever the rows came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.store.leakage import compare
from daskpipe.store.splits import LINEAGE, Split, assign_splits, check_fractions, groups, origins
from daskpipe.variables import SPLITS

SAME_ENERGY = 1e-3
"""Energies of one structure that differ by more, eV, are labels that differ."""

COLUMNS = (*LINEAGE, "energy")
"""The variables that decide an arrangement, or are told of in its report."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Where each structure goes.

    Parameters
    ----------
    order
        Rows in their final order, shape (structure,); of rows with the same id the first alone.
    group, split
        Of each structure in that order: number of its group, and index into `SPLITS`.
    report
        How the splits came out, and their leakage; JSON types.
    """

    order: np.ndarray
    group: np.ndarray
    split: np.ndarray
    report: dict[str, Any]


def arrangement(columns: Mapping[str, np.ndarray], rule: Split, *, seed: int) -> Arrangement:
    """Shuffle structures, find groups and give them to splits.

    Parameters
    ----------
    columns
        Of `COLUMNS`, those that the data has, each with one row a structure; ``isolated`` says which are isolated atoms
        (`daskpipe.isolated`). These are reference energies: they stay in train, each a group of its own.
    rule
        What stays together, and the share of each split.
    seed
        Of the shuffle and of the split.

    Raises
    ------
    ConfigError
        If the rule needs features that the data does not have, or its fractions are no shares that sum to 1.
    """
    check_fractions(rule.split)
    order = order_by_hash(seed, "shuffle", columns["structure_id"])
    ids = columns["structure_id"][order]
    first = np.ones(len(ids), dtype=np.bool_)
    # Rows with the same id stand side by side, the one that came first before the others.
    first[1:] = ids[1:] != ids[:-1]
    kept = order[first][np.cumsum(first) - 1]
    n_conflicts = _differing(columns, kept[~first], order[~first])
    order = order[first]
    isolated = columns.get("isolated", np.zeros(len(first), dtype=np.bool_))[order]
    others = order[~isolated]
    placed = {name: columns[name][others] for name in LINEAGE if name in columns}
    of_others = groups(placed, rule, seed=seed)
    of_groups = assign_splits(np.bincount(of_others), _group_ids(placed, of_others), seed=seed, fractions=rule.split)
    group = np.full(len(order), len(of_groups), dtype=np.int32)
    group[~isolated] = of_others
    group[isolated] += np.arange(np.count_nonzero(isolated), dtype=np.int32)
    split = np.full(len(order), SPLITS.index("train"), dtype=np.uint8)
    split[~isolated] = of_groups[of_others]
    sizes = np.bincount(group)
    counts = np.bincount(split, minlength=len(SPLITS)).tolist()
    report = {
        "by": rule.split_by,
        "near_duplicates": rule.near_duplicates,
        "n_structures": len(order),
        "n_doubled": int(len(first) - first.sum()),
        "n_conflicts": n_conflicts,
        "n_groups": len(sizes),
        "largest_group": int(sizes.max(initial=0)),
        "counts": dict(zip(SPLITS, counts, strict=True)),
        "wanted": {name: rule.split.get(name, 0.0) for name in SPLITS},
        **compare(placed, split[~isolated], seed=seed, fractions=rule.split),
    }
    if isolated.any():
        report["n_isolated_atoms"] = int(isolated.sum())
    return Arrangement(order=order, group=group, split=split, report=report)


def _differing(columns: Mapping[str, np.ndarray], kept: np.ndarray, dropped: np.ndarray) -> int:
    """Count structures that are left out, although their energy is not that of the one that is kept."""
    if "energy" not in columns:
        return 0
    one, other = columns["energy"][kept], columns["energy"][dropped]
    return int(np.sum(~np.isclose(one, other, rtol=0, atol=SAME_ENERGY, equal_nan=True)))


def _group_ids(columns: Mapping[str, np.ndarray], group: np.ndarray) -> np.ndarray:
    """Return the smallest id of a seed that each group holds, shape (group,)."""
    seeds, rank = np.unique(origins(columns), return_inverse=True)
    by_seed = np.argsort(rank.reshape(-1), kind="stable")
    return seeds[rank.reshape(-1)[by_seed][np.unique(group[by_seed], return_index=True)[1]]]
