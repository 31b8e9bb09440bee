"""Open a dataset, and check its bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.checksums import crc32c_file, crc32c_root
from daskpipe.store.writer import files_of
from daskpipe.structures import starts
from daskpipe.variables import VARIABLES, decode, read_root

if TYPE_CHECKING:
    import xarray as xr


def open_dataset(path: Path | str, chunks: Mapping[str, int] | None = None) -> xr.Dataset:
    """Open a dataset; no array is read before it is asked for.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    chunks
        Rows by dim, e.g. ``{"structure": 4096}``; as stored if not given.

    Returns
    -------
    xarray.Dataset
        Dask arrays with the names, dims, dtypes and units of `daskpipe.variables`. Coded variables hold codes;
        `daskpipe.variables.decode` gives their names. A chunk file that is missing is an error when it is read
        (`zarr.errors.ChunkNotFoundError`), never a block of fill values.

    Raises
    ------
    InputError
        If `path` is missing, no Zarr store, no daskpipe dataset, or written in a newer schema.
    """
    import xarray as xr
    import zarr

    read_root(Path(path))
    # Zarr takes this setting over into each array that it opens, and pickles it with them.
    with zarr.config.set({"array.read_missing_chunks": False}):
        ds: xr.Dataset = xr.open_zarr(path, chunks=dict(chunks or {}), consolidated=True)
    return ds


def dataset_of(path: str | Path) -> Path:
    """Return the path of a dataset that is given by itself or by its run."""
    inside = Path(path) / "dataset.zarr"
    return (inside if inside.is_dir() else Path(path)).absolute()


def content(path: Path | str) -> tuple[str, int]:
    """Return what tells a dataset from all others, and its number of structures; raises as `open_dataset`."""
    attributes = read_root(Path(path))["attributes"]
    return attributes["checksums"]["root"], attributes["n_structures"]


GEOMETRY = ("n_atoms", "numbers", "positions", "cell", "pbc", "charge")
"""What makes a geometry, with the charge where it is known."""


def geometries(path: Path | str, start: int, stop: int) -> xr.Dataset:
    """Read numbers, positions and cells of some structures of a dataset into memory; see `rows`."""
    return rows(path, start, stop, GEOMETRY)


def rows(path: Path | str, start: int, stop: int, names: Collection[str] | None = None) -> xr.Dataset:
    """Read some structures of a dataset into memory.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    start, stop
        The structures, in the order of the dataset.
    names
        Of the variables to read, those that are there; all if not given.

    Returns
    -------
    xarray.Dataset
        As `daskpipe.structures.from_atoms` makes it: coded variables hold names.
    """
    ds = open_dataset(path)
    # Read here: within a task Dask would hand the reading to the cluster.
    index = ds[["n_atoms", "atom_start"]].isel(structure=slice(start, stop)).load(scheduler="synchronous")
    ends = np.append(index["atom_start"].values[:1], index["atom_start"].values + index["n_atoms"].values)
    atoms = slice(int(ends[0]), int(ends[-1])) if len(ends) else slice(0, 0)
    found = ds[[name for name in ds if names is None or name in names]].isel(structure=slice(start, stop), atom=atoms)
    found = found.load(scheduler="synchronous")
    decoded = {name: (array.dims, decode(array)) for name, array in found.items() if VARIABLES[str(name)].coded}
    return found.assign(decoded).assign(atom_start=("structure", starts(found["n_atoms"].values)))


def verify(path: Path | str) -> list[str]:
    """Read a whole dataset and compare it with its checksums.

    Returns
    -------
    list of str
        The files, relative to `path`, that differ, are missing or are extra, each as ``"name: what"``, sorted;
        empty if the dataset is what was written.

    Raises
    ------
    InputError
        If `path` is no daskpipe dataset, or its root metadata cannot be read.
    """
    path = Path(path)
    root = read_root(path)
    try:
        checksums = root["attributes"]["checksums"]
        expected: dict[str, str] = checksums["files"]
        root_differs = checksums["root"] != crc32c_root(root)
    except (KeyError, TypeError, AttributeError):
        return ["zarr.json: differs"]
    found = dict(files_of(path))
    problems = ["zarr.json: differs"] if root_differs else []
    problems += [f"{name}: missing" for name in expected.keys() - found.keys()]
    problems += [f"{name}: extra" for name in found.keys() - expected.keys()]
    problems += [
        f"{name}: differs" for name in expected.keys() & found.keys() if crc32c_file(found[name]) != expected[name]
    ]
    return sorted(problems)
