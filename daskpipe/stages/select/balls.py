"""Partition of points into balls, for an exact search of nearest and farthest points that skips most of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BALL_SIZE = 64
"""Most points of a ball. It changes the speed alone, not the results: 32 to 128 differ little."""

_SPREAD_SAMPLE = 512
"""Points by which the widest feature of a set is estimated; it changes the speed alone."""


@dataclass(frozen=True)
class Balls:
    """Points sorted into balls.

    Parameters
    ----------
    points
        All points, flat: ball after ball, in each feature after feature; float32 or float64.
    number
        Number of each point in the array that it came from, shape (point,), int64.
    ptr
        Where each ball starts, and the number of points, shape (ball + 1,), int64.
    centers
        Centres, flat: feature after feature; the points' dtype.
    radii
        No point of a ball is farther from its centre, shape (ball,), float64.
    """

    points: np.ndarray
    number: np.ndarray
    ptr: np.ndarray
    centers: np.ndarray
    radii: np.ndarray

    @classmethod
    def from_points(cls, points: np.ndarray, ball_size: int = BALL_SIZE) -> Balls:
        """Cut points, shape (point, feature), in halves along their widest feature until a part fits a ball."""
        number = np.arange(len(points))
        ptr: list[int] = []
        parts = [(0, len(points))]
        while parts:
            lo, hi = parts.pop()
            if hi - lo <= ball_size:
                ptr.append(lo)
                continue
            members = number[lo:hi]
            widest = np.ptp(points[members[:: -(-(hi - lo) // _SPREAD_SAMPLE)]], axis=0).argmax()
            half = (hi - lo) // 2
            number[lo:hi] = members[np.argpartition(points[members, widest], half)]
            parts += [(lo + half, hi), (lo, lo + half)]
        ptr.append(len(points))
        flat = np.empty(points.size, dtype=points.dtype)
        centers = np.empty((len(ptr) - 1, points.shape[1]), dtype=points.dtype)
        radii = np.empty(len(ptr) - 1)
        for ball, (lo, hi) in enumerate(pairwise(ptr)):
            members = points[number[lo:hi]]
            flat[lo * points.shape[1] : hi * points.shape[1]] = members.T.ravel()
            centers[ball] = members.mean(axis=0, dtype=np.float64)
            radii[ball] = np.sqrt(((members - centers[ball].astype(np.float64)) ** 2).sum(axis=1).max())
        return cls(flat, number, np.array(ptr, dtype=np.int64), centers.T.ravel(), radii)

    def find_nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return number (int32) and distance (rows' dtype) of the point nearest to each row, shape (row, feature).

        Exact; of points at equal distance the lowest number. Releases the GIL.
        """
        from daskpipe.stages.select import balls_kernels

        number = np.empty(len(rows), dtype=np.int32)
        distance = np.empty(len(rows), dtype=rows.dtype)
        balls_kernels.find_nearest(rows, self.points, self.number, self.ptr, self.centers, self.radii, number, distance)
        return number, distance

    def pick_farthest(self, n: int, start: int, rank: np.ndarray) -> np.ndarray:
        """Return the numbers of `n` points, each the farthest from those before; the first is `start`.

        Parameters
        ----------
        n
            Points to pick, at most all.
        start
            Number of the first.
        rank
            Decides between points at equal distance: the lowest wins, shape (point,), distinct integers.
        """
        from daskpipe.stages.select import balls_kernels

        places = np.empty(n, dtype=np.int64)
        squared = np.full(len(self.number), np.inf, dtype=self.points.dtype)
        first = int(np.flatnonzero(self.number == start)[0])
        balls_kernels.pick_farthest(
            self.points, rank[self.number], self.ptr, self.centers, self.radii, first, squared, places
        )
        picked: np.ndarray = self.number[places]
        return picked
