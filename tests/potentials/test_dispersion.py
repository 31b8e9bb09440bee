"""Dispersion that is added to a potential is that of dftd3 and dftd4."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from pydantic import ValidationError

from daskpipe.core.errors import ConfigError
from daskpipe.potentials import Failure, Results, build_potential, evaluate, identify_potential
from daskpipe.potentials.dispersion import Dispersion, add_dispersion, identify_with_dispersion

pytest.importorskip("dftd3", reason="pip install 'daskpipe[dispersion]'")
pytest.importorskip("dftd4", reason="pip install 'daskpipe[dispersion]'")


def label(structures: list[Atoms], method: str) -> tuple[list[Results], list[Results]]:
    """Return results without and with dispersion."""
    plain = build_potential("lj", {"sigma": 1.5}, "cpu", "float64")
    both = evaluate(plain, structures), evaluate(add_dispersion(plain, dispersion(method)), structures)
    assert all(isinstance(each, Results) for found in both for each in found)
    return both


def dispersion(method: str) -> Dispersion:
    return Dispersion(method=method, functional="PBE")


@pytest.mark.parametrize("method", ["d3", "d4"])
def test_energies_forces_and_stress_are_sums(method):
    from dftd3.ase import DFTD3
    from dftd4.ase import DFTD4

    structures = [molecule("C6H6"), bulk("Al", cubic=True)]
    calculator = DFTD3(method="PBE", damping="d3bj") if method == "d3" else DFTD4(method="PBE")
    for atoms, first, second in zip(structures, *label(structures, method), strict=True):
        atoms.calc = calculator
        assert second.energy - first.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(second.forces - first.forces, atoms.get_forces(), atol=1e-9)
        if atoms.pbc.all():
            np.testing.assert_allclose(second.stress - first.stress, atoms.get_stress(), atol=1e-9)


def test_d4_knows_the_charge_of_a_structure():
    neutral, charged = molecule("C6H6"), molecule("C6H6")
    charged.info["charge"] = 1
    (without,) = evaluate(build_potential("xtb", {}, "cpu"), [charged])
    potential = add_dispersion(build_potential("xtb", {}, "cpu"), dispersion("d4"))
    first, second = evaluate(potential, [neutral, charged])
    assert isinstance(without, Results)
    assert isinstance(first, Results)
    assert isinstance(second, Results)
    (plain,) = evaluate(build_potential("xtb", {}, "cpu"), [neutral])
    assert isinstance(plain, Results)
    assert abs((second.energy - without.energy) - (first.energy - plain.energy)) > 1e-3


def test_a_structure_that_the_potential_refuses_has_no_dispersion_either():
    (failure,) = evaluate(
        add_dispersion(build_potential("emt", {}, "cpu"), dispersion("d3")), [Atoms("He2", [[0, 0, 0], [0, 0, 3]])]
    )
    assert isinstance(failure, Failure)
    assert failure.reason == "unknown_element"


def test_it_is_part_of_the_identity():
    plain = identify_potential("lj", {})
    names = {method: identify_with_dispersion("lj", plain, dispersion(method)) for method in ("d3", "d4")}
    assert names["d3"].name == "Lennard-Jones with D3"
    assert len({plain.hash, names["d3"].hash, names["d4"].hash}) == 3
    assert "dftd4" in names["d4"].packages


@pytest.mark.parametrize("method", ["d3", "d4"])
def test_an_unknown_functional_is_named(method):
    wrong = Dispersion(method=method, functional="nonsense")
    with pytest.raises(ConfigError, match="no damping for the functional 'nonsense'; give one that it was fitted to"):
        identify_with_dispersion("lj", identify_potential("lj", {}), wrong)


def test_xtb_has_its_own():
    with pytest.raises(ConfigError, match="GFN-xTB has a dispersion of its own; leave dispersion out"):
        identify_with_dispersion("xtb", identify_potential("xtb", {}), dispersion("d4"))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValidationError, match="'d3' or 'd4'"):
        Dispersion(method="d2", functional="PBE")
