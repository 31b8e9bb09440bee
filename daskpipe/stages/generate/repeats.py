"""Find supercells of any crystal or slab by their number of atoms."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.geometry import cell_widths

if TYPE_CHECKING:
    from ase import Atoms

Repeats = tuple[int, int, int]

MAX_ELONGATION = 2.0
"""Largest ratio of the widths of a supercell, so that images are about equally far in all directions."""


def repeat_cell(atoms: Atoms, repeats: Repeats) -> Atoms:
    """Return a supercell as `ase.Atoms.repeat` does, in a tenth of its time where there are many images."""
    cell = atoms.cell.array
    shifts = np.array([np.dot(image, cell) for image in product(*map(range, repeats))])
    big = atoms[:0]
    n_images = len(shifts)
    big.arrays = {
        name: np.tile(values, (n_images,) + (1,) * (values.ndim - 1)) for name, values in atoms.arrays.items()
    }
    big.arrays["positions"] += np.repeat(shifts, len(atoms), axis=0)
    big.constraints = [constraint.repeat(repeats, len(atoms)) for constraint in atoms.constraints]
    big.set_cell(cell * np.array(repeats)[:, None])
    return big


def find_repeats(
    cell: np.ndarray, n_atoms: int, limits: tuple[int, int], *, axes: tuple[int, ...] = (0, 1, 2)
) -> dict[int, list[Repeats]]:
    """Return the compact supercells of a cell by their number of atoms.

    Parameters
    ----------
    cell
        Vectors as rows, Å, shape (3, 3).
    n_atoms
        Atoms of the cell.
    limits
        Lowest and highest number of atoms of the supercell.
    axes
        Axes to repeat along.

    Returns
    -------
    dict
        Repeats along the three vectors by number of atoms; empty if none fits. Supercells longer than
        `MAX_ELONGATION` times their width are left out, unless all are: then the least elongated ones are returned.

    Examples
    --------
    >>> find_repeats(4.0 * np.eye(3), 4, (20, 32))
    {32: [(2, 2, 2)]}
    """
    widths = cell_widths(cell)
    most = limits[1] // n_atoms
    fitting: list[tuple[float, Repeats]] = []
    for i in range(1, most + 1) if 0 in axes else (1,):
        for j in range(1, most // i + 1) if 1 in axes else (1,):
            for k in range(1, most // (i * j) + 1) if 2 in axes else (1,):
                if limits[0] <= i * j * k * n_atoms <= limits[1]:
                    lengths = (widths * (i, j, k))[list(axes)]
                    fitting.append((round(float(lengths.max() / lengths.min()), 6), (i, j, k)))
    allowed = max(MAX_ELONGATION, min(fitting)[0]) if fitting else 0.0
    sizes: dict[int, list[Repeats]] = {}
    for elongation, (i, j, k) in fitting:
        if elongation <= allowed:
            sizes.setdefault(i * j * k * n_atoms, []).append((i, j, k))
    return sizes
