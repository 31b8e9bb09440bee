"""Single checks and measures of the quality gate, against slow loops and known answers."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import covalent_radii
from hypothesis import given
from hypothesis import strategies as st

from daskpipe.core.structures import from_atoms
from daskpipe.store.quality import check as check_module
from daskpipe.store.quality import dataset_checks, measures
from daskpipe.store.quality import structure_checks as checks
from daskpipe.store.quality.settings import DuplicateLimits, EnergyLimits

TOLERANCE = 0.1


def ids_of(n: int, seed: int = 0) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(16 * n), "V16")


def block_of(*structures: Atoms) -> dict[str, np.ndarray]:
    ds = from_atoms(structures)
    return {str(name): ds[name].values for name in ds.data_vars}


def distances_of(*structures: Atoms, reach: float = 2.5) -> dict[str, np.ndarray]:
    block = block_of(*structures)
    return measures.measure_distances(block, measures.measure_cells(block)["searchable"], reach)


@given(n=st.integers(1, 400), seed=st.integers(0, 2**20))
def test_percentile_is_numpys(n, seed):
    norms = np.abs(np.random.default_rng(seed).normal(size=n))
    top = np.sort(norms)[-(n // 100 + 2) :]
    assert measures.percentile_99(top, n) == pytest.approx(np.percentile(norms, 99), rel=1e-14)


@given(n=st.integers(2, 60), seed=st.integers(0, 2**20))
def test_repeats_are_those_of_a_slow_loop(n, seed):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    points = rng.integers(0, 12, (n, 2)) * 0.06
    expected = [
        row
        for row in range(n)
        if any(
            kind[row] == kind[other] and (np.abs(points[row] - points[other]) <= TOLERANCE).all()
            for other in range(row)
        )
    ]
    assert dataset_checks._find_repeats(kind, points, TOLERANCE).tolist() == expected


def test_charge_tells_structures_apart():
    ids, zero = ids_of(2), np.zeros(2, dtype=int)
    same = np.zeros((2, 3))
    assert dataset_checks.check_duplicates(ids, zero, zero, same, DuplicateLimits()).n_offenders == 1
    assert dataset_checks.check_duplicates(ids, zero, np.array([0, 1]), same, DuplicateLimits()).n_offenders == 0
    assert dataset_checks.check_duplicates(ids, zero, zero, same * np.nan, DuplicateLimits()).n_offenders == 0


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, True), (False, False, False)])
def test_nearest_atoms_are_those_of_all_images(pbc):
    rng = np.random.default_rng(3)
    cell = np.array([[4.1, 0, 0], [1.3, 5.2, 0], [-0.8, 0.4, 6.0]])
    atoms = Atoms(numbers=rng.choice([1, 8, 29], 7), positions=rng.uniform(-4, 9, (7, 3)), cell=cell, pbc=pbc)
    shifts = np.array([(i, j, k) for i in range(-5, 6) for j in range(-5, 6) for k in range(-5, 6)]) * pbc
    shifts = np.unique(shifts, axis=0)
    positions = atoms.positions.astype("f4").astype(float)
    vectors = positions[None, :, None] + shifts @ cell - positions[:, None, None]
    distances = np.linalg.norm(vectors, axis=-1)
    radii = covalent_radii[atoms.numbers]
    ratio = np.where(distances > 0, distances / (radii[:, None] + radii)[:, :, None], np.inf).min(axis=(1, 2))
    measured = distances_of(atoms)
    assert measured["closest"][0] == pytest.approx(ratio.min(), rel=1e-6)
    loneliest = ratio.max() if ratio.max() < 2.5 else np.inf
    assert measured["loneliest"][0] == pytest.approx(loneliest, rel=1e-6)


@pytest.mark.parametrize(
    "atoms", [bulk("Cu", cubic=True) * 2, fcc111("Ag", (2, 2, 3), vacuum=8), molecule("CH3CH2OH"), molecule("H2O")]
)
def test_a_fingerprint_knows_motion_from_change(atoms):
    rng = np.random.default_rng(0)
    atoms.rattle(0.05, rng=rng)
    moved = atoms[rng.permutation(len(atoms))]
    moved.rotate(33, (1, 2, 3), rotate_cell=True)
    moved.positions += [0.3, 2.7, -1.1]
    shaken = atoms.copy()
    shaken.rattle(0.005, rng=rng)
    first, same, other = distances_of(atoms, moved, shaken)["fingerprint"]
    tolerance = DuplicateLimits().tolerance
    assert np.abs(same - first).max() < tolerance / 10
    assert np.abs(other - first).max() > tolerance * 5


def test_dimers_at_other_distances_differ():
    pairs = [Atoms("Cu2", positions=[[0, 0, 0], [0, 0, d]], cell=[20, 20, 20], pbc=True) for d in (4.0, 5.0, 6.0)]
    prints = distances_of(*pairs)["fingerprint"]
    assert np.abs(np.diff(prints, axis=0)).max(axis=1).min() > 0.3


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("far", [6.7, 8.3, 11.0])
def test_fragments_far_apart_differ_by_their_distance(periodic, far):
    def pair(separation: float, symbol: str = "Cu") -> Atoms:
        return Atoms([symbol] * 2, positions=[[0, 0, 0], [0, 0, separation]], cell=3 * [30], pbc=periodic)

    def waters(separation: float) -> Atoms:
        one, other = molecule("H2O"), molecule("H2O")
        other.positions += [0, 0, separation]
        return Atoms(one + other, cell=3 * [30], pbc=periodic)

    for make in (pair, waters):
        first, second = distances_of(make(far), make(far + 0.1))["fingerprint"]
        assert np.abs(second - first).max() > 100 * DuplicateLimits().tolerance
        moved = make(far)
        moved.rotate(40, (1, 2, 3), rotate_cell=True)
        moved.positions += [3, 4, 5]
        again = distances_of(make(far), moved)["fingerprint"]
        assert np.abs(again[1] - again[0]).max() < DuplicateLimits().tolerance / 10


def test_atoms_in_one_place_and_alone():
    measured = distances_of(
        Atoms("Cu2", positions=np.zeros((2, 3))), Atoms("Cu"), Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 40]])
    )
    assert measured["closest"].tolist() == [0, np.inf, np.inf]


def test_cells_of_open_structures_do_not_count():
    odd = np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 1]])
    block = block_of(Atoms("Cu", cell=odd), Atoms("Cu", cell=3 * odd, pbc=True), Atoms("Cu", pbc=True))
    measured = measures.measure_cells(block)
    assert measured["left_handed"].tolist() == [False, True, False]
    assert measured["fullness"].tolist() == [1, 1, 0]
    assert measured["searchable"].tolist() == [True, True, False]
    assert measured["volume"][1] == pytest.approx(27)
    wedge = Atoms("Cu", cell=[[4, 0, 0], [4 * np.cos(0.3), 4 * np.sin(0.3), 0], [0, 0, 9]], pbc=(True, True, False))
    assert measures.measure_cells(block_of(wedge))["fullness"][0] == pytest.approx(np.sin(0.3))


def test_a_vendi_score_counts_clumps():
    for n_clumps in (1, 2, 5):
        features = np.repeat(100 * np.eye(5)[:n_clumps], 20, axis=0)
        check = dataset_checks.check_diversity(ids_of(len(features)), features, 3.0)
        # Of more clumps, each is nearer to the mean, and the kernel sees a little of the next.
        assert check.value == pytest.approx(n_clumps, rel=0.1)
        assert check.verdict == ("pass" if n_clumps == 5 else "fail")
    assert dataset_checks.check_diversity(ids_of(4), np.eye(4), 3.0).verdict == "skipped"


def test_energies_are_compared_within_their_composition():
    """Check alloys whose energy is far from linear in the composition, and an outlier that a linear fit would hide."""
    rng = np.random.default_rng(0)
    counts = np.repeat(np.array([[4, 0], [3, 1], [2, 2], [1, 3], [0, 4]]), 8, axis=0)
    bowing = np.repeat([0, -3, -4, -3, 0], 8)
    energies = counts @ np.array([-3.5, -4.2]) + 4 * bowing + rng.normal(0, 0.05, 40)
    composition, ids, kind = np.repeat(np.arange(5), 8), ids_of(40), np.zeros(40, dtype=int)
    assert checks.check_energy(ids, energies, counts, composition, kind, EnergyLimits()).verdict == "pass"
    energies[17] += 4 * 0.8
    check = checks.check_energy(ids, energies, counts, composition, kind, EnergyLimits())
    assert (check.verdict, check.offenders) == ("fail", (ids[17].tobytes().hex(),))


def test_offenders_stand_in_an_order_of_their_own():
    ids, badness = ids_of(5), np.array([1.0, 3.0, 3.0, 2.0, np.inf])
    named = check_module.name_offenders(ids, np.arange(5), badness)["offenders"]
    shuffled = np.array([3, 1, 4, 0, 2])
    assert check_module.name_offenders(ids[shuffled], np.arange(5), badness[shuffled])["offenders"] == named
    assert named[0] == ids[4].tobytes().hex()
    assert named[-1] == ids[0].tobytes().hex()


def test_too_few_structures_are_not_judged_by_statistics():
    ids, counts, zero = ids_of(3), np.ones((3, 1), dtype=int), np.zeros(3, dtype=int)
    check = checks.check_energy(ids, np.array([0.0, 1000.0, 0.0]), counts, zero, zero, EnergyLimits())
    assert (check.verdict, check.value) == ("pass", 0)
