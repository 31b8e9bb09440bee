"""Nanoparticles."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.clusters import MAX_ELONGATION, SHAPES, Shape, closed_shell_sites, clusters

MAGIC_NUMBERS: dict[Shape, set[int]] = {
    "icosahedron": {13, 55, 147},
    "cuboctahedron": {13, 55, 147},
    "octahedron": {6, 19, 38, 44, 79, 85, 116, 140, 146},
}
"""Up to 150 atoms."""

DECAHEDRA = {7, 23, 54, 105} | {13, 55, 147}
"""Pentagonal bipyramids and Ino's decahedra; there are others between them."""


def draw(seed: int = 0, n: int = 1, **params: object) -> list[Atoms]:
    given = {"elements": {"Cu": (0, 1), "Ag": (0, 1), "Au": (0, 1)}, "n_atoms": (12, 32), **params}
    return list(islice(clusters(rng=np.random.default_rng(seed), **given), n))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), vacuum=st.floats(4, 20), low=st.integers(6, 80))
def test_particles_keep_to_their_parameters(seed: int, vacuum: float, low: int) -> None:
    (atoms,) = draw(seed, vacuum=vacuum, n_atoms=(low, 2 * low))
    assert low <= len(atoms) <= 2 * low
    assert not atoms.pbc.any()
    np.testing.assert_allclose(atoms.positions.min(axis=0), vacuum / 2, atol=1e-6)
    np.testing.assert_allclose(atoms.cell.lengths() - atoms.positions.max(axis=0), vacuum / 2, atol=1e-6)
    assert atoms.info == {"system_type": "cluster"}
    assert find_fault(atoms, Limits()) is None


@pytest.mark.parametrize("n_atoms", [2, 5, 17, 40, 150])
def test_spheres_come_in_every_size_in_one_compact_piece(n_atoms: int) -> None:
    for atoms in draw(n=10, shapes=["sphere"], n_atoms=n_atoms, elements={"Au": 1.0}, rattle=0):
        i, j = neighbor_list("ij", atoms, 3.2)
        bonds = coo_matrix((np.ones(len(i)), (i, j)), shape=(n_atoms, n_atoms))
        assert connected_components(bonds, directed=False)[0] == 1
        # A ball of n atoms of gold, with room for the sites on its edge.
        radius = (3 * n_atoms * 17 / (4 * np.pi)) ** (1 / 3)
        assert np.ptp(atoms.positions, axis=0).max() <= 2 * radius + 3.2


@pytest.mark.parametrize("shape", sorted(MAGIC_NUMBERS))
def test_magic_numbers(shape: Shape) -> None:
    assert set(closed_shell_sites(shape, 1, 150)) == MAGIC_NUMBERS[shape]


def test_magic_numbers_of_decahedra() -> None:
    assert set(closed_shell_sites("decahedron", 1, 150)) >= DECAHEDRA


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "sphere"])
def test_closed_shells_have_the_bonds_of_the_metal(shape: Shape) -> None:
    for atoms in draw(n=20, shapes=[shape], n_atoms=(7, 150), elements={"Cu": 1.0}, rattle=0):
        assert neighbor_list("d", atoms, 3.0).min() == pytest.approx(2.553, rel=1e-3)
        extents = np.ptp(atoms.positions, axis=0)
        assert extents.max() <= MAX_ELONGATION * extents.min()


def test_shapes_without_a_size_are_left_out_unless_asked_for() -> None:
    assert {len(atoms) for atoms in draw(n=200, n_atoms=(14, 18))} == {14, 15, 16, 17, 18}
    with pytest.raises(ValueError, match=r"no icosahedron of 14 to 18 atoms; the nearest sizes are 13, 55, 147"):
        draw(shapes=["icosahedron", "sphere"], n_atoms=(14, 18))


def test_same_stream_same_particle() -> None:
    assert draw(5, n=3) == draw(5, n=3)
    assert draw(5)[0] != draw(6)[0]
