"""Picks from strata, one at a time."""

import math
from collections.abc import Callable

import numpy as np

WEIGHT: dict[str, Callable[[int], float]] = {"equal": lambda size: 1.0, "proportional": float, "sqrt": math.sqrt}


def share_picks(sizes: list[int], n: int, allocation: str = "equal") -> list[int]:
    """Give out `n` picks one by one: to the stratum with least for its weight, then most members, then the first."""
    share = [0] * len(sizes)
    for _ in range(min(n, sum(sizes))):
        room = [number for number in range(len(sizes)) if share[number] < sizes[number]]
        poorest = min(
            room, key=lambda number: (share[number] / WEIGHT[allocation](sizes[number]), -sizes[number], number)
        )
        share[poorest] += 1
    return share


def sort_members(features: np.ndarray, centers: np.ndarray, rank: np.ndarray) -> list[list[int]]:
    """Rows of each stratum, by distance to its centre and then canonical order."""
    strata: list[list[tuple[float, int, int]]] = [[] for _ in centers]
    for row, point in enumerate(features):
        distances = [math.dist(point, center) for center in centers]
        strata[int(np.argmin(distances))].append((min(distances), int(rank[row]), row))
    return [[row for *_, row in sorted(stratum)] for stratum in strata]


def take_nearest(stratum: list[int], n: int, features: np.ndarray, rank: np.ndarray) -> list[int]:
    """The first `n`."""
    return stratum[:n]


def take_evenly(stratum: list[int], n: int, features: np.ndarray, rank: np.ndarray) -> list[int]:
    """`n` in even steps, the first and the last included; the first alone, if one is wanted."""
    if n < 2:
        return stratum[:n]
    return [stratum[math.floor(step * (len(stratum) - 1) / (n - 1) + 1e-9)] for step in range(n)]


def take_spread(stratum: list[int], n: int, features: np.ndarray, rank: np.ndarray) -> list[int]:
    """The first, then always the one farthest from those taken; of equally far ones the earlier."""
    taken = stratum[: min(n, 1)]
    while len(taken) < n:
        left = [row for row in stratum if row not in taken]
        taken.append(
            min(left, key=lambda row: (-min(math.dist(features[row], features[one]) for one in taken), rank[row]))
        )
    return taken


WITHIN = {"nearest": take_nearest, "evenly": take_evenly, "spread": take_spread}


def pick_rows(
    features: np.ndarray, centers: np.ndarray, n: int, rank: np.ndarray, allocation: str, within: str
) -> list[int]:
    """Sorted rows that are picked from the strata around the centres."""
    strata = sort_members(features, centers, rank)
    shares = share_picks([len(stratum) for stratum in strata], n, allocation)
    return sorted(
        row
        for stratum, share in zip(strata, shares, strict=True)
        for row in WITHIN[within](stratum, share, features, rank)
    )
