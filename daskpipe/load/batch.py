"""Hold a batch of structures: named tensors that are views of one buffer."""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch

from daskpipe.core.errors import describe_unknown
from daskpipe.core.variables import VARIABLES

ALIGNMENT = 64
"""Alignment of each tensor in the buffer, bytes; fits every dtype and vector unit."""

TensorLayout = dict[str, tuple[torch.dtype, tuple[int, ...], int]]
"""dtype, shape and first byte of each tensor, by name."""

EDGES = ("edge_index", "shifts", "unit_shifts")
"""Tensors of neighbour lists."""


class Batch:
    """Structures with flat atoms, as named tensors.

    It reads like a dict: ``batch["forces"]``, ``batch.items()``, ``dict(batch)``, ``name in batch``; ``len(batch)``
    is the number of names, and ``batch.n_structures`` that of structures. It is no `collections.abc.Mapping`, because
    torch's DataLoader takes mappings apart.

    All tensors are views of `buffer`, so moving a batch (to a device, to pinned memory, from a worker to the main
    process) moves one tensor.

    Parameters
    ----------
    buffer
        Shape (byte,), dtype uint8.
    layout
        dtype, shape and first byte of each tensor, by name.
    state
        State of a `TorchStream` after this batch; `TorchStream.load_state_dict` continues with the next batch.

    Notes
    -----
    Tensors of a dataset: ``numbers``, ``positions``, ``forces``, shape (atom, ...); ``cell``, ``pbc``, ``energy``,
    ``stress``, ``charge``, ``spin_multiplicity`` (0: unknown), and where the dataset has it ``config_weight`` (NaN:
    not given), shape (system, ...). In addition, all int64: ``batch``, the system of each atom, shape (atom,);
    ``ptr``, the first atom of each system and the end, shape (system + 1,); ``n_atoms``, and ``index``, the row in the
    store, shape (system,). With a cutoff: ``edge_index`` (2, edge), ``shifts`` and ``unit_shifts`` (edge, 3); see
    `collate`.
    """

    def __init__(self, buffer: torch.Tensor, layout: TensorLayout, state: dict[str, Any] | None = None) -> None:
        self.buffer, self.layout, self.state = buffer, layout, state
        flat = {dtype: buffer.view(dtype) for dtype in {dtype for dtype, _, _ in layout.values()}}
        self._tensors = {
            name: flat[dtype].as_strided(shape, _strides(shape), start // dtype.itemsize)
            for name, (dtype, shape, start) in layout.items()
        }

    @classmethod
    def empty(cls, kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Batch:
        """Allocate a batch of tensors of these dtypes and shapes, to be filled in place."""
        layout: TensorLayout = {}
        end = 0
        for name, (dtype, shape) in kinds.items():
            layout[name] = (dtype, shape, end)
            end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return cls(torch.empty(end, dtype=torch.uint8), layout)

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> Batch:
        """Copy tensors into a batch.

        Parameters
        ----------
        tensors
            Tensors by name.
        dtype
            Cast floating tensors to it.

        Examples
        --------
        >>> batch = Batch.of({"energy": torch.tensor([-1.0, -2.0]), "n_atoms": torch.tensor([2, 3])})
        >>> batch.n_structures, batch["energy"].tolist()
        (2, [-1.0, -2.0])
        """
        batch = cls.empty(
            {
                name: (dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))
                for name, tensor in tensors.items()
            }
        )
        for name, tensor in tensors.items():
            batch[name].copy_(tensor)
        return batch

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return len(self["n_atoms"])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move the batch to a device; return itself if it is there already."""
        if self.buffer.device == torch.device(device):
            return self
        return Batch(self.buffer.to(device, non_blocking=non_blocking), self.layout, self.state)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory, from which it is copied to a GPU without waiting."""
        return Batch(self.buffer.pin_memory(), self.layout, self.state)

    def structures(self) -> list[dict[str, torch.Tensor]]:
        """Return each structure as a dict of tensors: per-atom ones (atom, ...), the others without the first axis.

        ``edge_index``, where there is one, counts from the first atom of the structure.
        """
        parts: dict[str, Any] = {}
        n_atoms = self["n_atoms"].tolist()
        n_edges: list[int] = []
        if "edge_index" in self:
            senders = self["edge_index"][0]
            n_edges = torch.bincount(self["batch"][senders], minlength=len(n_atoms)).tolist()
        for name, tensor in self.items():
            if name == "edge_index":
                pairs = tensor.split(n_edges, dim=1)
                parts[name] = [pair - first for pair, first in zip(pairs, self["ptr"].tolist(), strict=False)]
            elif name in EDGES:
                parts[name] = tensor.split(n_edges)
            elif name not in ("batch", "ptr"):
                parts[name] = tensor.split(n_atoms) if has_atom_rows(name) else tensor.unbind()
        return [{name: part[row] for name, part in parts.items()} for row in range(len(n_atoms))]

    def keys(self) -> KeysView[str]:
        """Return the names of the tensors."""
        return self._tensors.keys()

    def values(self) -> ValuesView[torch.Tensor]:
        """Return the tensors without their names."""
        return self._tensors.values()

    def items(self) -> ItemsView[str, torch.Tensor]:
        """Return names and tensors."""
        return self._tensors.items()

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(describe_unknown("tensor", name, list(self._tensors))) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.items())
        return f"Batch({self.n_structures} structures: {shapes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Batch, (self.buffer, self.layout, self.state)


def has_atom_rows(name: str) -> bool:
    """Return whether the tensor of a name has one row per atom.

    Examples
    --------
    >>> has_atom_rows("forces"), has_atom_rows("energy"), has_atom_rows("ptr")
    (True, False, False)
    """
    return name in VARIABLES and VARIABLES[name].dims[0] == "atom"


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Return the strides of a contiguous tensor."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
