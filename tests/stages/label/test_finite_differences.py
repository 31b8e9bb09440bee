"""Labels that do not fit their energies are seen, and those that do are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from daskpipe.potentials import Results, build_potential, evaluate
from daskpipe.stages.label.checks.finite_differences import (
    BOTH,
    ENERGY,
    FAILED,
    FORCES,
    OK,
    STRESS,
    Tolerances,
    displace_structure,
    judge_probe,
)
from daskpipe.stages.label.settings import FiniteDifferences

DEFAULTS = FiniteDifferences()
TOLERANCES = Tolerances(**DEFAULTS.model_dump(exclude={"share", "at_least"}))
GPA_IN_EV = 160.21766208
"""GPa in one eV/Å^3: the factor by which a stress in the wrong unit is off."""


def crystals(n: int = 6) -> list[Atoms]:
    made = []
    for seed in range(n):
        atoms = bulk("CuAu"[2 * (seed % 2) :][:2], cubic=True).repeat((2, 2, 1))
        atoms.rattle(0.08, seed=seed)
        atoms.set_cell(atoms.cell.array * 0.98, scale_atoms=True)
        made.append(atoms)
    return made


def judge(name: str, structures: list[Atoms], spoil=lambda forces, stress: (forces, stress), shift=0.0) -> list[str]:
    """Return the outcome for each structure, with labels that `spoil` has changed."""
    potential = build_potential(name, {}, "cpu", "float64")
    outcomes = []
    for atoms, label in zip(structures, evaluate(potential, structures), strict=True):
        assert isinstance(label, Results)
        forces, stress = spoil(label.forces, label.stress if atoms.pbc.all() else None)
        probe = displace_structure(atoms, label.energy + shift, forces, stress, seed=0)
        energies = [each.energy for each in evaluate(potential, probe.structures) if isinstance(each, Results)]
        outcomes.append(judge_probe(probe, energies, TOLERANCES)[0])
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emt", "lj", "mace", "chgnet"])
def test_sound_labels_of_crystals_pass(name):
    structures = [*crystals(), fcc111("Cu", (2, 2, 3), vacuum=6.0)]
    structures[-1].rattle(0.05, seed=1)
    assert set(judge(name, structures)) == {OK}


def test_sound_labels_of_molecules_pass():
    structures = [molecule(name) for name in ("H2O", "CH3OH", "C6H6", "NH3", "SO2", "H2")]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    assert set(judge("xtb", structures)) == {OK}


@pytest.mark.parametrize(
    ("spoil", "outcome"),
    [
        (lambda forces, stress: (-forces, stress), FORCES),
        (lambda forces, stress: (1.05 * forces, stress), FORCES),
        (lambda forces, stress: (forces[::-1], stress), FORCES),
        (lambda forces, stress: (forces, GPA_IN_EV * stress), STRESS),
        (lambda forces, stress: (forces, -stress), STRESS),
        (lambda forces, stress: (-forces, -stress), BOTH),
    ],
    ids=["sign", "factor", "order", "unit", "sign of stress", "both"],
)
def test_planted_faults_are_seen_in_every_structure(spoil, outcome):
    assert set(judge("emt", crystals(), spoil)) == {outcome}


@pytest.mark.parametrize(("name", "n"), [("emt", 1), ("emt", 12), ("mace", 3)])
def test_an_energy_that_is_off_is_seen_up_to_some_hundred_atoms(name, n):
    (atoms,) = crystals(1)
    structures = [atoms.repeat((1, 1, n))]
    assert judge(name, structures, shift=1.0) == judge(name, structures, shift=-1.0) == [ENERGY]


def test_labels_of_another_teacher_are_seen():
    structures = crystals(2)
    other = evaluate(build_potential("lj", {"sigma": 2.3, "epsilon": 0.3}, "cpu", "float64"), structures)
    potential = build_potential("emt", {}, "cpu", "float64")
    for atoms, label in zip(structures, other, strict=True):
        assert isinstance(label, Results)
        probe = displace_structure(atoms, label.energy, label.forces, label.stress, seed=0)
        energies = [each.energy for each in evaluate(potential, probe.structures) if isinstance(each, Results)]
        assert judge_probe(probe, energies, TOLERANCES)[0] == ENERGY


def test_noise_of_energies_is_seen():
    """As of a field that did not converge."""
    (atoms,) = crystals(1)
    potential = build_potential("emt", {}, "cpu", "float64")
    (label,) = evaluate(potential, [atoms])
    assert isinstance(label, Results)
    probe = displace_structure(atoms, label.energy, label.forces, label.stress, seed=0)
    energies = np.array([each.energy for each in evaluate(potential, probe.structures) if isinstance(each, Results)])
    noise = 0.02 * np.array([-1, 1, 0, 0])
    assert judge_probe(probe, energies + noise, TOLERANCES)[0] == FORCES


def test_a_teacher_that_fails_on_a_displaced_structure_is_told():
    (atoms,) = crystals(1)
    probe = displace_structure(atoms, 0.0, np.ones((len(atoms), 3)), None, seed=0)
    assert len(probe.structures) == 2, "a label without a stress has no strained structures"
    outcome, error = judge_probe(probe, [0.0, np.nan], TOLERANCES)
    assert outcome == FAILED
    assert np.isnan(error)


def test_an_atom_alone_and_no_forces_at_all():
    assert judge("emt", [Atoms("Cu")]) == [OK]


def test_displacements_depend_on_the_structure_and_the_seed_alone():
    first, second = crystals(2)
    forces = np.ones((len(first), 3))

    def moved(atoms: Atoms, seed: int) -> np.ndarray:
        return displace_structure(atoms, 0.0, forces, None, seed=seed).structures[0].positions - atoms.positions

    np.testing.assert_array_equal(moved(first, 0), moved(first.copy(), 0))
    assert np.abs(moved(first, 0) - moved(first, 1)).max() > 1e-4
    assert np.abs(moved(first, 0) - moved(second, 0)).max() > 1e-4
