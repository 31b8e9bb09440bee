"""Grid of the atoms of a structure and their periodic images, for the search of neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daskpipe.stages.describe import neighbours_kernels as kernels
from daskpipe.stages.describe.neighbours_kernels import Grid

if TYPE_CHECKING:
    from ase import Atoms

BINS_PER_CUTOFF = 1.5
"""Bins along a cutoff, the fastest of 1 to 6: finer bins test fewer points in vain, but in shorter runs."""

BINS_PER_POINT = 8
"""Most bins a point, a bound for few atoms in much space."""


def neighbour_grid(atoms: Atoms, cutoff: float) -> Grid:
    """Sort a structure with any cell and any boundaries; time and memory are linear in its atoms.

    Parameters
    ----------
    atoms
        At least one atom.
    cutoff
        Å.

    Returns
    -------
    Grid
        Input of `neighbours_kernels.write_neighbours`.

    Raises
    ------
    ValueError
        If the structure is periodic along cell vectors that are zero or not independent.
    """
    cell, inverse = _complete_cell(atoms)
    positions, spans, box = np.empty((len(atoms), 3)), np.empty(3, np.int64), np.empty((2, 3))
    kernels.wrap_atoms(atoms.positions, cell, inverse, atoms.pbc, cutoff, positions, spans, box)

    n_points = kernels.write_images(positions, cell, spans, box, np.empty((3, 0)), np.empty(0, np.int64))
    points, owners = np.empty((3, n_points)), np.empty(n_points, np.int64)
    kernels.write_images(positions, cell, spans, box, points, owners)

    lengths = box[1] - box[0]
    edge = max(cutoff / BINS_PER_CUTOFF, float(np.cbrt(lengths.prod() / (BINS_PER_POINT * n_points))))
    n_bins = np.maximum(1, lengths // edge).astype(np.int64)
    grid = Grid(
        positions=positions,
        points=np.empty_like(points),
        atom_index=np.empty_like(owners),
        bin_ptr=np.empty(int(n_bins.prod()) + 1, np.int64),
        low=box[0],
        edges=lengths / n_bins,
        n_bins=n_bins,
        cutoff=cutoff,
    )
    kernels.sort_points(points, owners, grid)
    return grid


def _complete_cell(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell, with unit vectors in place of zero vectors, and its inverse."""
    if not atoms.pbc.any():
        return np.eye(3), np.eye(3)
    cell = atoms.cell.array
    if not cell.any(axis=1).all():
        cell = atoms.cell.complete().array
    if abs(np.linalg.det(cell)) < 1e-12 * np.sqrt((cell**2).sum(axis=1)).prod():
        raise ValueError(
            f"structure of {atoms.get_chemical_formula()} is periodic along {atoms.pbc.tolist()} with cell vectors "
            f"{atoms.cell.array.tolist()}, which span no lattice; set atoms.cell or atoms.pbc"
        )
    return cell, np.linalg.inv(cell)
