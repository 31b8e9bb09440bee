"""Search for frames that an existing dataset covers already, so that picks go elsewhere."""

from __future__ import annotations

import numpy as np

from daskpipe.stages.select.balls import Balls
from daskpipe.stages.select.blocks import Blocks

PERCENTILE = 99
"""Percentile of the distances of structures of the dataset to their nearest other one: the radius that it covers."""

MOST_KNOWN = 8_192
"""Most structures of the dataset, in even steps, whose nearest other one is searched."""

MOST_SAMPLED = 16_384
"""Most frames of the pool in which the distance to picks is measured."""


def find_covered_frames(blocks: Blocks, against: np.ndarray, n: int) -> tuple[np.ndarray, float]:
    """Find the frames that lie as near to an existing dataset as its structures lie to each other.

    Nor is a frame covered that lies farther from the dataset than any frame would lie from `n` picks of the whole pool:
    a dataset of few structures, far from each other, covers little.

    Parameters
    ----------
    blocks
        The pool.
    against
        Features of the dataset, shape (structure, feature), finite.
    n
        Frames to pick.

    Returns
    -------
    covered : numpy.ndarray
        Shape (row,), bool.
    radius : float
        Distance from the dataset up to which frames are covered, in units of the features.
    """
    from scipy.spatial import cKDTree

    sample = blocks.read_sample()[:MOST_SAMPLED]
    picks = Balls.from_points(sample).pick_farthest(min(n, len(sample)), 0, np.arange(len(sample)))
    radius = float(Balls.from_points(sample[picks]).find_nearest(sample)[1].max())
    if len(against) > 1:
        some = against[:: -(-len(against) // MOST_KNOWN)].astype(np.float64)
        spacing = cKDTree(against.astype(np.float64)).query(some, k=2)[0][:, 1]
        radius = min(radius, float(np.percentile(spacing, PERCENTILE)))
    known = Balls.from_points(np.ascontiguousarray(against, dtype=np.float32))
    covered = np.zeros(blocks.n_rows, dtype=np.bool_)

    def measure_distance(features: np.ndarray) -> np.ndarray:
        return known.find_nearest(np.ascontiguousarray(features, dtype=np.float32))[1]

    for rows, far in blocks.map_blocks(measure_distance):
        covered[rows] = far <= radius
    return covered, radius
