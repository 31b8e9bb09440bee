"""Load: read datasets into torch through memory maps, without zarr-python.

Needs: a ``dataset.zarr`` that `daskpipe.store` wrote; torch; MACE for `MACEDataset`.
Makes: batches with flat atoms in one buffer, a system index, and neighbour lists if asked for.
Entry: `TorchDataset` with `collate` (map style), `TorchStream` (in shuffled blocks, resumable, for DDP),
    `AtomBatchSampler` (batches by atoms), `spec` (reference energies, scales), `MACEDataset`.
Memory: chunk files are mapped, not read; 24 bytes per structure for the index, and the batch. For a compressed
    copy, a `TorchStream` holds its window of blocks.
Placement: the training process, or DataLoader workers (fork or spawn).

Importing this package does not import torch; using it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskpipe.load.batch import Batch
    from daskpipe.load.normalisation import Spec, spec
    from daskpipe.load.sampler import AtomBatchSampler
    from daskpipe.load.stream import TorchStream
    from daskpipe.load.to_mace import MACEDataset, mace_data
    from daskpipe.load.torch_data import TorchDataset, collate

# No module has the name of one of these: once imported, it would replace the attribute.
_MODULES = {
    "AtomBatchSampler": "sampler",
    "Batch": "batch",
    "MACEDataset": "to_mace",
    "Spec": "normalisation",
    "TorchDataset": "torch_data",
    "TorchStream": "stream",
    "collate": "torch_data",
    "mace_data": "to_mace",
    "spec": "normalisation",
}

__all__ = [
    "AtomBatchSampler",
    "Batch",
    "MACEDataset",
    "Spec",
    "TorchDataset",
    "TorchStream",
    "collate",
    "mace_data",
    "spec",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"daskpipe.load.{_MODULES[name]}"), name)
