"""Compute neighbour lists of the structures of a batch."""

from __future__ import annotations

import numpy as np
import torch

from daskpipe.core.geometry import complete_open_axes
from daskpipe.core.neighbours import find_pairs
from daskpipe.load.batch import Batch


def edges_of(batch: Batch, cutoff: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Compute ``edge_index``, and ``shifts`` and ``unit_shifts`` as `dtype`, of a batch; see `collate`.

    Cell vectors along directions that are not periodic are ignored.
    """
    positions = batch["positions"].numpy().astype(np.float64)
    cells, pbc = batch["cell"].numpy().astype(np.float64), batch["pbc"].numpy()
    for row in np.flatnonzero(~pbc.all(axis=1)):
        cells[row] = complete_open_axes(cells[row], pbc[row])
    atoms, n_pairs, offsets = find_pairs(positions, np.diff(batch["ptr"].numpy()), cells, pbc, cutoff)
    shifts = np.einsum("ek,ekx->ex", offsets, np.repeat(cells, n_pairs, axis=0))
    return {
        "edge_index": torch.from_numpy(atoms),
        "shifts": torch.from_numpy(shifts).to(dtype),
        "unit_shifts": torch.from_numpy(offsets).to(dtype),
    }
