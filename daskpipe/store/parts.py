"""Make a dataset in independent parts: sorted runs of rows, and chunks of the final arrays.

The final order is that of hashed ids. Each run of rows is sorted by it on its own, and a chunk of the final arrays
takes consecutive rows of each run. So no task and no file is larger than a run or a chunk, however many rows there are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.structures import atom_rows, atom_starts, take
from daskpipe.core.variables import (
    SPLITS,
    VARIABLES,
    code_names,
    codes_of,
    is_per_atom,
    missing_values,
    validate_dataset,
)
from daskpipe.store.writer import ArrayLayout, lay_out_arrays

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

Load = Callable[[int, str], np.ndarray | None]
"""Function that returns a variable of a run by the number of the run; None where the run lacks it."""

PLANNED = ("atom_start", "group", "split")
"""Variables that the plan makes, and no run holds."""


def sort_run(ds: xr.Dataset, *, seed: int) -> dict[str, bytes]:
    """Sort a run of rows into the order of the dataset, and return its variables as ``NAME.npy`` files.

    Parameters
    ----------
    ds
        Dataset in memory that passes `daskpipe.core.variables.validate_dataset`.
    seed
        Seed of the shuffle.

    Returns
    -------
    dict
        Bytes of each file by name.
    """
    validate_dataset(ds)
    # A given split stays in the run: the plan reads it.
    ds = take(ds, order_by_hash(seed, "shuffle", ds["structure_id"].values)).drop_vars(PLANNED[:2], errors="ignore")
    files = {}
    for name, array in ds.data_vars.items():
        buffer = io.BytesIO()
        np.save(buffer, array.values, allow_pickle=False)
        files[f"{name}.npy"] = buffer.getvalue()
    return files


def map_array_file(path: Path) -> np.ndarray:
    """Map a ``.npy`` file that `sort_run` made into memory, read only."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """Place of each structure and variable in a dataset.

    Parameters
    ----------
    run, row
        Number of the run of each structure and its row there, in the final order, shape (structure,).
    n_atoms, group, split
        Variables of the structures, in the final order, shape (structure,).
    names
        Variables of the dataset.
    codes
        Names of the codes of each coded variable.
    n_features
        Length of the features; 0 without any.
    """

    run: np.ndarray
    row: np.ndarray
    n_atoms: np.ndarray
    group: np.ndarray
    split: np.ndarray
    names: tuple[str, ...]
    codes: Mapping[str, Sequence[str]]
    n_features: int

    @cached_property
    def atom_start(self) -> np.ndarray:
        """Row of the first atom of each structure, and the number of atoms; shape (structure + 1,), int64."""
        return np.append(atom_starts(self.n_atoms), self.n_atoms.sum(dtype=np.int64))

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Layout of each array, by name."""
        return lay_out_arrays(self.names, len(self.row), int(self.atom_start[-1]), self.n_features, self.codes)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Return the plan as arrays, for a payload."""
        facts = {"names": self.names, "codes": self.codes, "n_features": self.n_features}
        columns = {name: getattr(self, name) for name in ("run", "row", "n_atoms", "group", "split")}
        return {**columns, "facts": np.array(json.dumps(facts))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DatasetPlan:
        """Restore a plan from the arrays of `as_arrays`."""
        columns: dict[str, Any] = {name: arrays[name] for name in ("run", "row", "n_atoms", "group", "split")}
        return cls(**columns, **json.loads(arrays["facts"].item()))


def merge_code_names(tables: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Merge the names of coded variables of all runs; a run without a variable adds the name for "not given".

    Parameters
    ----------
    tables
        Names that occur in each run, by variable.

    Returns
    -------
    dict
        Names in the order of their codes, by variable.

    Examples
    --------
    >>> merge_code_names([{"generator": ["bulk"]}, {"generator": ["alloy", "bulk"]}, {}])["generator"]
    ['alloy', 'bulk', 'unknown']
    """
    coded = sorted({name for table in tables for name in table})
    missing = {name: [str(missing_values(name, ()))] for name in coded}
    names = {name: {item for table in tables for item in table.get(name, missing[name])} for name in coded}
    return {name: code_names(name, items) for name, items in names.items()} | {"split": list(SPLITS)}


def make_chunk(plan: DatasetPlan, axis: str, number: int, load: Load) -> Iterator[tuple[ArrayLayout, np.ndarray]]:
    """Yield the rows of one chunk of each array along an axis, as they are on disk.

    Parameters
    ----------
    plan
        Plan of the dataset.
    axis
        ``structure`` or ``atom``.
    number
        Number of the chunk.
    load
        Returns the variables of the runs.
    """
    arrays = [layout for layout in plan.layouts.values() if is_per_atom(layout.name) == (axis == "atom")]
    begin, end = number * arrays[0].rows, min((number + 1) * arrays[0].rows, arrays[0].shape[0])
    if axis == "structure":
        structures, origin, size = slice(begin, end), begin, end - begin
    else:
        # The structures at both ends may span two chunks: whole structures are gathered, and then cut.
        first = int(np.searchsorted(plan.atom_start, begin, side="right")) - 1
        last = int(np.searchsorted(plan.atom_start, end, side="left"))
        structures, origin = slice(first, last), int(plan.atom_start[first])
        size = int(plan.atom_start[last]) - origin
    made = {"atom_start": plan.atom_start[:-1], "group": plan.group, "split": plan.split}
    moves = list(_plan_moves(plan, axis, structures, load))
    for layout in arrays:
        if layout.name in made:
            values = made[layout.name][structures].astype(layout.dtype)
        else:
            values = _gather_rows(plan, layout, moves, size, load)
        yield layout, layout.pad_chunk(values[begin - origin : end - origin])


def _plan_moves(
    plan: DatasetPlan, axis: str, structures: slice, load: Load
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each run, the rows to take from it, and the rows of the chunk that they become."""
    runs, rows, n_atoms = plan.run[structures], plan.row[structures], plan.n_atoms[structures]
    for run in np.unique(runs).tolist():
        here = np.flatnonzero(runs == run)
        if axis == "structure":
            yield run, rows[here], here
        else:
            of_run = load(run, "n_atoms")
            assert of_run is not None  # each run has what every dataset holds
            there = atom_rows(atom_starts(of_run)[rows[here]], n_atoms[here])
            yield run, there, atom_rows(atom_starts(n_atoms)[here], n_atoms[here])


def _gather_rows(
    plan: DatasetPlan, layout: ArrayLayout, moves: Sequence[tuple[int, np.ndarray, np.ndarray]], size: int, load: Load
) -> np.ndarray:
    """Gather `size` rows of one array from their runs."""
    values = np.empty((size, *layout.shape[1:]), dtype=layout.dtype)
    for run, there, here in moves:
        variable = load(run, layout.name)
        part = missing_values(layout.name, (len(there), *layout.shape[1:])) if variable is None else variable[there]
        values[here] = codes_of(layout.name, part, plan.codes[layout.name]) if VARIABLES[layout.name].coded else part
    return values
