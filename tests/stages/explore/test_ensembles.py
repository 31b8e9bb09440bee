"""What is connected through the boundaries, in awkward cells; and what follows for the ensemble."""

import re
from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule, mx2
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from scipy.stats import special_ortho_group
from solids import solids

from daskpipe.core.connectivity import REACH, periodic_directions
from daskpipe.core.errors import ConfigError
from daskpipe.stages.explore.ensembles import ENSEMBLES, choose_ensemble, explain_refusal, strain_modes
from daskpipe.stages.explore.order import ORDER, is_crystal, strongest_reflection

LAYER = 3.35
"""Å; distance of the layers in graphite."""

GRAPHENE = np.array([[2.46, 0, 0], [-1.23, 2.13042, 0]])


def sheet(c: float = 0.0, *, periodic: bool = False) -> Atoms:
    cell = [*GRAPHENE, [0, 0, c]]
    return Atoms("C2", positions=[[0, 0, 0], [0, 1.42028, 0]], cell=cell, pbc=[True, True, periodic])


def graphite() -> Atoms:
    layers = sheet(2 * LAYER, periodic=True)
    second = sheet()
    second.positions += [0, 1.42028, LAYER]
    return layers + second


def slab(gap: float, *, cut: float = 0.0) -> Atoms:
    """Cu(111) in a fully periodic cell, `gap` Å of vacuum, moved up by `cut` cells so that the face goes through it."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=gap / 2)
    atoms.pbc = True
    atoms.positions += cut * atoms.cell.array[2]
    atoms.wrap()
    return atoms


def slanted_slab() -> Atoms:
    atoms = slab(8.0)
    atoms.cell[2] += 2 * atoms.cell[0] - atoms.cell[1]
    return atoms


def turned_slab(axis: int) -> Atoms:
    """Slab whose vacuum lies along another cell vector."""
    atoms = slab(8.0)
    places = np.roll([0, 1, 2], axis - 2)
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array[places], pbc=True)


def adsorbed() -> Atoms:
    atoms = slab(20.0)
    return atoms + Atoms("Ar", positions=[[0, 0, atoms.positions[:, 2].max() + 8]])


def wire(*, periodic: bool = True) -> Atoms:
    atoms = bulk("Au", cubic=True)
    atoms.set_cell([14, 14, atoms.cell[2, 2]])
    atoms.pbc = [periodic, periodic, True]
    return atoms


def diagonal_chain() -> Atoms:
    """Atoms 2.5 Å apart along [110] of a wide cell."""
    n, step = 8, 2.5
    places = np.arange(n)[:, None] * step / np.sqrt(2) * [1, 1, 0]
    return Atoms(f"C{n}", positions=places + 0.3, cell=[n * step / np.sqrt(2)] * 2 + [12], pbc=True)


def crossed_wires() -> Atoms:
    """Two chains that never meet: together they hold two directions."""
    n, step = 8, 2.5
    along = np.arange(n)[:, None] * step
    places = np.vstack([along * [1, 0, 0], along * [0, 1, 0] + [0, 0, 10]])
    return Atoms(f"C{2 * n}", positions=places, cell=[n * step, n * step, 20], pbc=True)


def framework() -> Atoms:
    """Rods along the edges of a cube, 20 Å wide and empty inside."""
    n, step = 8, 2.5
    along = np.arange(n)[:, None] * step
    places = np.unique(np.vstack([along * axis for axis in np.eye(3)]), axis=0)
    return Atoms(f"Si{len(places)}", positions=places, cell=[n * step] * 3, pbc=True)


def liquid() -> Atoms:
    return molecule("H2O", cell=[3.1] * 3, pbc=True).repeat(3)


def boxed(name: str, *, cut: float = 0.0) -> Atoms:
    atoms = molecule(name, cell=[12] * 3, pbc=True)
    atoms.set_scaled_positions((atoms.get_scaled_positions() + cut) % 1)
    return atoms


def layered_mos2() -> Atoms:
    atoms = mx2("MoS2", vacuum=1.0)
    atoms.cell[2] = [0, 0, 6.15]
    atoms.pbc = True
    return atoms


def skewed(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell(np.array([[1, 2, 0], [0, 1, 0], [-1, 1, 1]]) @ atoms.cell.array)
    return atoms


def open_along(atoms: Atoms, axes: str) -> Atoms:
    atoms = atoms.copy()
    atoms.pbc = [name not in axes for name in "abc"]
    return atoms


def rattled(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=2)
    return atoms


def melt(seed: int = 0, n: int = 64, edge: float = 9.2, apart: float = 2.0) -> Atoms:
    """Atoms at random, as far apart as hard spheres."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, edge, (1, 3))
    while len(places) < n:
        place = rng.uniform(0, edge, 3)
        away = places - place
        away -= edge * np.round(away / edge)
        if np.linalg.norm(away, axis=1).min() > apart:
            places = np.vstack([places, place])
    return Atoms(f"Cu{n}", positions=places, cell=[edge] * 3, pbc=True)


CASES = {
    "molecule": (molecule("CH3CH2OH"), 0),
    "molecule without a cell, one atom": (Atoms("He"), 0),
    "molecule in a box": (boxed("CH3CH2OH"), 0),
    "molecule cut by the box": (boxed("C6H6", cut=0.5), 0),
    "liquid": (liquid(), 3),
    "cluster": (Atoms("Au4", positions=2.6 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])), 0),
    "wire": (wire(), 1),
    "wire, open across": (wire(periodic=False), 1),
    "wire without cell vectors across": (Atoms("Au", cell=[0, 0, 2.7], pbc=[False, False, True]), 1),
    "chain along a diagonal": (diagonal_chain(), 1),
    "crossed wires": (crossed_wires(), 2),
    "graphene": (sheet(15.0, periodic=True), 2),
    "graphene without a third vector": (sheet(), 2),
    "MoS2 sheet": (mx2("MoS2", vacuum=8.0), 2),
    "slab": (slab(8.0), 2),
    "slab, thin vacuum": (slab(4.0), 3),
    "slab, thin vacuum, open": (open_along(slab(4.0), "c"), 2),
    "slab cut by the cell face": (slab(8.0, cut=0.45), 2),
    "slab, slanted": (slanted_slab(), 2),
    "slab, vacuum along a": (turned_slab(0), 2),
    "slab, vacuum along b": (turned_slab(1), 2),
    "slab, adsorbate far above": (adsorbed(), 2),
    "one atom": (bulk("Cu"), 3),
    "one atom, skewed": (skewed(skewed(bulk("Cu"))), 3),
    "one atom, open along b": (open_along(bulk("Po", "sc", a=3.35), "b"), 2),
    "one atom, open along a and c": (open_along(bulk("Po", "sc", a=3.35), "ac"), 1),
    "one atom, open": (open_along(bulk("Cu"), "abc"), 0),
    "salt, skewed": (skewed(bulk("NaCl", "rocksalt", a=5.64)), 3),
    "framework": (framework(), 3),
    "graphite": (graphite(), 3),
    "MoS2 crystal": (layered_mos2(), 3),
}


@pytest.mark.parametrize(("atoms", "expected"), CASES.values(), ids=CASES)
def test_number_of_directions(atoms, expected):
    before = atoms.copy()
    directions = periodic_directions(atoms)
    assert atoms == before
    assert directions.shape == (expected, 3)
    np.testing.assert_allclose(directions @ directions.T, np.eye(expected), atol=1e-9)


def span(atoms: Atoms) -> np.ndarray:
    """Projector on the directions: it does not depend on their choice."""
    directions = periodic_directions(atoms)
    return directions.T @ directions


def test_directions_follow_the_cell_where_they_can():
    plane = sheet(15.0, periodic=True)
    np.testing.assert_allclose(periodic_directions(plane), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    np.testing.assert_allclose(periodic_directions(turned_slab(0))[0], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(span(diagonal_chain()), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(span(slanted_slab()), np.diag([1, 1, 0]), atol=1e-9)


def test_contacts_end_at_the_radii_and_the_reach():
    limit = 2 * covalent_radii[29] + REACH
    for distance, expected in ((limit - 1e-3, 1), (limit + 1e-3, 0)):
        assert len(periodic_directions(Atoms("Cu", cell=[distance, 30, 30], pbc=True))) == expected
    assert len(periodic_directions(Atoms("Cu", cell=[limit, 30, 30], pbc=True), reach=REACH + 0.1)) == 1


SOME = [CASES[name][0] for name in ("slab cut by the cell face", "slab, slanted", "wire", "crossed wires", "liquid",
                                    "graphite", "one atom", "chain along a diagonal")]  # fmt: skip


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    atoms=st.sampled_from(SOME),
    shift=st.tuples(*[st.floats(-30, 30)] * 3),
    turn=st.integers(0, 2**31 - 1),
    repeat=st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 2)]),
    shears=st.lists(st.tuples(st.permutations([0, 1, 2]), st.integers(-2, 2)), max_size=3),
)
def test_what_the_structure_is_does_not_depend_on_how_it_is_written(atoms, shift, turn, repeat, shears):
    expected = span(atoms)
    other = atoms.repeat(repeat)
    lattice = np.eye(3)
    for (row, added, _), times in shears:
        lattice[row] += times * lattice[added]  # spans the same lattice
    other.set_cell(lattice @ other.cell.array)
    other.positions += shift
    other.wrap()
    rotation = special_ortho_group.rvs(3, random_state=turn)
    other.set_cell(other.cell.array @ rotation.T)
    other.positions = other.positions @ rotation.T
    np.testing.assert_allclose(span(other), rotation @ expected @ rotation.T, atol=1e-6)


MOST = 4
"""Images along each axis of the slow reference: no walk of three atoms goes further."""


def slow_rank(atoms: Atoms) -> int:
    """Rank of the translations between images of one atom that hang together in a large piece cut from the crystal."""
    shifts = np.array(list(product(*(range(-MOST, MOST + 1) if periodic else (0,) for periodic in atoms.pbc))))
    places = (atoms.positions[None] + (shifts @ atoms.cell.array)[:, None]).reshape(-1, 3)
    radius = np.tile(covalent_radii[atoms.numbers], len(shifts))
    pairs = KDTree(places).query_pairs(2 * radius.max() + REACH, output_type="ndarray")
    near = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1) < radius[pairs].sum(axis=1) + REACH
    i, j = pairs[near].T
    _, part = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(len(places),) * 2))
    part = part.reshape(len(shifts), len(atoms))
    middle = np.flatnonzero((shifts == 0).all(axis=1))[0]
    reached = [shifts[part[:, atom] == part[middle, atom]] for atom in range(len(atoms))]
    return int(np.linalg.matrix_rank(np.vstack(reached)))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), n=st.integers(1, 3), pbc=st.tuples(*[st.booleans()] * 3))
def test_rank_is_that_of_a_slow_walk(seed, n, pbc):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3.5, 9, size=3)) + rng.uniform(-1, 1, size=(3, 3))
    atoms = Atoms(rng.choice([1, 8, 29, 55], size=n), rng.uniform(-5, 15, size=(n, 3)), cell=cell, pbc=pbc)
    assert len(periodic_directions(atoms)) == slow_rank(atoms)


@pytest.mark.parametrize(
    ("atoms", "relax_plane", "expected"),
    [
        (bulk("Cu"), False, "npt_triclinic"),
        (bulk("Cu", cubic=True), False, "npt_anisotropic"),
        (rattled(bulk("CuAu", "cesiumchloride", a=3.2).repeat((3, 3, 3))), False, "npt_anisotropic"),
        (graphite(), True, "npt_triclinic"),
        (melt(), True, "npt_isotropic"),
        (slab(8.0), False, "nvt_langevin"),
        (slab(8.0), True, "npt_plane"),
        (wire(), True, "nvt_langevin"),
        (boxed("H2O"), True, "nvt_langevin"),
    ],
)
def test_choose(atoms, relax_plane, expected):
    assert choose_ensemble(atoms, relax_plane=relax_plane) == expected
    assert explain_refusal(expected, atoms) is None


def test_solids_are_crystals_and_melts_are_not():
    rng = np.random.default_rng(4)
    for name, atoms in solids().items():
        crystal = atoms.repeat(2 if len(atoms) > 6 else 3)
        crystal.rattle(0.1, rng=rng)
        assert is_crystal(crystal), name
    melts = [strongest_reflection(melt(seed)) for seed in range(5)]
    assert max(melts) < ORDER / 2


def test_order_is_that_of_a_slow_sum():
    atoms = bulk("Cu", cubic=True).repeat((1, 2, 2))
    atoms.rattle(0.25, seed=3)
    reciprocal = 2 * np.pi * atoms.cell.reciprocal()
    index = np.array(list(product(range(-8, 9), repeat=3)))
    vectors = index @ reciprocal
    length = np.linalg.norm(vectors, axis=1)
    sums = np.abs(np.exp(1j * vectors[(length > 0) & (length <= 5)] @ atoms.positions.T).sum(axis=1)) ** 2
    # Atoms are moved to points of a grid 0.2 Å wide.
    assert strongest_reflection(atoms) == pytest.approx(sums.max() / len(atoms) ** 2, rel=0.1)


def test_a_single_ion_does_not_make_a_crystal_of_a_melt():
    atoms = melt()
    atoms.symbols[0] = "Na"
    assert not is_crystal(atoms)


N_MODES = {"npt_isotropic": 1, "npt_anisotropic": 3, "npt_triclinic": 6, "npt_plane": 2}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_strain_modes_are_orthonormal_and_symmetric(ensemble):
    atoms = slanted_slab()
    rotation = special_ortho_group.rvs(3, random_state=1)
    atoms.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    modes = strain_modes(ensemble, atoms)
    assert modes.shape == (6, 3, 3)
    np.testing.assert_array_equal(modes, modes.transpose(0, 2, 1))
    used = np.arange(6) < N_MODES.get(ensemble, 0)
    np.testing.assert_allclose(np.einsum("aij,bij->ab", modes, modes), np.diag(used.astype(float)), atol=1e-12)
    if ensemble == "npt_isotropic":
        np.testing.assert_allclose(modes[0], np.eye(3) / np.sqrt(3))
    if ensemble == "npt_anisotropic":
        np.testing.assert_array_equal(modes[:3].sum(axis=0), np.eye(3))
    if ensemble == "npt_plane":
        np.testing.assert_allclose(modes @ rotation[:, 2], 0, atol=1e-9)  # the normal is left alone
        along = atoms.cell.array[0] / np.linalg.norm(atoms.cell.array[0])
        np.testing.assert_allclose(modes[0], np.outer(along, along), atol=1e-9)


@pytest.mark.parametrize(
    ("ensemble", "atoms", "message"),
    [
        ("npt_isotropic", slab(8.0), "connected along 2 of 3 directions .* vacuum; give npt_plane or nvt_langevin"),
        ("npt_anisotropic", fcc111("Cu", (1, 1, 2), vacuum=5), "open along c; give npt_plane or nvt_langevin"),
        ("npt_triclinic", molecule("H2O"), "npt_triclinic .* is open along a, b, c; give nvt_langevin"),
        ("npt_triclinic", wire(), "connected along 1 of 3 directions .*; give nvt_langevin"),
        ("npt_plane", bulk("Cu"), "npt_plane .* connected along 3 of 3; give npt_isotropic"),
        ("npt_plane", wire(), "npt_plane .* connected along 1 of 3; give nvt_langevin"),
    ],
)
def test_refusal_says_what_was_found_and_what_to_give(ensemble, atoms, message):
    found = explain_refusal(ensemble, atoms)
    assert found is not None
    assert re.search(message, found), found


@pytest.mark.parametrize("ensemble", ["nve", "nvt_langevin", "nvt_nose_hoover", "nvt_rescale"])
def test_fixed_volume_suits_everything(ensemble):
    for atoms, _ in CASES.values():
        assert explain_refusal(ensemble, atoms) is None


def test_wrong_names_and_planes_are_errors():
    for function in (explain_refusal, strain_modes):
        with pytest.raises(ConfigError, match="unknown ensemble 'npt'. .*Known: nve, nvt_langevin"):
            function("npt", bulk("Cu"))
    with pytest.raises(ConfigError, match="npt_plane strains the two directions of a slab"):
        strain_modes("npt_plane", bulk("Cu"))
