"""Amorphous solids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii
from pydantic import ValidationError

from daskpipe.core.connectivity import find_neighbours
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.amorphous import amorphous

SIO2 = {"formula": "SiO2", "density": 2.2}


def draw(*, index: int = 0, seed: int = 0, **params: Any) -> Atoms:
    made = next(amorphous(rng=np.random.default_rng(seed), index=index, **params))
    assert isinstance(made, Atoms), made
    return made


@pytest.mark.parametrize(
    ("formula", "density"), [("SiO2", 2.2), ("Si", 2.3), ("Cu50Zr50", 7.3), ("Li2O", 1.9), ("C", 2.0), ("GeSe2", 4.2)]
)
def test_solids_are_stoichiometric_at_their_density(formula: str, density: float) -> None:
    atoms = draw(formula=formula, density=density, n_atoms=(48, 100))
    assert atoms.symbols.formula.reduce()[0].format("hill") == Atoms(formula).symbols.formula.reduce()[0].format("hill")
    assert atoms.get_masses().sum() / atoms.get_volume() * 1.66053907 == pytest.approx(density)
    assert atoms.info == {"system_type": "amorphous", "charge": 0}
    assert atoms.pbc.all()


def test_no_two_atoms_are_closer_than_asked_also_through_the_boundaries() -> None:
    atoms = draw(**SIO2, n_atoms=(90, 90), min_distance=0.9)
    radii = covalent_radii[atoms.numbers]
    i, j, d = find_neighbours(atoms, 3.0, "ijd")
    assert (d > 0.9 * (radii[i] + radii[j]) - 0.011).all()  # packmol's tolerance is 0.01 Å


def test_sizes_are_spread_over_requests() -> None:
    sizes = [len(draw(index=index, **SIO2, n_atoms=(30, 59))) for index in range(10)]
    assert set(sizes) <= set(range(30, 60, 3))
    assert len(set(sizes)) >= 8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({**SIO2, "density": 25}, r"25 g/cm\^3 of SiO2 is beyond packing: .* give at most \d+\.\d\d g/cm"),
        ({**SIO2, "n_atoms": (4, 5)}, "no whole number of SiO2 has 4 to 5 atoms; the nearest sizes are 3, 6"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_drawn(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        amorphous(rng=np.random.default_rng(0), index=0, **params)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("Si0.5Ge0.5", "formula 'Si0.5Ge0.5' cannot be read; give whole numbers"),
        ("Xx2", "unknown element 'Xx'|formula 'Xx2' cannot be read"),
        ("", "an empty formula; give one, e.g. SiO2"),
    ],
)
def test_formulas_that_cannot_be_used_are_refused_by_the_config(formula: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GENERATORS.check_params("amorphous", {"formula": formula, "density": 2})
