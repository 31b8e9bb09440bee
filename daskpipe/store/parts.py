"""A dataset in parts, of which each is made on its own: sorted runs of rows, and chunks of the final arrays.

The final order is one of hashed ids. So each run of rows is sorted by it at once, and a chunk of the final arrays
needs a stretch of each run: no part of the work, and no file, is larger than a run or a chunk, however many rows
there are.
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
from daskpipe.store.writer import Layout, layouts

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

Load = Callable[[int, str], np.ndarray | None]
"""Returns a variable of a run, by the run's number; None where it has none."""

MADE = ("atom_start", "group", "split")
"""Variables that the plan makes."""


def sorted_run(ds: xr.Dataset, *, seed: int) -> dict[str, bytes]:
    """Return the variables of a run of rows as ``NAME.npy`` files, sorted as they will be in the dataset.

    Parameters
    ----------
    ds
        In memory; passes `daskpipe.core.variables.validate_dataset`.
    seed
        Of the shuffle.
    """
    validate_dataset(ds)
    # A split that frames came with is kept: the plan looks at it.
    ds = take(ds, order_by_hash(seed, "shuffle", ds["structure_id"].values)).drop_vars(MADE[:2], errors="ignore")
    files = {}
    for name, array in ds.data_vars.items():
        buffer = io.BytesIO()
        np.save(buffer, array.values, allow_pickle=False)
        files[f"{name}.npy"] = buffer.getvalue()
    return files


def mapped(path: Path) -> np.ndarray:
    """Map a ``.npy`` file that `sorted_run` made."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes where in a dataset.

    Parameters
    ----------
    run, row
        Of each structure, in the final order: number of its run and its row there, shape (structure,).
    n_atoms, group, split
        Of each structure, in the final order.
    names
        Variables of the dataset.
    codes
        Names that the codes of each coded variable count.
    n_features
        Length of the features; 0 without.
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
        """Row of the first atom of each structure, and the number of atoms; shape (structure + 1,)."""
        return np.append(atom_starts(self.n_atoms), self.n_atoms.sum(dtype=np.int64))

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of each array."""
        return layouts(self.names, len(self.row), int(self.atom_start[-1]), self.n_features, self.codes)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Return the plan as arrays, for a payload."""
        facts = {"names": self.names, "codes": self.codes, "n_features": self.n_features}
        columns = {name: getattr(self, name) for name in ("run", "row", "n_atoms", "group", "split")}
        return {**columns, "facts": np.array(json.dumps(facts))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Plan:
        """Undo `as_arrays`."""
        columns: dict[str, Any] = {name: arrays[name] for name in ("run", "row", "n_atoms", "group", "split")}
        return cls(**columns, **json.loads(arrays["facts"].item()))


def union(tables: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Return the names that codes count: those of any run, and `Variable.missing` where a run lacks the variable."""
    coded = sorted({name for table in tables for name in table})
    lacking = {name: [str(missing_values(name, ()))] for name in coded}
    found = {name: {item for table in tables for item in table.get(name, lacking[name])} for name in coded}
    return {name: code_names(name, items) for name, items in found.items()} | {"split": list(SPLITS)}


def chunk(plan: Plan, axis: str, number: int, load: Load) -> Iterator[tuple[Layout, np.ndarray]]:
    """Yield the rows of chunk `number` of each array along an axis, as they are on disk.

    Parameters
    ----------
    plan
        Of the dataset.
    axis
        ``structure`` or ``atom``.
    number
        Of the chunk.
    load
        Gives the variables of the runs.
    """
    arrays = [layout for layout in plan.layouts.values() if is_per_atom(layout.name) == (axis == "atom")]
    begin, end = number * arrays[0].rows, min((number + 1) * arrays[0].rows, arrays[0].shape[0])
    if axis == "structure":
        structures, origin, size = slice(begin, end), begin, end - begin
    else:
        # The structures at both ends may lie in two chunks: whole ones are gathered, and then cut.
        first = int(np.searchsorted(plan.atom_start, begin, side="right")) - 1
        last = int(np.searchsorted(plan.atom_start, end, side="left"))
        structures, origin = slice(first, last), int(plan.atom_start[first])
        size = int(plan.atom_start[last]) - origin
    made = {"atom_start": plan.atom_start[:-1], "group": plan.group, "split": plan.split}
    moves = list(_moves(plan, axis, structures, load))
    for layout in arrays:
        if layout.name in made:
            values = made[layout.name][structures].astype(layout.dtype)
        else:
            values = _gathered(plan, layout, moves, size, load)
        yield layout, layout.chunk(values[begin - origin : end - origin])


def _moves(plan: Plan, axis: str, structures: slice, load: Load) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield run, rows there, and rows here of what the structures need of each run."""
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


def _gathered(
    plan: Plan, layout: Layout, moves: Sequence[tuple[int, np.ndarray, np.ndarray]], size: int, load: Load
) -> np.ndarray:
    """Return `size` rows of one array from the runs that they stand in."""
    values = np.empty((size, *layout.shape[1:]), dtype=layout.dtype)
    for run, there, here in moves:
        found = load(run, layout.name)
        part = missing_values(layout.name, (len(there), *layout.shape[1:])) if found is None else found[there]
        values[here] = codes_of(layout.name, part, plan.codes[layout.name]) if VARIABLES[layout.name].coded else part
    return values
