"""How much of a test its training data gives away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.store.splits import assign_splits, features_of, trajectories
from daskpipe.variables import SPLITS

SAMPLE = 10_000
"""Structures of a split whose nearest training neighbour is looked for, at most; chosen by hash."""


def frame_distance(columns: Mapping[str, np.ndarray]) -> float | None:
    """Return the distance in feature space from a frame to the next one of its trajectory, the median of all.

    Parameters
    ----------
    columns
        Of `daskpipe.store.splits.LINEAGE`, one row a structure.

    Returns
    -------
    float or None
        None if no trajectory has two described frames.
    """
    spaced = features_of(columns)
    if spaced is None or "step" not in columns:
        return None
    features, rows, _ = spaced
    trajectory, step = trajectories(columns)[rows], columns["step"][rows]
    order = np.lexsort((step, trajectory))
    next_ones = np.flatnonzero(trajectory[order][1:] == trajectory[order][:-1])
    if len(next_ones) == 0:
        return None
    steps = features[order[next_ones + 1]] - features[order[next_ones]]
    return float(np.median(np.linalg.norm(steps, axis=1)))


def leakage(columns: Mapping[str, np.ndarray], split: np.ndarray, *, seed: int) -> dict[str, float]:
    """Measure which share of a split has a training neighbour closer than a frame is to the next of its trajectory.

    Parameters
    ----------
    columns
        Of `daskpipe.store.splits.LINEAGE`, one row a structure.
    split
        Index into `SPLITS` of each structure, shape (structure,).
    seed
        Of the sample, where a split has more than `SAMPLE` structures.

    Returns
    -------
    dict
        The share by split, of those (``val``, ``test``) that hold structures; empty if it cannot be measured.
    """
    from scipy.spatial import cKDTree

    threshold, spaced = frame_distance(columns), features_of(columns)
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
    ids = columns["structure_id"]
    torn = assign_splits(np.ones(len(ids), dtype=np.int64), ids, seed=seed, fractions=fractions)
    return {
        "frame_distance": frame_distance(columns),
        "leakage": leakage(columns, split, seed=seed),
        "leakage_random": leakage(columns, torn, seed=seed),
    }
