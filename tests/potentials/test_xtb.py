from __future__ import annotations

import re

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.collections import g2
from ase.units import Bohr, Hartree
from solids import solids
from tblite.interface import Calculator

from daskpipe.potentials import Failure, Results, build_potential, evaluate


def one(atoms: Atoms, **params: object) -> Results | Failure:
    return evaluate(build_potential("xtb", params, "cpu", "float64"), [atoms])[0]


@pytest.mark.slow
def test_all_molecules_of_g2_have_the_energies_of_tblite() -> None:
    structures = [molecule(name) for name in g2.names]
    assert len(structures) == 162
    for atoms in structures:
        n_unpaired = round(abs(float(atoms.get_initial_magnetic_moments().sum())))
        atoms.info["spin_multiplicity"] = 1 + n_unpaired
    found = evaluate(build_potential("xtb", {}, "cpu", "float64"), structures)
    for atoms, results in zip(structures, found, strict=True):
        direct = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr)
        direct.set("verbosity", 0)
        direct.update(uhf=atoms.info["spin_multiplicity"] - 1)
        answer = direct.singlepoint()
        assert isinstance(results, Results), (atoms, results)
        assert results.energy == pytest.approx(answer.get("energy") * Hartree, abs=1e-6)
        np.testing.assert_allclose(results.forces, -answer.get("gradient") * Hartree / Bohr, atol=1e-4)


def test_unconverged() -> None:
    failure = one(molecule("CH3OH"), max_iterations=2)
    assert failure == Failure(reason="unconverged", evidence="SCF not converged in 2 cycles")


def test_atoms_on_top_of_each_other() -> None:
    failure = one(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0]]))
    assert isinstance(failure, Failure)
    assert failure.reason == "failed"
    assert "Too close interatomic distances" in failure.evidence


def test_impossible_spin() -> None:
    water = molecule("H2O")
    water.info["spin_multiplicity"] = 2
    failure = one(water)
    assert isinstance(failure, Failure)
    assert "not compatible" in failure.evidence


def test_heavy_element() -> None:
    assert one(Atoms("Am")) == Failure(reason="unknown_element", evidence="Am not among 86 elements")


def test_nothing_is_remembered() -> None:
    calculator = build_potential("xtb", {}, "cpu", "float64").calculator
    water, stretched = molecule("H2O"), molecule("H2O")
    stretched.positions *= 1.1
    fresh = calculator.get_potential_energy(water)
    calculator.get_potential_energy(stretched)
    assert calculator.get_potential_energy(water) == fresh


def test_info_alone_makes_another_calculation() -> None:
    calculator = build_potential("xtb", {}, "cpu", "float64").calculator
    water = molecule("H2O")
    neutral = calculator.get_potential_energy(water)
    water.info |= {"charge": 1, "spin_multiplicity": 2}
    assert calculator.get_potential_energy(water) > neutral + 10


def test_a_slab_does_not_hang_on_its_third_vector() -> None:
    slab = fcc111("Al", (1, 1, 2), vacuum=3.0)
    slab.pbc = [True, True, False]
    wide = slab.copy()
    wide.cell[2, 2] += 7.0
    none = slab.copy()
    none.cell[2] = 0
    found = [one(atoms, method="GFN1-xTB", min_width=0) for atoms in (slab, wide, none)]
    for item in found:
        assert isinstance(item, Results)
        assert item.energy == pytest.approx(found[0].energy, abs=1e-6)  # type: ignore[union-attr]
        np.testing.assert_allclose(item.forces, found[0].forces, atol=1e-5)  # type: ignore[union-attr]
        assert np.isnan(item.stress).all()


def test_a_narrow_cell_is_refused() -> None:
    """One k-point: the energy of MgO with two atoms is 5 eV an atom off."""
    narrow = bulk("MgO", "rocksalt", a=4.212)
    failure = one(narrow)
    assert isinstance(failure, Failure)
    assert failure.reason == "one_k_point"
    assert re.search(
        r"the cell is 2.4 Å wide along .; .* one k-point, for which a cell must be at least 12 Å wide: repeat "
        r"it, or give params\.min_width=0",
        failure.evidence,
    )
    assert one(narrow, method="GFN1-xTB", min_width=0).energy / 2 == pytest.approx(-68.64, abs=0.01)  # type: ignore[union-attr]


def test_width_counts_along_periodic_vectors_only() -> None:
    water = molecule("H2O", vacuum=1.0)
    assert isinstance(one(water), Results)
    water.pbc = [False, False, True]
    assert one(water).reason == "one_k_point"  # type: ignore[union-attr]
    water.cell[2, 2] = 12.0
    assert isinstance(one(water), Results)


def test_a_metal_is_refused_in_any_cell() -> None:
    failure = one(bulk("Na", "bcc", a=4.29).repeat((3, 3, 3)), method="GFN1-xTB", min_width=9.0)
    assert isinstance(failure, Failure)
    assert failure.reason == "one_k_point"
    assert re.search(r"0\.\d\d electrons an atom are in partly filled levels: a metal", failure.evidence)


def test_an_insulator_and_an_unpaired_electron_are_no_metals() -> None:
    crystal = solids()["CO2"]
    found, twice = (one(atoms, min_width=5.0) for atoms in (crystal, crystal.repeat((1, 1, 2))))
    assert isinstance(found, Results)
    assert isinstance(twice, Results)
    assert twice.energy / 2 == pytest.approx(found.energy, abs=0.001 * len(crystal))
    radical = molecule("CH3", cell=[12] * 3, pbc=True)
    radical.info["spin_multiplicity"] = 2
    assert isinstance(one(radical), Results)
