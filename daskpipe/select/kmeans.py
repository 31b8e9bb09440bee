"""MiniBatchKMeans strata: cut feature space into clusters, give each a quota, take the frames nearest its centre.

MiniBatchKMeans (Sculley, DOI 10.1145/1772690.1772862) by ``partial_fit`` over blocks, so that memory holds
one block. Blocks come in a shuffled canonical order: each is a fair sample of all frames.
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from daskpipe.select.blocks import BLOCK_SIZE, Blocks, Picks


class KMeansStrata:
    """Picks spread over strata in feature space.

    Parameters
    ----------
    n
        Frames to pick.
    seed
        Seed of the cluster centres.
    n_clusters
        Strata; by default a quarter of `n`, at least one.
    passes
        How often the blocks are read to fit the centres.
    """

    def __init__(self, *, n: int, seed: int, n_clusters: PositiveInt | None = None, passes: PositiveInt = 3) -> None:
        from sklearn.cluster import MiniBatchKMeans

        self.n = n
        self.n_clusters = n_clusters or max(1, n // 4)
        self.passes = passes
        # scikit-learn takes 32 bits of a seed.
        self._model = MiniBatchKMeans(n_clusters=self.n_clusters, random_state=seed % 2**32, n_init=3)

    @property
    def centers(self) -> np.ndarray:
        """Centres of the strata, shape (stratum, feature), float64; there once a block was fitted."""
        centers: np.ndarray = self._model.cluster_centers_
        return centers

    def fit_block(self, features: np.ndarray) -> None:
        """Move the centres by one block, shape (row, feature)."""
        self._model.partial_fit(features)

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the stratum of each row (int32) and its distance to the centre."""
        distances = self._model.transform(features)
        cluster = distances.argmin(axis=1)
        return cluster.astype(np.int32), distances[np.arange(len(cluster)), cluster]

    def pick(self, blocks: Blocks) -> Picks:
        """Fit the centres, assign all rows, and take the nearest of each stratum up to its quota."""
        from threadpoolctl import threadpool_limits

        n_frames = len(blocks.order)
        n_clusters = min(self.n_clusters, n_frames)
        self._model.set_params(n_clusters=n_clusters)
        # The first block places the centres, so it must hold at least as many rows.
        size = max(BLOCK_SIZE, n_clusters)
        cluster = np.zeros(n_frames, dtype=np.int32)
        distance = np.zeros(n_frames)
        # One thread: sums over threads would round differently on machines with other core counts.
        with threadpool_limits(1):
            for _ in range(self.passes):
                for _, features in blocks(size):
                    self.fit_block(features)
            for rows, features in blocks(size):
                cluster[rows], distance[rows] = self.assign(features)
        rank = np.empty(n_frames, dtype=np.int64)
        rank[blocks.order] = np.arange(n_frames)
        picked: list[np.ndarray] = []
        for number, share in enumerate(quotas(np.bincount(cluster, minlength=self.n_clusters), self.n)):
            members = np.flatnonzero(cluster == number)
            # Nearest first; equal distances in canonical order.
            nearest = members[np.lexsort((rank[members], distance[members]))]
            picked.append(nearest[:share])
        index = np.sort(np.concatenate(picked)).astype(np.int64)
        return Picks(index=index, cluster=cluster[index], reason="kmeans_nearest")


def quotas(sizes: np.ndarray, n: int) -> np.ndarray:
    """Share `n` picks equally among strata; what a small stratum cannot use goes to the others.

    Parameters
    ----------
    sizes
        Members of each stratum, shape (stratum,).
    n
        Picks to share.

    Returns
    -------
    numpy.ndarray
        Picks of each stratum, shape (stratum,), at most `sizes`; they sum to the smaller of `n` and all members.
    """
    share = np.zeros(len(sizes), dtype=np.int64)
    left = min(n, int(sizes.sum()))
    while left:
        room = np.flatnonzero(share < sizes)
        if left < len(room):
            # Less than one each: to the strata with the most members; ties to the lower number.
            share[room[np.argsort(-sizes[room], kind="stable")[:left]]] += 1
            break
        # All with room rise together, until one is full or the rest is less than one each.
        rise = min(left // len(room), int((sizes - share)[room].min()))
        share[room] += rise
        left -= rise * len(room)
    return share
