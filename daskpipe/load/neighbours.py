"""Compute neighbour lists of the structures of a batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from matscipy.neighbours import neighbour_list

from daskpipe.core.geometry import complete_open_axes
from daskpipe.load.batch import Batch


def pairs_within(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find all pairs of atoms of one structure, periodic images included, that are nearer than `cutoff`.

    Parameters
    ----------
    positions, cell
        In Å, shapes (atom, 3) and (3, 3), float64; cell vectors along directions that are not periodic are ignored.
    pbc
        Periodic along each vector, shape (3,), dtype bool.
    cutoff
        In Å.

    Returns
    -------
    edge_index
        Atoms i and j, shape (2, edge), dtype int64; each pair in both directions.
    unit_shifts
        Number of cells between i and the image of j, shape (edge, 3), dtype int64: the vector from i to j is
        ``positions[j] - positions[i] + unit_shifts @ cell``.

    Examples
    --------
    >>> positions = np.array([[0.0, 0, 0], [0, 0, 1.0]])
    >>> edge_index, _ = pairs_within(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), cutoff=1.5)
    >>> edge_index.tolist()
    [[0, 1], [1, 0]]
    """
    # matscipy sorts atoms into boxes along three vectors, which must be independent and not too long.
    box = complete_open_axes(cell, pbc)
    origin = np.zeros(3)
    for axis in np.flatnonzero(~pbc):
        along = positions @ box[axis]
        origin += along.min() * box[axis]
        box[axis] *= np.ptp(along) + 1.0
    i, j, shifts = neighbour_list("ijS", positions=positions - origin, cell=box, pbc=pbc, cutoff=cutoff)
    return np.stack([i, j]).astype(np.int64), shifts.astype(np.int64)


def edges_of(batch: Batch, cutoff: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Compute ``edge_index``, and ``shifts`` and ``unit_shifts`` as `dtype`, of a batch; see `collate`."""
    positions = batch["positions"].numpy().astype(np.float64)
    cell, pbc, ptr = batch["cell"].numpy().astype(np.float64), batch["pbc"].numpy(), batch["ptr"].tolist()
    pairs, units = [], []
    for row, (first, stop) in enumerate(pairwise(ptr)):
        edge_index, unit_shifts = pairs_within(positions[first:stop], cell[row], pbc[row], cutoff)
        pairs.append(edge_index + first)
        units.append(unit_shifts)
    shifts = np.concatenate([unit @ box for unit, box in zip(units, cell, strict=True)])
    return {
        "edge_index": torch.from_numpy(np.concatenate(pairs, axis=1)),
        "shifts": torch.from_numpy(shifts).to(dtype),
        "unit_shifts": torch.from_numpy(np.concatenate(units)).to(dtype),
    }
