"""A periodic box for structures that are not periodic, for code that knows only periodic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

SLACK = 0.1
"""Added to the vacuum, Å: at exactly the cutoff, rounding decides whether an image is a neighbour."""


def make_periodic(atoms: Atoms, vacuum: float) -> Atoms:
    """Return a copy that is periodic along all three vectors, without new neighbours.

    Parameters
    ----------
    atoms
        Periodic along none to three of its cell vectors; those along which it is not may be zero.
    vacuum
        Empty space between images along vectors that were not periodic, Å. With at least the cutoff of a
        potential no atom sees an image that was not there before.

    Returns
    -------
    ase.Atoms
        The vectors that were not periodic are replaced by vectors perpendicular to the periodic ones. Positions
        are shifted as one body along them, so that the vacuum lies half on either side.
    """
    atoms = atoms.copy()
    free = np.flatnonzero(~atoms.pbc)
    if not len(free):
        return atoms
    cell = atoms.cell.array.copy()
    # Rows beyond the number of periodic vectors complete them to an orthonormal basis.
    fixed = cell[atoms.pbc]
    directions = np.eye(3) if len(free) == 3 else np.linalg.svd(fixed)[2][len(fixed) :]
    for vector, direction in zip(free, directions, strict=True):
        along = atoms.positions @ direction
        low, high = along.min(), along.max()
        cell[vector] = direction * (high - low + vacuum + SLACK)
        atoms.positions += direction * ((vacuum + SLACK) / 2 - low)
    atoms.set_cell(cell)
    atoms.pbc = True
    return atoms
