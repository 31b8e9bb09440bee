"""The DIRECT recipe: reduce dimensions, cluster, pick from each cluster (DOI 10.1038/s41524-024-01227-4).

Follows ``DIRECTSampler`` of maml 2025.4: features are standardised; of their principal axes those with a variance
above one are kept (Kaiser's rule), and weighted with their share of the variance; a cluster's picks stand in even
steps from the member nearest to its centre to the farthest. What differs: the clusters are mini-batch k-means of
a sample, not a Birch tree of all rows; scale and axes are those of this sample; a cluster's picks are a quota,
which what small clusters leave over makes larger, so that exactly `n` are picked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import PositiveInt

from daskpipe.stages.select.blocks import Blocks, Picks
from daskpipe.stages.select.clusters import Centers, assign_rows, fit_centers
from daskpipe.stages.select.quotas import share_picks
from daskpipe.stages.select.strata import Strata

PICKS_A_CLUSTER = 9
"""As in the paper's largest example: 185,670 picks from 20,050 clusters."""

MOST_CLUSTERS = 2**15
"""Most clusters by default: eight rows of the sample each."""


@dataclass(frozen=True)
class Axes:
    """Weighted principal axes.

    Parameters
    ----------
    mean
        Mean of each feature, shape (feature,), float64.
    axes
        Divides by the features' standard deviations, projects and weights, shape (feature, axis), float64.
    """

    mean: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project features, shape (row, feature), to shape (row, axis), float32. Releases the GIL."""
        from daskpipe.stages.select import direct_kernels

        out = np.empty((len(features), self.axes.shape[1]), dtype=np.float32)
        direct_kernels.project_rows(features, self.mean, self.axes, out)
        return out


def principal_axes(sample: np.ndarray, *, weighted: bool = True) -> Axes:
    """Return the axes of a sample, shape (row, feature), by Kaiser's rule; at least one."""
    from threadpoolctl import threadpool_limits

    mean = sample.mean(axis=0, dtype=np.float64)
    scale = sample.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1
    covariance = np.zeros((len(mean), len(mean)))
    # One thread: sums over threads would round differently on machines with other core counts.
    with threadpool_limits(1):
        for start in range(0, len(sample), 2**14):
            block = (sample[start : start + 2**14] - mean) / scale
            covariance += block.T @ block
        variance, vectors = np.linalg.eigh(covariance / max(1, len(sample) - 1))
    # eigh sorts upwards. An axis has two directions: its largest component shall be positive.
    variance, vectors = variance[::-1], vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(mean))])
    n_axes = max(1, int((variance > 1).sum()))
    weight = variance / max(variance.sum(), np.finfo(np.float64).tiny) if weighted else np.ones(len(variance))
    return Axes(mean, np.ascontiguousarray(vectors[:, :n_axes] * weight[:n_axes] / scale[:, None]))


class Direct:
    """Pick by the DIRECT recipe.

    Memory: 28 bytes a row and the sample on which axes and clusters are fitted.

    Parameters
    ----------
    n
        Frames to pick.
    seed
        Decides the canonical order, and with it the sample and where the centres start.
    n_clusters
        Clusters; by default a ninth of `n`, at least one and at most 32768.
    weighted
        Weight each axis by its share of the variance.
    passes
        Number of passes over the sample in the fit of the clusters.
    """

    def __init__(
        self,
        *,
        n: int,
        seed: int,
        n_clusters: PositiveInt | None = None,
        weighted: bool = True,
        passes: PositiveInt = 1,
    ) -> None:
        self.n = n
        self.n_clusters = n_clusters or min(MOST_CLUSTERS, max(1, n // PICKS_A_CLUSTER))
        self.weighted = weighted
        self.passes = passes
        self.axes: Axes | None = None
        self._centers = Centers(self.n_clusters)

    @property
    def centers(self) -> np.ndarray:
        """Centres of the clusters, shape (cluster, axis), float32; available after the fit."""
        return self._centers.centers

    def fit_block(self, features: np.ndarray) -> None:
        """Move the centres by one block, shape (row, feature); the first one fixes the axes."""
        if self.axes is None:
            self.axes = principal_axes(features, weighted=self.weighted)
        self._centers.fit_block(self.axes(features))

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cluster of each row (int32) and its distance to the centre along the axes."""
        if self.axes is None:
            raise ValueError("the axes were not fitted yet; call fit_block first")
        return self._centers.find_nearest(self.axes(features))

    def pick(self, blocks: Blocks) -> Picks:
        """Fit axes and clusters, assign all rows, and pick from each cluster up to its quota."""
        sample = blocks.read_sample()
        self.axes = principal_axes(sample, weighted=self.weighted)
        self._centers = fit_centers(self.axes(sample), self.n_clusters, self.passes)
        del sample
        cluster, distance = assign_rows(blocks, self._centers, self.axes)
        strata = Strata.from_clusters(cluster, distance, blocks.rank, len(self.centers))
        index = strata.pick_evenly(share_picks(strata.sizes, self.n))
        return Picks(index=index, cluster=cluster[index], reason="direct")
