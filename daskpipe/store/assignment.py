"""Groups of structures given to splits: shares of the data, and of each system type and size, are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.variables import SPLITS

SIZE_CLASSES = 4
"""Classes of numbers of atoms, cut at quantiles, of which each split is to have its share."""

SHARE_WEIGHT = 2.0
"""How much a structure too few or too many in a split counts, beside one of a type or a size."""

SLACK = 0.05
"""Difference of a share, beyond what whole groups allow, up to which an assignment is good enough."""

MIN_OF_TYPE = 3
"""Structures of a system type that a split should hold by its share, from which on their lack is a fault."""

MOST_MOVES = 2_000
"""Most groups that change their split after the first deal."""

MOST_SWAPPED = 1_024
"""Most groups among which pairs that should change places are looked for: all pairs are compared."""

TRAIN = SPLITS.index("train")


def assign_splits(
    sizes: np.ndarray,
    group_ids: np.ndarray,
    *,
    seed: int,
    fractions: Mapping[str, float],
    types: np.ndarray | None = None,
    strata: np.ndarray | None = None,
) -> np.ndarray:
    """Give each group to a split.

    Groups come in an order that is random in their ids, and each goes to the split that lacks most of what it holds.
    Then single groups move, and pairs of groups change places, as long as this brings the shares closer: those of the
    structures, and of each type and stratum (iterative stratification after Sechidis et al., DOI
    10.1007/978-3-642-23808-6_10, for groups).

    Where groups are few, what matters more goes first:

    1. A split with a share gets at least one group, if there are as many groups as such splits.
    2. Training data have every system type, before any other split has it: what a model never saw, it cannot be tested
       on. If each of the other splits needs its only group, the types with fewest structures are left out.
    3. The shares.

    An assignment that `Attainable` finds wanting, as the quality gate does, gives way to the one that it is held
    against.

    Parameters
    ----------
    sizes, group_ids
        Number of structures and id of each group, shape (group,).
    seed
        Of the order of the groups.
    fractions
        Share of the structures by name of the split.
    types
        Structures of each system type in each group, shape (group, type).
    strata
        Structures of each other stratum in each group, shape (group, stratum).

    Returns
    -------
    numpy.ndarray
        Index into `SPLITS` of each group, shape (group,), dtype uint8.
    """
    none = np.zeros((len(sizes), 0))
    types, strata = (none if table is None else table for table in (types, strata))
    if not len(sizes):
        return np.zeros(0, dtype=np.uint8)
    shares = _shares_of(fractions)
    order = order_by_hash(seed, "split", group_ids)
    codes = np.empty(len(sizes), dtype=np.uint8)
    codes[order] = _deal_groups(sizes[order], types[order], strata[order], shares)
    if _is_met(codes, sizes, types, shares):
        return codes
    reference = Attainable.of(sizes, types, fractions)
    return codes if reference.is_reached(codes, sizes, types, SLACK) else reference.codes


@dataclass(frozen=True, kw_only=True)
class Attainable:
    """What whole groups allow: one assignment, by which others are judged. It does not depend on the groups' order.

    Parameters
    ----------
    codes
        Index into `SPLITS` of each group, dealt out for sizes and system types, shape (group,), dtype uint8.
    shares
        That each split should have, shape (split,).
    off
        Largest difference of a share that is left.
    due
        Which split should have which type, bool, shape (split, type).
    """

    codes: np.ndarray
    shares: np.ndarray
    off: float
    due: np.ndarray

    @classmethod
    def of(cls, sizes: np.ndarray, types: np.ndarray, fractions: Mapping[str, float]) -> Attainable:
        """Deal out groups.

        Parameters
        ----------
        sizes
            Number of structures of each group, shape (group,).
        types
            Structures of each system type in each group, shape (group, type).
        fractions
            Share of the structures by name of the split; without any, nothing is due.
        """
        shares = _shares_of(fractions)
        codes = np.zeros(len(sizes), dtype=np.uint8)
        if shares.any() and len(sizes):
            order = np.lexsort((*types.T, -sizes))  # groups that are equal in both may change places
            codes[order] = _deal_groups(sizes[order], types[order], np.zeros((len(sizes), 0)), shares)
        off = measure_off(codes, sizes, shares)
        return cls(codes=codes, shares=shares, off=off, due=_types_due(types, shares) & ~lacks_type(codes, types))

    def is_reached(self, codes: np.ndarray, sizes: np.ndarray, types: np.ndarray, slack: float) -> bool:
        """Return whether an assignment has all types that are due, and no share is off by `slack` more than here."""
        missed = bool((self.due & lacks_type(codes, types)).any())
        return not missed and measure_off(codes, sizes, self.shares) <= self.off + slack


def measure_off(codes: np.ndarray, sizes: np.ndarray, shares: np.ndarray) -> float:
    """Return the largest difference of a share of the structures from what it should be; 0 where nothing should be."""
    if not shares.any() or not sizes.sum():
        return 0.0
    parts = np.bincount(codes, weights=sizes, minlength=len(SPLITS)) / sizes.sum()
    return float(np.abs(parts - shares).max())


def lacks_type(codes: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return which split has no structure of which type, bool, shape (split, type)."""
    held = np.zeros((len(SPLITS), types.shape[1]))
    np.add.at(held, codes, types)
    return np.asarray(held == 0)


def _types_due(types: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return which split should have which type by its share, if groups can be dealt out so, bool (split, type)."""
    total = types.sum(axis=0)
    wanted = shares[:, None] * total
    # Beside the largest group, which may be in training, there is enough for the split.
    enough = (total - types.max(axis=0, initial=0) >= wanted) & (wanted >= MIN_OF_TYPE)
    due = enough & ((types > 0).sum(axis=0) >= np.count_nonzero(shares)) & (shares[:, None] > 0)
    due[TRAIN] = (shares[TRAIN] > 0) & (wanted[TRAIN] >= MIN_OF_TYPE)
    return np.asarray(due)


def _is_met(codes: np.ndarray, sizes: np.ndarray, types: np.ndarray, shares: np.ndarray) -> bool:
    """Return whether an assignment is good enough whatever groups allow."""
    lacking = bool(lacks_type(codes, types)[shares > 0].any())
    return not lacking and measure_off(codes, sizes, shares) <= SLACK


def _shares_of(fractions: Mapping[str, float]) -> np.ndarray:
    return np.array([fractions.get(name, 0.0) for name in SPLITS])


def _deal_groups(sizes: np.ndarray, types: np.ndarray, strata: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the split of each group, shape (group,), int64; groups come in the order of the rows."""
    shared = np.flatnonzero(shares > 0)
    held = np.concatenate([SHARE_WEIGHT * sizes[:, None].astype(np.float64), types, strata], axis=1)
    codes = np.zeros(len(sizes), dtype=np.int64)
    lacking = shares[:, None] * held.sum(axis=0)
    for place, of_group in enumerate(held):
        codes[place] = shared[np.argmax(lacking[shared] @ of_group)]
        lacking[codes[place]] -= of_group
    _bring_closer(held, codes, lacking, shared)
    filled = _fill_empty_splits(held, codes, lacking, shared)
    if _give_types_to_training(held, types, codes, lacking, shared) or filled:
        _bring_closer(held, codes, lacking, shared, keep=_needed_in_training(types, codes))
    return codes


def _bring_closer(
    held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray, keep: np.ndarray | None = None
) -> None:
    """Move and swap groups as long as this brings the shares closer.

    Parameters
    ----------
    held, codes, lacking, shared
        Of `_deal_groups`; `codes` and `lacking` change.
    keep
        Groups that stay where they are, bool, shape (group,). If it is given, no split is emptied.
    """
    for _ in range(MOST_MOVES):
        stays = np.zeros(len(held), dtype=np.bool_) if keep is None else keep
        only = stays if keep is None else keep | (np.bincount(codes, minlength=len(SPLITS))[codes] == 1)
        if not (_move_group(held, codes, lacking, shared, only) or _swap_groups(held, codes, lacking, shared, stays)):
            return


def _take(held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, group: int, taker: int) -> None:
    """Let a split take a group."""
    lacking[codes[group]] += held[group]
    codes[group] = taker
    lacking[taker] -= held[group]


def _fill_empty_splits(held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray) -> bool:
    """Give a small group to each split that has none; return whether there was one."""
    filled = False
    for code in shared.tolist():
        counts = np.bincount(codes, minlength=len(SPLITS))
        if counts[code] == 0 and counts.max() > 1:
            donors = np.flatnonzero(counts[codes] > 1)
            _take(held, codes, lacking, int(donors[np.argmin(held[donors, 0])]), code)
            filled = True
    return filled


def _give_types_to_training(
    held: np.ndarray, types: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray
) -> bool:
    """Bring each type to the training split, as far as no split is emptied; return whether a group went there.

    A group of a type that is lacking comes over. If it is all that its split has, another group takes its place.
    """
    total, changed = types.sum(axis=0), False
    while TRAIN in shared:
        there, counts = types[codes == TRAIN].sum(axis=0), np.bincount(codes, minlength=len(SPLITS))
        wanted = np.flatnonzero((codes != TRAIN) & (types[:, there == 0] > 0).any(axis=1))
        free = wanted[counts[codes[wanted]] > 1]
        best = _best_exchange(held, types, codes, lacking, free, np.full(len(free), -1))
        for group in wanted[counts[codes[wanted]] == 1].tolist():
            others = np.flatnonzero((codes != codes[group]) & ((counts[codes] > 1) | (codes == TRAIN)))
            best = min(best, _best_exchange(held, types, codes, lacking, np.full(len(others), group), others))
        lost, _, group, other = best
        if lost >= float(total[there == 0].sum()):
            break
        own, changed = int(codes[group]), True
        _take(held, codes, lacking, group, TRAIN)
        if other >= 0:
            _take(held, codes, lacking, other, own)
    return changed


def _best_exchange(
    held: np.ndarray, types: np.ndarray, codes: np.ndarray, lacking: np.ndarray, groups: np.ndarray, others: np.ndarray
) -> tuple[float, float, int, int]:
    """Choose a group that goes to training while another (-1: none) takes its place in its split.

    Returns
    -------
    tuple
        Structures of the types that training lacks then, the change of the sum of squared misses, the group and the
        other one; infinite numbers if there is nothing to choose from.
    """
    if not len(groups):
        return np.inf, np.inf, -1, -1
    replaced, from_training = others >= 0, (others >= 0) & (codes[others] == TRAIN)
    gives = held[others] * replaced[:, None]
    left = types[codes == TRAIN].sum(axis=0) + types[groups] - types[others] * from_training[:, None]
    lost = (left == 0) @ types.sum(axis=0)
    change = np.zeros(len(groups))
    after_training = lacking[TRAIN] - held[groups] + gives * from_training[:, None]
    after_own = lacking[codes[groups]] + held[groups] - gives
    after_donor = lacking[codes[others]] + gives
    for after, before, counts in (
        (after_training, lacking[TRAIN], True),
        (after_own, lacking[codes[groups]], True),
        (after_donor, lacking[codes[others]], replaced & ~from_training),
    ):
        change += np.where(counts, (after**2 - before**2).sum(axis=1), 0.0)
    place = int(np.lexsort((change, lost))[0])
    return float(lost[place]), float(change[place]), int(groups[place]), int(others[place])


def _needed_in_training(types: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return groups that hold all types which the training split has, small ones, bool, shape (group,)."""
    needed = np.zeros(len(codes), dtype=np.bool_)
    for kind in range(types.shape[1]):
        holders = np.flatnonzero((codes == TRAIN) & (types[:, kind] > 0))
        if len(holders) and not needed[holders].any():
            needed[holders[np.argmin(types[holders].sum(axis=1))]] = True
    return needed


def _move_group(
    held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray, stays: np.ndarray
) -> bool:
    """Move the group whose move lowers the sum of squared misses most; return whether there is one."""
    # A move of h from one split to another changes the sum by 2 h (h + lacking of the one - lacking of the other).
    own = np.einsum("gk,gk->g", held, held + lacking[codes])
    change = own[:, None] - held @ lacking[shared].T
    change[(codes[:, None] == shared) | stays[:, None]] = 0
    group, taker = np.unravel_index(np.argmin(change), change.shape)
    if change[group, taker] > -1e-9:
        return False
    _take(held, codes, lacking, int(group), int(shared[taker]))
    return True


def _swap_groups(
    held: np.ndarray, codes: np.ndarray, lacking: np.ndarray, shared: np.ndarray, stays: np.ndarray
) -> bool:
    """Let the two groups of different splits change places whose swap lowers the sum most, as `_move_group`."""
    if len(held) > MOST_SWAPPED:
        return False
    squares = np.einsum("gk,gk->g", held, held)
    best, pair = -1e-9, None
    for number, one in enumerate(shared.tolist()):
        for other in shared[number + 1 :].tolist():
            here, there = (np.flatnonzero((codes == code) & ~stays) for code in (one, other))
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


def types_of(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the system type of each structure, shape (structure, type), float64, of 0 and 1; no type if unknown."""
    if "system_type" not in columns:
        return np.zeros((len(columns["structure_id"]), 0))
    return _members(np.unique(columns["system_type"], return_inverse=True)[1])


def size_classes_of(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the class of size of each structure, shape (structure, class), float64, of 0 and 1; none if unknown."""
    if "n_atoms" not in columns:
        return np.zeros((len(columns["structure_id"]), 0))
    inner = np.quantile(columns["n_atoms"], np.arange(1, SIZE_CLASSES) / SIZE_CLASSES, method="inverted_cdf")
    classes = np.searchsorted(np.unique(inner), columns["n_atoms"], side="right")
    return _members(np.unique(classes, return_inverse=True)[1])


def per_group(group: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Count the structures of each stratum in each group, shape (group, stratum)."""
    counts = np.zeros((int(group.max(initial=-1)) + 1, members.shape[1]))
    np.add.at(counts, group, members)
    return counts


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
