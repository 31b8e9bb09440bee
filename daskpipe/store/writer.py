"""Write a dataset as one immutable Zarr group, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.errors import ConfigError, DiskError, InputError
from daskpipe.core.files import sync_folder
from daskpipe.core.hashing import canonical_json, crc32c_file, crc32c_root
from daskpipe.core.root_metadata import read_root
from daskpipe.core.shared_disk import FULL
from daskpipe.core.variables import (
    SCHEMA,
    SIZES,
    VARIABLES,
    annotate_dataset,
    cf_attributes,
    encode_names,
    is_per_atom,
    validate_dataset,
)

if TYPE_CHECKING:
    import xarray as xr

ATOM_CHUNK = 2**20
"""Rows in a chunk of a per-atom array: 12 MB of positions."""

STRUCTURE_CHUNK = 65_536
"""Rows in a chunk of a per-structure array."""


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Shape, chunks and attributes of one array on disk; each chunk file holds the raw bytes of whole rows.

    Parameters
    ----------
    name, shape, dtype
        Name, shape and dtype of the array.
    rows
        Rows in a chunk. The last chunk is as long as the others, its end filled with NaN or 0.
    attrs
        CF attributes.
    inner
        Rows of the compressed chunks in each file, which is then a shard; by default a file is one raw chunk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    attrs: Mapping[str, Any]
    inner: int | None = None

    @property
    def n_chunks(self) -> int:
        """Number of chunk files."""
        return -(-self.shape[0] // self.rows)

    def file_name(self, chunk: int) -> str:
        """Return the name of a chunk file within the store."""
        return "/".join([self.name, "c", str(chunk), *["0"] * (len(self.shape) - 1)])

    def pad_chunk(self, values: np.ndarray) -> np.ndarray:
        """Return the rows of one chunk as on disk, padded with NaN or 0 to the full length, shape (rows, ...)."""
        if values.dtype != self.dtype or values.shape[1:] != self.shape[1:]:
            received = f"{values.shape[1:]} {values.dtype}"
            raise ValueError(f"{self.name}: expected rows of {self.shape[1:]} {self.dtype}, received {received}")
        if len(values) == self.rows:
            return np.ascontiguousarray(values)
        whole = np.zeros((self.rows, *self.shape[1:]), dtype=self.dtype)
        if self.dtype.kind == "f":
            whole[len(values) :] = np.nan
        whole[: len(values)] = values
        return whole


def lay_out_arrays(
    names: Iterable[str],
    n_structures: int,
    n_atoms: int,
    n_features: int = 0,
    codes: Mapping[str, Sequence[str]] | None = None,
    *,
    atom_chunk: int = ATOM_CHUNK,
    structure_chunk: int = STRUCTURE_CHUNK,
) -> dict[str, ArrayLayout]:
    """Lay out the arrays of a dataset, sorted by name.

    Parameters
    ----------
    names
        Names of `daskpipe.core.variables.VARIABLES`.
    n_structures, n_atoms, n_features
        Sizes of the dims.
    codes
        Names of the codes of each coded variable.
    atom_chunk, structure_chunk
        Rows in a chunk.
    """
    sizes = {**SIZES, "structure": n_structures, "atom": n_atoms, "feature": n_features}
    layouts = {}
    for name in sorted(names):
        shape = tuple(sizes[dim] for dim in VARIABLES[name].dims)
        layouts[name] = ArrayLayout(
            name=name,
            shape=shape,
            dtype=VARIABLES[name].dtype,
            rows=min(atom_chunk if is_per_atom(name) else structure_chunk, max(1, shape[0])),
            attrs=cf_attributes(name, (codes or {}).get(name)),
        )
    return layouts


def write_dataset(
    ds: xr.Dataset,
    path: Path | str,
    *,
    attrs: Mapping[str, Any],
    atom_chunk: int = ATOM_CHUNK,
    structure_chunk: int = STRUCTURE_CHUNK,
) -> dict[str, Any]:
    """Write a dataset in schema ``daskpipe/1``, and publish it by rename when it is complete.

    The bytes depend on the arguments alone. The root attribute ``checksums`` holds the CRC-32C of every file except the
    root's own ``zarr.json``, and that of the root's content.

    Parameters
    ----------
    ds
        Dataset in memory or lazy that passes `daskpipe.core.variables.validate_dataset`.
    path
        Path of the dataset, e.g. ``runs/NAME/dataset.zarr``.
    attrs
        Root attributes, JSON types: config, versions, hashes, seed ... and ``dataset_key``, which identifies the
        content.
    atom_chunk, structure_chunk
        Rows in a chunk.

    Returns
    -------
    dict
        ``path``, ``dataset_key``, ``n_structures``, ``n_atoms``, ``n_files`` and ``n_bytes`` of the dataset at `path`.
        If a dataset of the same key is there already, it stays and nothing is written.

    Raises
    ------
    ConfigError
        If `path` exists and is not the dataset of that key.
    ValueError
        If `ds` violates the schema, or `attrs` is not JSON or has no ``dataset_key``.
    DiskError
        If the disk is full or cannot be written.
    """
    validate_dataset(ds)
    encoded = encode_names(annotate_dataset(ds))
    n_structures, n_atoms, n_features = (ds.sizes.get(dim, 0) for dim in ("structure", "atom", "feature"))
    names = map(str, ds.data_vars)
    plain = lay_out_arrays(
        names, n_structures, n_atoms, n_features, atom_chunk=atom_chunk, structure_chunk=structure_chunk
    )
    arrays = [ArrayLayout(**{**vars(layout), "attrs": encoded[name].attrs}) for name, layout in plain.items()]

    def write_chunks(folder: Path) -> dict[str, str]:
        checksums = {}
        for layout in arrays:
            for number in range(layout.n_chunks):
                rows = slice(number * layout.rows, (number + 1) * layout.rows)
                file = folder / layout.file_name(number)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(memoryview(layout.pad_chunk(encoded[layout.name][rows].values)))
                checksums[layout.file_name(number)] = crc32c_file(file)
        return checksums

    return publish_dataset(path, arrays, write_chunks, attrs=attrs)


def publish_dataset(
    path: Path | str,
    arrays: Sequence[ArrayLayout],
    write_files: Callable[[Path], Mapping[str, str]],
    *,
    attrs: Mapping[str, Any],
) -> dict[str, Any]:
    """Make a dataset beside `path` and rename it when it is complete.

    Parameters
    ----------
    path, attrs
        As for `write_dataset`; result and errors are the same, too.
    arrays
        Layouts of the arrays.
    write_files
        Function that receives the folder of the store, writes all chunk files there and returns the CRC-32C of each.
    """
    path = Path(path)
    if not attrs.get("dataset_key"):
        raise ValueError(
            "attrs has no 'dataset_key'; give a string that names the content, e.g. daskpipe.engine.units.unit_key(...)"
        )
    try:
        plain_attrs = json.loads(canonical_json(dict(attrs)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"attrs must hold JSON types only: {error}") from error
    if path.exists():
        return _describe_dataset(path, attrs["dataset_key"])
    n_bytes = sum(layout.dtype.itemsize * int(np.prod(layout.shape)) for layout in arrays)
    # A sweep of the run directory removes files of this name if this process is killed.
    attempt = path.with_name(f".dataset-{uuid.uuid4().hex}.zarr")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checksums = {**_create_arrays(attempt, arrays), **write_files(attempt)}
        by_name = {layout.name: layout for layout in arrays}
        sizes = {"n_structures": by_name["n_atoms"].shape[0], "n_atoms": by_name["numbers"].shape[0]}
        _write_root(attempt, {**plain_attrs, **sizes}, checksums)
        _sync_files(attempt)
        try:
            os.rename(attempt, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in FULL:
            room = f"Make room ({n_bytes:,} bytes), then resume"
            raise DiskError(f"cannot write {path}: {error.strerror}. {room}") from error
        raise
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    return _describe_dataset(path, attrs["dataset_key"])


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every file of a store but the root's ``zarr.json``, sorted by name.

    Hidden files are left out: no store has any, and file managers create them everywhere.
    """
    visible = (file for file in folder.rglob("*") if not file.name.startswith(".") and not file.is_dir())
    files = {file.relative_to(folder).as_posix(): file for file in visible}
    files.pop("zarr.json", None)
    yield from sorted(files.items())


def _create_arrays(folder: Path, arrays: Sequence[ArrayLayout]) -> dict[str, str]:
    """Create a group with the metadata of all arrays, and return the checksums of its files."""
    import zarr
    from zarr.codecs import BloscCodec
    from zarr.errors import UnstableSpecificationWarning

    group = zarr.create_group(folder, zarr_format=3)
    for layout in arrays:
        tail = layout.shape[1:]
        encoding: dict[str, Any] = {"chunks": (layout.rows, *tail), "compressors": None}
        if layout.inner is not None:
            compressor = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=layout.dtype.itemsize)
            encoding = {"chunks": (layout.inner, *tail), "shards": (layout.rows, *tail), "compressors": compressor}
        with warnings.catch_warnings():
            # Ids are 16 raw bytes. Zarr warns each time that its type for them has no final specification yet.
            warnings.filterwarnings("ignore", r"The data type \(RawBytes", UnstableSpecificationWarning)
            group.create_array(
                layout.name,
                shape=layout.shape,
                dtype=layout.dtype,
                filters=None,
                **encoding,
                fill_value=np.nan if layout.dtype.kind == "f" else None,
                dimension_names=VARIABLES[layout.name].dims,
                attributes=dict(sorted(layout.attrs.items())),
            )
    return {name: crc32c_file(file) for name, file in files_of(folder)}


def _write_root(folder: Path, attributes: dict[str, Any], files: Mapping[str, str]) -> None:
    """Write the root metadata with consolidated metadata of the arrays, in sorted order, and all checksums."""
    arrays = {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/zarr.json")}
    checksums: dict[str, Any] = {"algorithm": "crc32c", "files": dict(files)}
    root: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            **attributes,
            "Conventions": "CF-1.11",
            "daskpipe_schema": SCHEMA,
            "ragged": "contiguous",
            "checksums": checksums,
        },
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
    checksums["root"] = crc32c_root(root)
    (folder / "zarr.json").write_text(json.dumps(root, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _sync_files(folder: Path) -> None:
    """Flush all files below a folder to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def _describe_dataset(path: Path, dataset_key: str) -> dict[str, Any]:
    """Describe the dataset at `path`; raise ConfigError if it is not the one of that key."""
    try:
        attributes = read_root(path)["attributes"]
    except InputError as error:
        raise ConfigError(f"{path} exists and is no dataset; give another path or move it away ({error})") from error
    if attributes.get("dataset_key") != dataset_key:
        raise ConfigError(
            f"{path} holds another dataset (key {attributes.get('dataset_key')}, this one is {dataset_key}); "
            "give another path or move it away"
        )
    files = [path / "zarr.json", *(file for _, file in files_of(path))]
    return {
        "path": str(path),
        "dataset_key": dataset_key,
        "n_structures": attributes["n_structures"],
        "n_atoms": attributes["n_atoms"],
        "n_files": len(files),
        "n_bytes": sum(file.stat().st_size for file in files),
    }
