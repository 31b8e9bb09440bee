"""Groups of structures given to splits: shares of the data, and of each system type and size, are met."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.variables import SPLITS

SIZE_CLASSES = 4
"""Classes of numbers of atoms, cut at quantiles, of which each split is to have its share."""

SHARE_WEIGHT = 2.0
"""How much a structure too few or too many in a split counts, beside one of a type or a size."""

MOST_MOVES = 2_000
"""Most groups that change their split after the first deal."""

MOST_SWAPPED = 1_024
"""Most groups among which pairs that should change places are looked for: all pairs are compared."""


def assign_splits(
    sizes: np.ndarray,
    group_ids: np.ndarray,
    *,
    seed: int,
    fractions: Mapping[str, float],
    strata: np.ndarray | None = None,
) -> np.ndarray:
    """Give each group to a split.

    Groups come in an order that is random in their ids, and each goes to the split that lacks most of what it holds.
    Then single groups move, and pairs of groups change places, as long as this brings the shares closer: those of the
    structures, and of each stratum (iterative stratification after Sechidis et al., DOI
    10.1007/978-3-642-23808-6_10, for groups). A split with a share gets at least one group if there are as many groups
    as such splits.

    Parameters
    ----------
    sizes, group_ids
        Number of structures and id of each group, shape (group,).
    seed
        Of the order of the groups.
    fractions
        Share of the structures by name of the split.
    strata
        Structures of each stratum in each group, shape (group, stratum); by default the shares of the structures alone
        count.

    Returns
    -------
    numpy.ndarray
        Index into `SPLITS` of each group, shape (group,), dtype uint8.
    """
    if not len(sizes):
        return np.zeros(0, dtype=np.uint8)
    shares = np.array([fractions.get(name, 0.0) for name in SPLITS])
    shared = np.flatnonzero(shares > 0)
    held = SHARE_WEIGHT * sizes[:, None].astype(np.float64)
    if strata is not None:
        held = np.concatenate([held, strata], axis=1)
    order = order_by_hash(seed, "split", group_ids)
    held, codes = held[order], np.zeros(len(sizes), dtype=np.int64)
    lacking = shares[:, None] * held.sum(axis=0)
    for place, of_group in enumerate(held):
        codes[place] = shared[np.argmax(lacking[shared] @ of_group)]
        lacking[codes[place]] -= of_group
    for _ in range(MOST_MOVES):
        if not (_move_group(held, codes, lacking, shared) or _swap_groups(held, codes, lacking, shared)):
            break
    for code in shared.tolist():
        counts = np.bincount(codes, minlength=len(SPLITS))
        if counts[code] == 0 and counts.max() > 1:
            donors = np.flatnonzero(counts[codes] > 1)
            codes[donors[np.argmin(sizes[order][donors])]] = code
    found = np.empty(len(sizes), dtype=np.uint8)
    found[order] = codes
    return found


def _move_group(held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray) -> bool:
    """Move the group whose move lowers the sum of squared misses most; return whether there is one."""
    # A move of h from one split to another changes the sum by 2 h (h + lacking of the one - lacking of the other).
    own = np.einsum("gk,gk->g", held, held + lacking[codes])
    change = own[:, None] - held @ lacking[shared].T
    change[codes[:, None] == shared] = 0
    group, taker = np.unravel_index(np.argmin(change), change.shape)
    if change[group, taker] > -1e-9:
        return False
    lacking[codes[group]] += held[group]
    codes[group] = shared[taker]
    lacking[codes[group]] -= held[group]
    return True


def _swap_groups(held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray) -> bool:
    """Let the two groups of different splits change places whose swap lowers the sum most, as `_move_group`."""
    if len(held) > MOST_SWAPPED:
        return False
    squares = np.einsum("gk,gk->g", held, held)
    best, pair = -1e-9, None
    for number, one in enumerate(shared.tolist()):
        for other in shared[number + 1 :].tolist():
            here, there = np.flatnonzero(codes == one), np.flatnonzero(codes == other)
            if not (len(here) and len(there)):
                continue
            along = held @ (lacking[one] - lacking[other]) + squares
            against = squares - held @ (lacking[one] - lacking[other])
            change = along[here][:, None] + against[there] - 2 * held[here] @ held[there].T
            place = np.unravel_index(np.argmin(change), change.shape)
            if change[place] < best:
                best, pair = float(change[place]), (here[place[0]], there[place[1]])
    if pair is None:
        return False
    one, other = (int(codes[group]) for group in pair)
    lacking[one] += held[pair[0]] - held[pair[1]]
    lacking[other] += held[pair[1]] - held[pair[0]]
    codes[pair[0]], codes[pair[1]] = other, one
    return True


def strata_of(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which strata each structure belongs to: one of the system types, and one of the classes of size.

    Parameters
    ----------
    columns
        ``system_type`` and ``n_atoms``, those that the data has, each with one row a structure.

    Returns
    -------
    numpy.ndarray
        Shape (structure, stratum), float64, of 0 and 1.
    """
    found = [np.zeros((len(columns["structure_id"]), 0))]
    if "system_type" in columns:
        found.append(_members(np.unique(columns["system_type"], return_inverse=True)[1]))
    if "n_atoms" in columns:
        inner = np.quantile(columns["n_atoms"], np.arange(1, SIZE_CLASSES) / SIZE_CLASSES, method="inverted_cdf")
        classes = np.searchsorted(np.unique(inner), columns["n_atoms"], side="right")
        found.append(_members(np.unique(classes, return_inverse=True)[1]))
    return np.concatenate(found, axis=1)


def _members(number: np.ndarray) -> np.ndarray:
    return (number.reshape(-1, 1) == np.arange(number.max(initial=-1) + 1)).astype(np.float64)


def types_of_splits(columns: Mapping[str, np.ndarray], split: np.ndarray) -> dict[str, dict[str, int]]:
    """Count the structures of each system type in each split; a type that a split lacks is 0 there."""
    if "system_type" not in columns:
        return {}
    names, number = np.unique(columns["system_type"], return_inverse=True)
    counts = np.zeros((len(SPLITS), len(names)), dtype=np.int64)
    np.add.at(counts, (split, number.reshape(-1)), 1)
    rows = (dict(zip(names.tolist(), row, strict=True)) for row in counts.tolist())
    return dict(zip(SPLITS, rows, strict=True))
