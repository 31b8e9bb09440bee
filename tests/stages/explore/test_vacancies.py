"""Vacant sites are where atoms are missing, and hops into them sample Boltzmann's distribution."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.cluster import Octahedron
from ase.geometry import find_mic
from test_moves import run

from daskpipe.core.constants import KB
from daskpipe.stages.explore.moves import _vacancy_hop
from daskpipe.stages.explore.oxidation import oxidation_states
from daskpipe.stages.explore.vacancies import HopSites, hop_sites, like_distances, vacant_sites

RATTLE = 0.1
"""Å; the generators' default."""

CRYSTALS = {
    "fcc": bulk("Cu", cubic=True).repeat(2),
    "bcc": bulk("Fe", cubic=True).repeat(3),
    "hcp": bulk("Ti").repeat((3, 3, 2)),
    "rock salt": bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(2),
    "CsCl": bulk("CsCl", "cesiumchloride", a=4.12, cubic=True).repeat(3),
    "slab": fcc111("Cu", (3, 3, 5), vacuum=8.0),
}


def rattled(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(0).normal(scale=RATTLE, size=atoms.positions.shape)
    return atoms


def lengths(atoms: Atoms) -> np.ndarray:
    return like_distances(atoms, oxidation_states(atoms, {}), 0.1)


# --- sites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [Atoms.copy, rattled], ids=["perfect", "rattled"])
@pytest.mark.parametrize("name", CRYSTALS)
def test_vacancies_are_found_and_nothing_else_is_one(name, change):
    whole = CRYSTALS[name]
    assert len(vacant_sites(change(whole))) == 0
    missing = len(whole) // 2
    atoms = whole.copy()
    del atoms[missing]
    (site,) = vacant_sites(change(atoms))
    away = find_mic(site - whole.positions[missing], whole.cell, whole.pbc)[1]
    assert away < (0.05 if change is Atoms.copy else 2 * RATTLE)


def test_two_vacancies_side_by_side_are_two_sites():
    atoms = bulk("Cu", cubic=True).repeat(3)
    near = find_mic(atoms.positions - atoms.positions[0], atoms.cell)[1]
    second = int(np.argsort(near)[1])
    places = atoms.positions[[0, second]]
    del atoms[[0, second]]
    found = vacant_sites(atoms)
    assert len(found) == 2
    assert sorted(find_mic(found - place, atoms.cell)[1].min() for place in places)[1] < 0.3


@pytest.mark.parametrize("atoms", [molecule("C6H6"), molecule("H2O"), Octahedron("Cu", 4, 1), Atoms("Cu")])
def test_molecules_and_clusters_have_no_vacant_sites(atoms):
    assert len(vacant_sites(atoms)) == 0
    assert hop_sites(atoms, lengths(atoms)) is None


# --- lengths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (bulk("Cu"), 3.61 / np.sqrt(2)),
        (bulk("NaCl", "rocksalt", a=5.64), 5.64 / np.sqrt(2)),
        (Atoms("H3", positions=[[0, 0, 0], [0, 0, 1], [0, 0, 3]]), 1.0),
        (Atoms("H2", positions=[[0, 0, 0], [0, 0, 11]]), 11.0),
        (Atoms("H", cell=[0, 0, 5], pbc=[False, False, True]), 5.0),
        (Atoms("Au"), 2 * 1.36),
    ],
    ids=["fcc", "salt", "median", "far apart", "open axes", "alone"],
)
def test_like_distances(atoms, expected):
    np.testing.assert_allclose(lengths(atoms), expected, atol=1e-6)


def test_atoms_of_an_alloy_are_like_each_other_and_those_of_a_compound_are_not():
    alloy = bulk("Cu", cubic=True).repeat(2)
    alloy.symbols[5] = "Au"
    np.testing.assert_allclose(lengths(alloy), 3.61 / np.sqrt(2), atol=1e-6)
    oxide = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    np.testing.assert_allclose(lengths(oxide), 4.21 / np.sqrt(2), atol=1e-6)


def test_hops_of_an_ion_stay_on_its_own_lattice():
    oxide = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(2)
    missing = int(np.flatnonzero(oxide.symbols == "Mg")[0])
    place = oxide.positions[missing].copy()
    del oxide[missing]
    sites = hop_sites(oxide, lengths(oxide))
    assert sites is not None
    hoppers, pairs = sites.possible_hops(sites.assign_sites(oxide.positions, oxide.cell.array))
    assert Counter(oxide.symbols[hoppers]) == {"Mg": 12}
    for atom, pair in zip(hoppers.tolist(), pairs.tolist(), strict=True):
        end = oxide.positions[atom] + sites.hop_vector(pair, oxide.cell.array)
        assert find_mic(end - place, oxide.cell)[1] < 1e-6


# --- detailed balance -------------------------------------------------------------------------------------

SPACING = 3.0
ENERGY = np.array([0.0, 0.05, -0.04, 0.08, 0.02])
"""eV; of a copper atom on each site of a line. Gold is worth -1.5 times that."""


def line_of_sites() -> HopSites:
    """Five sites in a line of which the ends have one neighbour, and the others two."""
    first = np.array([0, 1, 1, 2, 2, 3, 3, 4])
    second = np.array([1, 0, 2, 1, 3, 2, 4, 3])
    return HopSites(
        scaled=np.outer(np.arange(5), [SPACING, 0, 0]), periodic=np.zeros(3), first=first, second=second,
        shift=np.zeros((8, 3)), distance=np.full(8, SPACING), reach=np.full((2, 2), [2.0, 4.0]),
    )  # fmt: skip


def on_line(positions: np.ndarray) -> tuple[int, ...]:
    return tuple(np.rint(positions[:, 0] / SPACING).astype(int).tolist())


def line_energy(positions: np.ndarray) -> float:
    copper, gold = on_line(positions)
    return float(ENERGY[copper] - 1.5 * ENERGY[gold])


def visits(temperature: float, n: int, sites: HopSites | None) -> tuple[dict[tuple[int, ...], float], np.ndarray]:
    """Return how often each configuration is visited, and the weights of all by enumeration."""
    rng = np.random.default_rng(3)
    atoms = Atoms("CuAu", positions=[[0.1, 0, 0], [SPACING, 0.2, 0]])
    here = line_energy(atoms.positions)
    counted: Counter[tuple[int, ...]] = Counter()
    for _ in range(n):
        result, _ = run(atoms, line_energy, here, n_hops=3, sites=sites, temperature=temperature, rng=rng)
        atoms.positions, here = result.positions, result.energy
        counted[on_line(atoms.positions)] += 1
    every = list(permutations(range(5), 2))
    energies = np.array([line_energy(SPACING * np.outer(each, [1, 0, 0])) for each in every])
    weights = np.exp(-energies / (KB * temperature))
    return {each: counted[each] / n for each in every}, weights / weights.sum()


@pytest.mark.parametrize("with_ratio", [True, False])
def test_all_hops_of_all_configurations_leave_boltzmanns_distribution_as_it_is(with_ratio):
    """The matrix of transitions, by enumeration: with the ratio of proposals it keeps the weights, else it does not."""
    sites, thermal = line_of_sites(), KB * 600
    every = list(permutations(range(5), 2))
    places = [SPACING * np.outer(each, [1.0, 0, 0]) + [0.1, 0.2, 0] for each in every]
    weights = np.exp([-line_energy(each) / thermal for each in places])
    matrix = np.zeros((len(every), len(every)))
    for number, positions in enumerate(places):
        n_hops = len(sites.possible_hops(np.array(every[number]))[0])
        for hop in range(n_hops):
            found = _vacancy_hop(positions, np.eye(3), sites, (hop + 0.5) / n_hops)
            assert found is not None
            atom, place, ratio = found
            there = positions.copy()
            there[atom] = place
            accepted = np.exp((line_energy(positions) - line_energy(there)) / thermal)
            accepted = min(1.0, accepted * ratio if with_ratio else accepted)
            matrix[number, every.index(on_line(there))] += accepted / n_hops
    matrix[np.diag_indices(len(every))] = 1 - matrix.sum(axis=1)
    flow = weights[:, None] * matrix
    assert (matrix > 0).sum() > 2 * len(every)
    if with_ratio:
        np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    else:
        assert np.abs(flow - flow.T).max() > 0.01


@pytest.mark.slow
@pytest.mark.physics
def test_hops_visit_configurations_as_often_as_enumeration_says():
    """Of two atoms on a line: the number of possible hops is 1 to 4, by where they stand."""
    found, weights = visits(600.0, 12_000, line_of_sites())
    # Atoms in a line cannot pass: only half of the configurations are reached.
    ordered = np.array([copper < gold for copper, gold in found])
    expected = np.where(ordered, weights, 0) / weights[ordered].sum()
    measured = np.array(list(found.values()))
    assert not measured[~ordered].any()
    np.testing.assert_allclose(measured[ordered], expected[ordered], atol=0.012)
    n_hops = np.array([len(line_of_sites().possible_hops(np.array(each))[0]) for each in found])
    wrong = expected * n_hops / (expected * n_hops).sum()  # what ignoring the numbers of hops would give
    assert np.abs(wrong - expected).max() > 0.03, "the test would not see a wrong proposal ratio"
    assert n_hops[ordered].min() < n_hops[ordered].max()


def test_displacements_from_the_sites_are_kept():
    atoms = Atoms("CuAu", positions=[[0.1, 0, 0], [SPACING, 0.2, 0]])
    result, _ = run(atoms, lambda _: 0.0, n_hops=50, sites=line_of_sites())
    away = result.positions - SPACING * np.outer(on_line(result.positions), [1, 0, 0])
    np.testing.assert_allclose(away, [[0.1, 0, 0], [0, 0.2, 0]], atol=1e-12)
    assert result.hops.accepted > 5


def test_a_site_with_two_atoms_is_no_start_and_a_hop_without_return_is_blocked():
    sites = line_of_sites()
    crowded = Atoms("CuAu", positions=[[0.1, 0, 0], [0.3, 0, 0]])
    result, trials = run(crowded, lambda _: 0.0, n_hops=20, sites=sites)
    assert trials == []
    assert (result.hops.tried, result.hops.blocked, result.hops.accepted) == (20, 20, 0)
    far = Atoms("CuAu", positions=[[0, 0, 0], [4 * SPACING + 50, 0, 0]])
    _, trials = run(far, lambda _: np.inf, n_hops=200, sites=sites)
    assert {trial.moved for trial in trials} == {(0,)}, "the gold atom would belong to the last site again"
