"""A compressed copy of a dataset, for object stores and archives: few large files, each a shard of small chunks.

Any Zarr v3 reader with sharding and Blosc opens it. It is read by the block and not by the structure: a loader wants
the dataset itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from daskpipe.core.errors import IntegrityError
from daskpipe.core.hashing import crc32c_file
from daskpipe.core.variables import VARIABLES, is_per_atom, read_root
from daskpipe.store.writer import Layout, publish

ATOM_INNER = 16_384
STRUCTURE_INNER = 4_096
"""Rows of a compressed chunk."""

MADE_ANEW = ("Conventions", "checksums", "daskpipe_schema", "n_atoms", "n_structures", "ragged")

Shard = Callable[[], tuple[str, str]]
"""Writes one file; returns its name and CRC-32C."""


def write_cold(path: Path | str, out: Path | str, run_parts: Callable[[Sequence[Shard]], list[tuple[str, str]]]) -> int:
    """Write a compressed copy of a dataset.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    out
        Where the copy is to be.
    run_parts
        Runs the parts, of which each writes one file, in any order and anywhere.

    Returns
    -------
    int
        Number of files with data.

    Raises
    ------
    InputError
        If `path` is no dataset.
    ConfigError
        If something is at `out`.
    IntegrityError
        If what was written does not read back as what is stored.
    """
    root = read_root(Path(path))
    arrays = [_cold(name, metadata) for name, metadata in root["consolidated_metadata"]["metadata"].items()]
    shards: list[tuple[str, str]] = []

    def fill(folder: Path) -> dict[str, str]:
        parts = [
            partial(_write_shard, Path(path), folder, layout, number)
            for layout in arrays
            for number in range(layout.n_chunks)
        ]
        shards.extend(run_parts(parts))
        return dict(shards)

    attrs = {name: value for name, value in root["attributes"].items() if name not in MADE_ANEW}
    publish(out, arrays, fill, attrs={**attrs, "encoding": "cold"})
    return len(shards)


def _cold(name: str, metadata: dict[str, Any]) -> Layout:
    shape = tuple(metadata["shape"])
    rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    inner = min(rows, ATOM_INNER if is_per_atom(name) else STRUCTURE_INNER)
    return Layout(
        name=name,
        shape=shape,
        dtype=VARIABLES[name].dtype,
        rows=-(-rows // inner) * inner,  # a shard holds whole chunks
        attrs=metadata["attributes"],
        inner=inner,
    )


def _write_shard(source: Path, folder: Path, layout: Layout, number: int) -> tuple[str, str]:
    import zarr

    rows = slice(number * layout.rows, min((number + 1) * layout.rows, layout.shape[0]))
    with zarr.config.set({"array.read_missing_chunks": False, "array.write_empty_chunks": True}):
        values = np.asarray(zarr.open_array(source, path=layout.name, mode="r")[rows])
        target = zarr.open_array(folder, path=layout.name, mode="r+")
        target[rows] = values
        same = np.asarray(target[rows]).tobytes() == values.tobytes()
    if not same:
        raise IntegrityError(f"{folder / layout.file(number)} does not read back as what was written; try another disk")
    return layout.file(number), crc32c_file(folder / layout.file(number))
