"""The order of a dataset and its splits: told from ids and lineage alone, whatever the rows came in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.store.assignment import assign_splits, per_group, size_classes_of, types_of, types_of_splits
from daskpipe.store.blocks_of_time import cut_in_time
from daskpipe.store.connectivity import Frame, connect_frames
from daskpipe.store.leakage import compare
from daskpipe.store.splits import LINEAGE, Split, check_fractions, groups, origins
from daskpipe.variables import SPLITS

SAME_ENERGY = 1e-3
"""Energies of one structure that differ by more, eV, are labels that differ."""

COLUMNS = (*LINEAGE, "energy", "generator", "n_atoms", "split", "system_type")
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


def arrangement(
    columns: Mapping[str, np.ndarray], rule: Split, *, seed: int, frame_of: Callable[[int], Frame] | None = None
) -> Arrangement:
    """Shuffle structures, find groups and give them to splits.

    Structures that came with a split keep it. Trajectories of fewer seeds than splits are cut in time, and the frames
    of the gaps left out.

    Parameters
    ----------
    columns
        Of `COLUMNS`, those that the data has, each with one row a structure; ``isolated`` (bool), if it is there, says
        which are isolated atoms (`daskpipe.isolated`): reference energies, which stay in train, each a group of its
        own.
    rule
        What stays together, and the share of each split.
    seed
        Of the shuffle and of the split.
    frame_of
        Returns the geometry of a row, by which imported frames are connected; without it they are told by lineage.

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
    placed = {name: columns[name][others] for name in COLUMNS if name in columns}
    if frame_of is not None:
        placed["component"] = connect_frames(placed, lambda row: frame_of(int(others[row])))
    of_others, split_of_others, stays, facts = _split(placed, rule, seed)
    placed = {name: values[stays] for name, values in placed.items()}
    kept = np.ones(len(order), dtype=np.bool_)
    kept[~isolated] = stays
    order, isolated = order[kept], isolated[kept]
    group = np.full(len(order), of_others.max(initial=-1) + 1, dtype=np.int32)
    group[~isolated] = of_others
    group[isolated] += np.arange(np.count_nonzero(isolated), dtype=np.int32)
    split = np.full(len(order), SPLITS.index("train"), dtype=np.uint8)
    split[~isolated] = split_of_others
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
        **compare(placed, split_of_others, seed=seed, fractions=rule.split),
    }
    if isolated.any():
        report["n_isolated_atoms"] = int(isolated.sum())
    return Arrangement(order=order, group=group, split=split, report=report)


def _split(
    columns: Mapping[str, np.ndarray], rule: Split, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Return group and split of each structure that stays, which ones stay, and what the report says of it."""
    group, stays = groups(columns, rule, seed=seed), np.ones(len(columns["structure_id"]), dtype=np.bool_)
    if rule.keep_splits and "split" in columns and (given := np.isin(columns["split"], SPLITS)).any():
        codes = {name: code for code, name in enumerate(SPLITS)}
        split = np.array([codes.get(name, 0) for name in columns["split"].tolist()], dtype=np.uint8)
        return group, split, stays, {"n_given": int(given.sum())}
    if (blocks := cut_in_time(columns, group, rule)) is not None:
        group, split, stays = blocks
        return group[stays], split[stays], stays, {"n_gap": int((~stays).sum()), "gap": rule.gap}
    return group, _assigned(columns, group, rule, seed), stays, {}


def _assigned(columns: Mapping[str, np.ndarray], group: np.ndarray, rule: Split, seed: int) -> np.ndarray:
    """Return the split of each structure: groups are dealt out so that types and sizes get their shares."""
    if not len(group):
        return np.zeros(0, dtype=np.uint8)  # there are isolated atoms alone
    sizes, ids = np.bincount(group), _group_ids(columns, group)
    types, strata = (per_group(group, members) for members in (types_of(columns), size_classes_of(columns)))
    return assign_splits(sizes, ids, seed=seed, fractions=rule.split, types=types, strata=strata)[group]


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
