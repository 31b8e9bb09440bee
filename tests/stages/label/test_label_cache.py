"""Labels that are kept are found again, by structure and teacher, and never paid for twice."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from daskpipe.potentials import Failure, Potential, Results
from daskpipe.stages.label.cache import LabelCache, evaluate_cached


class Counting(EMT):
    """Counts its structures."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        self.seen.append(len(atoms))
        if len(atoms) == 3:
            raise ValueError("three is too many")
        super().calculate(atoms, properties, system_changes)


@pytest.fixture
def counting() -> Potential:
    return Potential(calculator=Counting())


def structures() -> list[Atoms]:
    return [bulk("Cu"), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]]), Atoms("Cu3", [[0, 0, 0], [0, 0, 2.5], [0, 2.5, 0]])]


def test_each_structure_is_computed_once_the_largest_first(counting, tmp_path):
    cache = LabelCache(folder=tmp_path / "labels", teacher="t")
    first = evaluate_cached(counting, structures(), cache)
    assert counting.calculator.seen == [3, 2, 1]
    again = evaluate_cached(counting, structures(), cache)
    assert counting.calculator.seen == [3, 2, 1, 3], "a failure is not kept"
    for before, after in zip(first[:2], again[:2], strict=True):
        assert isinstance(before, Results)
        assert isinstance(after, Results)
        assert after.energy == before.energy
        np.testing.assert_array_equal(after.forces, before.forces)
        np.testing.assert_array_equal(after.stress, before.stress)
    assert isinstance(again[2], Failure)


def test_other_structures_and_teachers_have_other_results(counting, tmp_path):
    cache = LabelCache(folder=tmp_path, teacher="t")
    (atoms, *_) = structures()
    evaluate_cached(counting, [atoms], cache)
    other = atoms.copy()
    other.positions += 1e-9  # below what a structure's id resolves
    assert cache.read(atoms) is not None
    assert cache.read(other) is None
    assert LabelCache(folder=tmp_path, teacher="u").read(atoms) is None


def test_a_damaged_file_is_made_again(counting, tmp_path):
    cache = LabelCache(folder=tmp_path, teacher="t")
    (atoms, *_) = structures()
    (before,) = evaluate_cached(counting, [atoms], cache)
    (file,) = tmp_path.glob("*/*.npz")
    file.write_bytes(file.read_bytes()[:100])
    (after,) = evaluate_cached(counting, [atoms], cache)
    assert counting.calculator.seen == [1, 1]
    assert isinstance(before, Results)
    assert isinstance(after, Results)
    assert after.energy == before.energy
    assert cache.read(atoms) is not None


def test_without_a_cache_nothing_is_kept(counting, tmp_path):
    evaluate_cached(counting, structures(), None)
    assert not list(tmp_path.iterdir())
