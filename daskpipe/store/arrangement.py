"""Arrange a dataset: its order, groups and splits follow from ids and lineage, not from the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.variables import SPLITS
from daskpipe.store.assignment import assign_splits, per_group, size_classes_of, types_of, types_of_splits
from daskpipe.store.blocks_of_time import cut_in_time
from daskpipe.store.connectivity import Frame, connect_frames
from daskpipe.store.leakage import compare_leakage
from daskpipe.store.splits import LINEAGE, Split, check_fractions, find_groups, seed_ids_of

SAME_ENERGY = 1e-3
"""Difference between two energies of one structure, eV, above which its labels conflict."""

COLUMNS = (*LINEAGE, "energy", "generator", "n_atoms", "split", "system_type")
"""Variables that decide an arrangement, or that its report counts."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Place of each structure in a dataset.

    Parameters
    ----------
    order
        Rows in their final order, shape (structure,), int64; of rows with the same id only the first.
    group, split
        Number of the group, int32, and index into `SPLITS`, uint8, of each structure in that order, shape (structure,).
    report
        Sizes of splits and groups, and the leakage; JSON types.
    """

    order: np.ndarray
    group: np.ndarray
    split: np.ndarray
    report: dict[str, Any]


def find_arrangement(
    columns: Mapping[str, np.ndarray], rule: Split, *, seed: int, frame_of: Callable[[int], Frame] | None = None
) -> Arrangement:
    """Shuffle structures, and assign their groups to splits.

    Structures that came with a split keep it. Where there are fewer seeds than splits, trajectories are cut in time,
    and the frames of the gaps are left out.

    Parameters
    ----------
    columns
        Those of `COLUMNS` that the data has, one row per structure. ``reference`` (bool, optional) marks reference data
        (`daskpipe.core.isolated_atoms.reference_rows`), which stay in train, each in a group of its own.
    rule
        Rule of what stays together, and the share of each split.
    seed
        Seed of the shuffle and of the split.
    frame_of
        Returns the geometry of a row, by which imported frames are connected; without it, only lineage connects them.

    Raises
    ------
    ConfigError
        If the rule needs features that the data does not have, or its fractions are not shares that sum to 1.
    """
    check_fractions(rule.split)
    order = order_by_hash(seed, "shuffle", columns["structure_id"])
    ids = columns["structure_id"][order]
    first = np.ones(len(ids), dtype=np.bool_)
    # Rows with the same id are neighbours in this order, the one that came first before the others.
    first[1:] = ids[1:] != ids[:-1]
    kept = order[first][np.cumsum(first) - 1]
    n_conflicts = _count_conflicts(columns, kept[~first], order[~first])
    order = order[first]
    reference = columns.get("reference", np.zeros(len(first), dtype=np.bool_))[order]
    others = order[~reference]
    placed = {name: columns[name][others] for name in COLUMNS if name in columns}
    if frame_of is not None:
        placed["component"] = connect_frames(placed, lambda row: frame_of(int(others[row])))
    of_others, split_of_others, stays, facts = _split_structures(placed, rule, seed)
    placed = {name: values[stays] for name, values in placed.items()}
    kept = np.ones(len(order), dtype=np.bool_)
    kept[~reference] = stays
    order, reference = order[kept], reference[kept]
    group = np.full(len(order), of_others.max(initial=-1) + 1, dtype=np.int32)
    group[~reference] = of_others
    group[reference] += np.arange(np.count_nonzero(reference), dtype=np.int32)
    split = np.full(len(order), SPLITS.index("train"), dtype=np.uint8)
    split[~reference] = split_of_others
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
        "types": types_of_splits(placed, split_of_others),
        **facts,
        **compare_leakage(placed, split_of_others, seed=seed, fractions=rule.split),
    }
    if reference.any():
        report["n_reference"] = int(reference.sum())
    return Arrangement(order=order, group=group, split=split, report=report)


def _split_structures(
    columns: Mapping[str, np.ndarray], rule: Split, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Return group and split of each structure that stays, which structures stay, and facts for the report."""
    group, stays = find_groups(columns, rule, seed=seed), np.ones(len(columns["structure_id"]), dtype=np.bool_)
    if rule.keep_splits and "split" in columns and (given := np.isin(columns["split"], SPLITS)).any():
        codes = {name: code for code, name in enumerate(SPLITS)}
        split = np.array([codes.get(name, 0) for name in columns["split"].tolist()], dtype=np.uint8)
        return group, split, stays, {"n_given": int(given.sum())}
    if (blocks := cut_in_time(columns, group, rule)) is not None:
        group, split, stays = blocks
        return group[stays], split[stays], stays, {"n_gap": int((~stays).sum()), "gap": rule.gap}
    return group, _assign_groups(columns, group, rule, seed), stays, {}


def _assign_groups(columns: Mapping[str, np.ndarray], group: np.ndarray, rule: Split, seed: int) -> np.ndarray:
    """Return the split of each structure: groups are assigned so that types and sizes get their shares."""
    if not len(group):
        return np.zeros(0, dtype=np.uint8)  # all structures are reference data
    sizes, ids = np.bincount(group), _smallest_seed_ids(columns, group)
    types, strata = (per_group(group, members) for members in (types_of(columns), size_classes_of(columns)))
    return assign_splits(sizes, ids, seed=seed, fractions=rule.split, types=types, strata=strata)[group]


def _count_conflicts(columns: Mapping[str, np.ndarray], kept: np.ndarray, dropped: np.ndarray) -> int:
    """Count structures that are left out although their energy differs from that of the structure that is kept."""
    if "energy" not in columns:
        return 0
    one, other = columns["energy"][kept], columns["energy"][dropped]
    return int(np.sum(~np.isclose(one, other, rtol=0, atol=SAME_ENERGY, equal_nan=True)))


def _smallest_seed_ids(columns: Mapping[str, np.ndarray], group: np.ndarray) -> np.ndarray:
    """Return the smallest id of the seeds in each group, shape (group,)."""
    seeds, rank = np.unique(seed_ids_of(columns), return_inverse=True)
    by_seed = np.argsort(rank.reshape(-1), kind="stable")
    return seeds[rank.reshape(-1)[by_seed][np.unique(group[by_seed], return_index=True)[1]]]
