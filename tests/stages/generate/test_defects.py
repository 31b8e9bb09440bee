"""Point defects: how many are distinct, and what is left of the crystal."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.spacegroup import crystal
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.defects import defects
from daskpipe.stages.generate.point_defects import DefectKind, distinct_sites, find_empty_sites, list_defects

ROCK_SALT = bulk("MgO", "rocksalt", a=4.21)
RUTILE = crystal(
    ["Ti", "O"], [(0, 0, 0), (0.3053, 0.3053, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
)
PEROVSKITE = crystal(
    ["Sr", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.9, 3.9, 3.9, 90, 90, 90]
)
SPINEL = crystal(
    ["Mg", "Al", "O"],
    [(0.125, 0.125, 0.125), (0.5, 0.5, 0.5), (0.2624, 0.2624, 0.2624)],
    spacegroup=227,
    setting=2,
    cellpar=[8.08, 8.08, 8.08, 90, 90, 90],
)


@pytest.fixture
def rock_salt(tmp_path: Path) -> str:
    ase.io.write(tmp_path / "mgo.extxyz", ROCK_SALT)
    return str(tmp_path / "mgo.extxyz")


def draw(of: Any, seed: int = 0, n: int = 1, **params: Any) -> list[Atoms]:
    given = {"n_atoms": (40, 80), "of": check_base(of), **params}
    return [atoms for atoms in islice(defects(rng=np.random.default_rng(seed), **given), n) if isinstance(atoms, Atoms)]


@pytest.mark.parametrize(
    ("structure", "n_sites"),
    [(bulk("Cu", cubic=True), 1), (bulk("Mg"), 1), (ROCK_SALT, 2), (RUTILE, 2), (PEROVSKITE, 3), (SPINEL, 3)],
)
def test_distinct_sites_are_the_orbits_of_the_structure(structure: Atoms, n_sites: int) -> None:
    sites = distinct_sites(structure)
    assert len(sites) == n_sites
    assert len(list_defects(structure, "vacancy", (), 0.65)) == n_sites
    n_elements = len(set(structure.symbols))
    assert len(list_defects(structure, "antisite", (), 0.65)) == n_sites * (n_elements - 1)


@pytest.mark.parametrize(
    ("structure", "fractions"),
    [
        (bulk("Cu", cubic=True), [(0.5, 0.5, 0.5), (0.25, 0.25, 0.25)]),  # octahedral and tetrahedral
        (bulk("Fe", cubic=True), [(0.5, 0.5, 0.0), (0.5, 0.25, 0.0)]),
        (bulk("Si", cubic=True), [(0.5, 0.5, 0.5), (0.625, 0.625, 0.125)]),  # tetrahedral and hexagonal
        (bulk("MgO", "rocksalt", a=4.21, cubic=True), [(0.25, 0.25, 0.25)]),
    ],
)
def test_known_interstitial_sites_occur_once(structure: Atoms, fractions: list[tuple[float, ...]]) -> None:
    import spglib

    symmetry = spglib.get_symmetry((structure.cell.array, structure.get_scaled_positions(), structure.numbers))
    sites = find_empty_sites(structure)
    for fraction in fractions:
        orbit = symmetry["rotations"] @ np.array(fraction) + symmetry["translations"]
        offsets = np.array(sites)[:, None] - orbit
        offsets -= np.rint(offsets)
        assert (np.abs(offsets).max(axis=2).min(axis=1) < 1e-3).sum() == 1


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("vacancy", [{"Mg": 1}, {"O": 1}]),
        ("interstitial", [{"Mg": -1}, {"O": -1}]),
        ("antisite", [{"Mg": 1, "O": -1}, {"Mg": -1, "O": 1}]),
        ("frenkel", [{}]),
        ("schottky", [{"Mg": 1, "O": 1}]),
    ],
)
def test_each_kind_changes_the_composition_as_it_should(
    kind: DefectKind, change: list[dict[str, int]], rock_salt: str
) -> None:
    seen = []
    for atoms in draw(rock_salt, kinds=[kind], n_atoms=(50, 60), n=4):
        counts = Counter(atoms.symbols)
        perfect = max(counts.values()) if kind != "interstitial" else min(counts.values())
        if kind in ("antisite", "frenkel", "schottky"):
            perfect = -(-len(atoms) // 2) + (kind == "schottky")
        missing = {symbol: perfect - n for symbol, n in sorted(counts.items()) if n != perfect}
        assert missing in change
        seen.append(missing)
        assert 50 <= len(atoms) <= 60
        assert atoms.info == {"system_type": "defect"}
    assert all(one in seen for one in change)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 50))
def test_defects_of_random_alloys_are_valid(seed: int, index: int) -> None:
    alloy = {"generator": "alloys", "elements": {"Cu": 0.5, "Au": 0.5}, "n_atoms": [4, 8], "rattle": 0.02}
    (atoms,) = draw(alloy, seed, index=index, dopants=["Ni"])
    assert 40 <= len(atoms) <= 80
    assert find_fault(atoms, Limits()) is None


def test_dopants_and_distinct_defects_are_gone_through(rock_salt: str) -> None:
    made = [draw(rock_salt, index=index, kinds=["substitution"], dopants=["Al", "Ca"])[0] for index in range(4)]
    assert {*made[0].symbols, *made[1].symbols, *made[2].symbols, *made[3].symbols} == {"Mg", "O", "Al", "Ca"}
    hosts = {"Mg" if Counter(atoms.symbols)["Mg"] < Counter(atoms.symbols)["O"] else "O" for atoms in made}
    assert hosts == {"Mg", "O"}


def test_frenkel_pairs_are_apart(rock_salt: str) -> None:
    for atoms in draw(rock_salt, kinds=["frenkel"], n_atoms=(100, 200), n=4, rattle=0):
        supercell = atoms[:-1]  # the interstitial is last
        nearest = atoms.get_distances(-1, list(range(len(supercell))), mic=True).min()
        assert nearest > 1.2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kinds": ["substitution"]}, "substitution needs foreign elements; give dopants"),
        ({"n_atoms": 6, "kinds": ["vacancy"]}, r"no supercell of MgO with a defect of 6 to 6 atoms; .* are 3, 7, 15"),
    ],
)
def test_what_is_impossible_is_refused(params: dict[str, Any], message: str, rock_salt: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(rock_salt, **params)


def test_wrong_bases_are_refused(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "h2o.extxyz", molecule("H2O"))
    with pytest.raises(ValueError, match="H2O is not periodic along three axes; give a crystal"):
        draw(str(tmp_path / "h2o.extxyz"))
    ase.io.write(tmp_path / "cu.extxyz", bulk("Cu"))
    with pytest.raises(ValueError, match=r"Cu has no antisite \(min_distance 0.62\)"):
        draw(str(tmp_path / "cu.extxyz"), kinds=["vacancy", "antisite"])
