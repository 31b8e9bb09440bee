"""Farthest-point sampling, exact (Gonzalez, DOI 10.1016/0304-3975(85)90224-5)."""

from __future__ import annotations

import numpy as np

from daskpipe.stages.select.balls import Balls
from daskpipe.stages.select.blocks import Blocks, Picks


class FarthestPoints:
    """Pick always the frame farthest from those picked before; the first is that of the canonical order.

    The picks are those of the plain algorithm, which looks at all rows for each; equal distances go to the earlier
    row of the canonical order. Here rows lie in balls, and a ball is skipped if the triangle inequality excludes
    that a new pick is the nearest of any of its rows.

    Memory: all features as float32, and as much again while the balls are made; 10 million rows of 64 features are
    5 GB. ``kmeans`` and ``direct`` need far less.

    Parameters
    ----------
    n
        Frames to pick.
    seed
        Decides the canonical order, and with it the first pick.
    """

    def __init__(self, *, n: int, seed: int) -> None:
        self.n = n

    def pick(self, blocks: Blocks) -> Picks:
        """Read all features, and pick."""
        features = np.empty((blocks.n_rows, blocks.features.shape[1]), dtype=np.float32)
        for rows, block in blocks:
            features[rows] = block
        balls = Balls.from_points(features)
        del features
        index = balls.pick_farthest(min(self.n, blocks.n_rows), int(blocks.order[0]), blocks.rank.astype(np.int64))
        return Picks(index=np.sort(index), cluster=np.full(len(index), -1, dtype=np.int32), reason="fps")
