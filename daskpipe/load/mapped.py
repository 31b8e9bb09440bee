"""Read rows of a Zarr array: through memory maps where chunk files are raw bytes, else through zarr-python."""

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
"""Data types of Zarr with the same name in NumPy."""

CODECS = ["blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"]
"""Codecs of the Zarr v3 specification and its extensions that zarr-python itself writes."""

MAP_FIXED = 0x10
"""Flag of the C function ``mmap`` on Linux and macOS: map at this address, replacing what is mapped there."""


class RowRanges:
    """Ranges of rows, ``start`` to ``stop`` each, in any order.

    Parameters
    ----------
    start, stop
        First row of each range, and the one after its last, shape (range,), dtype int64.
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
        """The same rows as slices; adjacent ranges become one."""
        start, stop = self.start, self.stop
        joined = start[1:] == stop[:-1]
        if joined.any():
            start, stop = start[np.append(True, ~joined)], stop[np.append(~joined, True)]
        return list(map(slice, start.tolist(), stop.tolist()))


class ArrayReader(Protocol):
    """An array on disk of which rows can be copied."""

    dtype: np.dtype[Any]
    tail: tuple[int, ...]

    def copy_rows(self, ranges: RowRanges, out: np.ndarray) -> None:
        """Copy rows into `out`, shape (row, ...), converted to its dtype."""


def metadata_of(store: Path, root: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of each array of a store by name: consolidated in `root`, or else from the files."""
    if consolidated := root.get("consolidated_metadata"):
        return dict(consolidated["metadata"])
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(store.glob("*/zarr.json"))}


def open_array(
    store: Path, name: str, metadata: Mapping[str, Any], checksums: Mapping[str, str], *, verify: bool
) -> ArrayReader:
    """Open an array of a store, mapped into memory if its layout allows it.

    Parameters
    ----------
    store
        Path of the Zarr group.
    name
        Name of the array in the group.
    metadata
        Parsed ``zarr.json`` of the array.
    checksums
        CRC-32C of the files of the store by name, hex.
    verify
        Compare the chunk files with their checksums. An array that cannot be mapped is compared only if its
        ``zarr.json`` is as daskpipe wrote it: copies that other programs made have other checksums.

    Raises
    ------
    InputError
        If the array is stored with an unknown codec.
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
        # Zarr would read a missing chunk as fill values.
        if missing := [file for file in files if not file.exists()]:
            raise IntegrityError(f"{missing[0]} is missing; copy the dataset again or make it anew")
        if verify:
            _verify_files(store, files, checksums)
    return ZarrReader(store, name)


def is_mappable(metadata: Mapping[str, Any]) -> bool:
    """Return whether the concatenated chunk files are the bytes of the array, so that they can be mapped."""
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
    """Map the chunk files of an array, one after another, into one range of addresses.

    Parameters
    ----------
    folder
        Folder of the array.
    metadata
        Parsed ``zarr.json`` of the array, which passes `is_mappable`.

    Returns
    -------
    files
        Chunk files.
    values
        The array, read only, with shape and dtype as in the metadata.

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
    # This reserves addresses only. Each file is then mapped over its part; all is unmapped with the last reference.
    space = mmap.mmap(-1, len(files) * chunk_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    whole = np.frombuffer(space, dtype=np.uint8)
    for number, file in enumerate(files):
        size = file.stat().st_size if file.exists() else None
        if size != chunk_bytes:
            actual = "missing" if size is None else f"{size} bytes"
            raise IntegrityError(
                f"{file} is {actual}, expected {chunk_bytes} bytes; copy the dataset again or make it anew"
            )
        with open(file, "rb") as stream:
            _map_over(whole.ctypes.data + number * chunk_bytes, chunk_bytes, stream.fileno())
    return files, whole.view(dtype).reshape(-1, *shape[1:])[: shape[0]]


def _map_over(address: int, n_bytes: int, descriptor: int) -> None:
    """Map a file at an address that this process has reserved; `mmap` of Python cannot choose the address."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    if library.mmap(address, n_bytes, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class MappedReader:
    """Reads rows of an array that is mapped or in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.dtype, self.tail = values, values.dtype, values.shape[1:]

    def copy_rows(self, ranges: RowRanges, out: np.ndarray) -> None:
        """Copy rows into `out`, shape (row, ...), converted to its dtype."""
        if len(out) == len(ranges.start):  # one row each, which NumPy gathers faster than slices
            out[...] = self.values[ranges.start]
        else:
            np.concatenate([self.values[rows] for rows in ranges.slices], out=out, casting="unsafe")


class ZarrReader:
    """Reads rows of an array in any layout that zarr-python reads: compressed, sharded ..."""

    def __init__(self, store: Path, name: str) -> None:
        import zarr

        self.array = zarr.open_array(store, path=name, mode="r")
        self.dtype = np.dtype(self.array.dtype)
        self.tail = tuple(self.array.shape[1:])

    def copy_rows(self, ranges: RowRanges, out: np.ndarray) -> None:
        """Copy rows into `out`, shape (row, ...), converted to its dtype."""
        if len(out):
            out[...] = self.array.get_orthogonal_selection((ranges.rows,))


def _iter_codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all codecs of an array, including those within shards."""
    for codec in metadata["codecs"]:
        yield codec["name"]
        inner = codec.get("configuration", {})
        for key in ("codecs", "index_codecs"):
            yield from _iter_codecs({"codecs": inner.get(key, [])})


def _verify_files(store: Path, files: list[Path], checksums: Mapping[str, str]) -> None:
    """Compare files with their checksums."""
    for file in files:
        expected, actual = checksums.get(file.relative_to(store).as_posix()), crc32c_file(file)
        if actual != expected:
            raise IntegrityError(
                f"{file} is damaged: its CRC-32C is {actual}, expected {expected}; copy the dataset again or make it "
                "anew (verify=False reads a copy that was changed on purpose)"
            )
