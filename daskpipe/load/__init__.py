"""Load: datasets into torch, without zarr-python in the way.

Needs: a ``dataset.zarr`` that `daskpipe.store` wrote; torch.
Makes: a map-style torch dataset, and batches with flat atoms and a system index.
Entry: `daskpipe.load.TorchDataset` with `daskpipe.load.collate`.
Memory: chunk files are mapped, not read; 13 bytes a structure for the index, and the batch.
Placement: the training process, or DataLoader workers (fork or spawn).

Importing this package does not import torch; using it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskpipe.load.torch_data import TorchDataset, collate

__all__ = ["TorchDataset", "collate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from daskpipe.load import torch_data

    return getattr(torch_data, name)
