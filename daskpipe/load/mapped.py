"""Rows of a Zarr array: through memory maps where a chunk file is the raw array, through zarr-python where not."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from daskpipe.core.errors import InputError, IntegrityError
from daskpipe.core.hashing import crc32c_file

NUMBERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
"""Zarr's types of numbers that NumPy calls by the same name."""

CODECS = ["blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"]
"""Those of the Zarr v3 specification and its extensions that zarr-python itself writes."""

MAP_FIXED = 0x10
"""Of the C library's ``mmap``, on Linux and macOS: over whatever is mapped there."""


class RowRanges:
    """Runs of rows, ``start`` to ``stop`` each, in any order.

    Parameters
    ----------
    start, stop
        Shape (run,), dtype int64.
    """

    def __init__(self, start: np.ndarray, stop: np.ndarray) -> None:
        self.start, self.stop = start, stop

    @property
    def rows(self) -> np.ndarray:
        """All rows, one after the other, shape (row,), dtype int64."""
        lengths = self.stop - self.start
        ends = np.cumsum(lengths)
        return np.repeat(self.stop - ends, lengths) + np.arange(lengths.sum())

    @cached_property
    def slices(self) -> list[slice]:
        """The same rows as slices; runs that follow each other in the array are one."""
        start, stop = self.start, self.stop
        joined = start[1:] == stop[:-1]
        if joined.any():
            start, stop = start[np.append(True, ~joined)], stop[np.append(~joined, True)]
        return list(map(slice, start.tolist(), stop.tolist()))


class ArrayReader(Protocol):
    """An array that gives rows."""

    dtype: np.dtype[Any]
    tail: tuple[int, ...]

    def copy_rows(self, runs: RowRanges, out: np.ndarray) -> None:
        """Copy rows into `out`, shape (row, ...), converted to its dtype."""


def metadata_of(store: Path, root: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of each array of a store by name: as consolidated in `root`, or else from the files."""
    if consolidated := root.get("consolidated_metadata"):
        return dict(consolidated["metadata"])
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(store.glob("*/zarr.json"))}


def open_array(
    store: Path, name: str, metadata: Mapping[str, Any], checksums: Mapping[str, str], *, verify: bool
) -> ArrayReader:
    """Return an array of a store, mapped if its layout allows it.

    Parameters
    ----------
    store
        Path of the Zarr group.
    name
        Of the array in the group.
    metadata
        The array's ``zarr.json``, parsed.
    checksums
        CRC-32C of the files of the store by name, hex.
    verify
        Compare the chunk files with them. Where an array cannot be mapped, its ``zarr.json`` tells whether
        daskpipe wrote it: the checksums say nothing about copies that other programs made.

    Raises
    ------
    InputError
        If the array is stored with a codec that is not known.
    IntegrityError
        If a chunk file is missing, is too short, or differs from its checksum; it names the file.
    """
    for codec in _iter_codecs(metadata):
        if codec not in CODECS:
            raise InputError(
                f"{store / name / 'zarr.json'}: the array {name!r} is stored with the codec {codec!r}, which daskpipe "
                f"does not read. Known: {', '.join(CODECS)}. Write the dataset again with one of these"
            )
    if is_mappable(metadata):
        files, values = map_array(store / name, metadata)
        if verify:
            _verify_files(store, files, checksums)
        return MappedReader(values)
    if checksums.get(f"{name}/zarr.json") == crc32c_file(store / name / "zarr.json"):
        files = [store / file for file in checksums if file.startswith(f"{name}/c/")]
        # Zarr reads a missing chunk as fill values.
        if missing := [file for file in files if not file.exists()]:
            raise IntegrityError(f"{missing[0]} is missing; copy the dataset again or make it anew")
        if verify:
            _verify_files(store, files, checksums)
    return ZarrReader(store, name)


def is_mappable(metadata: Mapping[str, Any]) -> bool:
    """Whether the chunk files, one after the other, are the bytes of the array, and can be mapped side by side."""
    if not (
        sys.byteorder == "little"
        and metadata["data_type"] in NUMBERS
        and metadata["codecs"] in ([{"name": "bytes"}], [{"name": "bytes", "configuration": {"endian": "little"}}])
        and metadata["chunk_grid"]["name"] == "regular"
        and metadata["chunk_grid"]["configuration"]["chunk_shape"][1:] == metadata["shape"][1:]
        and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and not metadata.get("storage_transformers")
    ):
        return False
    chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    whole_pages = math.prod(chunk_shape) * np.dtype(metadata["data_type"]).itemsize % mmap.PAGESIZE == 0
    return whole_pages or metadata["shape"][0] <= chunk_shape[0]


def map_array(folder: Path, metadata: Mapping[str, Any]) -> tuple[list[Path], np.ndarray]:
    """Map the chunk files of an array, one after the other, into one piece of address space.

    Parameters
    ----------
    folder
        Of the array.
    metadata
        Its ``zarr.json``, parsed; passes `is_mappable`.

    Returns
    -------
    files
        The chunk files.
    values
        The array, read only, shape and dtype as in the metadata.

    Raises
    ------
    IntegrityError
        If a file is missing or its size is wrong; it names the file.
    """
    shape, dtype = metadata["shape"], np.dtype(metadata["data_type"])
    chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    chunk_bytes = math.prod(chunk_shape) * dtype.itemsize
    suffix = "/0" * (len(shape) - 1)
    files = [folder / f"c/{chunk}{suffix}" for chunk in range(-(-shape[0] // chunk_shape[0]))]
    if not files:
        return files, np.empty(shape, dtype)
    # Address space only: each file is then mapped over its part, and all goes when nothing refers to it any more.
    space = mmap.mmap(-1, len(files) * chunk_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    whole = np.frombuffer(space, dtype=np.uint8)
    for number, file in enumerate(files):
        size = file.stat().st_size if file.exists() else None
        if size != chunk_bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise IntegrityError(
                f"{file} is {found}, expected {chunk_bytes} bytes; copy the dataset again or make it anew"
            )
        with open(file, "rb") as stream:
            _map_over(whole.ctypes.data + number * chunk_bytes, chunk_bytes, stream.fileno())
    return files, whole.view(dtype).reshape(-1, *shape[1:])[: shape[0]]


def _map_over(address: int, n_bytes: int, descriptor: int) -> None:
    """Map a file at an address that is ours; Python's own `mmap` cannot choose the address."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    if library.mmap(address, n_bytes, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class MappedReader:
    """Rows of an array in the address space: mapped, or held in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.dtype, self.tail = values, values.dtype, values.shape[1:]

    def copy_rows(self, runs: RowRanges, out: np.ndarray) -> None:
        """Copy rows into `out`, shape (row, ...), converted to its dtype."""
        if len(out) == len(runs.start):  # one row each: NumPy gathers them faster than slices
            out[...] = self.values[runs.start]
        else:
            np.concatenate([self.values[rows] for rows in runs.slices], out=out, casting="unsafe")


class ZarrReader:
    """Rows of an array in any layout that zarr-python reads: compressed, sharded ..."""

    def __init__(self, store: Path, name: str) -> None:
        import zarr

        self.array = zarr.open_array(store, path=name, mode="r")
        self.dtype = np.dtype(self.array.dtype)
        self.tail = tuple(self.array.shape[1:])

    def copy_rows(self, runs: RowRanges, out: np.ndarray) -> None:
        """Copy rows into `out`, shape (row, ...), converted to its dtype."""
        if len(out):
            out[...] = self.array.get_orthogonal_selection((runs.rows,))


def _iter_codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Names of all codecs of an array, those within shards as well."""
    for codec in metadata["codecs"]:
        yield codec["name"]
        inner = codec.get("configuration", {})
        for key in ("codecs", "index_codecs"):
            yield from _iter_codecs({"codecs": inner.get(key, [])})


def _verify_files(store: Path, files: list[Path], checksums: Mapping[str, str]) -> None:
    for file in files:
        expected, found = checksums.get(file.relative_to(store).as_posix()), crc32c_file(file)
        if found != expected:
            raise IntegrityError(
                f"{file} is damaged: its CRC-32C is {found}, expected {expected}; copy the dataset again or make it "
                "anew (verify=False reads a copy that was changed on purpose)"
            )
