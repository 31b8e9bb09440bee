"""Compositions, occupation, strain and displacements."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import assume, given
from hypothesis import strategies as st

from daskpipe.stages.generate.disorder import (
    apply_strain,
    choose_size,
    displace_atoms,
    mean_volume,
    missing_size_error,
    occupy_sites,
    sample_fractions,
)
from daskpipe.stages.generate.params import check_composition

ROUNDING = 1e-9


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, tuple[float, float]]:
    symbols = draw(st.lists(st.sampled_from(["Cu", "Ag", "Au", "Pd", "Pt", "Ni"]), min_size=1, unique=True))
    pairs = [sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))) for _ in symbols]
    assume(sum(low for low, _ in pairs) <= 1 <= sum(high for _, high in pairs))
    return check_composition({symbol: (low, high) for symbol, (low, high) in zip(symbols, pairs, strict=True)})


@given(ranges(), st.integers(0, 2**32))
def test_fractions_lie_in_their_ranges_and_sum_to_one(ranges: dict[str, tuple[float, float]], seed: int) -> None:
    fractions = sample_fractions(np.random.default_rng(seed), ranges)
    low, high = np.array(list(ranges.values())).T
    assert fractions.sum() == pytest.approx(1)
    assert (fractions >= low - ROUNDING).all()
    assert (fractions <= high + ROUNDING).all()


@given(ranges(), st.integers(1, 200), st.integers(0, 2**32))
def test_occupation_rounds_the_fractions(ranges: dict[str, tuple[float, float]], n_atoms: int, seed: int) -> None:
    symbols = Atoms(occupy_sites(np.random.default_rng(seed), n_atoms, ranges)).get_chemical_symbols()
    assert len(symbols) == n_atoms
    for symbol, (low, high) in ranges.items():
        assert low * n_atoms - 1 - ROUNDING <= symbols.count(symbol) <= high * n_atoms + 1 + ROUNDING


def test_fractions_are_uniform_on_the_allowed_part_of_the_simplex() -> None:
    """Same moments as drawing from the whole simplex and keeping what fits: exact, but slow for narrow ranges."""
    bounds = {"Cu": (0.0, 1.0), "Ag": (0.1, 0.5), "Au": (0.0, 0.3), "Pd": (0.0, 1.0)}
    rng = np.random.default_rng(0)
    low, high = np.array(list(bounds.values())).T
    exact = rng.dirichlet(np.ones(4), size=200_000)
    exact = exact[((exact >= low) & (exact <= high)).all(axis=1)]
    drawn = np.array([sample_fractions(rng, bounds) for _ in range(2000)])
    five_standard_errors = 5 * exact.std(axis=0) / len(drawn) ** 0.5
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - exact.mean(axis=0)), five_standard_errors)
    np.testing.assert_allclose(drawn.std(axis=0), exact.std(axis=0), rtol=0.1)


def test_narrow_ranges_take_no_longer() -> None:
    """A hit in this sliver would take 10^8 draws from the whole simplex."""
    sliver = dict.fromkeys(("Cu", "Ag", "Au", "Pd", "Pt"), (0.199, 0.201))
    fractions = sample_fractions(np.random.default_rng(0), sliver)
    assert fractions.sum() == pytest.approx(1)
    assert len(set(fractions)) == len(sliver)


def test_occupation_is_right_on_average() -> None:
    rng = np.random.default_rng(0)
    n_gold = [np.count_nonzero(occupy_sites(rng, 7, {"Cu": (0.5, 0.5), "Au": (0.5, 0.5)}) == 79) for _ in range(2000)]
    assert set(n_gold) == {3, 4}
    assert np.mean(n_gold) == pytest.approx(3.5, abs=0.06)


def test_every_site_may_hold_every_element() -> None:
    rng = np.random.default_rng(0)
    sites = np.array([occupy_sites(rng, 4, {"Cu": (0.5, 0.5), "Au": (0.5, 0.5)}) for _ in range(200)])
    assert ((sites == 29).any(axis=0) & (sites == 79).any(axis=0)).all()


def test_mean_volume_lies_between_those_of_the_elements() -> None:
    copper, gold = mean_volume(np.array([29])), mean_volume(np.array([79]))
    assert mean_volume(np.array([29, 79, 79, 79])) == pytest.approx(0.25 * copper + 0.75 * gold)


def test_strain_stays_within_its_amplitude_and_moves_atoms_with_the_cell() -> None:
    amplitude = 0.1
    rng = np.random.default_rng(0)
    tensors = []
    for _ in range(300):
        atoms = bulk("Cu", cubic=True)
        before = atoms.cell.array.copy()
        apply_strain(rng, atoms, amplitude)
        scaled = bulk("Cu", cubic=True).get_scaled_positions()
        np.testing.assert_allclose(atoms.get_scaled_positions(wrap=False), scaled, atol=1e-12)
        tensors.append(np.linalg.solve(before, atoms.cell.array) - np.eye(3))
    components = np.array(tensors)
    np.testing.assert_allclose(components, components.transpose(0, 2, 1), atol=1e-12)
    largest = np.abs(components).max(axis=0)
    bounds = np.where(np.eye(3), amplitude, amplitude / 2)
    assert (largest <= bounds).all()
    assert (largest > 0.9 * bounds).all()


def test_strain_in_the_plane_leaves_the_normal() -> None:
    atoms = bulk("Cu", cubic=True)
    apply_strain(np.random.default_rng(0), atoms, 0.1, axes=(0, 1))
    np.testing.assert_array_equal(atoms.cell.array[2], bulk("Cu", cubic=True).cell.array[2])
    assert not np.allclose(atoms.cell.array[:2], bulk("Cu", cubic=True).cell.array[:2])


def test_displacements_have_the_standard_deviation_asked_for() -> None:
    atoms = Atoms("H1000")
    displace_atoms(np.random.default_rng(0), atoms, 0.2)
    assert atoms.positions.std() == pytest.approx(0.2, rel=0.05)


def test_sizes_are_drawn_evenly() -> None:
    rng = np.random.default_rng(0)
    drawn = [choose_size(rng, {4: ["a"], 8: ["b", "c"]}) for _ in range(1000)]
    assert drawn.count("a") == pytest.approx(500, abs=80)


def test_missing_size_names_the_nearest() -> None:
    error = missing_size_error("ring", (14, 20), [3, 13, 23, 24, 99])
    assert "no ring of 14 to 20 atoms; the nearest sizes are 3, 13, 23, 24" in str(error)
