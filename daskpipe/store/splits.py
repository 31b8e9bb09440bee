"""Groups that must not be torn apart, and the share of the data that each belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from daskpipe.errors import ConfigError, unknown
from daskpipe.seeds import order_by_hash
from daskpipe.variables import SPLITS


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Check that `fractions` are shares of known splits that sum to 1.

    Raises
    ------
    ConfigError
        Saying which share is wrong, what was received and what would be right.
    """
    for name, share in fractions.items():
        if name not in SPLITS:
            raise ConfigError(unknown("split", name, list(SPLITS)))
        if not 0 <= share <= 1:
            raise ConfigError(f"split {name}={share} is no share; give a number from 0 to 1")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:  # room for 0.7 + 0.2 + 0.1 and for thirds typed with six digits
        given = ", ".join(f"{name}={share:g}" for name, share in fractions.items()) or "nothing"
        raise ConfigError(f"the splits must sum to 1; received {given} (sum {total:g}), try train=0.8 val=0.1 test=0.1")


def group_numbers(structure_id: np.ndarray, parent_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give a number to each seed that structures come from.

    Parameters
    ----------
    structure_id, parent_id
        Shape (structure,), 16 bytes each; a parent of zeros marks a structure that is a seed itself.

    Returns
    -------
    group
        Number of each structure's seed in the sorted list of seeds, shape (structure,), dtype int32.
    group_ids
        The sorted seeds, shape (group,), dtype V16.
    """
    no_parent = parent_id == np.zeros((), dtype=parent_id.dtype)
    group_ids, group = np.unique(np.where(no_parent, structure_id, parent_id), return_inverse=True)
    return group.astype(np.int32), group_ids


def assign_splits(sizes: np.ndarray, group_ids: np.ndarray, *, seed: int, fractions: Mapping[str, float]) -> np.ndarray:
    """Give each group to a split.

    Groups come in an order that is random in their ids, and each goes to the split that lacks most structures.
    So a split misses its share by at most the sizes of the largest groups, whatever the fractions. A split
    with a share gets at least one group if there are as many groups as such splits.

    Parameters
    ----------
    sizes, group_ids
        Number of structures and id of each group, shape (group,).
    seed
        Of the order of the groups.
    fractions
        Share of the structures by name of the split.

    Returns
    -------
    numpy.ndarray
        Index into `SPLITS` of each group, shape (group,), dtype uint8.
    """
    shares = np.array([fractions.get(name, 0.0) for name in SPLITS])
    lacking = shares * sizes.sum()
    shared: list[int] = np.flatnonzero(shares > 0).tolist()
    waiting = set(shared)  # splits that still need their first group
    codes = np.zeros(len(sizes), dtype=np.uint8)
    order = order_by_hash(seed, "split", group_ids)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        # The last groups are kept for splits that would otherwise stay empty. A split without a share gets none.
        open_splits = sorted(waiting) if left <= len(waiting) else shared
        code = max(open_splits, key=lacking.__getitem__)
        codes[group] = code
        lacking[code] -= sizes[group]
        waiting.discard(code)
    return codes
