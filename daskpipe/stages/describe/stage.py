"""Description as chunked Dask arrays: one block of features for each unit of frames, chunk sizes known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core import seeds
from daskpipe.core.structures import take
from daskpipe.engine.rows import UnitRows, read_rows, read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.stages.describe.reduction import PrincipalAxes, Reduction, unit_length
from daskpipe.stages.describe.rows import describe_frames, describe_groups
from daskpipe.stages.describe.settings import Describe

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da
    import xarray as xr
    from dask.delayed import Delayed

VERSION = 2
FIT = "describe-fit"
AXES = ("mean", "axes", "explained")
OF_ATOMS = "environment_"


def describe(
    root: Path,
    stage: str,
    units: Sequence[tuple[str, int]],
    settings: Describe,
    species: Sequence[str],
    reduction_key: str,
) -> da.Array:
    """Return the features of all frames; lazy.

    Parameters
    ----------
    root
        Run directory.
    stage
        Stage whose units hold the frames.
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
    blocks = _describe_units(root, stage, [key for key, _ in units], settings, species, reduction_key)
    return _select_array(blocks, "features", [n_frames for _, n_frames in units], settings.dims)


def describe_atoms(
    root: Path,
    stage: str,
    units: Sequence[tuple[str, int]],
    settings: Describe,
    species: Sequence[str],
    reduction_key: str,
) -> da.Array:
    """Return the features of all atoms; lazy. Computed together with `describe`, both take one pass.

    Parameters
    ----------
    root, stage, units, settings, species, reduction_key
        As in `describe`. The exploration units must be there: how many atoms they hold is read from them.

    Returns
    -------
    dask.array.Array
        Shape (atom, feature), float32; chunk i holds the atoms of unit i.
    """
    keys = [key for key, _ in units]
    blocks = _describe_units(root, stage, keys, settings, species, reduction_key)
    n_atoms = [int(RunDirectory(root).load_arrays(stage, key, ["n_atoms"])["n_atoms"].sum()) for key in keys]
    return _select_array(blocks, "environments", n_atoms, settings.dims)


def _describe_units(
    root: Path, stage: str, keys: list[str], settings: Describe, species: Sequence[str], reduction_key: str
) -> da.Array:
    """Return a lazy array of one object a unit: a dict of its arrays."""
    import dask.array as da

    return da.map_blocks(
        describe_block,
        da.arange(len(keys), chunks=1),
        dtype=object,
        meta=np.empty(0, dtype=object),
        root=root,
        stage=stage,
        keys=keys,
        settings=settings,
        species=list(species),
        reduction_key=reduction_key,
    )


def _select_array(blocks: da.Array, name: str, sizes: Sequence[int], dims: int) -> da.Array:
    return blocks.map_blocks(
        _array_of_block,
        name,
        dtype=np.float32,
        chunks=(tuple(sizes), (dims,)),
        new_axis=1,
        meta=np.zeros((0, 0), dtype=np.float32),
    )


def _array_of_block(block: np.ndarray, name: str) -> np.ndarray:
    return block.item()[name]


def describe_block(
    number: np.ndarray,
    root: Path,
    stage: str,
    keys: list[str],
    settings: Describe,
    species: list[str],
    reduction_key: str,
) -> np.ndarray:
    """Compute the features of the frames, and of the atoms, of one unit; returns one object, a dict of arrays."""
    frames = read_unit(root, stage, keys[int(number[0])])
    arrays = describe_frames(frames, settings, species, *load_reductions(root, reduction_key, settings))
    block = np.empty(1, dtype=object)
    block[0] = dict(zip(("features", "environments"), arrays, strict=True))
    return block


def describe_unit(
    root: Path, stage: str, key: str, n_frames: int, settings: Describe, species: list[str], reduction_key: str
) -> Delayed:
    """Return the payload of the description of one unit of frames; lazy."""
    from dask import delayed

    arrays = {"features": describe(root, stage, [(key, n_frames)], settings, species, reduction_key)}
    if settings.level == "atom":
        arrays["environments"] = describe_atoms(root, stage, [(key, n_frames)], settings, species, reduction_key)
    # Not optimised: optimised one by one, each array would compute the block that they share.
    return delayed(pack_block)({name: array.to_delayed(optimize_graph=False).item() for name, array in arrays.items()})


def pack_block(arrays: Mapping[str, np.ndarray]) -> Payload:
    """Return the arrays of a block as a payload."""
    return Payload(arrays=arrays, n_out=len(arrays["features"]))


def describe_outside(
    structures: xr.Dataset, root: Path, settings: Describe, species: list[str], reduction_key: str
) -> Payload:
    """Compute the features of structures that are not of this run, on its axes.

    Structures with an element that the run has not are left out: none of its frames is near them.
    """
    from ase.data import atomic_numbers

    known = np.isin(structures["numbers"].values, [atomic_numbers[symbol] for symbol in species])
    strangers = np.add.reduceat(~known, structures["atom_start"].values) if len(known) else np.zeros(0, dtype=int)
    reduction, _ = load_reductions(root, reduction_key, settings)
    features, _ = describe_frames(take(structures, np.flatnonzero(strangers == 0)), settings, species, reduction, None)
    return Payload(arrays={"features": features}, n_out=len(features))


def fit_reduction(
    root: Path, stage: str, keys: list[str], settings: Describe, species: list[str], run_seed: int
) -> Payload:
    """Fit the axes on a sample of frames, and of their atoms, that depends only on their ids and the run's seed."""
    sample = sample_frames(root, stage, keys, settings.sample, run_seed)
    prepare = unit_length if settings.normalise else np.asarray
    axes, axes_of_atoms = PrincipalAxes(settings.dims), PrincipalAxes(settings.dims)
    chosen = sample_atoms(sample, settings.atom_sample, run_seed) if settings.level == "atom" else None
    start = 0
    for _, descriptors, of_atoms in describe_groups(sample, settings, species):
        axes.add_rows(prepare(descriptors))
        if chosen is not None and of_atoms is not None:
            axes_of_atoms.add_rows(prepare(of_atoms[chosen[start : start + len(of_atoms)]]))
            start += len(of_atoms)
    arrays = _arrays_of_reduction(axes.make_reduction())
    if chosen is not None:
        arrays |= {
            OF_ATOMS + name: array for name, array in _arrays_of_reduction(axes_of_atoms.make_reduction()).items()
        }
    return Payload(arrays=arrays, n_out=sample.sizes["structure"])


def _arrays_of_reduction(reduction: Reduction) -> dict[str, np.ndarray]:
    return {name: getattr(reduction, name) for name in AXES}


def sample_frames(root: Path, stage: str, keys: list[str], size: int, run_seed: int) -> xr.Dataset:
    """Return frames chosen by the hash of their ids, in the order of the hashes."""
    ids = [RunDirectory(root).load_arrays(stage, key, ["structure_id"])["structure_id"] for key in keys]
    order = seeds.order_by_hash(run_seed, "describe", np.concatenate(ids))[:size]
    ends = np.cumsum([len(unit_ids) for unit_ids in ids])
    # Each unit is read once; the sample is put in its canonical order after that.
    number_of_unit = np.searchsorted(ends, np.sort(order), side="right")
    pieces = []
    for number in np.unique(number_of_unit).tolist():
        rows = np.sort(order)[number_of_unit == number] - (ends[number] - len(ids[number]))
        pieces.append(UnitRows(stage=stage, key=keys[number], rows=tuple(rows.tolist())))
    return take(read_rows(root, pieces), np.argsort(np.argsort(order)))


def sample_atoms(frames: xr.Dataset, size: int, run_seed: int) -> np.ndarray:
    """Return a mask of atoms chosen by the hash of their structure's id and their place in it, shape (atom,)."""
    n_atoms = frames["n_atoms"].values
    ids = np.repeat(frames["structure_id"].values, n_atoms).view("<u8").reshape(-1, 2)
    ids[:, 1] += (np.arange(len(ids)) - np.repeat(frames["atom_start"].values, n_atoms)).astype(np.uint64)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[seeds.order_by_hash(run_seed, "describe-atoms", ids)[:size]] = True
    return chosen


def load_reductions(root: Path, key: str, settings: Describe) -> tuple[Reduction, Reduction | None]:
    """Read the fitted axes, of structures and (at that level) of atoms."""
    arrays: Any = RunDirectory(root).load_arrays(FIT, key)
    of_atoms = Reduction(*(arrays[OF_ATOMS + name] for name in AXES)) if settings.level == "atom" else None
    return Reduction(*(arrays[name] for name in AXES)), of_atoms
