"""Small structures, and a way to write them that daskpipe itself does not map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT

N_STRUCTURES = 20
ATTRS = {"dataset_key": "k1"}
FRACTIONS = {"train": 0.5, "val": 0.3, "test": 0.2}


def structures(n: int = N_STRUCTURES) -> list[Atoms]:
    """Make molecules, slabs and crystals of Cu, Ag and Au with EMT labels."""
    rng = np.random.default_rng(0)
    structures = []
    for index in range(n):
        if index % 3 == 0:
            atoms = Atoms("AuAg", positions=[[0, 0, 0], [0, 0, 2.7]], info={"charge": 1, "spin_multiplicity": 2})
        elif index % 3 == 1:
            atoms = bulk("Cu", cubic=True) * (1, 1, 1 + index % 2)
        else:
            atoms = fcc111("Cu", (2, 1, 2), vacuum=4.0)
        atoms.numbers = rng.choice([29, 47, 79], size=len(atoms))
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        if atoms.cell.rank == 3:
            atoms.get_stress()
        structures.append(atoms)
    return structures


def forks(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test fork workers, more than there are cores.

    Python 3.12 warns that a fork of a process with threads may hang; the loader holds no lock that a child could need.
    """
    threads = "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
    cores = "ignore:This DataLoader will create . worker processes in total:UserWarning"
    return pytest.mark.filterwarnings(threads)(pytest.mark.filterwarnings(cores)(test))
