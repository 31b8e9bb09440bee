"""Trial moves: what may be proposed, what overlaps, and that the chain samples Boltzmann's distribution."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from daskpipe.core.constants import KB
from daskpipe.stages.explore.moves import HOP_RANGE, SegmentResult, Trial, redraw_momentum, swaps_allowed, trial_segment
from daskpipe.stages.explore.oxidation import oxidation_states

UNLIKELY = 1e-4
"""Least p-value that passes; the seeds are fixed."""

COLD, HOT = 300.0, 1500.0


def run(
    atoms: Atoms, energy: Callable[[np.ndarray], float], start: float = 0.0, **settings: Any
) -> tuple[SegmentResult, list[Trial]]:
    """Drive a segment; ``energy`` is asked for each trial."""
    trials = []
    arguments = {
        "numbers": atoms.numbers, "cell": atoms.cell.array, "pbc": atoms.pbc, "temperature": HOT, "n_swaps": 0,
        "n_hops": 0, "hop_length": 2.5, "min_distance": 0.0, "rng": np.random.default_rng(0),
        "swaps": swaps_allowed(atoms.numbers, np.zeros(len(atoms))),
    }  # fmt: skip
    coroutine = trial_segment(atoms.positions, start, **(arguments | settings))
    try:
        trial = next(coroutine)
        while True:
            trials.append(trial)
            trial = coroutine.send(energy(trial.positions))
    except StopIteration as stop:
        return stop.value, trials


def anything(positions: np.ndarray) -> float:
    return 0.0


def nothing(positions: np.ndarray) -> float:
    return np.inf


# --- which pairs ------------------------------------------------------------------------------------


def slow_pairs(numbers: np.ndarray, states: np.ndarray, tolerance: float) -> set[tuple[int, int]]:
    return {
        (i, j)
        for i, j in combinations(range(len(numbers)), 2)
        if numbers[i] != numbers[j] and abs(states[i] - states[j]) <= tolerance
    }


def sorted_pairs(pairs: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in np.sort(pairs, axis=1).tolist()]


@st.composite
def species_and_states(draw):
    n = draw(st.integers(1, 12))
    numbers = draw(st.lists(st.sampled_from([8, 12, 26, 28]), min_size=n, max_size=n))
    states = draw(st.lists(st.integers(-20, 20), min_size=n, max_size=n))
    return np.array(numbers), np.array(states) / 16  # exact in binary, so that the slow loop is


@settings(deadline=None, max_examples=100, derandomize=True)
@given(species_and_states(), st.sampled_from([0.0, 0.125, 0.5, 2.0]))
def test_pairs_are_those_of_a_slow_loop(case, tolerance):
    numbers, states = case
    expected = slow_pairs(numbers, states, tolerance)
    swaps = swaps_allowed(numbers, states, tolerance)
    assert swaps.n_pairs == len(expected)
    if expected:
        drawn = sorted_pairs(swaps.draw_pairs(np.random.default_rng(0), 60 * len(expected)))
        assert set(drawn) == expected  # one of 144 pairs would be missed with a chance of e^-60


def test_all_pairs_are_drawn_equally_often():
    numbers = np.array([8, 8, 8, 12, 12, 20, 28, 28, 28, 28])
    states = np.array([-2, -2, -1.95, 2, 2, 2, 1.95, 2.05, 1.5, 0])
    expected = slow_pairs(numbers, states, 0.08)
    assert 5 < len(expected) < 20
    drawn = Counter(sorted_pairs(swaps_allowed(numbers, states, 0.08).draw_pairs(np.random.default_rng(1), 100_000)))
    assert set(drawn) == expected
    assert chisquare(list(drawn.values())).pvalue > UNLIKELY


def test_tolerance_includes_its_end():
    assert swaps_allowed(np.array([12, 28]), np.array([2.0, 2.1]), 0.1).n_pairs == 1
    assert swaps_allowed(np.array([12, 28]), np.array([2.0, 2.1001]), 0.1).n_pairs == 0


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    cations=st.dictionaries(st.sampled_from(["Mg", "Ca", "Ni", "Fe", "Al", "Li"]), st.integers(1, 9), min_size=1),
    missing=st.integers(-3, 3),
)
def test_oxygen_never_trades_with_a_cation(cations, missing):
    n_cations = sum(cations.values())
    symbols = [symbol for symbol, n in cations.items() for _ in range(n)] + ["O"] * max(1, n_cations + missing)
    atoms = Atoms(symbols, positions=np.zeros((len(symbols), 3)))
    states = oxidation_states(atoms, {})
    swaps = swaps_allowed(atoms.numbers, states)
    if swaps.n_pairs:
        i, j = swaps.draw_pairs(np.random.default_rng(0), 100_000).T
        assert not (atoms.numbers[[i, j]] == 8).any()
        assert (atoms.numbers[i] != atoms.numbers[j]).all()
        assert np.abs(states[i] - states[j]).max() <= 0.1 + 1e-6


def test_mixed_valence_and_charges_of_atoms():
    magnetite = Atoms("Fe6O8", positions=np.zeros((14, 3)))
    assert swaps_allowed(magnetite.numbers, oxidation_states(magnetite, {})).n_pairs == 0
    mixed = Atoms("Fe6Mg2O8", positions=np.zeros((16, 3)))
    mixed.set_initial_charges([2] * 2 + [3] * 4 + [2] * 2 + [-2.5] * 8)
    pairs = swaps_allowed(mixed.numbers, oxidation_states(mixed, {}))
    drawn = set(sorted_pairs(pairs.draw_pairs(np.random.default_rng(0), 100_000)))
    assert drawn == set(product([0, 1], [6, 7]))  # Fe(II) with Mg(II) only


def test_pairs_of_many_atoms_take_little_memory():
    n = 100_000
    rng = np.random.default_rng(0)
    swaps = swaps_allowed(rng.choice([12, 20, 28], size=n), rng.normal(2, 0.05, size=n))
    assert swaps.n_pairs > n**2 // 10
    assert swaps.begin.size == swaps.end.size == 3 * n


# --- trials -----------------------------------------------------------------------------------------


def test_a_swap_exchanges_two_places_and_nothing_else():
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.set_initial_charges(np.where(atoms.numbers == 11, 1.0, -1.0))
    atoms.set_initial_magnetic_moments(np.arange(8.0))
    result, trials = run(atoms, anything, n_swaps=1)
    (trial,) = trials
    i, j = trial.moved
    after = atoms.copy()
    after.positions = result.positions
    assert atoms.numbers[i] != atoms.numbers[j]
    np.testing.assert_array_equal(after.positions[[i, j]], atoms.positions[[j, i]])
    still = np.delete(np.arange(8), [i, j])
    np.testing.assert_array_equal(after.positions[still], atoms.positions[still])

    def at(atoms: Atoms, place: np.ndarray) -> list[float]:
        (here,) = np.flatnonzero((atoms.positions == place).all(axis=1))
        names = ("numbers", "initial_charges", "initial_magmoms")
        return [atoms.arrays[name][here] for name in names] + [atoms.get_masses()[here]]

    assert at(after, atoms.positions[i]) == at(atoms, atoms.positions[j])
    assert at(after, atoms.positions[j]) == at(atoms, atoms.positions[i])
    assert result.moved.tolist() == sorted([i, j])


def test_hops_are_isotropic_with_the_length_asked_for():
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [9, 9, 9]], cell=[20] * 3, pbc=True)
    n = 20_000
    _, trials = run(atoms, nothing, n_hops=n, hop_length=1.5)
    assert chisquare(list(Counter(trial.moved for trial in trials).values())).pvalue > UNLIKELY
    steps = np.array([trial.positions[trial.moved[0]] - atoms.positions[trial.moved[0]] for trial in trials])
    lengths = np.linalg.norm(steps, axis=1) / 1.5
    assert HOP_RANGE[0] <= lengths.min() < lengths.max() <= HOP_RANGE[1]
    assert chisquare(np.histogram(lengths, bins=10, range=HOP_RANGE)[0]).pvalue > UNLIKELY
    for axis in np.eye(3):  # Archimedes: the height of a point on a sphere is uniform
        height = steps @ axis / np.linalg.norm(steps, axis=1)
        assert chisquare(np.histogram(height, bins=10, range=(-1, 1))[0]).pvalue > UNLIKELY


def test_what_is_lower_is_taken_and_what_is_not_finite_is_not():
    atoms = bulk("CuAu", "rocksalt", a=5.0, cubic=True)
    result, trials = run(atoms, lambda positions: -1.0, n_swaps=5, n_hops=5)
    assert (result.swaps.accepted, result.hops.accepted, result.energy) == (5, 5, -1.0)
    np.testing.assert_array_equal(result.positions, trials[-1].positions)
    for bad in (np.nan, np.inf, -np.inf):
        result, trials = run(atoms, lambda positions, bad=bad: bad, n_swaps=5, n_hops=5, start=3.0)
        assert len(trials) == result.swaps.tried + result.hops.tried == 10
        assert (result.swaps.accepted, result.hops.accepted, result.energy) == (0, 0, 3.0)
        assert result.moved.tolist() == []
        np.testing.assert_array_equal(result.positions, atoms.positions)


def test_uphill_trials_are_taken_as_often_as_metropolis_says():
    atoms = Atoms("Cu")
    n, up = 4000, 0.05
    rng = np.random.default_rng(6)
    taken = sum(run(atoms, lambda _: up, n_hops=1, temperature=COLD, rng=rng)[0].hops.accepted for _ in range(n))
    p = np.exp(-up / (KB * COLD))
    assert abs(taken - n * p) < 5 * np.sqrt(n * p * (1 - p))


def test_the_same_stream_gives_the_same_segment_and_outcomes_use_no_numbers():
    atoms = bulk("CuAu", "rocksalt", a=5.0, cubic=True)
    ends = []
    streams = [np.random.default_rng(3) for _ in range(3)]
    for rng, energy in zip(streams, (anything, anything, nothing), strict=True):
        ends.append(run(atoms, energy, n_swaps=4, n_hops=6, min_distance=0.9, rng=rng)[0])
    np.testing.assert_array_equal(ends[0].positions, ends[1].positions)
    assert (ends[0].positions != ends[2].positions).any()
    assert len({rng.random() for rng in streams}) == 1


def test_a_segment_leaves_its_input_alone_and_callers_may_keep_trials():
    atoms = bulk("CuAu", "rocksalt", a=5.0, cubic=True)
    before = atoms.positions.copy()

    def spoil(positions: np.ndarray) -> float:
        positions[:] = np.nan
        return 0.0

    result, _ = run(atoms, spoil, n_swaps=3, n_hops=3)
    assert np.isfinite(result.positions).all()
    np.testing.assert_array_equal(atoms.positions, before)


def test_no_trials():
    atoms = bulk("Cu", cubic=True)
    for settings_ in ({}, {"n_swaps": 7}):  # one species: no pair to swap
        result, trials = run(atoms, anything, start=2.0, **settings_)
        assert trials == []
        assert (result.swaps.tried, result.hops.tried, result.energy) == (0, 0, 2.0)
        np.testing.assert_array_equal(result.positions, atoms.positions)
    salt = bulk("NaCl", "rocksalt", a=5.64)
    forbidden = swaps_allowed(salt.numbers, np.array([1, -1]))
    assert run(salt, anything, n_swaps=7, swaps=forbidden)[1] == []
    with pytest.raises(ValueError, match="no two atoms may trade places"):
        forbidden.draw_pairs(np.random.default_rng(0), 1)


def test_impossible_beginnings_are_errors():
    with pytest.raises(ValueError, match=r"temperature is 0.0 K; Metropolis' rule needs one above zero"):
        run(bulk("Cu"), anything, n_hops=1, temperature=0.0)
    with pytest.raises(ValueError, match=r"the energy to start from is nan eV; evaluate the positions first"):
        run(bulk("Cu"), anything, n_hops=1, start=np.nan)


# --- overlaps ---------------------------------------------------------------------------------------

MOST = 4
"""Images along each axis of the slow reference: limits are less than three times the width of the cells."""


def slow_overlap(atoms: Atoms, positions: np.ndarray, moved: tuple[int, ...], min_distance: float) -> bool:
    shifts = np.array(list(product(*(range(-MOST, MOST + 1) if periodic else (0,) for periodic in atoms.pbc))))
    images = shifts @ atoms.cell.array
    wrapped = np.linalg.solve(atoms.cell.array.T, positions.T).T
    wrapped[:, atoms.pbc] %= 1
    positions = wrapped @ atoms.cell.array
    radii = covalent_radii[atoms.numbers]
    return any(
        np.linalg.norm(positions[i] - positions[j] + images, axis=1).min() < min_distance * (radii[i] + radii[j])
        for i in moved
        for j in range(len(atoms))
        if j not in moved  # two that trade places keep their distances
    )


def random_box(rng: np.random.Generator, n: int, width: float) -> Atoms:
    # Skewed so far that the nearest image is often not that with the least lattice coordinates.
    cell = np.diag(rng.uniform(width, 2 * width, size=3)) @ (np.eye(3) + np.tril(rng.uniform(-1.2, 1.2, (3, 3)), -1))
    pbc = rng.random(3) < 0.7
    return Atoms(rng.choice([1, 8, 29, 79], size=n), rng.uniform(-9, 9, size=(n, 3)), cell=cell, pbc=pbc)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), n=st.integers(2, 6), width=st.sampled_from([1.7, 3.0, 9.0]))
def test_overlaps_are_those_of_a_slow_loop(seed, n, width):
    atoms = random_box(np.random.default_rng(seed), n, width)
    limit = 0.7 if width > 2 else 0.3
    counts = {"n_swaps": 10, "n_hops": 20}
    # All are refused, so each trial starts from the same place, and the numbers drawn are the same in both runs.
    _, everything = run(atoms, nothing, **counts, rng=np.random.default_rng(seed))
    result, passed = run(atoms, nothing, **counts, rng=np.random.default_rng(seed), min_distance=limit)
    expected = [trial for trial in everything if not slow_overlap(atoms, trial.positions, trial.moved, limit)]
    assert [trial.moved for trial in passed] == [trial.moved for trial in expected]
    for trial, same in zip(passed, expected, strict=True):
        np.testing.assert_array_equal(trial.positions, same.positions)
    assert result.swaps.overlapping + result.hops.overlapping == len(everything) - len(expected)


def test_the_slow_loop_sees_both_outcomes():
    outcomes = Counter()
    for seed in range(30):
        atoms = random_box(np.random.default_rng(seed), 4, 3.0)
        result, passed = run(atoms, nothing, n_swaps=10, n_hops=20, min_distance=0.7)
        outcomes.update(overlapping=result.swaps.overlapping + result.hops.overlapping, passed=len(passed))
    assert min(outcomes["overlapping"], outcomes["passed"]) > 100


def test_overlaps_are_with_atoms_where_they_are_now():
    """An atom that moved away is not in the way any more."""
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]])
    limit = 0.9  # of the sum of covalent radii: 2.38 Å
    result, trials = run(atoms, anything, n_hops=300, min_distance=limit, rng=np.random.default_rng(5))
    radii = 2 * covalent_radii[29]
    assert result.hops.overlapping > 0
    assert result.hops.accepted == len(trials) == 300 - result.hops.overlapping
    distances = [np.linalg.norm(trial.positions[0] - trial.positions[1]) for trial in trials]
    assert min(distances) >= limit * radii


# --- momenta ----------------------------------------------------------------------------------------

MASSES = np.array([1.0, 16.0, 60.0])


def still(rng: np.random.Generator, masses: np.ndarray, temperature: float) -> np.ndarray:
    """Momenta in equilibrium without a total."""
    momenta = rng.standard_normal((len(masses), 3)) * np.sqrt(KB * temperature * masses)[:, None]
    return momenta - masses[:, None] / masses.sum() * momenta.sum(axis=0)


def test_redrawn_momenta_are_in_equilibrium_and_add_up_to_zero():
    rng = np.random.default_rng(0)
    n = 20_000
    # All of the energy comes from the redraws: what they start from is far too cold.
    momenta = still(rng, MASSES, 1e-6 * HOT)
    found = np.empty((n, 3, 3))
    for number in range(n):
        for atom in rng.permutation(3):
            momenta = redraw_momentum(momenta, MASSES, atom, rng.standard_normal(3), HOT)
        found[number] = momenta
        assert np.abs(momenta.sum(axis=0)).max() < 1e-9
    found = found[100:]
    for atom, mass in enumerate(MASSES):
        variance = KB * HOT * mass * (1 - mass / MASSES.sum())
        squares = found[::3, atom] ** 2  # a pass over all atoms leaves little of the last
        assert abs(squares.mean() - variance) < 5 * variance * np.sqrt(2 / squares.size)


def test_one_redraw_has_the_reduced_mass_and_leaves_the_rest_among_themselves():
    rng = np.random.default_rng(1)
    momenta = still(rng, MASSES, HOT) + 3 * MASSES[:, None]  # and all move along
    normal = rng.standard_normal((20_000, 3))
    after = np.array([redraw_momentum(momenta, MASSES, 0, draw, HOT) for draw in normal])
    np.testing.assert_allclose(after.sum(axis=1), np.broadcast_to(momenta.sum(axis=0), (len(normal), 3)), atol=1e-9)
    relative = after[:, 0] - MASSES[0] * 3
    variance = KB * HOT * MASSES[0] * (MASSES[1] + MASSES[2]) / MASSES.sum()
    assert abs((relative**2).mean() - variance) < 5 * variance * np.sqrt(2 / relative.size)
    velocity, before = after / MASSES[:, None], momenta / MASSES[:, None]
    among = velocity[:, 2] - velocity[:, 1]
    np.testing.assert_allclose(among, np.broadcast_to(before[2] - before[1], among.shape), atol=1e-9)


def test_a_single_atom_is_drawn_on_its_own():
    normal = np.array([1.0, -2.0, 0.5])
    found = redraw_momentum(np.ones((1, 3)), np.array([4.0]), 0, normal, HOT)
    np.testing.assert_allclose(found, [np.sqrt(KB * HOT * 4) * normal])


# --- equilibrium ------------------------------------------------------------------------------------

SITES = 8
RING = 5.0 * np.array([[np.cos(a), np.sin(a), 0] for a in 2 * np.pi * np.arange(SITES) / SITES])
PREVIOUS = np.arange(SITES) - 1
BOND_REACH = 0.1
"""eV; energy of two unlike neighbours on the ring."""


def ring_energy(kinds: np.ndarray) -> float:
    return BOND_REACH * float(np.sum(kinds != kinds[PREVIOUS]))


def kinds_on(positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    angle = np.arctan2(positions[:, 1], positions[:, 0])
    kinds = np.empty(SITES, dtype=int)
    kinds[np.rint(angle * SITES / (2 * np.pi)).astype(int) % SITES] = numbers
    return kinds


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize(("symbols", "bonds"), [("Cu4Au4", 2), ("Cu3Ag2Au3", 4)])
def test_swaps_visit_all_configurations_of_a_ring_by_their_boltzmann_weights(symbols, bonds):
    temperature = bonds * BOND_REACH / KB
    atoms = Atoms(symbols, positions=RING)
    states = np.zeros(SITES)
    numbers = atoms.numbers
    weights = {
        kinds: np.exp(-ring_energy(np.array(kinds)) / (KB * temperature))
        for kinds in set(map(tuple, _arrangements(tuple(numbers))))
    }
    swaps = swaps_allowed(numbers, states)
    rng = np.random.default_rng(7)
    energy = ring_energy(kinds_on(RING, numbers))
    visits = Counter()
    n_segments, n_swaps = 10_000, 10  # trials that a sample is apart from the last
    for _ in range(n_segments):
        result, _ = run(
            atoms,
            lambda positions: ring_energy(kinds_on(positions, numbers)),
            energy,
            n_swaps=n_swaps,
            swaps=swaps,
            temperature=temperature,
            rng=rng,
        )
        atoms.positions, energy = result.positions, result.energy
        visits[tuple(kinds_on(atoms.positions, numbers).tolist())] += 1
    assert visits.keys() <= weights.keys()
    expected = n_segments * np.array(list(weights.values())) / sum(weights.values())
    assert expected.min() > 5
    assert chisquare([visits[kinds] for kinds in weights], expected).pvalue > UNLIKELY
    # The test can tell temperatures apart.
    flat = np.full(len(weights), n_segments / len(weights))
    assert chisquare([visits[kinds] for kinds in weights], flat).pvalue < UNLIKELY


def _arrangements(numbers: tuple[int, ...]) -> set[tuple[int, ...]]:
    if not numbers:
        return {()}
    return {
        (first, *rest)
        for place, first in enumerate(numbers)
        if first not in numbers[:place]
        for rest in _arrangements(numbers[:place] + numbers[place + 1 :])
    }


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("temperature", [COLD, HOT])
def test_hops_sample_a_periodic_potential(temperature):
    box, depth = 4.0, 0.04
    atoms = Atoms("Cu", positions=[[1, 1, 1]], cell=[box] * 3, pbc=True)

    def energy(positions: np.ndarray) -> float:
        return depth * float(np.cos(2 * np.pi * positions / box).sum())

    rng = np.random.default_rng(2)
    n_segments, n_hops = 10_000, 10
    places = np.empty((n_segments, 3))
    here = energy(atoms.positions)
    for number in range(n_segments):
        result, _ = run(atoms, energy, here, n_hops=n_hops, hop_length=1.5, temperature=temperature, rng=rng)
        atoms.positions, here = result.positions, result.energy
        places[number] = result.positions[0] % box
    fine = np.exp(-depth / (KB * temperature) * np.cos(2 * np.pi * (np.arange(2000) + 0.5) / 2000))
    expected = n_segments * fine.reshape(20, -1).sum(axis=1) / fine.sum()
    for axis in range(3):
        assert chisquare(np.histogram(places[:, axis], bins=20, range=(0, box))[0], expected).pvalue > UNLIKELY


@pytest.mark.slow
@pytest.mark.physics
def test_hops_of_hard_spheres_fill_the_allowed_volume_evenly():
    box, limit = 5.0, 0.8
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 2.5, 2.5]], cell=[box] * 3, pbc=True)
    rng = np.random.default_rng(4)
    n_segments = 8000
    apart = np.empty(n_segments)
    for number in range(n_segments):
        result, _ = run(atoms, anything, n_hops=10, hop_length=1.5, min_distance=limit, rng=rng)
        atoms.positions = result.positions
        apart[number] = _nearest(result.positions[1] - result.positions[0], box)
    evenly = _nearest(np.random.default_rng(5).uniform(0, box, size=(2_000_000, 3)), box)
    least = limit * 2 * covalent_radii[29]
    evenly = evenly[evenly >= least]
    bins = np.quantile(evenly, np.linspace(0, 1, 16))
    bins[0], bins[-1] = least, evenly.max() + 0.1
    assert apart.min() >= least
    share = np.histogram(evenly, bins)[0] / len(evenly)
    assert chisquare(np.histogram(apart, bins)[0], n_segments * share).pvalue > UNLIKELY


def _nearest(vectors: np.ndarray, box: float) -> np.ndarray:
    return np.linalg.norm(vectors - box * np.rint(vectors / box), axis=-1)
