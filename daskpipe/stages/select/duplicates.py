"""Near-duplicates: frames that lie close to another frame of the pool or of an existing dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from daskpipe.stages.select.blocks import Blocks

GRID_FEATURES = 3
"""Number of features of greatest variance that span the grid of the neighbour search."""

KEPT_FEATURES = 6
"""Number of features of greatest variance that are kept of every row, to exclude most neighbours of the grid."""

SIDE = 2**20
"""Most cells along a side of the grid: three such numbers make one of 64 bits."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Near-duplicates of a pool.

    Parameters
    ----------
    mask
        Which rows are near-duplicates, shape (row,), bool.
    n_against_pool
        Of those, how many lie close to an earlier row that is kept.
    n_against_dataset
        How many lie close to a row of the existing dataset.
    threshold
        As asked for, in units of `scale`.
    scale
        Root mean square distance of the rows from their mean.
    """

    mask: np.ndarray
    n_against_pool: int
    n_against_dataset: int
    threshold: float
    scale: float


def find_near_duplicates(
    blocks: Blocks, threshold: float, against: np.ndarray | None = None, *, scale: float | None = None
) -> Duplicates:
    """Find rows that lie close to another, greedily in canonical order.

    A row is a near-duplicate if any row of the dataset, or an earlier row that is none, lies within the threshold
    (Euclidean distance of the features). Exact: pairs are looked for in a grid of cells as wide as the threshold,
    and distances computed in float64.

    Memory: about 100 bytes a row, and all features of the rows that have a neighbour in six of them. The time
    grows with the pairs that are close in three features, so that thresholds near the scale of the data are slow.

    Parameters
    ----------
    blocks
        The pool.
    threshold
        In units of the root mean square distance of the pool's rows from their mean, at least 0, where only
        identical rows are duplicates. The scale is that of the sample on which selectors are fitted.
    against
        Features of an existing dataset in the same space, shape (structure, feature).
    scale
        Unit of the threshold; by default that of the pool.

    Raises
    ------
    ValueError
        If `threshold` is negative, or `against` has other features than the pool.
    """
    from daskpipe.stages.select import duplicates_kernels

    n_rows, n_features = blocks.n_rows, blocks.features.shape[1]
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, received {threshold}; 0 removes identical rows only")
    given = np.zeros((0, n_features), dtype=np.float32) if against is None else against
    if given.ndim != 2 or given.shape[1] != n_features:
        raise ValueError(
            f"against must have shape (structure, {n_features}) like the pool, received {given.shape}; "
            "describe the dataset with the descriptor and the axes of this run"
        )
    mean, spread, widest = _measure_spread(blocks.read_sample())
    scale = spread if scale is None else scale
    limit = threshold * scale

    # The features of greatest variance, of the dataset first and then of the pool in its canonical order.
    rank = blocks.rank
    coordinates = np.empty((len(given) + n_rows, len(widest)), dtype=np.float32)
    coordinates[: len(given)] = given[:, widest] - mean[widest]
    for rows, features in blocks:
        coordinates[len(given) + rank[rows]] = features[:, widest] - mean[widest]
    # float32 coordinates round: pairs that rounding could separate count as near.
    largest = float(max(coordinates.max(), -coordinates.min()))
    reach = limit + 4 * float(np.finfo(np.float32).eps) * largest * np.sqrt(len(widest))
    cell = _number_cells(coordinates[:, :GRID_FEATURES], reach)
    order = np.argsort(cell, kind="stable")
    keys = cell[order]
    ptr = np.append(np.flatnonzero(np.append(True, keys[1:] != keys[:-1])), len(keys))
    keys = keys[ptr[:-1]]
    near = np.zeros(len(cell), dtype=np.bool_)
    duplicates_kernels.mark_candidates(coordinates, order, keys, ptr, SIDE, float(reach), near)
    del coordinates, order

    candidates = np.flatnonzero(near)
    n_given = int(np.searchsorted(candidates, len(given)))
    matches = np.empty(len(candidates), dtype=np.int64)
    if len(candidates) > n_given:
        pool = blocks.order[candidates[n_given:] - len(given)]
        sort = np.argsort(pool)
        features = np.empty((len(candidates), n_features), dtype=np.float64)
        features[:n_given] = given[candidates[:n_given]]
        features[n_given + sort] = blocks.gather_rows(pool[sort])
        places = np.searchsorted(keys, cell[candidates])
        duplicates_kernels.match_kept_rows(features, places, keys, SIDE, n_given, float(limit), matches)
    mask = np.zeros(n_rows, dtype=np.bool_)
    mask[blocks.order[candidates[matches >= 0] - len(given)]] = True
    n_against_dataset = int(np.count_nonzero((matches >= 0) & (matches < n_given)))
    return Duplicates(
        mask=mask,
        n_against_pool=int(mask.sum()) - n_against_dataset,
        n_against_dataset=n_against_dataset,
        threshold=threshold,
        scale=scale,
    )


def find_near_duplicates_by_state(
    blocks: Blocks, states: np.ndarray, threshold: float, against: np.ndarray | None = None
) -> Duplicates:
    """Find rows that lie close to another of the same electronic state, which the features do not contain.

    Parameters
    ----------
    blocks, threshold, against
        As in `find_near_duplicates`. The states of `against` are not known: its rows count for all.
    states
        Number of the state of each row, shape (row,).
    """
    overall = find_near_duplicates(blocks, threshold, against)
    mask, n_against_dataset = np.zeros_like(overall.mask), 0
    # A state without near-duplicates among all rows has none of its own.
    for state in np.unique(states[overall.mask]).tolist():
        rows = np.flatnonzero(states == state)
        if len(rows) == len(states):
            return overall
        stored = np.flatnonzero(np.ones(len(states), dtype=np.bool_) if blocks.keep is None else blocks.keep)[rows]
        keep = np.zeros(len(blocks.features), dtype=np.bool_)
        keep[stored] = True
        own = Blocks(blocks.features, np.argsort(blocks.rank[rows], kind="stable"), keep=keep)
        within = find_near_duplicates(own, threshold, against, scale=overall.scale)
        mask[rows] = within.mask
        n_against_dataset += within.n_against_dataset
    return replace(
        overall, mask=mask, n_against_pool=int(mask.sum()) - n_against_dataset, n_against_dataset=n_against_dataset
    )


def _measure_spread(sample: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Return mean, root mean square distance from it, and the features of greatest variance in falling order."""
    mean = sample.mean(axis=0, dtype=np.float64)
    variance = sample.var(axis=0, dtype=np.float64)
    return mean, float(np.sqrt(variance.sum())), np.argsort(-variance, kind="stable")[:KEPT_FEATURES]


def _number_cells(coordinates: np.ndarray, reach: float) -> np.ndarray:
    """Return the number of each row's cell, int64; rows within `reach` lie in the same cell or in neighbours."""
    low, high = coordinates.min(axis=0).astype(np.float64), coordinates.max(axis=0).astype(np.float64)
    # A little wider than the reach, so that rounding cannot put a cell between two rows at just this distance.
    width = max(1.001 * reach, float((high - low).max()) / (SIDE - 1)) or 1.0
    cell = np.zeros(len(coordinates), dtype=np.int64)
    for axis in range(coordinates.shape[1]):
        cell = cell * SIDE + ((coordinates[:, axis] - low[axis]) / width).astype(np.int64)
    return cell
