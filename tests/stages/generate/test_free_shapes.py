"""Particles of any size: Wulff polyhedra against wulffpack, packings, and shells of elements."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from scipy.spatial.distance import pdist

from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.clusters import clusters
from daskpipe.stages.generate.free_shapes import CONTACT, LATTICES, cut_wulff, facet_normals, pack_spheres, wulff_order


def draw(seed: int = 0, n: int = 1, **params: object) -> list[Atoms]:
    given = {"elements": {"Cu": 0.4, "Au": 0.6}, "n_atoms": (12, 60), **params}
    return list(islice(clusters(rng=np.random.default_rng(seed), **given), n))  # type: ignore[arg-type]


@pytest.mark.parametrize(("g100", "g110"), [(1.15, 1.2), (0.9, 3.0)])
def test_wulff_polyhedra_are_those_of_wulffpack(g100: float, g110: float) -> None:
    from wulffpack import SingleCrystal

    energies = {(1, 1, 1): 1.0, (1, 0, 0): g100, (1, 1, 0): g110}
    theirs = SingleCrystal(energies, bulk("Au", a=4.0), natoms=300).atoms.positions
    block = bulk("Au", a=4.0, cubic=True).repeat(13).positions
    offsets = block - block[np.argmin(np.linalg.norm(block - block.mean(axis=0), axis=1))]
    families = facet_normals("fcc")
    normals = np.concatenate([families[0] / g100, families[1] / g110, families[2]])
    ours = {tuple(row) for row in offsets[wulff_order(offsets, normals)[: len(theirs)]].round(3).tolist()}
    shifted = ({tuple(row) for row in (theirs - centre).round(3).tolist()} for centre in theirs)
    assert any(each == ours for each in shifted)


def test_facets_are_as_many_as_the_multiplicity() -> None:
    assert [len(family) for family in facet_normals("fcc")] == [6, 12, 8]
    assert [len(family) for family in facet_normals("hcp")] == [2, 6, 6, 12]
    assert set(LATTICES) == {"fcc", "bcc", "hcp"}


@pytest.mark.parametrize("n_atoms", [1, 13, 100])
def test_wulff_polyhedra_have_every_size(n_atoms: int) -> None:
    for seed in range(6):
        sites = cut_wulff(np.random.default_rng(seed), n_atoms)
        assert sites.shape == (n_atoms, 3)
        assert n_atoms == 1 or pdist(sites).min() > 0.97 * (3**0.5 / 2 * 2 ** (1 / 3))  # neighbours in bcc


@pytest.mark.parametrize("n_atoms", [2, 30, 400])
def test_packings_are_dense_and_without_overlap(n_atoms: int) -> None:
    sites = pack_spheres(np.random.default_rng(n_atoms), n_atoms)
    assert pdist(sites).min() > 0.8 * CONTACT
    assert np.ptp(sites, axis=0).max() < 2.3 * (3 * n_atoms / (4 * np.pi)) ** (1 / 3)


@pytest.mark.parametrize("shape", ["wulff", "packed", "sphere", "icosahedron"])
def test_the_core_is_the_first_element(shape: str) -> None:
    for atoms in draw(n=4, shapes=[shape], order="core_shell", rattle=0):
        distance = np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1)
        assert distance[atoms.symbols == "Cu"].max() <= distance[atoms.symbols == "Au"].min() + 1e-9
        assert 12 <= len(atoms) <= 60
        assert find_fault(atoms, Limits()) is None


def test_a_shell_needs_an_element() -> None:
    with pytest.raises(ValueError, match="core_shell needs two elements; give another one"):
        draw(elements={"Cu": 1.0}, order="core_shell")
