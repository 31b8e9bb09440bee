"""A map-style torch dataset over a ``dataset.zarr``, and the collate function that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from daskpipe.errors import ConfigError, InputError, unknown
from daskpipe.load.mapped import Rows, open_rows
from daskpipe.variables import per_atom, read_root

LABELS = ("energy", "forces")
"""What a dataset must hold to be trained on."""

FIELDS = (
    "numbers", "positions", "forces", "magmoms", "cell", "pbc", "energy", "stress", "charge", "spin_multiplicity",
)  # fmt: skip

Item = dict[str, torch.Tensor]


class TorchDataset(Dataset[Item]):
    """Structures of a dataset as dicts of tensors.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    split
        ``"train"``, ``"val"`` or ``"test"``; all structures if not given.

    Raises
    ------
    InputError
        If `path` is no dataset, or holds no labels.
    ConfigError
        If the split is unknown.

    Notes
    -----
    Values and dtypes are those of the store, `numbers`, `charge` and `spin_multiplicity` as int64: positions (Å) and
    forces (eV/Å) float32; cell (Å, rows are vectors), energy (eV) and stress (eV/Å^3, Voigt order xx yy zz yz xz xy,
    NaN without a periodic cell) float64. `collate` can cast them to one dtype. ``index`` is the row of the
    structure in the store: ``daskpipe.to_atoms(ds, index)``.

    Examples
    --------
    >>> data = TorchDataset("runs/q/dataset.zarr", split="train")  # doctest: +SKIP
    >>> loader = torch.utils.data.DataLoader(data, batch_size=32, collate_fn=collate)  # doctest: +SKIP
    """

    def __init__(self, path: Path | str, split: str | None = None) -> None:
        self.path = Path(path)
        self.split = split
        self._open()

    def _open(self) -> None:
        metadata = read_root(self.path)["consolidated_metadata"]["metadata"]
        if missing := [name for name in LABELS if name not in metadata]:
            raise InputError(f"{self.path} holds no {' and no '.join(missing)}; label it first: daskpipe label")

        def rows_of(name: str) -> Rows:
            return open_rows(self.path, name, metadata[name])

        everything = np.arange(metadata["n_atoms"]["shape"][0])
        if self.split is not None:
            names = metadata["split"]["attributes"]["flag_meanings"].split() if "split" in metadata else []
            if self.split not in names:
                raise ConfigError(unknown("split", self.split, names))
            everything = np.flatnonzero(rows_of("split").take(everything) == names.index(self.split))
        self.rows = everything
        self.n_atoms = rows_of("n_atoms").take(self.rows).astype(np.int64)
        self.atom_start = rows_of("atom_start").take(self.rows)
        self.fields = {name: rows_of(name) for name in FIELDS if name in metadata}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}  # a spawned worker opens its own maps

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)}: give an index from 0 to {len(self) - 1}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Read several structures at once; torch's `DataLoader` calls this with the indices of a batch."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows, n_atoms = self.rows[chosen], self.n_atoms[chosen]
        stop = np.cumsum(n_atoms)
        atom_rows = np.repeat(self.atom_start[chosen] - stop + n_atoms, n_atoms) + np.arange(int(n_atoms.sum()))
        items: list[Item] = [{} for _ in rows]
        for name, field in self.fields.items():
            values = field.take(atom_rows if per_atom(name) else rows)
            tensor = torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)
            parts = torch.split(tensor, n_atoms.tolist()) if per_atom(name) else tensor.unbind()
            for item, part in zip(items, parts, strict=True):
                item[name] = part
        for item, n, row in zip(items, n_atoms.tolist(), rows.tolist(), strict=True):
            item["n_atoms"] = torch.tensor(n)
            item["index"] = torch.tensor(row)
        return items


def collate(batch: Sequence[Item], dtype: torch.dtype | None = None) -> Item:
    """Join structures into one batch with flat atoms.

    Parameters
    ----------
    batch
        Items of a `TorchDataset`.
    dtype
        Cast all floating tensors to it, e.g. with ``functools.partial(collate, dtype=torch.float32)``; a total energy
        in float32 keeps seven digits, so subtract the atoms' energies first. As stored if not given.

    Returns
    -------
    dict of torch.Tensor
        Per-atom tensors concatenated, shape (atom, ...); the others stacked, shape (system, ...); ``batch``, the system
        of each atom, shape (atom,), and ``ptr``, the first atom of each system and the end, shape (system + 1,); int64.
    """
    if not batch:
        raise ValueError("collate received an empty batch")
    out: Item = {}
    for name in batch[0]:
        rows = [item[name] for item in batch]
        tensor = torch.cat(rows) if name in FIELDS and per_atom(name) else torch.stack(rows)
        out[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    n_atoms = out["n_atoms"]
    out["batch"] = torch.repeat_interleave(torch.arange(len(batch)), n_atoms)
    out["ptr"] = torch.cat([n_atoms.new_zeros(1), n_atoms.cumsum(0)])
    return out
