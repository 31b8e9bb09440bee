"""Slabs."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.surfaces import FACETS, Facet, surfaces


def draw(seed: int = 0, n: int = 1, **params: object) -> list[Atoms]:
    given = {"elements": {"Cu": (0, 1), "Ag": (0, 1), "Au": (0, 1)}, "n_atoms": (12, 32), **params}
    return list(islice(surfaces(rng=np.random.default_rng(seed), **given), n))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), facet=st.sampled_from(FACETS), vacuum=st.floats(4, 20), low=st.integers(12, 60))
def test_slabs_keep_to_their_parameters(seed: int, facet: Facet, vacuum: float, low: int) -> None:
    (atoms,) = draw(seed, facets=[facet], vacuum=vacuum, n_atoms=(low, 2 * low), rattle=0)
    assert low <= len(atoms) <= 2 * low
    assert atoms.pbc.tolist() == [True, True, False]
    np.testing.assert_allclose(atoms.cell.array[2, :2], 0, atol=1e-9)
    thickness = np.ptp(atoms.positions[:, 2])
    assert atoms.cell.array[2, 2] - thickness == pytest.approx(vacuum)
    assert atoms.positions[:, 2].min() == pytest.approx(vacuum / 2)
    assert atoms.info == {"system_type": "surface"}
    assert find_fault(atoms, Limits()) is None


@pytest.mark.parametrize("facet", FACETS)
def test_layers_and_repeats(facet: Facet) -> None:
    for atoms in draw(n=10, facets=[facet], layers=(3, 4), repeats=3, n_atoms=(1, 100), strain=0, rattle=0):
        n_layers = len(np.unique(atoms.positions[:, 2].round(3)))
        assert n_layers in (3, 4)
        assert len(atoms) == 9 * n_layers


def test_every_facet_occurs_and_is_a_surface() -> None:
    found = draw(n=60, elements={"Cu": 1.0}, n_atoms=12, strain=0, rattle=0)
    thicknesses = {round(float(np.ptp(atoms.positions[:, 2])), 2) for atoms in found}
    assert len(thicknesses) >= len(FACETS) - 1  # fcc111 and hcp0001 have the same spacing
    assert {system_type(atoms) for atoms in found} == {"surface"}


def test_same_stream_same_slab() -> None:
    assert draw(5, n=3) == draw(5, n=3)
    assert draw(5)[0] != draw(6)[0]


def test_impossible_size_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no fcc111 slab with these layers and repeats of 13 to 15 atoms; .* are 12, 16"
    ):
        draw(facets=["fcc111"], n_atoms=(13, 15), layers=(3, 4), repeats=2)
