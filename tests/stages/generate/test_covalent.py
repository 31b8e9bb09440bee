"""Diamond, graphite, graphene and nanotubes."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.covalent import covalent

BONDS = {"diamond": 4, "graphite": 3, "graphene": 3, "nanotube": 3}
KIND = {"diamond": "bulk", "graphite": "bulk", "graphene": "surface", "nanotube": "wire"}
LONGEST_BOND = 1.65
"""Å, of carbon."""


def draw(n: int = 1, *, seed: int = 0, index: int = 0, **params: Any) -> list[Atoms]:
    checked = GENERATORS.check_params("covalent", params)
    return list(islice(covalent(rng=np.random.default_rng(seed), index=index, **checked), n))


@pytest.mark.parametrize("kind", sorted(BONDS))
def test_each_atom_has_its_bonds(kind: str) -> None:
    for atoms in draw(10, kinds=[kind], strain=0, rattle=0):
        assert 16 <= len(atoms) <= 100
        bonds = np.bincount(neighbor_list("i", atoms, LONGEST_BOND), minlength=len(atoms))
        assert (bonds == BONDS[kind]).all()
        assert find_fault(atoms, Limits()) is None


@pytest.mark.parametrize("kind", ["diamond", "graphene", "nanotube"])
def test_each_is_connected_along_its_periodic_axes(kind: str) -> None:
    (atoms,) = draw(kinds=[kind], rattle=0)
    assert system_type(atoms) == KIND[kind]


def test_kinds_are_gone_through_in_turn() -> None:
    periodic = [int(draw(index=index)[0].pbc.sum()) for index in range(4)]
    assert periodic == [3, 3, 2, 1]


def test_silicon_has_its_lattice_constant() -> None:
    (atoms,) = draw(kinds=["diamond"], element="Si", n_atoms=8, strain=0, rattle=0)
    assert atoms.get_volume() == pytest.approx(5.431**3, rel=0.01)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"element": "Si"}, r"Si has no graphite, graphene, nanotube; give kinds: \[diamond\]"),
        ({"kinds": ["nanotube"], "n_atoms": 13}, r"no nanotube of 13 to 13 atoms; the nearest sizes are 12, 16"),
        ({"kinds": ["graphene"], "n_atoms": 7}, r"no graphene of 7 to 7 atoms"),
    ],
)
def test_impossible_requests_are_refused_when_called(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**params)
