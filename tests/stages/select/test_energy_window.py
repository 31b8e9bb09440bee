import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskpipe.stages.select.energy_window import find_low_energies


def slow(energy, frames, window):
    """For each frame look at all others of the same ratio of elements."""
    kept = []
    for number, frame in enumerate(frames):
        shares = {z: frame.count(z) / len(frame) for z in frame}
        alike = [
            energy[other] / len(frames[other])
            for other in range(len(frames))
            if {z: frames[other].count(z) / len(frames[other]) for z in frames[other]} == shares
            and not np.isnan(energy[other])
        ]
        kept.append(bool(alike) and energy[number] / len(frame) <= min(alike) + window + 1e-12)
    return kept


frames_of = st.lists(st.lists(st.sampled_from([1, 8, 22]), min_size=1, max_size=6), min_size=1, max_size=12)


@given(frames=frames_of, data=st.data(), window=st.floats(0.01, 2))
def test_is_that_of_a_slow_loop(frames, data, window):
    energies = st.lists(st.floats(-20, 0) | st.just(np.nan), min_size=len(frames), max_size=len(frames))
    energy = np.array(data.draw(energies))
    n_atoms = np.array([len(frame) for frame in frames])
    found = find_low_energies(energy, np.concatenate(frames), n_atoms, window)
    assert found.tolist() == slow(energy, frames, window)


def test_supercells_are_compared_by_atom_and_order_does_not_matter():
    numbers = np.array([22, 8, 8, 8, 22, 8, 22, 8, 8, 14, 14])
    n_atoms = np.array([3, 6, 1, 1])
    energy = np.array([-30.0, -59.0, -1.0, -5.0])
    assert find_low_energies(energy, numbers, n_atoms, 0.2).tolist() == [True, True, False, True]
    assert find_low_energies(energy, numbers, n_atoms, 0.1).tolist() == [True, False, False, True]


def test_the_lowest_of_each_composition_stays_for_any_window():
    rng = np.random.default_rng(0)
    energy = rng.normal(-5, 1, 100)
    assert find_low_energies(energy, np.full(100, 14), np.ones(100, dtype=int), 1e-9).sum() == 1


def test_without_energies_nothing_stays():
    assert not find_low_energies(np.full(2, np.nan), np.array([14, 14]), np.array([1, 1]), 1.0).any()


@pytest.mark.parametrize("window", [0.05, 0.5])
def test_a_wider_window_keeps_no_less(window):
    energy = np.linspace(-6, -5, 11)
    kept = find_low_energies(energy, np.full(11, 14), np.ones(11, dtype=int), window)
    assert kept.tolist() == (energy <= -6 + window + 1e-12).tolist()
