"""Description as a chunked Dask array: one block of features an exploration unit, chunk sizes known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe import seeds
from daskpipe.describe import DESCRIPTORS
from daskpipe.describe.reduction import Reduction, fit
from daskpipe.describe.settings import Describe
from daskpipe.structures import take, to_atoms
from daskpipe.work import Payload, Rows, Tree, read_rows, read_unit

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da

VERSION = 1
FIT = "describe-fit"


def describe(
    root: Path, units: Sequence[tuple[str, int]], settings: Describe, species: Sequence[str], reduction_key: str
) -> da.Array:
    """Return the features of all frames; lazy.

    Parameters
    ----------
    root
        Run directory.
    units
        Key and number of frames of each exploration unit, in canonical order.
    settings, species
        Descriptor and the elements that occur.
    reduction_key
        Key of the unit that holds the fitted axes.

    Returns
    -------
    dask.array.Array
        Shape (frame, feature), float32; chunk i holds the frames of unit i.
    """
    import dask.array as da

    numbers = da.arange(len(units), chunks=1)
    return da.map_blocks(
        describe_block,
        numbers,
        dtype=np.float32,
        chunks=(tuple(n_frames for _, n_frames in units), (settings.dims,)),
        new_axis=1,
        meta=np.zeros((0, 0), dtype=np.float32),
        root=root,
        keys=[key for key, _ in units],
        settings=settings,
        species=list(species),
        reduction_key=reduction_key,
    )


def describe_block(
    number: np.ndarray, root: Path, keys: list[str], settings: Describe, species: list[str], reduction_key: str
) -> np.ndarray:
    """Features of one exploration unit, shape (frame, feature)."""
    return features(
        read_unit(root, "explore", keys[int(number[0])]), settings, species, load_reduction(root, reduction_key)
    )


def pack(block: np.ndarray) -> Payload:
    """Wrap a block of features as what a unit commits."""
    return Payload(arrays={"features": block}, n_out=len(block))


def features(frames: Any, settings: Describe, species: list[str], reduction: Reduction) -> np.ndarray:
    """Features of the structures of a dataset, shape (structure, feature), float32."""
    return reduction(descriptors(frames, settings, species))


def descriptors(frames: Any, settings: Describe, species: list[str]) -> np.ndarray:
    """Full descriptors of the structures of a dataset, shape (structure, descriptor)."""
    descriptor = DESCRIPTORS.get(settings.descriptor)(species=species, average="outer", **settings.params)
    rows: np.ndarray = descriptor.compute([to_atoms(frames, index) for index in range(frames.sizes["structure"])])
    return unit_length(rows) if settings.normalise else rows


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Scale each row to length one, as SOAP kernels do; rows of zeros stay."""
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(rows.dtype)


def fit_reduction(root: Path, keys: list[str], settings: Describe, species: list[str], run_seed: int) -> Payload:
    """Fit the axes on a sample of frames that depends only on the frames' ids and the run's seed."""
    started = time.perf_counter()
    ids = [Tree(root).load("explore", key, ["structure_id"])["structure_id"] for key in keys]
    order = seeds.order_by_hash(run_seed, "describe", np.concatenate(ids))[: settings.sample]
    ends = np.cumsum([len(unit_ids) for unit_ids in ids])
    # Each unit is read once; the sample is put in its canonical order after that.
    unit = np.searchsorted(ends, np.sort(order), side="right")
    pieces = []
    for number in np.unique(unit).tolist():
        rows = np.sort(order)[unit == number] - (ends[number] - len(ids[number]))
        pieces.append(Rows(stage="explore", key=keys[number], rows=tuple(rows.tolist())))
    sample = take(read_rows(root, pieces), np.argsort(np.argsort(order)))
    reduction = fit(descriptors(sample, settings, species), settings.dims)
    arrays = {"mean": reduction.mean, "axes": reduction.axes, "explained": reduction.explained}
    return Payload(arrays=arrays, n_out=len(order), seconds=time.perf_counter() - started)


def load_reduction(root: Path, key: str) -> Reduction:
    """Read the fitted axes."""
    return Reduction(**Tree(root).load(FIT, key, ["mean", "axes", "explained"]))
