"""Ionic crystals stay neutral."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.ionic import ionic

CHARGE = {
    "Mg": 2, "Ca": 2, "Sr": 2, "Ba": 2, "La": 3, "Y": 3, "Zr": 4, "Ti": 4, "Nb": 5, "Al": 3, "Na": 1, "K": 1, "O": -2,
    "F": -1, "Cl": -1, "Br": -1,
}  # fmt: skip

CASES: list[dict[str, Any]] = [
    {"of": "ZrO2", "n_atoms": [24, 96], "doping": {"Zr": {"Y": [0.05, 0.25]}}},  # oxygen vacancies
    {"of": "SrTiO3", "n_atoms": [20, 90], "doping": {"Sr": {"La": [0.1, 0.4]}}},  # strontium vacancies
    {"of": "SrTiO3", "n_atoms": [40, 60], "doping": {"Ti": {"Nb": [0.1, 0.5]}}, "vacancy": "Sr"},
    {"of": "SrTiO3", "n_atoms": [40, 60], "doping": {"Sr": {"La": 0.25}, "Ti": {"Al": 0.25}}},  # none needed
    {"of": "MgO", "n_atoms": [8, 64], "doping": {"Mg": {"Ca": [0, 1], "Sr": [0, 0.5]}}},
    {"of": "NaCl", "n_atoms": [16, 64], "doping": {"Na": {"Ca": [0.1, 0.3]}, "Cl": {"Br": [0, 0.5]}}},
    {"of": "CaF2", "n_atoms": [12, 48]},
]


def draw(n: int = 1, *, seed: int = 0, index: int = 0, **params: Any) -> list[Atoms]:
    checked = GENERATORS.check_params("ionic", params)
    return list(islice(ionic(rng=np.random.default_rng(seed), index=index, **checked), n))


@settings(deadline=None, max_examples=20)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 2**32))
def test_each_crystal_is_neutral(case: dict[str, Any], seed: int) -> None:
    (atoms,) = draw(**case, seed=seed)
    assert sum(CHARGE[symbol] for symbol in atoms.symbols) == 0
    assert atoms.info == {"system_type": "crystal", "charge": 0}
    assert len(atoms) <= case["n_atoms"][1]
    assert find_fault(atoms, Limits()) is None


def test_yttria_stabilised_zirconia_has_one_vacancy_for_two_yttrium() -> None:
    for atoms in draw(5, **CASES[0]):
        n = atoms.symbols.formula.count()
        assert 2 * (n["Zr"] + n["Y"]) - n["O"] == n["Y"] / 2 > 0
        assert 0.05 <= n["Y"] / (n["Zr"] + n["Y"]) <= 0.25


def test_the_vacancy_that_is_asked_for_is_made() -> None:
    for atoms in draw(3, **CASES[2]):
        n = atoms.symbols.formula.count()
        assert n["Ti"] + n["Nb"] - n["Sr"] == n["Nb"] / 2


def test_a_larger_cation_makes_a_larger_cell() -> None:
    pure, doped = (
        draw(of="MgO", n_atoms=8, doping={"Mg": {"Ca": fraction}}, strain=0)[0].get_volume() for fraction in (0, 1)
    )
    assert doped / pure == pytest.approx((4.811 / 4.217) ** 3, rel=0.1)  # CaO over MgO


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"of": "CuZn"}, r"oxidation states of CuZn cannot balance; give those of all its elements, e\.g\. charges"),
        ({"of": "MgO", "charges": {"Mg": 3}}, r"oxidation states of MgO sum to \+1"),
        ({"of": "MgO", "doping": {"Ti": {"Ca": 0.5}}}, r"MgO has no Ti to replace; it has Mg, O"),
        ({"of": "MgO", "n_atoms": 8, "doping": {"Mg": {"Al": 0.25}}}, r"no supercell of 8 to 8 atoms is neutral"),
        ({"of": "MgO", "doping": {"Mg": {"Ar": 0.5}}}, r"Ar has no common oxidation state of the sign of \+2"),
        ({"of": "MgO", "n_atoms": 1}, r"no supercell of MgO of 1 to 1 atoms"),
        ({"of": {"generator": "molecules", "names": ["H2O"]}}, r"an ionic crystal is periodic along three axes"),
    ],
)
def test_impossible_requests_are_refused_when_called(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**{"n_atoms": [8, 16], **params})
