"""Export a dataset to a format of other programs, in parts that are written in parallel and read back."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.errors import ConfigError, InputError, IntegrityError, describe_unknown
from daskpipe.core.outputs import resolve_output, swap_in
from daskpipe.core.structures import cut_blocks, take
from daskpipe.store.formats import FORMATS, Format, format_of, is_same_value, iter_records
from daskpipe.store.reader import open_dataset

if TYPE_CHECKING:
    import xarray as xr

PART_ATOMS = 2**20
PART_STRUCTURES = 65_536
"""Largest size of a part, which one task holds in memory: about one chunk of each array."""

OURS = re.compile(r"data\.\d{4,}\.\w+|metadata\.npz")
"""File names of an export that is a folder."""

Make = Callable[[], int]
"""Function that makes one part and returns its number of structures."""

RunParts = Callable[[Sequence[Make]], list[int]]
"""Function that calls each `Make` once, anywhere, and returns the results in order."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Result of an export.

    Parameters
    ----------
    out
        File or folder that was written.
    n_structures
        Number of structures, each of which was read back and compared with the dataset.
    files
        Names of the files in `out`, or of `out` itself.
    reader
        Program that read them back.
    fields
        Variables of the dataset in the format: those that were compared, all numbers to the last bit.
    """

    out: Path
    n_structures: int
    files: tuple[str, ...]
    reader: str
    fields: tuple[str, ...]


def run_serially(calls: Sequence[Make]) -> list[int]:
    """Make the parts in this process, one after another."""
    return [call() for call in calls]


def export(
    path: Path | str,
    to: str,
    out: Path | str,
    *,
    split: str | None = None,
    force: bool = False,
    run_parts: RunParts = run_serially,
) -> Exported:
    """Write the structures of a dataset to a file or folder, in their order, and read each of them back.

    The rows, and for text the bytes, do not depend on the number of parts or on the machines that make them.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    to
        Format: ``extxyz``, ``ase-db`` (SQLite), ``mace-hdf5``, ``aselmdb`` (fairchem), ``hdf5`` (flat arrays),
        ``parquet`` (ColabFit's columns) or ``csv`` (scalars). The modules of `daskpipe.store.formats` document their
        fields and keys.
    out
        Path to write: a folder for ``aselmdb``, and for ``mace-hdf5`` unless it ends in ``.h5``; else a file. It
        appears when it is complete; on failure nothing is left.
    split
        Write the structures of this split only.
    force
        Replace `out` if it exists; a folder only if it contains an export and nothing else.
    run_parts
        Calls the functions that it receives and returns their results in order. The functions can be pickled, are
        independent, and hold one part in memory each; where they run on other machines, these share the disk of `out`.

    Raises
    ------
    ConfigError
        If the format or the split is unknown, the name does not fit the format, or `out` exists and `force` is not
        given.
    InputError
        If `path` is not a dataset, or has no structure of that split.
    IntegrityError
        If a part does not read back as the data of the dataset.

    Examples
    --------
    >>> export("runs/q/dataset.zarr", "extxyz", "train.extxyz", split="train").files
    ('train.extxyz',)
    """
    format_module = format_of(to)
    out = Path(out)
    format_module.check_name(out)
    _check_free(out, force)
    place = resolve_output(out)
    ds = open_dataset(path)
    rows = _rows_of(ds, split)
    parts = cut_blocks(ds["n_atoms"].values[rows], PART_ATOMS, min(PART_STRUCTURES, format_module.MAX_STRUCTURES))
    temporary = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        names = [temporary / f"part-{number:05d}{format_module.SUFFIX}" for number in range(len(parts))]
        calls = [partial(make_part, path, rows[part], to, name) for part, name in zip(parts, names, strict=True)]
        n = sum(run_parts(calls))
        joined = temporary / "joined" / out.name
        joined.parent.mkdir()
        format_module.join_parts(names, joined)
        n_written = format_module.count_structures(joined)
        if not n == len(rows) == n_written:
            raise IntegrityError(f"{to}: {n_written} of {len(rows)} structures were written to {out}")
        swap_in(joined, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = tuple(sorted(os.listdir(out))) if out.is_dir() else (out.name,)
    fields = tuple(name for name in format_module.FIELDS if name in ds)
    return Exported(out=out, n_structures=n, files=files, reader=format_module.READER, fields=fields)


def make_part(path: Path | str, rows: np.ndarray, to: str, part: Path) -> int:
    """Write some structures of a dataset, read them back and compare them; return their number.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    rows
        Structures, in the order of the dataset, shape (structure,).
    to
        Format.
    part
        File to write.
    """
    format_module = format_of(to)
    block = _read_structures(path, rows)
    format_module.write_part(block, part)
    compare_part(to, format_module, block, part)
    return len(rows)


def compare_part(to: str, format_module: Format, block: xr.Dataset, part: Path) -> None:
    """Check that a part reads back as the structures of `block`.

    Raises
    ------
    IntegrityError
        If a structure or field differs; it names the format, the structure and the field.
    """
    for row, (stored, read) in enumerate(zip_longest(iter_records(block), format_module.read_part(part))):
        if stored is None or read is None:
            raise IntegrityError(
                f"{to}: {format_module.READER} finds {'more' if stored is None else 'only'} {row} of "
                f"{block.sizes['structure']} structures in what was written"
            )
        for name in format_module.FIELDS:
            if not is_same_value(name, stored.get(name), read.get(name)):
                raise IntegrityError(
                    f"{to}: {name} of structure {stored['structure_id']} is {stored.get(name)} in the dataset, and "
                    f"{format_module.READER} reads {read.get(name)} in what was written; nothing was exported. Check "
                    "the dataset with daskpipe.store.verify, and export again"
                )


def _read_structures(path: Path | str, rows: np.ndarray) -> xr.Dataset:
    """Read some structures of a dataset into memory."""
    ds = open_dataset(path)
    # Read in this thread: within a task, Dask would send the reading to the cluster.
    index = ds[["n_atoms", "atom_start"]].load(scheduler="synchronous")
    return take(ds.assign(index.data_vars), rows).load(scheduler="synchronous")


def _rows_of(ds: xr.Dataset, split: str | None) -> np.ndarray:
    """Return the rows of a split, in order; all rows without a split."""
    if split is None:
        rows = np.arange(ds.sizes["structure"])
    else:
        names = str(ds["split"].attrs["flag_meanings"]).split() if "split" in ds else []
        if split not in names:
            raise ConfigError(describe_unknown("split", split, names))
        rows = np.flatnonzero(ds["split"].values == names.index(split))
    if not rows.size:
        raise InputError(f"the dataset has no structure{f' of split {split!r}' if split else ''}; nothing to export")
    return rows


def _check_free(out: Path, force: bool) -> None:
    """Refuse to replace a file without `force`, or a folder that is no export."""
    if not out.exists():
        return
    if not force:
        raise ConfigError(f"{out} exists; give another name, or --force to replace it")
    strangers = sorted(name for name in os.listdir(out) if not OURS.fullmatch(name)) if out.is_dir() else []
    if strangers:
        raise ConfigError(f"{out} is a folder that holds {strangers[0]!r}, which no export wrote; give another name")


__all__ = ["FORMATS", "Exported", "compare_part", "export", "make_part", "run_serially"]
