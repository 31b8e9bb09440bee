"""The points around each atom: atoms and their periodic images, sorted into a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

BINS_PER_CUTOFF = 1.5
"""Measured from 1 to 6: finer bins look at fewer points in vain, but in shorter stretches."""

BINS_PER_POINT = 8
"""Bound on the bins, for few atoms in much space."""


@dataclass(frozen=True)
class Grid:
    """A structure's atoms and those of their images that lie within a cutoff of the box around them.

    What an atom's neighbours are, `neighbours_kernels.around` tells.

    Parameters
    ----------
    positions
        Atoms, wrapped into the cell along its periodic vectors, shape (atom, xyz), float64, Å.
    points
        Atoms and images in order of their bins, shape (xyz, point), float64, Å.
    atom_index
        The atom that each point is an image of, shape (point,), int64.
    bin_ptr
        Points of bin i lie from ``bin_ptr[i]`` to ``bin_ptr[i + 1]``, shape (bin + 1,), int64.
    low, edges
        Corner of the grid and size of a bin, shape (xyz,), Å.
    n_bins
        Bins along each axis, shape (xyz,), int64; x runs fastest.
    """

    positions: np.ndarray
    points: np.ndarray
    atom_index: np.ndarray
    bin_ptr: np.ndarray
    low: np.ndarray
    edges: np.ndarray
    n_bins: np.ndarray

    @classmethod
    def of(cls, atoms: Atoms, cutoff: float) -> Grid:
        """Sort a structure with any cell and any boundaries; time and memory are linear in its atoms.

        Parameters
        ----------
        atoms
            At least one atom.
        cutoff
            Å.

        Raises
        ------
        ValueError
            If the structure is periodic along cell vectors that are zero or not independent.
        """
        from daskpipe.describe import neighbours_kernels as kernels

        cell, inverse = _lattice(atoms)
        heights = 1 / np.sqrt((inverse**2).sum(axis=0))
        positions, spans, box = np.empty((len(atoms), 3)), np.empty(3, np.int64), np.empty((2, 3))
        kernels.wrap(atoms.positions, cell, heights, inverse, atoms.pbc, cutoff, positions, spans, box)

        n_points = kernels.images(positions, cell, spans, box, np.empty((3, 0)), np.empty(0, np.int64))
        points, owners = np.empty((3, n_points)), np.empty(n_points, np.int64)
        kernels.images(positions, cell, spans, box, points, owners)

        lengths = box[1] - box[0]
        edge = max(cutoff / BINS_PER_CUTOFF, float(np.cbrt(lengths.prod() / (BINS_PER_POINT * n_points))))
        n_bins = np.maximum(1, lengths // edge).astype(np.int64)
        edges = lengths / n_bins
        bin_ptr = np.empty(int(n_bins.prod()) + 1, np.int64)
        ordered, atom_index = np.empty_like(points), np.empty_like(owners)
        kernels.sort(points, owners, box[0], edges, n_bins, bin_ptr, ordered, atom_index)
        return cls(positions, ordered, atom_index, bin_ptr, box[0], edges, n_bins)


def _lattice(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Cell, filled up with unit vectors where it is not periodic, and its inverse."""
    if not atoms.pbc.any():
        return np.eye(3), np.eye(3)
    cell = atoms.cell.complete().array if not atoms.cell.array.any(axis=1).all() else atoms.cell.array
    if abs(np.linalg.det(cell)) < 1e-12 * np.linalg.norm(cell, axis=1).prod():
        raise ValueError(
            f"structure of {atoms.get_chemical_formula()} is periodic along {atoms.pbc.tolist()} with cell vectors "
            f"{atoms.cell.array.tolist()}, which span no lattice; set atoms.cell or atoms.pbc"
        )
    return cell, np.linalg.inv(cell)
