"""Put structures into periodic boxes, for code that knows only periodic structures."""

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
        Periodic along none to three of its cell vectors; the other vectors may be zero.
    vacuum
        Empty space between images along vectors that were not periodic, Å. If it is at least the cutoff of a
        potential, no atom has a new neighbour.

    Returns
    -------
    ase.Atoms
        The vectors that were not periodic are replaced by vectors perpendicular to the periodic ones. Positions are
        shifted along them as one body, so that half of the vacuum lies on either side.

    Examples
    --------
    >>> from ase import Atoms
    >>> make_periodic(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]]), vacuum=10).cell.lengths().round(1).tolist()
    [10.1, 10.1, 10.8]
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
