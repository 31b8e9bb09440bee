"""Small labelled datasets: alloys, slabs, clusters and dimers with EMT labels, several frames a seed."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from daskpipe.core.structures import from_atoms, round_positions, structure_id

Make = Callable[..., xr.Dataset]


def make_frame(kind: int, rng: np.random.Generator) -> Atoms:
    if kind == 0:
        atoms = bulk("Cu", cubic=True) * (1, 1, 2)
        atoms.info["system_type"] = "alloy"
    elif kind == 1:
        atoms = fcc111("Ag", (1, 2, 3), vacuum=6.0)
        atoms.info["system_type"] = "surface"
    elif kind == 2:
        atoms = Atoms("Au4", positions=2.6 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]))
        atoms.info["system_type"] = "cluster"
    else:
        atoms = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]])
        atoms.info["system_type"] = "cluster"
    atoms.numbers = rng.choice([29, 47, 79], size=len(atoms))
    atoms.rattle(0.1, rng=rng)
    return round_positions(atoms)


def make_structures(n: int, seed: int = 0, *, frames_per_seed: int = 3) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    structures = []
    for index in range(n):
        atoms = make_frame(index % 4, rng)
        if index % frames_per_seed == 0:
            parent = structure_id(atoms)  # the first frame is the seed itself and has no parent
        else:
            atoms.info["parent_id"] = parent
        atoms.info |= {
            "generator": ("bulk", 'sea\'s_"own"')[index % 2],  # a word as a user may write it
            "temperature": float(rng.uniform(300, 900)),
            "step": index,
            "label_method": "emt",
        }
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.cell.rank == 3:
            results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        structures.append(atoms)
    return structures


@pytest.fixture(scope="session")
def make_dataset() -> Make:
    def make(n: int, seed: int = 0, *, frames_per_seed: int = 3) -> xr.Dataset:
        return from_atoms(make_structures(n, seed, frames_per_seed=frames_per_seed))

    return make
