"""Provide a map-style torch dataset over a ``dataset.zarr``, and its collate function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from daskpipe.core.errors import ConfigError, InputError, describe_unknown
from daskpipe.core.root_metadata import read_root
from daskpipe.load.batch import Batch, has_atom_rows
from daskpipe.load.mapped import ArrayReader, RowRanges, metadata_of, open_array
from daskpipe.load.table import Table, fill_ragged

LABELS = ("energy", "forces")
"""Variables that a dataset needs for training."""

FIELDS = (
    "numbers", "positions", "forces", "magmoms", "cell", "pbc", "energy", "stress", "charge", "spin_multiplicity",
    "config_weight",
)  # fmt: skip
"""Variables that are read into tensors, where the dataset has them."""

Item = dict[str, torch.Tensor]
"""One structure: tensors by name."""


class TorchDataset(Dataset[Item]):
    """Structures of a dataset as tensors: ``data[i]`` is a dict, and a `DataLoader` gets whole batches.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    split
        ``"train"``, ``"val"`` or ``"test"``; all structures if not given.
    verify
        Compare the files with their checksums now. Copies in DataLoader workers do not compare them again.

    Raises
    ------
    InputError
        If `path` is not a dataset, has no labels, or is stored with an unknown codec.
    ConfigError
        If the split is unknown.
    IntegrityError
        If a chunk file is missing, too short or differs from its checksum; it names the file.

    Notes
    -----
    Values and dtypes are those of the store, integers as int64: positions (Å) and forces (eV/Å) float32; cell (Å, rows
    are vectors), energy (eV) and stress (eV/Å^3, Voigt order xx yy zz yz xz xy, NaN without a periodic cell) float64.
    `collate` can cast them to one dtype. ``index`` is the row of the structure in the store:
    ``daskpipe.to_atoms(ds, index)``.

    With more than one process (DDP) give the `DataLoader` a ``torch.utils.data.DistributedSampler(data)``, or an
    `AtomBatchSampler`, or use a `TorchStream`.

    Examples
    --------
    >>> data = TorchDataset("runs/q/dataset.zarr", split="train")
    >>> loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate)
    >>> next(iter(loader)).n_structures
    2
    """

    def __init__(self, path: Path | str, split: str | None = None, *, verify: bool = True) -> None:
        self.path = Path(path)
        self.split = split
        self._open_arrays(verify)

    def _open_arrays(self, verify: bool) -> None:
        """Open the arrays of the store, and select the rows of the split."""
        root = read_root(self.path)
        metadata = metadata_of(self.path, root)
        checksums: dict[str, Any] = root["attributes"].get("checksums", {})
        self.checksum: str = checksums.get("root", "")
        if missing := [name for name in LABELS if name not in metadata]:
            raise InputError(f"{self.path} holds no {' and no '.join(missing)}; label it first: daskpipe label")

        def open_field(name: str) -> ArrayReader:
            return open_array(self.path, name, metadata[name], checksums.get("files", {}), verify=verify)

        n_structures: int = metadata["n_atoms"]["shape"][0]

        def read_column(name: str) -> np.ndarray:
            out = np.empty(n_structures, np.int64)
            open_field(name).copy_rows(RowRanges(np.array([0]), np.array([n_structures])), out)
            return out

        index = np.arange(n_structures)
        if self.split is not None:
            names = metadata["split"]["attributes"]["flag_meanings"].split() if "split" in metadata else []
            if self.split not in names:
                raise ConfigError(describe_unknown("split", self.split, names))
            index = np.flatnonzero(read_column("split") == names.index(self.split))
        self.table = Table(
            index=index,
            rows=index,
            atom_start=read_column("atom_start")[index],
            n_atoms=read_column("n_atoms")[index],
            fields={name: open_field(name) for name in FIELDS if name in metadata},
        )

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each structure, shape (structure,), dtype int64."""
        return self.table.n_atoms

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}  # a spawned worker maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_arrays(verify=False)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)}: give an index from 0 to {len(self) - 1}")
        return self.__getitems__([index]).structures()[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Read several structures at once; torch's `DataLoader` calls this with the indices of a batch."""
        return self.table.read_batch(np.asarray(indices, dtype=np.int64))


def collate(batch: Batch | Sequence[Item], dtype: torch.dtype | None = None, cutoff: float | None = None) -> Batch:
    """Make a batch for a model; the ``collate_fn`` of a `DataLoader` over a `TorchDataset`.

    Parameters
    ----------
    batch
        Result of `TorchDataset.__getitems__`, or a list of items.
    dtype
        Cast all floating tensors to it, e.g. with ``functools.partial(collate, dtype=torch.float32)``. A total energy
        in float32 keeps seven digits, so subtract the energies of single atoms first. By default as stored.
    cutoff
        In Å. If given, all nearer pairs of atoms are added: ``edge_index``, shape (2, edge), int64, sender i and
        receiver j; ``shifts`` (Å) and ``unit_shifts`` (numbers of cells), shape (edge, 3), with the dtype of the
        positions. The vector from i to j is ``positions[j] - positions[i] + shift``. Each pair is there in both
        directions, as in MACE.

    Returns
    -------
    Batch
        Structures with flat atoms.

    Raises
    ------
    ValueError
        If there is no structure.
    """
    joined = batch if isinstance(batch, Batch) else _join_items(batch)
    if dtype is None and cutoff is None:
        return joined
    tensors = dict(joined.items())
    if cutoff is not None:
        from daskpipe.load.neighbours import edges_of

        tensors |= edges_of(joined, cutoff, dtype or joined["positions"].dtype)
    out = Batch.of(tensors, dtype)
    out.state = joined.state
    return out


def _join_items(items: Sequence[Item]) -> Batch:
    """Join structures into a batch."""
    if not items:
        raise ValueError("collate received an empty batch")
    tensors = {}
    for name in items[0]:
        rows = [item[name] for item in items]
        tensors[name] = torch.cat(rows) if has_atom_rows(name) else torch.stack(rows)
    n_atoms = tensors["n_atoms"]
    tensors |= {"batch": torch.empty(int(n_atoms.sum()), dtype=torch.int64), "ptr": n_atoms.new_empty(len(items) + 1)}
    batch = Batch.of(tensors)
    fill_ragged(batch)
    return batch
