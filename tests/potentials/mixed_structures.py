"""Structures of all periodicities and shapes, for batches that hold them side by side."""

from __future__ import annotations

import numpy as np
from ase import Atoms

ELEMENTS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")


def random_structure(rng: np.random.Generator) -> Atoms:
    """1 to 8 atoms, no two closer than 1.7 Å in one image, in a slanted cell of either hand, shorter or longer than
    any cutoff, periodic along any vectors; along the others it is zero, or has a length that means nothing. The atoms
    lie up to 40 cells away."""
    pbc = rng.random(3) < 0.5
    cell = np.diag(rng.uniform(2.4, 8.0, 3)) + rng.normal(scale=0.4, size=(3, 3))
    cell[0] *= rng.choice([-1, 1])
    positions = [rng.uniform(0, 6, 3)]
    for _ in range(int(rng.integers(0, 8))):
        place = rng.uniform(0, 6, 3)
        if np.linalg.norm(np.array(positions) - place, axis=1).min() > 1.7:
            positions.append(place)
    positions = np.array(positions)
    positions += (rng.integers(-40, 41, positions.shape) * pbc) @ cell
    cell[~pbc] *= rng.choice([0, 1])
    return Atoms([str(rng.choice(ELEMENTS)) for _ in positions], positions=positions, cell=cell, pbc=pbc)
