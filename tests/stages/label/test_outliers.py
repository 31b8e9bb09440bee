"""Outliers among labels, and disagreement of two teachers: planted ones are found, sound ones are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.collections import g2

from daskpipe.potentials import Results, build_potential, evaluate
from daskpipe.stages.label.checks.outliers import find_energy_outliers, find_force_outliers
from daskpipe.stages.label.checks.second_teacher import BOTH, ENERGY, FORCES, OK, judge_agreement, measure_disagreement
from daskpipe.stages.label.settings import Agreement, EnergyOutliers, ForceOutliers

WRONG = [3, 17]
"""Rows that are spoilt."""


def count_elements(structures) -> np.ndarray:
    return np.array([np.bincount(atoms.numbers, minlength=119) for atoms in structures])


def label(name: str, structures, **params) -> list[Results]:
    found = evaluate(build_potential(name, params, "cpu", "float64"), structures)
    assert all(isinstance(each, Results) for each in found)
    return found


@pytest.fixture(scope="module")
def molecules():
    names = [name for name in g2.names if len(molecule(name)) > 2][:40]
    made = [molecule(name) for name in names for _ in range(2)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
    return made


@pytest.fixture(scope="module")
def xtb(molecules):
    return label("xtb", molecules, method="GFN2-xTB")


@pytest.fixture(scope="module")
def other(molecules):
    return label("xtb", molecules, method="GFN1-xTB")


def alloys():
    made = []
    for seed in range(24):
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.symbols[: seed % 3 * 8] = "Au"
        atoms.set_cell(atoms.cell.array * (1 + 0.02 * (seed % 3)), scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
        made.append(atoms)
    return made


def test_molecules_are_no_outliers_of_each_other_and_a_total_of_another_kind_is(molecules, xtb):
    energy, counts = np.array([each.energy for each in xtb]), count_elements(molecules)
    assert not find_energy_outliers(energy, counts, EnergyOutliers()).any()
    energy[WRONG] *= 1.2  # as of another zero, some 7 eV an atom
    assert np.flatnonzero(find_energy_outliers(energy, counts, EnergyOutliers())).tolist() == WRONG


def test_a_force_far_above_the_others_is_found(molecules, xtb):
    largest = np.array([np.linalg.norm(each.forces, axis=1).max() for each in xtb])
    assert not find_force_outliers(largest, ForceOutliers()).any()
    largest[3] = 5.1 * max(largest.max(), 2.0)
    assert np.flatnonzero(find_force_outliers(largest, ForceOutliers(percentile=95))).tolist() == [3]


def judge(structures, first, second, settings=Agreement()) -> list[str]:  # noqa: B008
    energy = np.array([b.energy - a.energy for a, b in zip(first, second, strict=True)])
    forces = [measure_disagreement(a.forces, b.forces - a.forces) for a, b in zip(first, second, strict=True)]
    return judge_agreement(energy, count_elements(structures), np.array(forces), settings).tolist()


def spoil(labels, rows, **factors):
    return [
        Results(
            energy=each.energy + factors.get("shift", 0.0) * (row in rows),
            forces=each.forces * (factors.get("factor", 1.0) if row in rows else 1.0),
            stress=each.stress,
        )
        for row, each in enumerate(labels)
    ]


def test_two_kinds_of_xtb_agree(molecules, xtb, other):
    assert set(judge(molecules, xtb, other)) == {OK}


def test_forces_of_the_wrong_sign_are_found_by_a_second_teacher(molecules, xtb, other):
    outcomes = judge(molecules, spoil(xtb, WRONG, factor=-1.0), other)
    assert [row for row, outcome in enumerate(outcomes) if outcome != OK] == WRONG
    assert {outcomes[row] for row in WRONG} == {FORCES}


def test_an_energy_that_is_off_is_found_among_its_like():
    structures = alloys()
    first, second = label("emt", structures), label("mace", structures)
    assert set(judge(structures, first, second)) == {OK}
    outcomes = judge(structures, spoil(first, WRONG, shift=10.0), second)
    assert {row: outcome for row, outcome in enumerate(outcomes) if outcome != OK} == dict.fromkeys(WRONG, ENERGY)
    outcomes = judge(structures, spoil(first, WRONG, shift=-10.0, factor=-1.0), second)
    assert {outcomes[row] for row in WRONG} == {BOTH}
