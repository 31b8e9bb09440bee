"""Clusters of feature space: centres fitted on a bounded sample, and the nearest centre of every row.

Mini-batch k-means (Sculley, DOI 10.1145/1772690.1772862), with the update rule of scikit-learn's
``MiniBatchKMeans.partial_fit``. Two things differ. The centres start at farthest points (Gonzalez, DOI
10.1016/0304-3975(85)90224-5), so that rare regions have centres of their own; and the nearest centre is found
through balls, exactly, in a time that hardly grows with the number of centres where the features are few.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from daskpipe.select.balls import Balls
from daskpipe.select.blocks import BLOCK_SIZE, Blocks

Project = Callable[[np.ndarray], np.ndarray]
"""Maps features, shape (row, feature), to the space of the clusters, row by row."""


class Centers:
    """Cluster centres that learn block by block.

    Parameters
    ----------
    n_clusters
        Centres wanted; there are fewer if they start from fewer rows.
    """

    def __init__(self, n_clusters: int) -> None:
        self.n_clusters = n_clusters
        self._centers: np.ndarray | None = None
        self._counts = np.zeros(0)
        self._balls: Balls | None = None

    @property
    def centers(self) -> np.ndarray:
        """Centres, shape (cluster, feature), dtype of the features; there once they were started."""
        if self._centers is None:
            raise ValueError("the centres were not fitted yet; call fit_block first")
        return self._centers

    def start(self, sample: np.ndarray) -> None:
        """Place the centres on rows of a sample: the first, then always the one farthest from those placed."""
        n_centers = min(self.n_clusters, len(sample))
        self._centers = sample[Balls.of(sample).farthest(n_centers, 0, np.arange(len(sample)))]
        self._counts = np.zeros(n_centers)
        self._balls = None

    def fit_block(self, features: np.ndarray) -> None:
        """Move each centre to the mean of all rows, shape (row, feature), that were nearest to it so far."""
        if self._centers is None:
            self.start(features)
        self._ready()
        rows = Blocks(features, np.arange(len(features)))
        cluster = np.concatenate([found for _, (found, _) in rows.each(self.nearest)])
        order = np.argsort(cluster, kind="stable")
        hit, first = np.unique(cluster[order], return_index=True)
        sums = np.add.reduceat(features[order].astype(np.float64), first, axis=0)
        before = self._counts[hit]
        self._counts[hit] += np.diff([*first, len(order)])
        moved = (self.centers[hit] * before[:, None] + sums) / self._counts[hit, None]
        self.centers[hit] = moved.astype(self.centers.dtype)
        self._balls = None

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cluster (int32) and distance to its centre of each row; ties go to the lower cluster."""
        return self._ready().nearest(features)

    def _ready(self) -> Balls:
        """Return the centres in balls; to be called before threads share them."""
        if self._balls is None:
            self._balls = Balls.of(self.centers)
        return self._balls


def fit(sample: np.ndarray, n_clusters: int, passes: int) -> Centers:
    """Fit centres on a sample, shape (row, feature), read `passes` times in blocks."""
    centers = Centers(n_clusters)
    centers.start(sample)
    # A row a centre and block, at least: the balls are made anew for each block.
    size = max(4 * BLOCK_SIZE, n_clusters)
    for _ in range(passes):
        for start in range(0, len(sample), size):
            centers.fit_block(sample[start : start + size])
    return centers


def assign(blocks: Blocks, centers: Centers, project: Project | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return cluster (int32) and distance to its centre (float32) of all rows, in one pass."""
    cluster = np.empty(blocks.n_rows, dtype=np.int32)
    distance = np.empty(blocks.n_rows, dtype=np.float32)
    balls = Balls.of(centers.centers)
    for rows, (found, far) in blocks.each(lambda features: balls.nearest(project(features) if project else features)):
        cluster[rows], distance[rows] = found, far
    return cluster, distance
