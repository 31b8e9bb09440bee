"""Search neighbours: a grid of the atoms of a structure and their periodic images, and the pairs within a cutoff."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core import neighbours_kernels as kernels
from daskpipe.core.neighbours_kernels import Grid

if TYPE_CHECKING:
    from ase import Atoms


def neighbour_grid(atoms: Atoms, cutoff: float, *, centres: np.ndarray | None = None, periodic: bool = True) -> Grid:
    """Sort a structure with any cell and any boundaries; time and memory are linear in its atoms.

    Parameters
    ----------
    atoms
        At least one atom.
    cutoff
        Å.
    centres
        Points around which neighbours are searched, shape (centre, 3), float64, Å; by default the atoms.
    periodic
        False leaves out periodic images, whatever the structure says.

    Returns
    -------
    Grid
        Input of `neighbours_kernels.write_neighbours`.

    Raises
    ------
    ValueError
        If the structure is periodic along cell vectors that are zero or not independent.
    """
    pbc = atoms.pbc if periodic else np.zeros(3, dtype=bool)
    cell, inverse = _complete_cell(atoms, pbc)
    if centres is None:
        return kernels.make_grid(atoms.positions, cell, inverse, pbc, cutoff)
    return kernels.make_grid_around(centres, atoms.positions, cell, inverse, pbc, cutoff)


def find_pairs(
    positions: np.ndarray, sizes: np.ndarray, cells: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find all pairs of atoms within a cutoff in each of several structures, images included.

    Parameters
    ----------
    positions
        Of all atoms, one structure after the other, shape (atom, 3), float64, Å; they need not be wrapped.
    sizes
        Atoms of each structure, shape (structure,), int64.
    cells
        Vectors in rows, shape (structure, 3, 3), float64, Å, linearly independent; those along open axes span only.
    pbc
        Periodic along each vector, shape (structure, 3), bool.
    cutoff
        Å.

    Returns
    -------
    atoms : numpy.ndarray
        Rows of the two atoms, shape (2, pair), int64, sorted by the first; each pair comes in both directions.
    n_pairs : numpy.ndarray
        Pairs of each structure, shape (structure,), int64.
    offsets : numpy.ndarray
        Number of cell vectors by which the second atom is moved, shape (pair, 3), int64.

    Examples
    --------
    >>> one, pbc = np.array([1]), np.array([[True, False, False]])
    >>> atoms, n_pairs, offsets = find_pairs(np.zeros((1, 3)), one, np.eye(3)[None], pbc, 1.5)
    >>> atoms.tolist(), n_pairs.tolist(), sorted(offsets.tolist())
    ([[0, 0], [0, 0]], [2], [[-1, 0, 0], [1, 0, 0]])
    """
    arrays = [np.ascontiguousarray(array) for array in (positions, sizes, cells, np.linalg.inv(cells), pbc)]
    atoms, n_pairs, offsets = kernels.find_pairs_of_batch(*arrays, cutoff)
    return atoms, n_pairs, offsets


def _complete_cell(atoms: Atoms, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell, with unit vectors in place of zero vectors, and its inverse."""
    if not pbc.any():
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
