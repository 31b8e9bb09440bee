"""Picks from the members of strata."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskpipe.stages.select.balls import Balls
from daskpipe.stages.select.blocks import Blocks

SPREAD_BYTES = 2**28
"""Most bytes of features that `Strata.pick_spread` holds at a time."""


@dataclass(frozen=True)
class Strata:
    """Rows sorted by stratum, in each by distance to the centre, then by canonical order.

    Parameters
    ----------
    order
        Rows, shape (row,), int64.
    ptr
        Where each stratum starts in `order`, and the number of rows, shape (stratum + 1,), int64.
    rank
        Place of each row in the canonical order, shape (row,), int32.
    """

    order: np.ndarray
    ptr: np.ndarray
    rank: np.ndarray

    @classmethod
    def from_clusters(cls, cluster: np.ndarray, distance: np.ndarray, rank: np.ndarray, n_strata: int) -> Strata:
        """Sort rows by cluster, distance and rank, shape (row,) each."""
        ptr = np.zeros(n_strata + 1, dtype=np.int64)
        np.cumsum(np.bincount(cluster, minlength=n_strata), out=ptr[1:])
        return cls(np.lexsort((rank, distance, cluster)), ptr, rank)

    @property
    def sizes(self) -> np.ndarray:
        """Members of each stratum, shape (stratum,)."""
        return np.diff(self.ptr)

    def pick_nearest(self, share: np.ndarray) -> np.ndarray:
        """Return the `share` members of each stratum that are nearest to its centre, sorted."""
        place = np.arange(len(self.order)) - np.repeat(self.ptr[:-1], self.sizes)
        return np.sort(self.order[place < np.repeat(share, self.sizes)])

    def pick_evenly(self, share: np.ndarray) -> np.ndarray:
        """Return `share` members of each stratum in even steps from the nearest to the farthest, sorted."""
        places = [
            lo + np.linspace(0, size - 1, n).astype(np.int64)
            for lo, size, n in zip(self.ptr[:-1].tolist(), self.sizes.tolist(), share.tolist(), strict=True)
        ]
        return np.sort(self.order[np.concatenate(places)])

    def pick_spread(self, share: np.ndarray, blocks: Blocks) -> np.ndarray:
        """Return `share` members of each stratum: the nearest to the centre, then farthest points; sorted.

        Features are read in as many passes as it takes to hold `SPREAD_BYTES` of them at a time. Of a stratum
        that alone is larger the nearest member takes part, and as many of the others as fit in canonical order.
        """
        everything = (share == self.sizes) | (share <= 1)
        picked = [self.pick_nearest(np.where(everything, share, 0))]
        row_bytes = blocks.features.shape[1] * (4 if blocks.features.dtype == np.float32 else 8)
        most = max(int(share.max()), SPREAD_BYTES // row_bytes)
        waiting: list[tuple[np.ndarray, int]] = []
        n_waiting = 0
        for number in np.flatnonzero(~everything).tolist():
            members = self.order[self.ptr[number] : self.ptr[number + 1]]
            # The nearest stands first, the others in canonical order.
            rest = members[1:][np.argsort(self.rank[members[1:]])]
            members = np.concatenate([members[:1], rest[: most - 1]])
            if n_waiting + len(members) > most:
                picked += self._spread_over(waiting, blocks)
                waiting, n_waiting = [], 0
            waiting.append((members, int(share[number])))
            n_waiting += len(members)
        return np.sort(np.concatenate(picked + self._spread_over(waiting, blocks)))

    def _spread_over(self, strata: list[tuple[np.ndarray, int]], blocks: Blocks) -> list[np.ndarray]:
        """Pick farthest points of some strata (members, picks), whose features are read in one pass."""
        if not strata:
            return []
        rows = np.sort(np.concatenate([members for members, _ in strata]))
        features = blocks.gather_rows(rows)
        return [
            members[
                Balls.from_points(features[np.searchsorted(rows, members)]).pick_farthest(
                    n, 0, self.rank[members].astype(np.int64)
                )
            ]
            for members, n in strata
        ]
