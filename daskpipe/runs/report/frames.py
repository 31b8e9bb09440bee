"""Read frames of an exploration for the map, and measure their distances to the picks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt, Unit

FRAME_POOL = 50_000
"""Frames, about, that the points of the map are chosen from."""

FRAME_SAMPLE = 3_000
"""Most points of the map."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames of the exploration on the first two axes of the features.

    Parameters
    ----------
    points, seeds, picks
        Shape (point, 2): a sample of the frames, those of them at step 0, and the picks.
    n_frames, n_looked_at
        Number of frames, and number of frames that the sample was drawn from.
    explained
        Share of the variance along each axis.
    to_picks, to_random
        Distance from each frame of the sample to the nearest pick, and to the nearest of as many frames chosen at
        random, in units of the features, over all axes; shape (point,), empty without picks.
    n_picks
        Number of picks.
    """

    points: np.ndarray
    seeds: np.ndarray
    picks: np.ndarray
    n_frames: int
    n_looked_at: int
    explained: list[float]
    to_picks: np.ndarray
    to_random: np.ndarray
    n_picks: int


def read_frames(directory: RunDirectory, units: Mapping[str, list[tuple[Unit, Receipt]]]) -> Frames | None:
    """Read the features of frames, which are chosen by the hashes of their units and of their ids.

    Returns
    -------
    Frames or None
        None if no frame is described, or if features have one axis only.
    """
    described = units.get("describe", [])
    n_frames = sum(receipt.n_out for _, receipt in described)
    features: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    for unit, _ in sorted(described, key=lambda pair: pair[0].key):
        if sum(len(rows) for rows in features) >= FRAME_POOL:
            break
        loaded = directory.load_arrays("explore", unit.upstream[1], ["structure_id"], optional=["step"])
        features.append(directory.load_arrays("describe", unit.key, ["features"])["features"])
        ids.append(loaded["structure_id"])
        steps.append(loaded.get("step", np.full(len(ids[-1]), -1)))
    if not features or features[0].shape[1] < 2:
        return None
    pool, pool_ids = np.concatenate(features), np.concatenate(ids)
    order = order_by_hash(0, "report", pool_ids)[:FRAME_SAMPLE]
    picks = np.zeros((0, pool.shape[1]), dtype=np.float32)
    if units.get("select"):
        picks = directory.load_arrays("select", units["select"][0][0].key, ["features"])["features"]
    random = pool[order_by_hash(0, "report random", pool_ids)[: len(picks)]]
    fits = units.get("describe-fit", [])
    explained = (
        directory.load_arrays("describe-fit", fits[0][0].key, ["explained"])["explained"][:2].tolist() if fits else []
    )
    return Frames(
        points=pool[order, :2],
        seeds=pool[order, :2][np.concatenate(steps)[order] == 0],
        picks=picks[:FRAME_SAMPLE, :2],
        n_frames=n_frames,
        n_looked_at=len(pool),
        explained=explained,
        to_picks=_measure_nearest(pool[order], picks),
        to_random=_measure_nearest(pool[order], random),
        n_picks=len(picks),
    )


def _measure_nearest(probes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the distance from each probe to the nearest of some places, shape (probe,); empty without places."""
    from sklearn.metrics import pairwise_distances_argmin_min

    if not len(places):
        return np.zeros(0)
    nearest: np.ndarray = pairwise_distances_argmin_min(probes.astype(np.float64), places.astype(np.float64))[1]
    return nearest
