"""Distinction of crystals from liquids and glasses by the strongest reflection of the atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

ORDER = 0.5
"""Intensity of the strongest reflection over that of a perfect lattice, from which on atoms are in order.

Crystals whose atoms are off by 0.1 Å have 0.7 to 1; liquids of a hundred atoms 0.1 to 0.2, fewer atoms more
(`benchmarks/results/physics.txt`).
"""

LONGEST = 5.0
"""Longest scattering vector that counts, 1/Å: thermal motion blurs those beyond."""

GRID = 0.2
"""Å; atoms are moved to points so far apart. It weakens reflections by 8 % at most."""

MOST_POINTS = 4e6
"""Of the grid, which is coarser for larger cells."""

SHARE = 0.25
"""Part of the atoms that an element must have for its order to count: a lone ion in a liquid is in order by itself."""


def is_crystal(atoms: Atoms) -> bool:
    """Return True if the atoms of a structure, or those of one of its elements, lie on a lattice.

    Parameters
    ----------
    atoms
        Periodic along all vectors. A cell of few atoms always counts as a crystal, since it repeats.
    """
    return strongest_reflection(atoms) >= ORDER


def strongest_reflection(atoms: Atoms) -> float:
    """Return the largest intensity of a reflection, 0 to 1: |sum over n atoms of exp(i G r)|^2 / n^2.

    Parameters
    ----------
    atoms
        Periodic along all vectors. The sums run over all atoms, or over those of an element with a `SHARE` of them; G
        are the reciprocal lattice vectors of the cell up to `LONGEST`.
    """
    from scipy.fft import fftn

    cell = atoms.cell.array
    spacing = max(GRID, (atoms.get_volume() / MOST_POINTS) ** (1 / 3))
    shape = np.maximum(np.ceil(np.linalg.norm(cell, axis=1) / spacing), 3).astype(int)
    place = np.floor(atoms.get_scaled_positions() * shape).astype(int) % shape
    indices = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij", sparse=True)
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    squares = sum(
        (sum(index * reciprocal[axis, component] for axis, index in enumerate(indices))) ** 2 for component in range(3)
    )
    counts = (squares > 1e-9) & (squares <= LONGEST**2)
    if not np.any(counts):
        return 1.0  # a cell shorter than any distance of atoms
    strongest = 0.0
    for rows in [np.ones(len(atoms), dtype=bool), *(atoms.numbers == number for number in np.unique(atoms.numbers))]:
        if rows.sum() < SHARE * len(atoms):
            continue
        density = np.zeros(shape, dtype=np.float32)
        np.add.at(density, tuple(place[rows].T), 1.0)
        strongest = max(strongest, float((np.abs(fftn(density)[counts]) ** 2).max() / rows.sum() ** 2))
    return strongest
