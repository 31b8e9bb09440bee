"""Molecules of ASE's sets and of SMILES."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.collections import g2, s22
from chemistry import smiles_of_geometry
from pydantic import ValidationError
from rdkit import Chem

from daskpipe.core.errors import Rejection
from daskpipe.core.structures import spin_multiplicity
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.conformers import UNRELAXED
from daskpipe.stages.generate.molecules import expand_requests, molecules
from daskpipe.stages.generate.reading.left_out import NOTED


def test_every_molecule_of_the_set_passes_the_checks() -> None:
    made = list(molecules(rng=np.random.default_rng(0), n_atoms=(1, 100), rattle=0))
    assert len(made) == len(g2.names) == 162
    for atoms in made:
        assert find_fault(atoms, Limits()) is None
        assert atoms.info["system_type"] == "molecule"
        assert not atoms.pbc.any()
        assert atoms.cell.rank == 3


@pytest.mark.parametrize(
    ("name", "multiplicity"), [("H2O", 1), ("O2", 3), ("OH", 2), ("CH2_s3B1d", 3), ("CH2_s1A1d", 1)]
)
def test_spin_is_that_of_the_ground_state(name: str, multiplicity: int) -> None:
    (atoms,) = molecules(rng=np.random.default_rng(0), names=[name])
    assert spin_multiplicity(atoms) == atoms.info["spin_multiplicity"] == multiplicity
    assert atoms.info["charge"] == 0


def test_elements_and_sizes_select() -> None:
    made = list(molecules(rng=np.random.default_rng(0), elements=["H", "O"], n_atoms=(3, 4)))
    assert sorted(str(atoms.symbols.formula.format("hill")) for atoms in made) == ["H2O", "H2O2", "O3"]


def test_names_are_taken_in_order_whatever_their_size() -> None:
    made = molecules(rng=np.random.default_rng(0), names=["O", "CH4", "O"])
    assert [len(atoms) for atoms in made] == [1, 5]


def test_rattle_moves_atoms_and_none_leaves_the_geometry() -> None:
    (still,) = molecules(rng=np.random.default_rng(0), names=["CH4"], rattle=0)
    (moved,) = molecules(rng=np.random.default_rng(0), names=["CH4"], rattle=0.05)
    reference = g2["CH4"].get_all_distances()
    np.testing.assert_allclose(still.get_all_distances(), reference)
    assert 1e-3 < np.abs(moved.get_all_distances() - reference).max() < 0.5


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(ValidationError, match=r"unknown molecule 'CH3CH3OH'\. Near: .*CH3CH2OH.* lists all 162"):
        GENERATORS.check_params("molecules", {"names": ["CH3CH3OH"]})


def test_expand_gives_one_request_a_molecule_and_goes_round() -> None:
    params = GENERATORS.check_params("molecules", {"names": ["H2O", "CH4"]})
    assert [item["names"] for item, _ in expand_requests(params, None, Path())] == [["H2O"], ["CH4"]]
    assert [item["names"] for item, _ in expand_requests(params, 1, Path())] == [["H2O"]]
    assert [item["names"] for item, _ in expand_requests(params, 5, Path())] == [
        ["H2O"],
        ["CH4"],
        ["H2O"],
        ["CH4"],
        ["H2O"],
    ]


def test_expand_refuses_copies_and_nothing() -> None:
    params = GENERATORS.check_params("molecules", {"names": ["H2O"], "rattle": 0})
    with pytest.raises(ValueError, match="n: 2 molecules were asked for and 1 match; lower n, or set rattle above 0"):
        expand_requests(params, 2, Path())
    with pytest.raises(ValueError, match=r"no molecule is left with elements \['Au'\]"):
        expand_requests(GENERATORS.check_params("molecules", {"elements": ["Au"]}), None, Path())


def test_s22_is_a_set_of_dimers_in_ases_geometry() -> None:
    made = list(molecules(rng=np.random.default_rng(0), set="s22", rattle=0))
    assert len(made) == len(s22.names) == 22
    for name, atoms in zip(s22.names, made, strict=True):
        assert atoms.info == {"charge": 0, "spin_multiplicity": 1, "system_type": "molecular_cluster"}
        np.testing.assert_allclose(atoms.get_all_distances(), s22[name].get_all_distances(), atol=1e-9)


def test_names_of_both_sets_may_be_mixed_with_smiles() -> None:
    params = GENERATORS.check_params("molecules", {"names": ["Water_dimer", "CH4"], "smiles": ["CCO"]})
    made = [next(molecules(rng=np.random.default_rng(0), **item)) for item, _ in expand_requests(params, None, Path())]
    assert [str(atoms.symbols.formula.format("hill")) for atoms in made] == ["H4O2", "CH4", "C2H6O"]


@pytest.mark.parametrize(
    ("smiles", "charge", "multiplicity"),
    [("CCO", 0, 1), ("[NH4+]", 1, 1), ("CC(=O)[O-]", -1, 1), ("[O][O]", 0, 3), ("C[CH2]", 0, 2), ("CO[O]", 0, 2)],
)
def test_charge_and_spin_of_smiles(smiles: str, charge: int, multiplicity: int) -> None:
    (atoms,) = molecules(rng=np.random.default_rng(0), smiles=[smiles])
    assert find_fault(atoms, Limits()) is None
    assert (atoms.info["charge"], atoms.info["spin_multiplicity"]) == (charge, multiplicity)


SMILES = [
    "CCO",
    "c1ccccc1O",
    "CC(=O)NC",
    "C[N+](=O)[O-]",
    "OS(=O)(=O)C",
    "CP(C)(C)=O",
    "C[Si](C)(C)Cl",
    "FC(F)=C",
    "C#N",
]


@pytest.mark.parametrize("smiles", SMILES)
def test_geometry_has_the_bonds_of_the_smiles(smiles: str) -> None:
    """RDKit finds the same molecule, hydrogens included, from the coordinates alone."""
    (atoms,) = molecules(rng=np.random.default_rng(1), smiles=[smiles], rattle=0)
    assert smiles_of_geometry(atoms) == Chem.CanonSmiles(smiles)


def test_conformers_differ_and_are_requests_of_their_own() -> None:
    params = GENERATORS.check_params("molecules", {"smiles": ["CCCCCO"], "conformers": 3, "rattle": 0})
    items = expand_requests(params, None, Path())
    assert [(item["smiles"], item["conformers"]) for item, _ in items] == [(["CCCCCO"], 1)] * 3
    first, second, third = molecules(rng=np.random.default_rng(0), **params)
    for one, other in ((first, second), (first, third), (second, third)):
        assert np.abs(one.get_all_distances() - other.get_all_distances()).max() > 0.3


def test_isotopes_keep_their_mass() -> None:
    (atoms,) = molecules(rng=np.random.default_rng(0), smiles=["[2H]O[2H]"])
    assert sorted(atoms.get_masses().round(3).tolist()) == [2.014, 2.014, 15.999]


def test_molecule_without_force_field_parameters_says_so() -> None:
    made = molecules(rng=np.random.default_rng(0), smiles=["CCO", "CO[O]", "F[Xe]F"])
    assert [atoms.info.get(NOTED) for atoms in made] == [None, None, (UNRELAXED,)]


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C1CC", "cannot be used: it is no valid SMILES; check brackets"),
        ("ethanol", "cannot be used: it is no valid SMILES; check brackets"),
        ("C(C)(C)(C)(C)C", r"valence for atom # 0 C, 5, is greater than permitted; write charges"),
        ("[Na+].[Cl-]", "is of 2 molecules; give each as an item of its own"),
        ("*C", r"has a dummy atom \(\*\); put an element in its place"),
        ("", "an empty SMILES; give a molecule"),
    ],
)
def test_smiles_that_cannot_be_used_are_refused_by_the_config(smiles: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GENERATORS.check_params("molecules", {"smiles": [smiles]})


def test_smiles_without_geometry_is_a_rejection() -> None:
    strained = "C1C#CC1"
    (made,) = molecules(rng=np.random.default_rng(0), smiles=[strained])
    assert isinstance(made, Rejection)
    assert made.reason == "embedding"
    assert "RDKit makes no coordinates for it in 40 attempts" in made.evidence


def test_conformers_without_smiles_are_refused() -> None:
    with pytest.raises(ValueError, match="conformers: 3 were asked for; they are made of smiles only"):
        molecules(rng=np.random.default_rng(0), conformers=3)
