"""Potentials that know no charge refuse charged structures; others say what their labels are of."""

from __future__ import annotations

from typing import Any

import pytest
from ase import Atoms
from ase.build import molecule

from daskpipe.potentials import Failure, Results, build_potential, evaluate
from daskpipe.stages.label.settings import LabelChecks
from daskpipe.stages.label.stage import label_partition

PAIR = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.3]])
MEMBERS = {"members": [{"name": "emt"}, {"name": "lj"}]}


def with_charge(atoms: Atoms, charge: int) -> Atoms:
    ion = atoms.copy()
    ion.info["charge"] = charge
    return ion


@pytest.mark.parametrize(
    ("name", "params"), [("emt", {}), ("lj", {}), ("chgnet", {}), ("mace", {}), ("committee", MEMBERS)]
)
def test_teachers_without_charge_refuse_ions_and_label_the_rest(name: str, params: dict[str, Any]) -> None:
    potential = build_potential(name, params, "cpu", "float32")
    assert not potential.knows_charge
    cation, neutral, said = evaluate(potential, [with_charge(PAIR, 2), PAIR, with_charge(PAIR, 0)])
    assert cation == Failure(
        reason="charge",
        evidence="a charge of +2 e, and the potential does not know charges: its labels would be those of the neutral "
        "structure; "
        "take a potential that does, e.g. xtb",
    )
    assert isinstance(neutral, Results)
    assert isinstance(said, Results)


def test_labels_say_the_spin_that_a_teacher_computed_and_no_other() -> None:
    hydroxyl = molecule("OH")
    hydroxyl.info = {}
    structures = [with_charge(hydroxyl, -1), hydroxyl]
    (payload,) = label_partition(structures, lambda: build_potential("xtb", {}), "xtb", LabelChecks())
    assert payload.arrays["charge"].tolist() == [-1, 0]
    assert payload.arrays["spin_multiplicity"].tolist() == [1, 2]
    assert payload.arrays["energy"][0] != payload.arrays["energy"][1]
    (payload,) = label_partition([with_charge(PAIR, 1), PAIR], lambda: build_potential("emt", {}), "emt", LabelChecks())
    assert [item.reason for item in payload.rejected] == ["charge"]
    assert payload.arrays["spin_multiplicity"].tolist() == [0]


def test_triplet_oxygen_is_labelled_as_one() -> None:
    triplet, singlet = molecule("O2"), molecule("O2")
    triplet.info["spin_multiplicity"], singlet.info["spin_multiplicity"] = 3, 1
    (payload,) = label_partition([triplet, singlet], lambda: build_potential("xtb", {}), "xtb", LabelChecks())
    assert payload.arrays["spin_multiplicity"].tolist() == [3, 1]
    assert payload.arrays["energy"][0] != payload.arrays["energy"][1]
