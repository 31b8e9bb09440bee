"""Structures that the tests of the potentials share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.cluster import Icosahedron

from daskpipe.core.third_party import silence_libraries

SYMBOLS = ("Cu", "Ag", "Au")


def alloy(seed: int) -> Atoms:
    """Strained, rattled fcc alloy in a skewed cell, periodic along all vectors."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.9, cubic=True).repeat((2, 1, 1))
    atoms.symbols[:] = [str(symbol) for symbol in rng.choice(SYMBOLS, len(atoms))]
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    return atoms


def slab(seed: int) -> Atoms:
    """Rattled (111) slab, periodic along two vectors; the third is zero."""
    rng = np.random.default_rng(seed)
    atoms = fcc111("Ag", (2, 2, 3), a=4.1)
    atoms.info.clear()
    atoms.symbols[:] = [str(symbol) for symbol in rng.choice(SYMBOLS, len(atoms))]
    atoms.rattle(0.1, rng=rng)
    assert not atoms.pbc[2]
    return atoms


def cluster(seed: int) -> Atoms:
    """Rattled icosahedron of 13 atoms, without a cell."""
    rng = np.random.default_rng(seed)
    atoms = Icosahedron("Cu", 2, latticeconstant=3.9)
    atoms = Atoms(atoms.numbers, positions=atoms.positions)
    atoms.symbols[:] = [str(symbol) for symbol in rng.choice(SYMBOLS, len(atoms))]
    atoms.rattle(0.1, rng=rng)
    return atoms


with silence_libraries():  # torch-sim's first import warns
    from daskpipe.core.torch_sim import torch_sim  # noqa: F401

type Make = Callable[..., Atoms]


@pytest.fixture
def make() -> Make:
    """Maker of structures: ``make("alloy")``, ``make("slab", seed=3)``."""
    kinds = {"alloy": alloy, "slab": slab, "cluster": cluster}
    return lambda kind, seed=0: kinds[kind](seed)


@pytest.fixture
def metals() -> list[Atoms]:
    """One structure of each periodicity: 3, 2 and 0 vectors."""
    return [alloy(0), slab(1), cluster(2)]
