"""PySCF's density functional theory of molecules, computed here."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from daskpipe.potentials import Failure, Results, build_potential, evaluate, identify_potential
from daskpipe.potentials.pyscf import HARTREE

pytest.importorskip("pyscf", reason="pip install 'daskpipe[pyscf]'")

SMALL = {"basis": "sto-3g", "grid_level": 1}
"""The same code at a hundredth of the cost."""

WATER = -76.2717
"""Hartree: H2O at the geometry of G2, PBE/def2-SVP with density fitting, by PySCF called directly."""


def results(atoms: Atoms, **params) -> Results:
    (found,) = evaluate(build_potential("pyscf", params, "cpu", "float64"), [atoms])
    assert isinstance(found, Results), found
    return found


def failure(atoms: Atoms, **params) -> Failure:
    (found,) = evaluate(build_potential("pyscf", params, "cpu", "float64"), [atoms])
    assert isinstance(found, Failure)
    return found


def test_energy_is_that_of_pyscf():
    from pyscf import dft, gto

    atoms = molecule("H2O")
    mol = gto.M(atom=list(zip(atoms.symbols, atoms.positions, strict=True)), basis="def2-svp", verbose=0)
    method = dft.RKS(mol, xc="PBE").density_fit()
    method.conv_tol = 1e-9
    assert results(atoms).energy == pytest.approx(method.kernel() * HARTREE, abs=1e-6)
    assert results(atoms).energy / HARTREE == pytest.approx(WATER, abs=1e-3)


@pytest.mark.parametrize("name", ["H2O", "CH3", "O2"])
def test_forces_are_slopes_of_the_energy_and_sum_to_zero(name):
    atoms = molecule(name)
    atoms.info["spin_multiplicity"] = {"H2O": 1, "CH3": 2, "O2": 3}[name]
    atoms.rattle(0.05, seed=1)
    forces = results(atoms, **SMALL).forces
    assert np.abs(forces.sum(axis=0)).max() < 1e-6, "the gradient holds the response of the grid"
    step, energies = 1e-3, []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.positions[0, 2] += sign * step
        energies.append(results(moved, **SMALL).energy)
    assert -(energies[1] - energies[0]) / (2 * step) == pytest.approx(forces[0, 2], abs=2e-3)


def test_charge_and_spin_count():
    neutral, cation, triplet = molecule("O2"), molecule("O2"), molecule("O2")
    for atoms, charge, multiplicity in ((neutral, 0, 1), (cation, 1, 2), (triplet, 0, 3)):
        atoms.info = {"charge": charge, "spin_multiplicity": multiplicity}
    energies = [results(atoms, **SMALL).energy for atoms in (triplet, neutral, cation)]
    assert energies == sorted(energies), "the triplet is the ground state, and an ionisation costs energy"
    assert energies[1] - energies[0] > 0.3


def test_what_does_not_converge_fails_and_says_how_far_it_came():
    fault = failure(molecule("H2O"), **SMALL, max_cycles=1, tolerance=1e-12)
    assert fault.reason == "unconverged"
    assert "in 1 cycles, nor in as many with a second-order solver" in fault.evidence
    assert "Hartree (tolerance 1e-12)" in fault.evidence


def test_periodic_structures_impossible_spins_and_elements_without_a_basis_fail():
    assert failure(bulk("Si"), **SMALL).reason == "periodic"
    odd = molecule("H2O")
    odd.info["spin_multiplicity"] = 2
    assert failure(odd, **SMALL) == Failure(reason="spin", evidence="10 electrons have no state of multiplicity 2")
    assert failure(Atoms("Fm"), **SMALL).reason == "unknown_element"


def test_threads_are_no_part_of_the_identity():
    one = identify_potential("pyscf", {})
    assert one.name == "PySCF PBE/def2-svp"
    assert identify_potential("pyscf", {"threads": 4}).hash == one.hash
    assert identify_potential("pyscf", {"basis": "def2-tzvp"}).hash != one.hash


@pytest.mark.slow
def test_forty_molecules_of_g2_are_labelled():
    from ase.collections import g2

    names = sorted(g2.names, key=lambda name: len(g2[name]))[:40]
    structures = [g2[name] for name in names]
    for atoms in structures:
        atoms.info["spin_multiplicity"] = 1 + round(float(np.abs(atoms.get_initial_magnetic_moments().sum())))
    found = evaluate(build_potential("pyscf", SMALL, "cpu", "float64"), structures)
    failed = {name: item for name, item in zip(names, found, strict=True) if isinstance(item, Failure)}
    assert not failed
