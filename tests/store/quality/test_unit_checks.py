"""The check of units is tight where the frames determine the ratio, silent elsewhere, and names the cause."""

from __future__ import annotations

from pathlib import Path

import ase.units
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from daskpipe.core.structures import from_atoms, round_positions, structure_id
from daskpipe.store import write_dataset
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.gate import judge
from daskpipe.store.quality.settings import CHECKS, Quality
from daskpipe.store.quality.unit_checks import RATIOS, SAME_RATIO, TIGHT, name_ratio, slope_range

N_SEEDS, N_FRAMES = 5, 12
PER_BOHR = ase.units.Hartree / ase.units.Bohr
ONLY_UNITS = dict.fromkeys(CHECKS) | {"units": 5.0}


def check_of(folder: Path, energy: float, forces: float) -> Check:
    """Judge alloys at 5 x 12 thermal displacements with EMT labels in other units."""
    rng = np.random.default_rng(0)
    frames = []
    for seed in range(N_SEEDS):
        start = bulk("Cu", a=3.7, cubic=True) * (2, 1, 1)
        start.numbers[rng.permutation(8)[: seed + 1]] = 79
        parent = structure_id(start)
        for step in range(N_FRAMES):
            atoms = start.copy()
            atoms.rattle(0.05, rng=rng)
            round_positions(atoms)
            atoms.calc = EMT()
            results = {"energy": atoms.get_potential_energy() / energy, "forces": atoms.get_forces() / forces}
            atoms.calc = SinglePointCalculator(atoms, **results)
            atoms.info |= {"parent_id": parent, "step": step, "replica": 0, "label_status": "ok"}
            frames.append(atoms)
    write_dataset(from_atoms(frames), folder / "d.zarr", attrs={"dataset_key": "k"})
    verdict = judge(folder / "d.zarr", Quality(**ONLY_UNITS))
    return next(check for check in verdict.checks if check.name == "units")


N_PLACES, N_BESIDE = 20, 4
"""Pairs of near frames, and how many of them are alike to a descriptor."""


def check_of_liquid(folder: Path, energy: float) -> Check:
    """Judge imported frames of one composition; the nearest one in feature space has its atoms elsewhere."""
    rng = np.random.default_rng(1)
    frames, features = [], []
    for place in range(N_PLACES):
        there = bulk("Cu", a=3.8, cubic=True) * (2, 1, 1)
        there.rattle(0.5, rng=rng)
        for member in range(2):
            atoms = there.copy()
            atoms.rattle(0.05, rng=rng)
            round_positions(atoms)
            atoms.calc = EMT()
            results = {"energy": atoms.get_potential_energy() / energy, "forces": atoms.get_forces()}
            atoms.calc = SinglePointCalculator(atoms, **results)
            atoms.info |= {"generator": "import", "label_status": "ok"}
            frames.append(atoms)
            features.append([1000 * (place // N_BESIDE) + place % N_BESIDE + 10 * member])
    ds = from_atoms(frames)
    ds = ds.assign(features=(("structure", "feature"), np.array(features, dtype=np.float32)))
    write_dataset(ds, folder / "d.zarr", attrs={"dataset_key": "k"})
    verdict = judge(folder / "d.zarr", Quality(**ONLY_UNITS))
    return next(check for check in verdict.checks if check.name == "units")


@pytest.mark.parametrize(("energy", "verdict"), [(1.0, "pass"), (ase.units.Hartree, "fail")])
def test_frames_of_a_liquid_are_paired_with_further_neighbours(energy: float, verdict: str, tmp_path: Path) -> None:
    check = check_of_liquid(tmp_path, energy)
    assert check.verdict == verdict, check.says
    assert f"the energies of {N_PLACES} pairs of neighbouring frames" in check.says
    assert check.value == pytest.approx(1 / energy, rel=0.25)


def test_labels_in_ev_pass(tmp_path: Path) -> None:
    check = check_of(tmp_path, 1, 1)
    assert check.verdict == "pass"
    assert check.value == pytest.approx(1, abs=0.15)
    assert "not of one teacher" not in check.says


def test_hartree_and_hartree_per_bohr_fail_and_are_named(tmp_path: Path) -> None:
    """Both differ by nearly the same factor: their ratio is that of a bohr to an Å, far below the limit of 5."""
    check = check_of(tmp_path, ase.units.Hartree, PER_BOHR)
    assert (check.verdict, check.threshold) == ("fail", TIGHT)
    assert check.value == pytest.approx(1 / ase.units.Bohr, rel=0.05)
    assert "and forces per bohr (Hartree and Hartree/bohr) give" in check.says
    assert check.n_offenders > N_SEEDS * N_FRAMES / 2


@pytest.mark.parametrize(
    ("energy", "forces", "words"),
    [
        (ase.units.Hartree, 1, "energies in Hartree and forces in eV/Å"),
        (1, PER_BOHR, "energies in eV and forces in Hartree/bohr"),
        (ase.units.kcal / ase.units.mol, 1, "energies in kcal/mol and forces in eV/Å"),
    ],
)
def test_larger_ratios_are_named_too(energy: float, forces: float, words: str, tmp_path: Path) -> None:
    check = check_of(tmp_path, energy, forces)
    assert (check.verdict, check.threshold) == ("fail", 5)
    assert f"is what {words} give" in check.says


@pytest.mark.parametrize("words", RATIOS)
def test_each_known_ratio_is_named_by_its_units(words: str) -> None:
    assert name_ratio(1.01 * RATIOS[words]) == words
    assert name_ratio(-RATIOS[words]) is None


def test_ratios_without_a_cause_have_no_name() -> None:
    assert name_ratio(1.0) is None
    assert name_ratio(1 / ase.units.Bohr * (1 + 2 * SAME_RATIO)) is None


def test_the_range_follows_the_unit() -> None:
    rng = np.random.default_rng(0)
    work = rng.normal(size=100)
    difference = work * (1 + 0.2 * rng.normal(size=100))
    whole = np.array(slope_range(difference, work))
    np.testing.assert_allclose(slope_range(1.89 * difference, work), 1.89 * whole)
    np.testing.assert_allclose(slope_range(difference, work / 1.89), 1.89 * whole)
    assert whole[0] < 1 < whole[2]
    assert whole[0] * 1.89 > TIGHT


@pytest.mark.parametrize("n", [12, 40, 512])
@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 3.0])
def test_noise_is_never_taken_for_a_unit(n: int, noise: float) -> None:
    """For distant frames, a fit of differences to work alone falls below 1, however many pairs there are."""
    rng = np.random.default_rng(n)
    for _ in range(200):
        work = rng.normal(size=n)
        difference = work + noise * rng.standard_t(3, size=n)
        low, _, high = slope_range(difference, work)
        assert low <= TIGHT
        assert high >= 1 / TIGHT
