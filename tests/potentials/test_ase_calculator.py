"""Any ASE calculator by its place."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.morse import MorsePotential

from daskpipe.core.errors import ConfigError
from daskpipe.potentials import Failure, Results, build_potential, evaluate, identify_potential

MORSE = {"calculator": "ase.calculators.morse:MorsePotential", "arguments": {"r0": 2.5}}


def test_results_are_those_of_the_calculator():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    (found,) = evaluate(build_potential("ase", MORSE, "cpu"), [atoms])
    atoms.calc = MorsePotential(r0=2.5)
    assert isinstance(found, Results)
    assert found.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(found.forces, atoms.get_forces())
    np.testing.assert_array_equal(found.stress, atoms.get_stress())


def test_charges_are_refused_unless_the_calculator_takes_them():
    atoms = molecule("H2")
    atoms.info["charge"] = 1
    (refused,) = evaluate(build_potential("ase", MORSE, "cpu"), [atoms])
    assert isinstance(refused, Failure)
    assert refused.reason == "charge"
    assert build_potential("ase", {**MORSE, "charge": "charge"}, "cpu").knows_charge


def test_arguments_are_part_of_the_identity_and_limits_are_not():
    identity = identify_potential("ase", MORSE)
    assert identity.packages["ase"]
    assert identify_potential("ase", {**MORSE, "timeout": 5, "memory": "2GB"}).hash == identity.hash
    assert identify_potential("ase", {**MORSE, "arguments": {"r0": 2.6}}).hash != identity.hash


@pytest.mark.parametrize(
    ("calculator", "message"),
    [
        ("no_such_package.calculators:Best", "there is no module 'no_such_package.calculators' in this environment"),
        ("not a place", "calculator: String should match pattern"),
    ],
)
def test_a_place_that_is_none_is_named(calculator, message):
    with pytest.raises(ConfigError, match=message):
        identify_potential("ase", {"calculator": calculator})


def test_a_memory_without_a_unit_is_refused():
    with pytest.raises(ConfigError, match="memory: String should match pattern"):
        identify_potential("ase", {**MORSE, "memory": "8"})
