"""Clusters of feature space: centres fitted on a bounded sample, and the nearest centre of every row.

scikit-learn's ``MiniBatchKMeans`` (Sculley, DOI 10.1145/1772690.1772862) by ``partial_fit`` over blocks. Its centres
start at farthest points (Gonzalez, DOI 10.1016/0304-3975(85)90224-5), so that rare regions have centres of their own;
and the exact nearest centre of each other row is searched through balls, in a time that hardly grows with the number
of centres where the features are few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.stages.select.balls import Balls
from daskpipe.stages.select.blocks import BLOCK_SIZE, Blocks

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

Project = Callable[[np.ndarray], np.ndarray]
"""Maps features, shape (row, feature), to the space of the clusters, row by row."""


class Centers:
    """Fit cluster centres block by block.

    Parameters
    ----------
    n_clusters
        Centres wanted; there are fewer if they start from fewer rows.
    """

    def __init__(self, n_clusters: int) -> None:
        self.n_clusters = n_clusters
        self._model: MiniBatchKMeans | None = None
        self._balls: Balls | None = None

    @property
    def centers(self) -> np.ndarray:
        """Centres, shape (cluster, feature), dtype of the features; available after `place_centers`."""
        if self._model is None:
            raise ValueError("the centres were not fitted yet; call fit_block first")
        # Before the first block the centres are those of the start.
        centers: np.ndarray = getattr(self._model, "cluster_centers_", self._model.init)
        return centers

    def place_centers(self, sample: np.ndarray) -> None:
        """Place the centres on rows of a sample: the first, then always the one farthest from those placed."""
        from sklearn.cluster import MiniBatchKMeans

        n_centers = min(self.n_clusters, len(sample))
        rows = sample[Balls.from_points(sample).pick_farthest(n_centers, 0, np.arange(len(sample)))]
        # No centre is reassigned because few rows are near it: small clusters must be kept.
        # The centres are placed already, so that the seed decides nothing: it spares the global random generator.
        self._model = MiniBatchKMeans(n_centers, init=rows, n_init=1, reassignment_ratio=0, random_state=0)
        self._balls = None

    def fit_block(self, features: np.ndarray) -> None:
        """Move each centre to the mean of all rows, shape (row, feature), that were nearest to it so far."""
        if self._model is None:
            self.place_centers(features)
        assert self._model is not None
        self._model.partial_fit(features)
        self._balls = None

    def find_nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cluster (int32) and distance to its centre of each row; ties go to the lower cluster."""
        return self._centers_in_balls().find_nearest(features)

    def _centers_in_balls(self) -> Balls:
        """Return the centres sorted into balls."""
        if self._balls is None:
            self._balls = Balls.from_points(self.centers)
        return self._balls


def fit_centers(sample: np.ndarray, n_clusters: int, passes: int) -> Centers:
    """Fit centres on a sample, shape (row, feature), read `passes` times in blocks."""
    centers = Centers(n_clusters)
    centers.place_centers(sample)
    # scikit-learn wants a row a centre in the first block.
    size = max(4 * BLOCK_SIZE, n_clusters)
    for _ in range(passes):
        for start in range(0, len(sample), size):
            centers.fit_block(sample[start : start + size])
    return centers


def assign_rows(blocks: Blocks, centers: Centers, project: Project | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return cluster (int32) and distance to its centre (float32) of all rows, in one pass."""
    cluster = np.empty(blocks.n_rows, dtype=np.int32)
    distance = np.empty(blocks.n_rows, dtype=np.float32)
    balls = Balls.from_points(centers.centers)
    for rows, (nearest, far) in blocks.map_blocks(
        lambda features: balls.find_nearest(project(features) if project else features)
    ):
        cluster[rows], distance[rows] = nearest, far
    return cluster, distance
