"""Picks from strata, one at a time."""

import math

import numpy as np


def quotas(sizes: list[int], n: int) -> list[int]:
    """Give out `n` picks one by one: to the stratum with the fewest picks, then the most members, then the first."""
    share = [0] * len(sizes)
    for _ in range(min(n, sum(sizes))):
        room = [number for number in range(len(sizes)) if share[number] < sizes[number]]
        poorest = min(room, key=lambda number: (share[number], -sizes[number], number))
        share[poorest] += 1
    return share


def nearest_picks(features: np.ndarray, centers: np.ndarray, n: int) -> list[int]:
    """Sorted rows: of each stratum those nearest to its centre."""
    strata: list[list[tuple[float, int]]] = [[] for _ in centers]
    for row, point in enumerate(features):
        distances = [math.dist(point, center) for center in centers]
        strata[int(np.argmin(distances))].append((min(distances), row))
    shares = quotas([len(stratum) for stratum in strata], n)
    return sorted(row for stratum, share in zip(strata, shares, strict=True) for _, row in sorted(stratum)[:share])
