"""Selection as one unit: features stream from the unit tree through a Dask array, a block at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.select import SELECTORS
from daskpipe.select.blocks import Blocks
from daskpipe.select.pick import canonical_order
from daskpipe.select.settings import Select
from daskpipe.work import Payload, Tree

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da

VERSION = 1


def select(
    root: Path, frames: Sequence[str], features: Sequence[tuple[str, int]], dims: int, settings: Select, run_seed: int
) -> Payload:
    """Pick frames.

    Parameters
    ----------
    root
        Run directory.
    frames
        Keys of the exploration units, in canonical order.
    features
        Key and number of frames of the descriptions of these units, in the same order.
    dims
        Features a frame.
    settings, run_seed
        What to pick.

    Returns
    -------
    daskpipe.work.Payload
        ``unit`` (position in `frames`) and ``row`` of each pick, its ``features``, ``cluster`` and
        ``selection_reason``; ordered by unit and row.
    """
    started = time.perf_counter()
    ids = np.concatenate([Tree(root).load("explore", key, ["structure_id"])["structure_id"] for key in frames])
    table = feature_table(root, features, dims)
    params = SELECTORS.check_params(settings.method, settings.params)
    selector = SELECTORS.get(settings.method)(n=settings.n, seed=run_seed, **params)
    picks = selector.pick(Blocks(table, canonical_order(run_seed, ids)))
    ends = np.cumsum([n_frames for _, n_frames in features])
    unit = np.searchsorted(ends, picks.index, side="right")
    arrays = {
        "unit": unit.astype(np.int64),
        "row": picks.index - (ends - [n_frames for _, n_frames in features])[unit],
        "features": np.asarray(table[picks.index].compute(scheduler="synchronous")),
        "cluster": picks.cluster,
        "selection_reason": np.full(len(picks.index), picks.reason),
    }
    return Payload(arrays=arrays, n_out=len(picks.index), seconds=time.perf_counter() - started)


def feature_table(root: Path, features: Sequence[tuple[str, int]], dims: int) -> da.Array:
    """Return the features in the unit tree as a lazy Dask array, shape (frame, feature), float32."""
    import dask.array as da
    from dask import delayed

    load = delayed(_load_features, pure=True)
    blocks = [
        da.from_delayed(load(root, key), shape=(n_frames, dims), dtype=np.float32)
        for key, n_frames in features
        if n_frames
    ]
    return da.concatenate(blocks)


def _load_features(root: Path, key: str) -> np.ndarray:
    return Tree(root).load("describe", key, ["features"])["features"]
