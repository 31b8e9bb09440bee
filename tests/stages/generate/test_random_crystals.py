"""Random crystals with the symmetry of a space group."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import spglib
from ase import Atoms
from pydantic import ValidationError

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.random_crystals import random_crystals

N_OPERATIONS = {2: 2, 14: 4, 62: 8, 136: 16, 194: 24, 225: 192}
"""Symmetry operations of space groups in their conventional cells."""


def draw(n: int = 1, *, seed: int = 0, index: int = 0, **params: Any) -> list[Atoms | Rejection]:
    checked = GENERATORS.check_params("random_crystals", params)
    return list(islice(random_crystals(rng=np.random.default_rng(seed), index=index, **checked), n))


def test_crystals_of_a_formula_are_valid_stoichiometric_and_of_each_size() -> None:
    sizes = set()
    for index in range(12):
        (atoms,) = draw(formula="TiO2", n_atoms=[3, 12], index=index, seed=index)
        assert isinstance(atoms, Atoms)
        assert find_fault(atoms, Limits()) is None
        assert 2 * np.count_nonzero(atoms.symbols == "Ti") == np.count_nonzero(atoms.symbols == "O")
        assert atoms.pbc.all()
        sizes.add(len(atoms))
    assert sizes == {3, 6, 9, 12}


@pytest.mark.parametrize("group", sorted(N_OPERATIONS))
def test_crystals_have_the_symmetry_of_their_group_or_more(group: int) -> None:
    (atoms,) = draw(formula="MgO", n_atoms=[8, 24], space_groups=[group], index=0)
    assert isinstance(atoms, Atoms)
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=1e-3)
    assert dataset is not None
    assert len(dataset.rotations) % N_OPERATIONS[group] == 0


def test_each_element_occurs() -> None:
    for atoms in draw(5, elements=["Al", "Ni", "Cu"], n_atoms=[3, 10]):
        assert isinstance(atoms, Atoms)
        assert set(atoms.symbols) == {"Al", "Ni", "Cu"}


def test_some_of_the_elements_occur() -> None:
    made = draw(12, elements=["Al", "Ni", "Cu", "Si", "Ti"], n_elements=[1, 3], n_atoms=[3, 8])
    numbers = [len(set(atoms.symbols)) for atoms in made if isinstance(atoms, Atoms)]
    assert set(numbers) == {1, 2, 3}
    assert {symbol for atoms in made if isinstance(atoms, Atoms) for symbol in atoms.symbols} > {"Al", "Ni"}


def test_what_pyxtal_cannot_pack_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.stages.generate.random_crystals._build", lambda *_: None)
    (item,) = draw(formula="CsI", n_atoms=8)
    assert isinstance(item, Rejection)
    assert item.reason == "no_crystal"
    assert "lower density" in item.evidence


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "give either formula, e.g. TiO2, or elements"),
        ({"formula": "TiO2", "elements": ["Ti"]}, "and not both"),
        ({"formula": "TiO2", "n_atoms": [4, 5]}, r"TiO2 has 3 atoms, so no cell has 4 to 5; give e\.g\. 3"),
        ({"elements": ["Ti", "O", "N"], "n_atoms": 2}, r"3 elements need as many atoms"),
        ({"elements": ["Ti", "O"], "n_elements": [1, 3]}, "n_elements: there are 2 elements to choose from"),
        ({"formula": "TiO2", "n_elements": 1}, "n_elements: there are 0 elements to choose from"),
        ({"formula": "TiO2", "n_atoms": 3, "space_groups": [230]}, r"goes with none of \[230\]"),
    ],
)
def test_impossible_requests_are_refused_when_called(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**params)


def test_a_space_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 230"):
        draw(formula="TiO2", space_groups=[231])
