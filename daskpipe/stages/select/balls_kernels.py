"""Exact search of nearest and farthest points in balls, most of which the triangle inequality excludes.

Sums run over features in order and loops vectorise over points, so that a distance has the same bits wherever
its row stands and on any processor. ``points`` is flat: the ball that starts at point ``ptr[b]`` lies at
``ptr[b] * n_features``, feature after feature. No ball is skipped that could change a result: the slack is far
above the rounding of sums over thousands of features.
"""

from __future__ import annotations

import math

import numpy as np

from daskpipe.core.accelerate import kernel

SLACK = 1e-3
"""Relative slack of the bounds of a ball, for rounding."""

LOOK = 16
"""Features between two tests of whether a ball is out of reach; a multiple of four."""


@kernel
def squared_distances(row: np.ndarray, points: np.ndarray, lo: int, hi: int, bound: float, out: np.ndarray) -> bool:
    """Write the squared distances of one row to the points of one ball into ``out[: hi - lo]``.

    Stop and return False as soon as all are larger than `bound`: sums of squares only grow.
    """
    size = hi - lo
    base = lo * len(row)
    sums = out[:size]
    sums[:] = 0
    whole = len(row) // 4 * 4
    # Four features a turn: a sum is loaded and stored a quarter as often, and added up in the same order. Slices,
    # because an index that might be negative keeps loops from being vectorised.
    for f in range(0, whole, 4):
        at = base + f * size
        p0 = points[at : at + size]
        p1 = points[at + size : at + 2 * size]
        p2 = points[at + 2 * size : at + 3 * size]
        p3 = points[at + 3 * size : at + 4 * size]
        x0, x1, x2, x3 = row[f], row[f + 1], row[f + 2], row[f + 3]
        for i in range(size):
            d0 = p0[i] - x0
            d1 = p1[i] - x1
            d2 = p2[i] - x2
            d3 = p3[i] - x3
            sums[i] = (((sums[i] + d0 * d0) + d1 * d1) + d2 * d2) + d3 * d3
        if f % LOOK == LOOK - 4:
            limit = points.dtype.type(bound)
            n_within = 0
            for i in range(size):
                n_within += sums[i] <= limit
            if n_within == 0:
                return False
    for f in range(whole, len(row)):
        p0 = points[base + f * size : base + (f + 1) * size]
        x0 = row[f]
        for i in range(size):
            d0 = p0[i] - x0
            sums[i] += d0 * d0
    return True


@kernel
def may_hold_nearer(to_center: float, radius: float, squared: float) -> bool:
    """Return True if a ball can hold a point whose squared distance is at most `squared`."""
    lower = to_center * (1 - SLACK) - radius
    return lower <= 0 or lower * lower * (1 - SLACK) <= squared


@kernel
def find_nearest(
    rows: np.ndarray,
    points: np.ndarray,
    number: np.ndarray,
    ptr: np.ndarray,
    centers: np.ndarray,
    radii: np.ndarray,
    out_number: np.ndarray,
    out_distance: np.ndarray,
) -> None:
    """Write number and distance of the point nearest to each row; equal distances go to the lower number."""
    n_balls = len(ptr) - 1
    largest = 0
    for ball in range(n_balls):
        largest = max(largest, ptr[ball + 1] - ptr[ball])
    ball_squared = np.empty(largest, points.dtype)
    to_center = np.empty(n_balls, points.dtype)
    for r in range(len(rows)):
        row = rows[r]
        squared_distances(row, centers, 0, n_balls, np.inf, to_center)
        home = 0
        for ball in range(n_balls):
            to_center[ball] = math.sqrt(to_center[ball])
            if to_center[ball] < to_center[home]:
                home = ball
        best = np.inf
        best_number = np.int64(-1)
        # The ball whose centre is nearest comes first: it sets a bound that rules out most others.
        for step in range(-1, n_balls):
            ball = home if step < 0 else step
            if step == home or not may_hold_nearer(to_center[ball], radii[ball], best):
                continue
            lo, hi = ptr[ball], ptr[ball + 1]
            if not squared_distances(row, points, lo, hi, best, ball_squared):
                continue
            for i in range(hi - lo):
                if ball_squared[i] < best or (ball_squared[i] == best and number[lo + i] < best_number):
                    best = ball_squared[i]
                    best_number = number[lo + i]
        out_number[r] = best_number
        out_distance[r] = math.sqrt(best)


@kernel
def pick_farthest(
    points: np.ndarray,
    rank: np.ndarray,
    ptr: np.ndarray,
    centers: np.ndarray,
    radii: np.ndarray,
    start: int,
    squared: np.ndarray,
    picked: np.ndarray,
) -> None:
    """Pick points one by one, each the farthest from those picked before; ties go to the lowest rank.

    `start` is the place of the first. `squared` (each point's squared distance to its nearest pick) must come
    filled with infinity; -1 marks what was picked. Fills `picked` with places.
    """
    n_balls = len(ptr) - 1
    n_features = len(points) // len(rank)
    largest = 0
    for ball in range(n_balls):
        largest = max(largest, ptr[ball + 1] - ptr[ball])
    ball_squared = np.empty(largest, points.dtype)
    to_center = np.empty(n_balls, points.dtype)
    row = np.empty(n_features, points.dtype)
    # The farthest point of each ball, and its distance: what the next pick is chosen from.
    champion = np.empty(n_balls, np.int64)
    reach = np.full(n_balls, np.inf)
    home = 0
    for ball in range(n_balls):
        if ptr[ball] <= start:
            home = ball
    pick = start
    for step in range(len(picked)):
        picked[step] = pick
        squared[pick] = -1
        size = ptr[home + 1] - ptr[home]
        for f in range(n_features):
            row[f] = points[ptr[home] * n_features + f * size + pick - ptr[home]]
        squared_distances(row, centers, 0, n_balls, np.inf, to_center)
        for ball in range(n_balls):
            # A ball out of reach keeps its distances, and its champion unless that was picked just now.
            if ball != home and not may_hold_nearer(math.sqrt(to_center[ball]), radii[ball], reach[ball]):
                continue
            lo, hi = ptr[ball], ptr[ball + 1]
            squared_distances(row, points, lo, hi, np.inf, ball_squared)
            best = lo
            for i in range(hi - lo):
                if ball_squared[i] < squared[lo + i]:
                    squared[lo + i] = ball_squared[i]
            for place in range(lo, hi):
                if squared[place] > squared[best] or (squared[place] == squared[best] and rank[place] < rank[best]):
                    best = place
            champion[ball] = best
            reach[ball] = squared[best]
        home = 0
        for ball in range(n_balls):
            if reach[ball] > reach[home] or (
                reach[ball] == reach[home] and rank[champion[ball]] < rank[champion[home]]
            ):
                home = ball
        pick = champion[home]
