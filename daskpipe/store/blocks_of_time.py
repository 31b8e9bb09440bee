"""Cut trajectories into blocks of time, separated by gaps, for data with fewer seeds than splits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daskpipe.core.variables import SPLITS
from daskpipe.store.splits import Split, number_trajectories

MIN_FRAMES = 20
"""Fewest frames of a trajectory that is cut: with fewer, a block of a tenth is no test."""


def cut_in_time(
    columns: Mapping[str, np.ndarray], group: np.ndarray, rule: Split
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Cut trajectories into one block of time per split, if there are fewer groups than splits with a share.

    A trajectory is cut into the block of ``train``, a gap, the block of ``val``, a gap, and the block of ``test``. The
    frames of the gaps (``rule.gap``, a share of the trajectory, at least one frame unless it is 0) belong to no split.

    Parameters
    ----------
    columns
        Those of `daskpipe.store.splits.LINEAGE`, one row per structure; ``step`` is the order in time.
    group
        Group of each structure, shape (structure,), int32.
    rule
        Shares of the splits, and the gap.

    Returns
    -------
    tuple or None
        Groups (one per block, int32), splits (index into `SPLITS`, uint8) and which structures stay (bool), shape
        (structure,); None if there are enough groups, if groups are not trajectories, or if these are too short.
    """
    shared = [code for code, name in enumerate(SPLITS) if rule.split.get(name, 0.0) > 0]
    if rule.split_by not in ("seed", "trajectory") or "step" not in columns:
        return None
    if int(group.max(initial=-1)) + 1 >= len(shared):
        return None
    _, trajectory = np.unique(np.stack([group, number_trajectories(columns)], axis=1), axis=0, return_inverse=True)
    trajectory = trajectory.reshape(-1)
    if np.bincount(trajectory).max(initial=0) < MIN_FRAMES:
        return None
    order = np.lexsort((columns["step"], trajectory))
    split = np.zeros(len(group), dtype=np.uint8)
    kept = np.ones(len(group), dtype=np.bool_)
    for frames in np.split(order, np.flatnonzero(np.diff(trajectory[order])) + 1):
        n = len(frames)
        if n < MIN_FRAMES:
            continue  # the whole trajectory is for training
        width = int(np.ceil(rule.gap * n)) if rule.gap else 0
        room = n - width * (len(shared) - 1)
        ends = np.round(np.cumsum([rule.split[SPLITS[code]] for code in shared]) * room).astype(int)
        start = 0
        for number, (code, end) in enumerate(zip(shared, ends.tolist(), strict=True)):
            first, last = start + number * width, end + number * width
            split[frames[first:last]] = code
            if number + 1 < len(shared):
                kept[frames[last : last + width]] = False
            start = end
    blocks = np.unique(group.astype(np.int64) * len(SPLITS) + split, return_inverse=True)[1]
    return blocks.reshape(-1).astype(np.int32), split, kept
