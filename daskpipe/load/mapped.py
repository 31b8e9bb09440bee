"""Rows of a Zarr array: through memory maps where a chunk file is the raw array, through zarr-python where not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from daskpipe.errors import IntegrityError

NUMBERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
"""Zarr's types of numbers that NumPy calls by the same name."""


class Rows(Protocol):
    """An array that gives rows."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of `rows` (indices, in any order, repeats allowed)."""


def open_rows(store: Path, name: str, metadata: Mapping[str, Any]) -> Rows:
    """Return the array `name` of a store, mapped if its layout allows it.

    Parameters
    ----------
    store
        Path of the Zarr group.
    name
        Of the array in the group.
    metadata
        The array's ``zarr.json``, parsed.
    """
    return MappedRows(store, name, metadata) if is_raw(metadata) else ZarrRows(store, name)


def is_raw(metadata: Mapping[str, Any]) -> bool:
    """Whether each chunk file is the bytes of a C-ordered block of whole rows, in this machine's byte order."""
    return (
        sys.byteorder == "little"
        and metadata["data_type"] in NUMBERS
        and metadata["codecs"] in ([{"name": "bytes"}], [{"name": "bytes", "configuration": {"endian": "little"}}])
        and metadata["chunk_grid"]["name"] == "regular"
        and metadata["chunk_grid"]["configuration"]["chunk_shape"][1:] == metadata["shape"][1:]
        and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and not metadata.get("storage_transformers")
    )


class MappedRows:
    """Rows of an array whose chunk files are raw."""

    def __init__(self, store: Path, name: str, metadata: Mapping[str, Any]) -> None:
        self.n_rows, *self.tail = metadata["shape"]
        self.chunk_rows: int = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        self.dtype = np.dtype(metadata["data_type"])
        n_chunks = -(-self.n_rows // self.chunk_rows)
        suffix = "/0" * len(self.tail)
        self.chunks = [self._map(store / name / f"c/{chunk}{suffix}") for chunk in range(n_chunks)]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of `rows`, shape (len(rows), ...)."""
        if len(self.chunks) == 1:
            return np.asarray(self.chunks[0][rows])
        out = np.empty((len(rows), *self.tail), dtype=self.dtype)
        chunk_index, row = np.divmod(rows, self.chunk_rows)
        for chunk in np.unique(chunk_index):
            here = chunk_index == chunk
            out[here] = self.chunks[chunk][row[here]]
        return out

    def _map(self, file: Path) -> np.ndarray:
        shape = (self.chunk_rows, *self.tail)
        expected = int(np.prod(shape)) * self.dtype.itemsize
        size = file.stat().st_size if file.exists() else None
        if size != expected:
            found = "missing" if size is None else f"{size} bytes"
            raise IntegrityError(
                f"{file} is {found}, expected {expected} bytes; copy the dataset again or make it anew"
            )
        # A plain array over the map: indexing a memmap makes memmaps, which costs time and says nothing.
        return np.asarray(np.memmap(file, dtype=self.dtype, mode="r", shape=shape))


class ZarrRows:
    """Rows of an array in any layout that zarr-python reads: compressed, sharded ..."""

    def __init__(self, store: Path, name: str) -> None:
        import zarr

        with zarr.config.set({"array.read_missing_chunks": False}):
            array = zarr.open_array(store, path=name, mode="r")
        self.array = array

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of `rows`, shape (len(rows), ...)."""
        return np.asarray(self.array.get_orthogonal_selection((rows,)))
