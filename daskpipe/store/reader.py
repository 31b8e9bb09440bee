"""Open a dataset, read rows of it, and verify its bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.errors import InputError
from daskpipe.core.hashing import crc32c_file, crc32c_root
from daskpipe.core.root_metadata import read_root
from daskpipe.core.structures import atom_starts
from daskpipe.core.variables import VARIABLES, decode_names
from daskpipe.store.writer import files_of

if TYPE_CHECKING:
    import xarray as xr


def open_dataset(path: Path | str, chunks: Mapping[str, int] | None = None) -> xr.Dataset:
    """Open a dataset lazily.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    chunks
        Rows per Dask chunk by dim, e.g. ``{"structure": 4096}``; as stored by default.

    Returns
    -------
    xarray.Dataset
        Dask arrays with the names, dims, dtypes and units of `daskpipe.core.variables`. Coded variables hold codes;
        `daskpipe.core.variables.decode_names` returns their names. Reading a chunk whose file is missing is an error
        (`zarr.errors.ChunkNotFoundError`); it never gives fill values.

    Raises
    ------
    InputError
        If `path` is missing, no Zarr store, no daskpipe dataset, or written in a newer schema.
    """
    import xarray as xr
    import zarr

    _check_arrays(Path(path), read_root(Path(path)))
    # Zarr stores this setting in each array that it opens, and pickles it with them.
    with zarr.config.set({"array.read_missing_chunks": False}):
        ds: xr.Dataset = xr.open_zarr(path, chunks=dict(chunks or {}), consolidated=True)
    return ds


CODECS = {"bytes", "crc32c", "sharding_indexed", "transpose", "zstd", "gzip", "blosc"}
"""Codecs of Zarr itself with which datasets are written, or may be compressed again."""


def _check_arrays(path: Path, root: Mapping[str, Any]) -> None:
    """Check metadata of the arrays against the schema before memory is allocated for them or they are decoded.

    Raises
    ------
    InputError
        If a codec is unknown, or a type or shape differs from the schema and the counts.
    """
    file = path / "zarr.json"
    try:
        arrays = root["consolidated_metadata"]["metadata"]
        files = [name.partition("/")[0] for name in root["attributes"]["checksums"]["files"] if "/c/" in name]
        counts = {dim: root["attributes"][name] for dim, name in (("structure", "n_structures"), ("atom", "n_atoms"))}
        for name, array in arrays.items():
            codecs = [codec["name"] for codec in array["codecs"]]
            if strangers := [codec for codec in codecs if codec not in CODECS]:
                raise InputError(f"{file}: {name} needs the codec {strangers[0]!r}; known: {', '.join(sorted(CODECS))}")
            dims, dtype = VARIABLES[name].dims, _zarr_type(VARIABLES[name].dtype)
            if array["data_type"] != dtype or tuple(array["dimension_names"]) != dims:
                raise InputError(f"{file}: {name} is {array['data_type']}; the schema says {dtype}, {', '.join(dims)}")
            expected = [counts.get(dim, size) for dim, size in zip(dims, array["shape"], strict=True)]
            chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
            n_chunks = math.prod(-(-size // rows) for size, rows in zip(array["shape"], chunk, strict=True))
            if array["shape"] != expected or n_chunks != files.count(name) or chunk[0] > max(array["shape"][0], 1):
                raise InputError(
                    f"{file}: {name} claims the shape {array['shape']} in {n_chunks:,} chunks of {chunk}; expected "
                    f"{expected} in {files.count(name):,} chunks"
                )
            if codecs == ["bytes"]:
                n_bytes = math.prod(chunk) * VARIABLES[name].dtype.itemsize
                first = path / "/".join([name, "c", *["0"] * len(chunk)])
                if first.is_file() and first.stat().st_size != n_bytes:
                    raise InputError(f"{first} has {first.stat().st_size} bytes, and its array claims {n_bytes:,}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}); copy the dataset again") from error


def _zarr_type(dtype: np.dtype[Any]) -> Any:
    """Return Zarr's notation of a dtype."""
    if dtype.kind == "V":
        return {"name": "raw_bytes", "configuration": {"length_bytes": dtype.itemsize}}
    return dtype.name


def dataset_of(path: str | Path) -> Path:
    """Return the absolute path of a dataset, given its own path or that of its run directory."""
    inside = Path(path) / "dataset.zarr"
    return (inside if inside.is_dir() else Path(path)).absolute()


def read_identity(path: Path | str) -> tuple[str, int]:
    """Return the checksum that identifies a dataset, and its number of structures; raises as `open_dataset`."""
    attributes = read_root(Path(path))["attributes"]
    return attributes["checksums"]["root"], attributes["n_structures"]


GEOMETRY = ("n_atoms", "numbers", "positions", "cell", "pbc", "charge")
"""Variables of a geometry, with the charge where it is known."""


def read_geometries(path: Path | str, start: int, stop: int) -> xr.Dataset:
    """Read numbers, positions and cells of some structures of a dataset into memory; see `read_rows`."""
    return read_rows(path, start, stop, GEOMETRY)


def read_rows(path: Path | str, start: int, stop: int, names: Collection[str] | None = None) -> xr.Dataset:
    """Read some structures of a dataset into memory.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    start, stop
        First structure, and the one after the last, in the order of the dataset.
    names
        Variables to read; those that the dataset lacks are left out. By default all are read.

    Returns
    -------
    xarray.Dataset
        As from `daskpipe.core.structures.from_atoms`: coded variables hold names.
    """
    ds = open_dataset(path)
    # Read in this thread: within a task, Dask would send the reading to the cluster.
    index = ds[["n_atoms", "atom_start"]].isel(structure=slice(start, stop)).load(scheduler="synchronous")
    ends = np.append(index["atom_start"].values[:1], index["atom_start"].values + index["n_atoms"].values)
    atoms = slice(int(ends[0]), int(ends[-1])) if len(ends) else slice(0, 0)
    part = ds[[name for name in ds if names is None or name in names]].isel(structure=slice(start, stop), atom=atoms)
    part = part.load(scheduler="synchronous")
    decoded = {name: (array.dims, decode_names(array)) for name, array in part.items() if VARIABLES[str(name)].coded}
    return part.assign(decoded).assign(atom_start=("structure", atom_starts(part["n_atoms"].values)))


def verify(path: Path | str) -> list[str]:
    """Read a whole dataset and compare it with its checksums.

    Returns
    -------
    list of str
        Files that differ, are missing or are extra, as ``"NAME: differs"`` (``missing``, ``extra``), sorted; empty if
        all bytes are those that were written. Names are relative to `path`.

    Raises
    ------
    InputError
        If `path` is not a daskpipe dataset, or its root metadata cannot be read.
    """
    path = Path(path)
    root = read_root(path)
    try:
        checksums = root["attributes"]["checksums"]
        expected: dict[str, str] = checksums["files"]
        root_differs = checksums["root"] != crc32c_root(root)
    except (KeyError, TypeError, AttributeError):
        return ["zarr.json: differs"]
    present = dict(files_of(path))
    problems = ["zarr.json: differs"] if root_differs else []
    problems += [f"{name}: missing" for name in expected.keys() - present.keys()]
    problems += [f"{name}: extra" for name in present.keys() - expected.keys()]
    problems += [
        f"{name}: differs" for name in expected.keys() & present.keys() if crc32c_file(present[name]) != expected[name]
    ]
    return sorted(problems)
