"""Measure leakage: the share of a test set that has a near training structure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.variables import SPLITS
from daskpipe.store.assignment import assign_splits
from daskpipe.store.splits import features_of, number_families

SAMPLE = 10_000
"""Most structures of a split whose nearest training neighbour is searched for; chosen by hash."""


def frame_distance(columns: Mapping[str, np.ndarray]) -> float | None:
    """Return the median distance in feature space between a frame and the nearest other frame of its family.

    A family is the frames of one seed, or of one component of connected frames
    (`daskpipe.store.splits.number_families`). The order of the frames does not matter.

    Parameters
    ----------
    columns
        Those of `daskpipe.store.splits.LINEAGE`, and ``component`` if there is one; one row per structure.

    Returns
    -------
    float or None
        None if no family has two frames with features.
    """
    spaced = features_of(columns)
    if spaced is None:
        return None
    features, rows, _ = spaced
    nearest, _ = nearest_in_family(features, number_families(columns)[rows])
    return float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else None


def nearest_in_family(features: np.ndarray, family: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest other row of the same family for each row, and the distance to it.

    Parameters
    ----------
    features
        Shape (structure, feature), finite.
    family
        Number of the family of each row, shape (structure,), integers.

    Returns
    -------
    distance, row : numpy.ndarray
        Shape (structure,); infinite and -1 where the family has no other row.

    Examples
    --------
    >>> distance, row = nearest_in_family(np.array([[0.0], [0.1], [0.3], [0.2]]), np.array([0, 0, 0, 1]))
    >>> distance.round(3).tolist(), row.tolist()
    ([0.1, 0.1, 0.2, inf], [1, 0, 1, -1])
    """
    distance, row = neighbours_in_family(features, family, 1)
    return distance[:, 0], row[:, 0]


def neighbours_in_family(features: np.ndarray, family: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `n` nearest other rows with the same number of each row, the nearest first, and their distances.

    Parameters
    ----------
    features, family
        As `nearest_in_family`.
    n
        Number of neighbours.

    Returns
    -------
    distance, row : numpy.ndarray
        Shape (structure, n); infinite and -1 where the family has no more rows.
    """
    from scipy.spatial import cKDTree

    distance, row = np.full((len(family), n), np.inf), np.full((len(family), n), -1)
    order = np.argsort(family, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(family[order])) + 1):
        if len(members) > 1:
            k = min(n + 1, len(members))
            distances, places = cKDTree(features[members]).query(features[members], k=k)
            itself = places == np.arange(len(members))[:, None]
            # Where many features are equal, the tree may not return the row itself.
            itself[~itself.any(axis=1), -1] = True
            distance[members, : k - 1] = distances[~itself].reshape(-1, k - 1)
            row[members, : k - 1] = members[places[~itself].reshape(-1, k - 1)]
    return distance, row


def measure_leakage(
    columns: Mapping[str, np.ndarray], split: np.ndarray, *, seed: int, threshold: float | None
) -> dict[str, float]:
    """Measure the share of each split with a training neighbour nearer than frames of one family are to each other.

    Parameters
    ----------
    columns
        Those of `daskpipe.store.splits.LINEAGE`, one row per structure.
    split
        Index into `SPLITS` of each structure, shape (structure,).
    seed
        Seed of the sample, where a split has more than `SAMPLE` structures.
    threshold
        Distance in feature space, from `frame_distance`.

    Returns
    -------
    dict
        Share by split (``val``, ``test``), for those with structures; empty if it cannot be measured.
    """
    from scipy.spatial import cKDTree

    spaced = features_of(columns)
    if threshold is None or spaced is None:
        return {}
    features, rows, _ = spaced
    codes, ids = split[rows], columns["structure_id"][rows]
    training = features[codes == SPLITS.index("train")]
    shares: dict[str, float] = {}
    for name in SPLITS[1:]:
        held_out = np.flatnonzero(codes == SPLITS.index(name))
        if len(held_out) == 0 or len(training) == 0:
            continue
        sample = held_out[order_by_hash(seed, "leakage", ids[held_out])[:SAMPLE]]
        nearest = cKDTree(training).query(features[sample], distance_upper_bound=threshold)[0]
        shares[name] = float(np.mean(nearest < threshold))
    return shares


def compare_leakage(
    columns: Mapping[str, np.ndarray], split: np.ndarray, *, seed: int, fractions: Mapping[str, float]
) -> dict[str, object]:
    """Measure the leakage of a split and that of a random split, as JSON types.

    Returns
    -------
    dict
        ``frame_distance`` (in feature space, None if unknown), ``leakage`` and ``leakage_random``: share of each split
        with a training neighbour nearer than that.
    """
    ids, threshold = columns["structure_id"], frame_distance(columns)
    random_split = assign_splits(np.ones(len(ids), dtype=np.int64), ids, seed=seed, fractions=fractions)
    return {
        "frame_distance": threshold,
        "leakage": measure_leakage(columns, split, seed=seed, threshold=threshold),
        "leakage_random": measure_leakage(columns, random_split, seed=seed, threshold=threshold),
    }
