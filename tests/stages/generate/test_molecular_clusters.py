"""Dimers and clusters of molecules."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.data import vdw_radii
from chemistry import bonds_of_geometry
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.errors import Rejection
from daskpipe.core.geometry import label_parts
from daskpipe.stages.generate.molecular_clusters import GOLDEN, molecular_clusters


def draw(n: int = 1, *, index: int = 0, seed: int = 0, **params: Any) -> list[Atoms]:
    made = list(islice(molecular_clusters(rng=np.random.default_rng(seed), index=index, **params), n))
    assert not [item for item in made if isinstance(item, Rejection)]
    return made  # type: ignore[return-value]


def closest_contact(atoms: Atoms, n_first: int) -> float:
    """Return the closest contact of the first atoms with the others, as a multiple of van der Waals radii."""
    radii = vdw_radii[atoms.numbers]
    ratios = atoms.get_all_distances() / np.add.outer(radii, radii)
    return float(ratios[:n_first, n_first:].min())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 1000))
def test_dimers_have_the_distance_of_their_request(seed: int, index: int) -> None:
    (dimer,) = draw(seed=seed, index=index, names=["C6H6"], n_molecules=2, distance=(0.8, 1.6))
    expected = 0.8 + 0.8 * ((index * GOLDEN) % 1)
    assert closest_contact(dimer, 12) == pytest.approx(expected, abs=1e-9)


def test_scan_covers_the_range() -> None:
    contacts = sorted(
        closest_contact(draw(index=i, names=["H2O"], n_molecules=2, distance=(1, 2))[0], 3) for i in range(20)
    )
    assert contacts[0] < 1.06
    assert contacts[-1] > 1.94
    assert np.diff(contacts).max() < 0.11


def test_molecules_stay_apart_and_whole() -> None:
    for atoms in draw(10, names=["H2O", "CH4"], n_molecules=(3, 8)):
        parts = label_parts(atoms, 1.25)
        assert sorted(set(np.bincount(parts))) in ([3], [5], [3, 5])
        assert 3 <= parts.max() + 1 <= 8
        assert len(bonds_of_geometry(atoms)) == len(atoms) - (parts.max() + 1)  # both are trees


def test_charge_and_spin_are_those_of_all_molecules() -> None:
    (pair,) = draw(smiles=["[NH4+]"], n_molecules=2)
    assert pair.info == {"charge": 2, "spin_multiplicity": 1, "system_type": "molecular_cluster"}
    (oxygen,) = draw(names=["O2"], n_molecules=3)
    assert oxygen.info["spin_multiplicity"] == 7


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no molecules: give names or smiles"),
        ({"names": ["H2O"], "n_molecules": 1}, "n_molecules: 1 to 1; give numbers within 2 and 200"),
        ({"names": ["H2O"], "distance": (1.5, 1.0)}, "distance: 1.5 to 1; give the smaller one first"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_drawn(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        molecular_clusters(rng=np.random.default_rng(0), index=0, **params)
