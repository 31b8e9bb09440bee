"""How much of a test its training data gives away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.store.assignment import assign_splits
from daskpipe.store.splits import features_of, kin
from daskpipe.variables import SPLITS

SAMPLE = 10_000
"""Structures of a split whose nearest training neighbour is looked for, at most; chosen by hash."""


def frame_distance(columns: Mapping[str, np.ndarray]) -> float | None:
    """Return the distance in feature space from a frame to the nearest other one of its kin, the median of all.

    Kin are the frames of one seed, or of one component of connected frames (`daskpipe.store.splits.kin`). Their order
    does not matter.

    Parameters
    ----------
    columns
        Of `daskpipe.store.splits.LINEAGE`, and ``component`` if there is one; one row a structure.

    Returns
    -------
    float or None
        None if no seed has two described frames.
    """
    spaced = features_of(columns)
    if spaced is None:
        return None
    features, rows, _ = spaced
    nearest, _ = nearest_of_kin(features, kin(columns)[rows])
    return float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else None


def nearest_of_kin(features: np.ndarray, kin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest other row with the same number of each row, and the distance to it.

    Parameters
    ----------
    features
        Shape (structure, feature), finite.
    kin
        Shape (structure,), integers.

    Returns
    -------
    distance, row : numpy.ndarray
        Shape (structure,); infinite and -1 where there is no other.
    """
    distance, row = neighbours_of_kin(features, kin, 1)
    return distance[:, 0], row[:, 0]


def neighbours_of_kin(features: np.ndarray, kin: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `n` nearest other rows with the same number of each row, the nearest first, and their distances.

    Parameters
    ----------
    features, kin
        As `nearest_of_kin`.
    n
        How many.

    Returns
    -------
    distance, row : numpy.ndarray
        Shape (structure, n); infinite and -1 where there are no more.
    """
    from scipy.spatial import cKDTree

    distance, row = np.full((len(kin), n), np.inf), np.full((len(kin), n), -1)
    order = np.argsort(kin, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(kin[order])) + 1):
        if len(members) > 1:
            k = min(n + 1, len(members))
            distances, places = cKDTree(features[members]).query(features[members], k=k)
            itself = places == np.arange(len(members))[:, None]
            # Of many equal features the tree may not name the row itself.
            itself[~itself.any(axis=1), -1] = True
            distance[members, : k - 1] = distances[~itself].reshape(-1, k - 1)
            row[members, : k - 1] = members[places[~itself].reshape(-1, k - 1)]
    return distance, row


def leakage(
    columns: Mapping[str, np.ndarray], split: np.ndarray, *, seed: int, threshold: float | None
) -> dict[str, float]:
    """Measure which share of a split has a training neighbour closer than a frame is to the nearest other of its kin.

    Parameters
    ----------
    columns
        Of `daskpipe.store.splits.LINEAGE`, one row a structure.
    split
        Index into `SPLITS` of each structure, shape (structure,).
    seed
        Of the sample, where a split has more than `SAMPLE` structures.
    threshold
        As `frame_distance` returns it.

    Returns
    -------
    dict
        The share by split, of those (``val``, ``test``) that hold structures; empty if it cannot be measured.
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


def compare(
    columns: Mapping[str, np.ndarray], split: np.ndarray, *, seed: int, fractions: Mapping[str, float]
) -> dict[str, object]:
    """Return the leakage of a split beside that of a random one, as JSON types.

    Returns
    -------
    dict
        ``frame_distance`` (in feature space, None if it cannot be told), ``leakage`` and ``leakage_random``: share of
        each split with a training neighbour closer than that.
    """
    ids, threshold = columns["structure_id"], frame_distance(columns)
    torn = assign_splits(np.ones(len(ids), dtype=np.int64), ids, seed=seed, fractions=fractions)
    return {
        "frame_distance": threshold,
        "leakage": leakage(columns, split, seed=seed, threshold=threshold),
        "leakage_random": leakage(columns, torn, seed=seed, threshold=threshold),
    }
