"""Measures of how well picks cover the pool, for the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core import seeds
from daskpipe.stages.select.balls import Balls
from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.clusters import assign_rows, fit_centers

if TYPE_CHECKING:
    import dask.array as da

N_BINS = 99
"""Histogram bins a feature, between the pool's extremes: as many as the DIRECT paper's coverage score has."""

N_CLUSTERS = 256
"""Most clusters in which hits are counted; never more than there are picks."""

N_PROBES = 8192
"""Rows of the pool whose distance to the nearest pick is measured."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Coverage of a pool by picks; the best value of each measure is given.

    Parameters
    ----------
    n_pool, n_picked
        Rows, and picks.
    entropy
        Entropy of the picks' histogram over that of the pool's, mean over the features; above 1 where the picks
        lie flatter than the pool.
    bins_hit
        Share of the pool's occupied bins that hold a pick, mean over the features: the DIRECT paper's feature
        coverage score; at best 1.
    clusters_hit, n_clusters
        Share of the clusters with members that hold a pick, at best 1; and how many these clusters are.
    nearest_mean, nearest_p95, nearest_max
        Distance of `n_probes` rows of the pool to their nearest pick; mean, 95th percentile and largest, in units of
        the features; at best 0.
    elements_hit, element_sets_hit
        Share of the pool's elements, and of the sets of elements that occur together, that the picks hold; at
        best 1. None if the elements are not known.
    entropy_of_feature, bins_hit_of_feature
        `entropy` and `bins_hit` of each feature.
    """

    n_pool: int
    n_picked: int
    entropy: float
    bins_hit: float
    clusters_hit: float
    n_clusters: int
    nearest_mean: float
    nearest_p95: float
    nearest_max: float
    n_probes: int
    elements_hit: float | None
    element_sets_hit: float | None
    entropy_of_feature: tuple[float, ...]
    bins_hit_of_feature: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def measure_coverage(
    X: np.ndarray | da.Array,  # noqa: N803 (scikit-learn's name)
    picked: np.ndarray,
    clusters: np.ndarray | None = None,
    elements: np.ndarray | None = None,
    seed: int = 0,
) -> Coverage:
    """Measure how well picked rows cover a feature array.

    Parameters
    ----------
    X
        Features of the pool, shape (row, feature), NumPy or Dask.
    picked
        Sorted rows, shape (pick,), integers.
    clusters
        Cluster of each row, shape (row,), integers; by default as many clusters as picks are made, at most 256, the
        same for the same pool, seed and number of picks.
    elements
        Which elements each row holds, shape (row, element), bool.
    seed
        Decides which rows the nearest pick is looked for, and the clusters.

    Raises
    ------
    ValueError
        If `picked` is empty or not sorted rows of `X`, or another array has another number of rows.
    """
    # Not the stream of `pick`: the probes of random picks must not be these picks.
    order = seeds.random_stream(seed, "coverage").permutation(X.shape[0])
    return measure_coverage_of(Blocks(X, order), picked, clusters, elements)


def measure_coverage_of(
    blocks: Blocks, picked: np.ndarray, clusters: np.ndarray | None = None, elements: np.ndarray | None = None
) -> Coverage:
    """Measure how well picked rows cover the pool; see `measure_coverage`. Four passes over the features."""
    n_rows = blocks.n_rows
    if len(picked) == 0 or picked[0] < 0 or picked[-1] >= n_rows or (np.diff(picked) <= 0).any():
        raise ValueError(f"picked must be sorted, distinct rows of the {n_rows} in X, at least one; received {picked}")
    for name, array in (("clusters", clusters), ("elements", elements)):
        if array is not None and len(array) != n_rows:
            raise ValueError(f"{name} must have a row for each of the {n_rows} in X, received {len(array)}")
    if clusters is None:
        centers = fit_centers(blocks.read_sample(), min(N_CLUSTERS, len(picked)), passes=1)
        clusters, _ = assign_rows(blocks, centers)
    pool, picks = count_bins(blocks, picked)
    entropy = _shannon_entropy(picks) / np.where((full := _shannon_entropy(pool)) > 0, full, 1)
    entropy[full == 0] = 1
    bins_hit = (picks > 0).sum(axis=1) / (pool > 0).sum(axis=1)
    nearest = distances_to_picks(blocks, picked)
    n_clusters = len(np.unique(clusters))
    return Coverage(
        n_pool=n_rows,
        n_picked=len(picked),
        entropy=float(entropy.mean()),
        bins_hit=float(bins_hit.mean()),
        clusters_hit=len(np.unique(clusters[picked])) / n_clusters,
        n_clusters=n_clusters,
        nearest_mean=float(nearest.mean()),
        nearest_p95=float(np.percentile(nearest, 95)),
        nearest_max=float(nearest.max()),
        n_probes=len(nearest),
        elements_hit=None if elements is None else _elements_hit(elements, picked),
        element_sets_hit=None if elements is None else _element_sets_hit(elements, picked),
        entropy_of_feature=tuple(entropy.tolist()),
        bins_hit_of_feature=tuple(bins_hit.tolist()),
    )


def count_bins(blocks: Blocks, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count pool and picks in `N_BINS` equal bins of each feature, shape (feature, bin) each."""
    n_features = blocks.features.shape[1]
    low, high = np.full(n_features, np.inf), np.full(n_features, -np.inf)
    for _, features in blocks:
        np.minimum(low, features.min(axis=0), out=low)
        np.maximum(high, features.max(axis=0), out=high)
    per_unit = N_BINS / np.where(high > low, high - low, 1)
    first_bin = np.arange(n_features) * N_BINS
    counts = np.zeros((2, n_features * N_BINS), dtype=np.int64)

    def find_bins(features: np.ndarray) -> np.ndarray:
        # The pool's maximum belongs to the last bin.
        place: np.ndarray = np.minimum(((features - low) * per_unit).astype(np.int64), N_BINS - 1) + first_bin
        return place

    for rows, place in blocks.map_blocks(find_bins):
        lo, hi = np.searchsorted(picked, [rows.start, rows.stop])
        counts[0] += np.bincount(place.ravel(), minlength=counts.shape[1])
        counts[1] += np.bincount(place[picked[lo:hi] - rows.start].ravel(), minlength=counts.shape[1])
    pool, picks = counts.reshape(2, n_features, N_BINS)
    return pool, picks


def distances_to_picks(blocks: Blocks, picked: np.ndarray) -> np.ndarray:
    """Return the distance of each of `N_PROBES` rows of the pool to its nearest pick, whose features are in memory."""
    probes = blocks.order[:N_PROBES]
    rows = np.union1d(probes, picked)
    features = blocks.gather_rows(rows)
    balls = Balls.from_points(features[np.searchsorted(rows, picked)])
    order = np.arange(len(probes))
    distances = Blocks(features[np.searchsorted(rows, probes)], order).map_blocks(
        lambda block: balls.find_nearest(block)[1]
    )
    return np.concatenate([distance for _, distance in distances]).astype(np.float64)


def _shannon_entropy(counts: np.ndarray) -> np.ndarray:
    """Return the Shannon entropy of each histogram, shape (feature, bin), in nats."""
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy: np.ndarray = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
    return entropy


def _elements_hit(elements: np.ndarray, picked: np.ndarray) -> float:
    """Return the share of the pool's elements that occur among the picks."""
    return float(elements[picked].any(axis=0).sum() / max(1, elements.any(axis=0).sum()))


def _element_sets_hit(elements: np.ndarray, picked: np.ndarray) -> float:
    """Return the share of the pool's sets of elements that occur among the picks."""
    packed = np.packbits(elements, axis=1)
    return len(np.unique(packed[picked], axis=0)) / len(np.unique(packed, axis=0))
