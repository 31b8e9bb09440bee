"""Copy a dataset into a format of other programs, in parts that are made side by side and read back."""

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
from daskpipe.store.formats import FORMATS, Format, format_of, records, same
from daskpipe.store.reader import open_dataset

if TYPE_CHECKING:
    import xarray as xr

PART_ATOMS = 2**20
PART_STRUCTURES = 65_536
"""Most of a part, which one task holds in memory: about one chunk of each array."""

OURS = re.compile(r"data\.\d{4,}\.\w+|metadata\.npz")
"""Names of the files of an export that is a folder."""

Make = Callable[[], int]
RunParts = Callable[[Sequence[Make]], list[int]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export made.

    Parameters
    ----------
    out
        The file or folder.
    n_structures
        How many structures it holds. Each was read back and compared with the dataset.
    files
        Names of the files in `out`, or of `out` itself.
    reader
        What they were read back with.
    fields
        The variables of the dataset that the format carries: those that were compared, all numbers to the last bit.
    """

    out: Path
    n_structures: int
    files: tuple[str, ...]
    reader: str
    fields: tuple[str, ...]


def one_after_another(calls: Sequence[Make]) -> list[int]:
    """Make the parts in this process."""
    return [call() for call in calls]


def export(
    path: Path | str,
    to: str,
    out: Path | str,
    *,
    split: str | None = None,
    force: bool = False,
    run_parts: RunParts = one_after_another,
) -> Exported:
    """Write the structures of a dataset to a file or folder, in its order, and read each of them back.

    The rows, and for text the bytes, are the same however many parts there are and wherever they are made.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    to
        The format: ``extxyz``, ``ase-db`` (SQLite), ``mace-hdf5``, ``aselmdb`` (fairchem), ``hdf5`` (flat arrays),
        ``parquet`` (ColabFit's columns) or ``csv`` (scalars). What each holds, under which keys, is told by the modules
        of `daskpipe.store.formats`.
    out
        What to write: a folder for ``aselmdb``, and for ``mace-hdf5`` unless it ends in ``.h5``; else a file. It
        appears when it is complete; on failure nothing is left.
    split
        Write the structures of this split only.
    force
        Replace `out` if it exists; a folder only if it holds an export and nothing else.
    run_parts
        Calls all it is given and returns what they return, in order. The calls pickle, are independent, and hold one
        part in memory each; where they run on other machines, `out` is on a disk that these share.

    Raises
    ------
    ConfigError
        If the format or the split is unknown, the name does not fit the format, or `out` exists and `force` is not
        given.
    InputError
        If `path` is no dataset, or has no structure of that split.
    IntegrityError
        If what was written does not read back as what is stored.
    """
    made_by = format_of(to)
    out = Path(out)
    made_by.check_name(out)
    _check_free(out, force)
    place = resolve_output(out)
    ds = open_dataset(path)
    rows = _rows_of(ds, split)
    parts = cut_blocks(ds["n_atoms"].values[rows], PART_ATOMS, min(PART_STRUCTURES, made_by.MAX_STRUCTURES))
    temporary = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        names = [temporary / f"part-{number:05d}{made_by.SUFFIX}" for number in range(len(parts))]
        calls = [partial(make_part, path, rows[part], to, name) for part, name in zip(parts, names, strict=True)]
        n = sum(run_parts(calls))
        joined = temporary / "joined" / out.name
        joined.parent.mkdir()
        made_by.join(names, joined)
        if not n == len(rows) == made_by.count(joined):
            raise IntegrityError(f"{to}: {made_by.count(joined)} of {len(rows)} structures were written to {out}")
        swap_in(joined, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = tuple(sorted(os.listdir(out))) if out.is_dir() else (out.name,)
    fields = tuple(name for name in made_by.FIELDS if name in ds)
    return Exported(out=out, n_structures=n, files=files, reader=made_by.READER, fields=fields)


def make_part(path: Path | str, rows: np.ndarray, to: str, part: Path) -> int:
    """Write some structures of a dataset, read them back and compare them; return how many they are.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    rows
        The structures, in the order of the dataset.
    to
        The format.
    part
        File to write.
    """
    made_by = format_of(to)
    block = _read(path, rows)
    made_by.write_part(block, part)
    compare(to, made_by, block, part)
    return len(rows)


def compare(to: str, made_by: Format, block: xr.Dataset, part: Path) -> None:
    """Check that a part reads back as the structures of `block`.

    Raises
    ------
    IntegrityError
        Naming the format, the structure and the field that differs.
    """
    for row, (stored, found) in enumerate(zip_longest(records(block), made_by.read(part))):
        if stored is None or found is None:
            raise IntegrityError(
                f"{to}: {made_by.READER} finds {'more' if stored is None else 'only'} {row} of "
                f"{block.sizes['structure']} structures in what was written"
            )
        for name in made_by.FIELDS:
            if not same(name, stored.get(name), found.get(name)):
                raise IntegrityError(
                    f"{to}: {name} of structure {stored['structure_id']} is {stored.get(name)} in the dataset, and "
                    f"{made_by.READER} reads {found.get(name)} in what was written; nothing was exported. Check the "
                    "dataset with daskpipe.store.verify, and export again"
                )


def _read(path: Path | str, rows: np.ndarray) -> xr.Dataset:
    """Return some structures of a dataset in memory."""
    ds = open_dataset(path)
    # Read here: within a task Dask would hand the reading to the cluster.
    index = ds[["n_atoms", "atom_start"]].load(scheduler="synchronous")
    return take(ds.assign(index.data_vars), rows).load(scheduler="synchronous")


def _rows_of(ds: xr.Dataset, split: str | None) -> np.ndarray:
    """Which structures to write, in order."""
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
    if not out.exists():
        return
    if not force:
        raise ConfigError(f"{out} exists; give another name, or --force to replace it")
    strangers = sorted(name for name in os.listdir(out) if not OURS.fullmatch(name)) if out.is_dir() else []
    if strangers:
        raise ConfigError(f"{out} is a folder that holds {strangers[0]!r}, which no export wrote; give another name")


__all__ = ["FORMATS", "Exported", "compare", "export", "make_part", "one_after_another"]
