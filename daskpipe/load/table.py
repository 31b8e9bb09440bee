"""Read structures of a store, chosen by row, as batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from daskpipe.core.structures import atom_starts
from daskpipe.load.batch import Batch, has_atom_rows
from daskpipe.load.mapped import ArrayReader, MappedReader, RowRanges


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of the structures of a split in the arrays of a store.

    Parameters
    ----------
    index
        Row of each structure in the store, shape (structure,), dtype int64.
    rows, atom_start, n_atoms
        Row of each structure in the per-structure `fields`, and its first row and number of rows in the per-atom
        fields, shape (structure,), dtype int64.
    fields
        Arrays by name.
    """

    index: np.ndarray
    rows: np.ndarray
    atom_start: np.ndarray
    n_atoms: np.ndarray
    fields: Mapping[str, ArrayReader]

    def __len__(self) -> int:
        return len(self.rows)

    def read_batch(self, chosen: np.ndarray) -> Batch:
        """Read a batch of structures `chosen`: positions in the table, in any order, repeats allowed."""
        rows, atoms = self._ranges_of(chosen)
        n_atoms = self.n_atoms[chosen]
        n_systems, total = len(chosen), int(n_atoms.sum())
        kinds = {
            name: (torch_dtype(field.dtype), (total if has_atom_rows(name) else n_systems, *field.tail))
            for name, field in self.fields.items()
        }
        kinds |= {"n_atoms": (torch.int64, (n_systems,)), "index": (torch.int64, (n_systems,))}
        kinds |= {"batch": (torch.int64, (total,)), "ptr": (torch.int64, (n_systems + 1,))}
        batch = Batch.empty(kinds)
        for name, field in self.fields.items():
            field.copy_rows(atoms if has_atom_rows(name) else rows, batch[name].numpy())
        batch["n_atoms"].numpy()[:] = n_atoms
        batch["index"].numpy()[:] = self.index[chosen]
        fill_ragged(batch)
        return batch

    def read_window(self, chosen: np.ndarray) -> Table:
        """Return a table of structures `chosen` (sorted positions) that reads each of them fast, in any order.

        Mapped arrays stay mapped; the rows of other arrays are read into memory here, each chunk once.
        """
        if all(isinstance(field, MappedReader) for field in self.fields.values()):
            return Table(
                index=self.index[chosen], rows=self.rows[chosen], atom_start=self.atom_start[chosen],
                n_atoms=self.n_atoms[chosen], fields=self.fields,
            )  # fmt: skip
        batch = self.read_batch(chosen)
        return Table(
            index=self.index[chosen], rows=np.arange(len(chosen)), atom_start=atom_starts(self.n_atoms[chosen]),
            n_atoms=self.n_atoms[chosen], fields={name: MappedReader(batch[name].numpy()) for name in self.fields},
        )  # fmt: skip

    def _ranges_of(self, chosen: np.ndarray) -> tuple[RowRanges, RowRanges]:
        """Return the rows of structures in the per-structure and the per-atom arrays."""
        rows, atoms = self.rows[chosen], self.atom_start[chosen]
        return RowRanges(rows, rows + 1), RowRanges(atoms, atoms + self.n_atoms[chosen])


def fill_ragged(batch: Batch) -> None:
    """Fill ``ptr`` and ``batch`` of a batch from its ``n_atoms``, in place."""
    n_atoms, ptr = batch["n_atoms"].numpy(), batch["ptr"].numpy()
    ptr[0] = 0
    np.cumsum(n_atoms, out=ptr[1:])
    batch["batch"].numpy()[:] = np.repeat(np.arange(len(n_atoms)), n_atoms)


@cache
def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the dtype of the tensor for an array on disk: int64 for all integers.

    Examples
    --------
    >>> torch_dtype(np.dtype("uint8")), torch_dtype(np.dtype("float32"))
    (torch.int64, torch.float32)
    """
    if dtype.kind in "iu":
        return torch.int64
    return torch.from_numpy(np.empty(0, dtype)).dtype
