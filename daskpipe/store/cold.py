"""Write a compressed copy of a dataset for object stores and archives: few large files, each a shard of small chunks.

Any Zarr v3 reader with sharding and Blosc opens it. Reading it is fast by the block and slow by the structure: train
from the dataset itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from daskpipe.core.errors import IntegrityError
from daskpipe.core.hashing import crc32c_file
from daskpipe.core.root_metadata import read_root
from daskpipe.core.variables import VARIABLES, is_per_atom
from daskpipe.store.writer import ArrayLayout, publish_dataset

ATOM_INNER = 16_384
STRUCTURE_INNER = 4_096
"""Rows of a compressed chunk of a per-atom array, and of a per-structure array."""

MADE_ANEW = ("Conventions", "checksums", "daskpipe_schema", "n_atoms", "n_structures", "ragged")
"""Root attributes that the writer makes anew."""

Shard = Callable[[], tuple[str, str]]
"""Function that writes one file and returns its name and CRC-32C."""


def write_cold(path: Path | str, out: Path | str, run_parts: Callable[[Sequence[Shard]], list[tuple[str, str]]]) -> int:
    """Write a compressed copy of a dataset.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    out
        Path of the copy.
    run_parts
        Runs the parts, in any order and on any machine that shares the disk; each writes one file.

    Returns
    -------
    int
        Number of data files.

    Raises
    ------
    InputError
        If `path` is no dataset.
    ConfigError
        If `out` exists.
    IntegrityError
        If a file does not read back as the data of the dataset.
    """
    root = read_root(Path(path))
    arrays = [_compress_layout(name, metadata) for name, metadata in root["consolidated_metadata"]["metadata"].items()]
    shards: list[tuple[str, str]] = []

    def write_shards(folder: Path) -> dict[str, str]:
        parts = [
            partial(_write_shard, Path(path), folder, layout, number)
            for layout in arrays
            for number in range(layout.n_chunks)
        ]
        shards.extend(run_parts(parts))
        return dict(shards)

    attrs = {name: value for name, value in root["attributes"].items() if name not in MADE_ANEW}
    publish_dataset(out, arrays, write_shards, attrs={**attrs, "encoding": "cold"})
    return len(shards)


def _compress_layout(name: str, metadata: dict[str, Any]) -> ArrayLayout:
    """Return the compressed layout of an array, from its metadata."""
    shape = tuple(metadata["shape"])
    rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    inner = min(rows, ATOM_INNER if is_per_atom(name) else STRUCTURE_INNER)
    return ArrayLayout(
        name=name,
        shape=shape,
        dtype=VARIABLES[name].dtype,
        rows=-(-rows // inner) * inner,  # a shard holds whole chunks
        attrs=metadata["attributes"],
        inner=inner,
    )


def _write_shard(source: Path, folder: Path, layout: ArrayLayout, number: int) -> tuple[str, str]:
    """Write one file of an array, read it back, and return its name and CRC-32C."""
    import zarr

    rows = slice(number * layout.rows, min((number + 1) * layout.rows, layout.shape[0]))
    with zarr.config.set({"array.read_missing_chunks": False, "array.write_empty_chunks": True}):
        values = np.asarray(zarr.open_array(source, path=layout.name, mode="r")[rows])
        target = zarr.open_array(folder, path=layout.name, mode="r+")
        target[rows] = values
        same = np.asarray(target[rows]).tobytes() == values.tobytes()
    file = folder / layout.file_name(number)
    if not same:
        raise IntegrityError(f"{file} does not read back as what was written; try another disk")
    return layout.file_name(number), crc32c_file(file)
