"""Neighbours by trying all images, in plain loops."""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms


def neighbours(atoms: Atoms, cutoff: float) -> list[tuple[int, int, int, int, int]]:
    """Sorted (first, second, three offsets) of all pairs closer than the cutoff."""
    cell, directions = atoms.cell.array.copy(), np.linalg.svd(atoms.cell.array * atoms.pbc[:, None])[2]
    cell[~atoms.pbc] = directions[atoms.pbc.sum() :]
    fractions = atoms.positions @ np.linalg.inv(cell)
    # How many layers of cells a sphere of the cutoff reaches across.
    reach = np.ceil(cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)) + 1
    found = []
    for first, second in itertools.product(range(len(atoms)), repeat=2):
        middle = np.round(fractions[first] - fractions[second]).astype(int)
        ranges = [
            range(int(centre - size), int(centre + size) + 1) if periodic else [0]
            for centre, size, periodic in zip(middle, reach, atoms.pbc, strict=True)
        ]
        for offset in itertools.product(*ranges):
            distance = np.linalg.norm(atoms.positions[second] - atoms.positions[first] + np.array(offset) @ cell)
            if distance < cutoff and (first != second or any(offset)):
                found.append((first, second, *offset))
    return sorted(found)
