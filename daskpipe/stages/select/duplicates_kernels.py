"""Search for rows that lie close to others through a grid of cells.

Cells are numbered ``(a * side + b) * side + c``, so that the three neighbours along the last axis are one range
of sorted numbers. At the grid's rim this reaches cells of the other side, which costs a look and changes nothing:
distances decide.
"""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel


@kernel
def is_within(a: np.ndarray, b: np.ndarray, squared: float) -> bool:
    """Test whether the squared distance of two rows, summed in float64, is at most `squared`."""
    total = 0.0
    for f in range(len(a)):
        delta = np.float64(a[f]) - np.float64(b[f])
        total += delta * delta
        if total > squared:
            return False
    return True


@kernel
def mark_candidates(
    coordinates: np.ndarray,
    rows: np.ndarray,
    keys: np.ndarray,
    ptr: np.ndarray,
    side: int,
    limit: float,
    out: np.ndarray,
) -> None:
    """Mark each row that has another within `limit`, as far as these coordinates tell.

    ``rows[ptr[u] : ptr[u + 1]]`` are the rows in the cell of number ``keys[u]``, which are sorted.
    """
    squared = limit * limit
    for u in range(len(keys)):
        for near in range(9):
            base = keys[u] + (near // 3 - 1) * side * side + (near % 3 - 1) * side
            v = np.searchsorted(keys, base - 1)
            while v < len(keys) and keys[v] <= base + 1:
                for i in rows[ptr[u] : ptr[u + 1]]:
                    if out[i]:
                        continue
                    for j in rows[ptr[v] : ptr[v + 1]]:
                        if i != j and is_within(coordinates[i], coordinates[j], squared):
                            out[i] = True
                            break
                v += 1


@kernel
def match_kept_rows(
    features: np.ndarray, cell: np.ndarray, keys: np.ndarray, side: int, n_given: int, limit: float, out: np.ndarray
) -> None:
    """Write for each row an earlier kept row within `limit` into ``out``, or -1 if there is none: the row is kept.

    The first `n_given` rows are always kept. ``cell`` is the place of each row's cell in the
    sorted `keys`.
    """
    squared = limit * limit
    # Kept rows of a cell, as a chain.
    first = np.full(len(keys), -1, np.int64)
    after = np.full(len(features), -1, np.int64)
    for i in range(len(features)):
        out[i] = -1
        if i >= n_given:
            for near in range(9):
                base = keys[cell[i]] + (near // 3 - 1) * side * side + (near % 3 - 1) * side
                v = np.searchsorted(keys, base - 1)
                while out[i] < 0 and v < len(keys) and keys[v] <= base + 1:
                    j = first[v]
                    while j >= 0:
                        if is_within(features[i], features[j], squared):
                            out[i] = j
                            break
                        j = after[j]
                    v += 1
                if out[i] >= 0:
                    break
        if out[i] < 0:
            after[i] = first[cell[i]]
            first[cell[i]] = i
