"""Farthest points, with a look at every row for every pick."""

import numpy as np


def squared_distances(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Sums over the features in their order and in the rows' own precision."""
    total = np.zeros(len(rows), dtype=rows.dtype)
    for feature in range(rows.shape[1]):
        delta = rows[:, feature] - point[feature]
        total = total + delta * delta
    return total


def pick_farthest(rows: np.ndarray, n: int, start: int, rank: np.ndarray) -> list[int]:
    """`n` rows, each the farthest from those before; of equally far ones that of the lowest rank."""
    picked = [start]
    nearest = squared_distances(rows, rows[start])
    while len(picked) < n:
        nearest[picked] = -1
        best = np.flatnonzero(nearest == nearest.max())
        picked.append(int(best[np.argmin(rank[best])]))
        nearest = np.minimum(nearest, squared_distances(rows, rows[picked[-1]]))
    return picked
