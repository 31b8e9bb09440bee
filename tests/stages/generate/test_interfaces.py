"""Interfaces: matching cells, strain, composition, contact."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.interfaces import interfaces, match_cells

CONSTANT = {"MgO": 4.21, "Fe": 2.87}


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    ase.io.write(tmp_path / "mgo.extxyz", bulk("MgO", "rocksalt", a=CONSTANT["MgO"]))
    ase.io.write(tmp_path / "fe.extxyz", bulk("Fe", a=CONSTANT["Fe"]))
    return {"of": check_base(str(tmp_path / "mgo.extxyz")), "film": check_base(str(tmp_path / "fe.extxyz"))}


def draw(params: dict[str, Any], n: int = 1, index: int = 0, **more: Any) -> list[Atoms]:
    stream = interfaces(rng=np.random.default_rng(0), index=index, **{"n_atoms": (10, 150), **params, **more})
    return [atoms for atoms in islice(stream, n) if isinstance(atoms, Atoms)]


def test_iron_on_magnesium_oxide_is_the_known_match(pair: dict[str, Any]) -> None:
    """Fe(001)[110] lies on MgO(001)[100]: their cells differ by 4 %."""
    planes = {"miller": [(1, 0, 0)], "film_miller": [(1, 0, 0)]}
    (atoms,) = draw(pair, **planes, rattle=0)
    assert atoms.cell.lengths()[:2] == pytest.approx([CONSTANT["MgO"] / 2**0.5] * 2)
    assert atoms.get_chemical_formula() == "Fe6Mg4O4"


def test_interfaces_are_stoichiometric_in_contact_and_valid(pair: dict[str, Any]) -> None:
    made = draw(pair, n=8, rattle=0, gap=(0.1, 0.1), max_strain=0.04)
    assert len(made) == 8
    for atoms in made:
        assert (atoms.symbols == "Mg").sum() == (atoms.symbols == "O").sum()
        i, j, distance = neighbor_list("ijd", atoms, 5.0)
        across = (atoms.numbers[i] == 26) != (atoms.numbers[j] == 26)
        ratio = distance / covalent_radii[atoms.numbers][[i, j]].sum(axis=0)
        assert ratio[across].min() == pytest.approx(1.1, abs=1e-3)
        assert find_fault(atoms, Limits()) is None
        assert atoms.info == {"system_type": "interface"}
        assert 10 <= len(atoms) <= 150
        film = atoms[atoms.symbols == "Fe"]
        area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
        density = len(film) / area / (np.ptp(film.positions[:, 2]) + 1.4)  # about one spacing more than its planes
        assert density == pytest.approx(2 / CONSTANT["Fe"] ** 3, rel=0.25)


def test_cells_of_a_match_have_nearly_equal_lengths() -> None:
    square, other = 3.0 * np.eye(3)[:2], 4.1 * np.eye(3)[:2]
    for below, above in match_cells(square, other, 0.05):
        lengths = np.linalg.norm(below @ square, axis=1) / np.linalg.norm(above @ other, axis=1)
        assert np.abs(lengths - 1).max() <= 0.05
        assert np.linalg.det(below) > 0
        assert np.linalg.det(above) > 0


def test_what_does_not_match_is_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no interface of MgO and Fe of 3 to 4 atoms; the nearest sizes are"):
        draw(pair, n_atoms=(3, 4), miller=[(1, 0, 0)], film_miller=[(1, 0, 0)])
    ase.io.write(tmp_path / "h2o.extxyz", molecule("H2O"))
    with pytest.raises(ValueError, match="MgO and H2O must both be periodic along three axes"):
        draw({**pair, "film": check_base(str(tmp_path / "h2o.extxyz"))})
