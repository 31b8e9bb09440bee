"""Reference structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii

from daskpipe.core.errors import ConfigError
from daskpipe.core.isolated_atoms import is_isolated
from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits
from daskpipe.stages.generate.reference import reference
from daskpipe.stages.generate.sources import Source
from daskpipe.stages.generate.stage import generate_partition, list_requests

SEXTET = 6  # of manganese: five unpaired d electrons


def draw(**params: Any) -> list[Atoms]:
    return list(reference(rng=np.random.default_rng(0), **params))


def test_isolated_atoms_are_recognised_and_have_their_ground_state() -> None:
    for atoms, multiplicity in zip(draw(elements=("Mn", "O", "He"), kinds=("atom",)), (SEXTET, 3, 1), strict=True):
        assert is_isolated(atoms)
        assert atoms.info == {
            "system_type": "atom", "charge": 0, "spin_multiplicity": multiplicity, "config_type": "IsolatedAtom",
            "reference": True,
        }  # fmt: skip


def test_dimers_have_all_pairs_and_distances() -> None:
    made = draw(elements=("Mg", "O"), kinds=("dimer",), distances=(0.8, 1.2))
    assert [atoms.get_chemical_formula() for atoms in made] == ["Mg2"] * 2 + ["MgO"] * 2 + ["O2"] * 2
    for atoms, factor in zip(made, (0.8, 1.2) * 3, strict=True):
        assert atoms.get_distance(0, 1) == pytest.approx(factor * covalent_radii[atoms.numbers].sum())
        assert atoms.info["config_type"] == "Dimer"
        assert not is_isolated(atoms)


def test_equations_of_state_keep_shape_and_fractions(tmp_path: Path) -> None:
    crystals = [bulk("Cu"), bulk("Mg")]
    ase.io.write(tmp_path / "two.extxyz", crystals)
    made = draw(of=check_base(str(tmp_path / "two.extxyz")), volumes=(0.9, 1.1))
    assert len(made) == 4
    for atoms, (crystal, factor) in zip(made, [(c, f) for c in crystals for f in (0.9, 1.1)], strict=True):
        assert atoms.get_volume() / crystal.get_volume() == pytest.approx(factor)
        np.testing.assert_allclose(atoms.cell.cellpar()[3:], crystal.cell.cellpar()[3:], atol=1e-5)
        np.testing.assert_allclose(atoms.get_scaled_positions(), crystal.get_scaled_positions(), atol=1e-6)


def test_a_source_makes_each_once_and_all_pass() -> None:
    of = {"generator": "alloys", "elements": {"Cu": 1.0}, "n_atoms": 4, "rattle": 0.0}
    source = Source.model_validate({"generator": "reference", "elements": ["Cu", "Au"], "of": of})
    requests = list_requests({"fixed": source}, [], Path.cwd())
    made = generate_partition(requests, seed=0, limits=Limits())
    assert len(made) == 2 + 3 * 12 + 3 * 9
    assert all(isinstance(atoms, Atoms) for atoms in made)
    kinds = [atoms.info["config_type"] for atoms in made if isinstance(atoms, Atoms)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"IsolatedAtom": 2, "Dimer": 36, "EquationOfState": 27}
    few = list_requests({"fixed": source.model_copy(update={"n": 5})}, [], Path.cwd())
    assert [request.params["item"] for request in few] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "give elements for atoms and dimers, or of"),
        ({"elements": ["Cu"], "kinds": ["eos"]}, "eos needs crystals, e.g. of: MgO"),
        ({"elements": ["Cu"], "kinds": ["atom"], "n": 9}, "n: 9 structures were asked for and there are 1"),
    ],
)
def test_what_is_missing_is_named(params: dict[str, Any], message: str) -> None:
    source = Source.model_validate({"generator": "reference", **params})
    with pytest.raises(ConfigError, match=message):
        list_requests({"fixed": source}, [], Path.cwd())


def test_molecules_have_no_equation_of_state(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "h2o.xyz", molecule("H2O"))
    with pytest.raises(ValueError, match="no structure is periodic; an equation of state needs a crystal"):
        draw(of=check_base(str(tmp_path / "h2o.xyz")))
