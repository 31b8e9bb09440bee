"""Quotas: numbers of picks of strata."""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np

Allocation = Literal["equal", "proportional", "sqrt"]


def share_picks(sizes: np.ndarray, n: int, allocation: Allocation = "equal") -> np.ndarray:
    """Share `n` picks among strata; picks that a small stratum cannot use go to the others.

    Picks are given out one by one: each to the stratum, of those with members left, that has got least for its
    weight, then to the one with the most members, then to the first. So every stratum gets one before any gets
    two of what it weighs.

    Parameters
    ----------
    sizes
        Members of each stratum, shape (stratum,).
    n
        Picks to share.
    allocation
        What a stratum weighs: one (``equal``), its members (``proportional``), or their square root (``sqrt``).

    Returns
    -------
    numpy.ndarray
        Picks of each stratum, shape (stratum,), int64, at most `sizes`; they sum to the smaller of `n` and all
        members.
    """
    members = np.maximum(sizes, 1).astype(np.float64)
    weights = {"equal": np.ones(len(sizes)), "proportional": members, "sqrt": np.sqrt(members)}[allocation]
    n = min(n, int(sizes.sum()))

    def shares_below(level: float) -> np.ndarray:
        # The pick after s others comes when the level is s / weight.
        shares: np.ndarray = np.minimum(sizes, np.ceil(level * weights)).astype(np.int64)
        return shares

    # All at once up to just below the last level, and one by one from there.
    low, high = 0.0, float((members / weights).max()) + 1
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if shares_below(middle).sum() <= n else (low, middle)
    share = shares_below(low * (1 - 1e-9))
    room = [(share[at] / weights[at], -sizes[at], at) for at in np.flatnonzero(share < sizes)]
    heapq.heapify(room)
    for _ in range(n - int(share.sum())):
        _, size, at = room[0]
        share[at] += 1
        if share[at] < sizes[at]:
            heapq.heapreplace(room, (share[at] / weights[at], size, at))
        else:
            heapq.heappop(room)
    return share
