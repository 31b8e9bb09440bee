"""Perturbed copies of structures."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.perturb import perturb, swap_atoms

ALLOY = {"generator": "alloys", "elements": {"Cu": 0.5, "Au": 0.5}, "n_atoms": [8, 20], "strain": 0.0, "rattle": 0.02}


def draw(of: Any, seed: int = 0, n: int = 1, **params: Any) -> list[Atoms]:
    stream = perturb(rng=np.random.default_rng(seed), of=check_base(of), **params)
    return [atoms for atoms in islice(stream, n) if isinstance(atoms, Atoms)]


def write(path: Path, *structures: Atoms) -> str:
    ase.io.write(path, list(structures))
    return str(path)


def least_distance(atoms: Atoms) -> float:
    """Return the shortest distance as a fraction of the sum of the covalent radii, by ASE's neighbour list."""
    i, j, distance = neighbor_list("ijd", atoms, 4.0)
    radii = covalent_radii[atoms.numbers]
    return float((distance / (radii[i] + radii[j])).min())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), rattle=st.floats(0.01, 1.0), min_distance=st.floats(0.6, 0.8))
def test_rattle_keeps_the_distance_however_large(seed: int, rattle: float, min_distance: float) -> None:
    (atoms,) = draw(ALLOY, seed, kinds=["rattle", "swap"], rattle=rattle, min_distance=min_distance)
    assert least_distance(atoms) >= min_distance - 1e-9
    assert atoms.info == {"system_type": "alloy"}
    assert find_fault(atoms, Limits()) is None


def test_rattle_has_the_deviation_asked_for(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True).repeat(3)
    of = write(tmp_path / "cu.extxyz", crystal)
    moves = np.concatenate([atoms.positions - crystal.positions for atoms in draw(of, n=10, rattle=0.1)])
    assert moves.std() == pytest.approx(0.1, rel=0.05)


def test_fixed_atoms_and_electrons_are_kept(tmp_path: Path) -> None:
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    slab.arrays["fixed"] = np.repeat(slab.positions[:, 2, None] < 8, 3, axis=1)
    slab.info = {"charge": 1, "name": "mine"}
    of = {"generator": "files", "paths": [write(tmp_path / "slab.traj", constrained(slab))]}
    (atoms,) = draw(of, kinds=["rattle"], rattle=0.3)
    fixed = slab.arrays["fixed"][:, 0]
    np.testing.assert_allclose(atoms.positions[fixed], slab.positions[fixed], atol=1e-6)
    assert (np.abs(atoms.positions[~fixed] - slab.positions[~fixed]).max(axis=1) > 1e-3).all()
    np.testing.assert_array_equal(atoms.arrays["fixed"], slab.arrays["fixed"])


def constrained(atoms: Atoms) -> Atoms:
    from ase.constraints import FixAtoms

    copy = atoms.copy()
    copy.set_constraint(FixAtoms(mask=atoms.arrays["fixed"][:, 0]))
    del copy.arrays["fixed"]
    return copy


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, True)])
def test_strain_and_volume_act_on_periodic_directions_only(pbc: tuple[bool, ...], tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True).repeat(2)
    crystal.rotate(30, "x", rotate_cell=True)
    crystal.pbc = pbc
    of = write(tmp_path / "cell.extxyz", crystal)
    (strained,) = draw(of, kinds=["strain"], strain=0.05)
    np.testing.assert_allclose(
        strained.get_scaled_positions(wrap=False), crystal.get_scaled_positions(wrap=False), atol=1e-6
    )
    deformation = np.linalg.solve(crystal.cell.array, strained.cell.array)
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-6)
    assert np.linalg.matrix_rank(deformation - np.eye(3), tol=1e-6) == sum(pbc)
    (scaled,) = draw(of, kinds=["volume"], volume=(0.8, 0.8))
    assert scaled.get_volume() / crystal.get_volume() == pytest.approx(0.8)


def test_volumes_of_successive_requests_fill_the_range(tmp_path: Path) -> None:
    of = write(tmp_path / "two.extxyz", bulk("Cu"), bulk("Au"))
    factors: dict[str, list[float]] = {"Cu": [], "Au": []}
    for index in range(40):
        (atoms,) = draw(of, kinds=["volume"], volume=(0.8, 1.2), index=index)
        symbol = atoms.get_chemical_formula()
        factors[symbol].append(atoms.get_volume() / bulk(symbol).get_volume())
    for values in factors.values():
        assert len(values) == 20
        assert np.diff(sorted([0.8, *values, 1.2])).max() < 0.06  # a twentieth of the range is 0.02


def test_swaps_exchange_pairs_of_unlike_atoms() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2)
    before = atoms.copy()
    swap_atoms(np.random.default_rng(0), atoms, 0.25)
    moved = np.flatnonzero(np.abs(atoms.positions - before.positions).max(axis=1) > 0.1)
    assert len(moved) == 16
    assert (atoms.numbers[moved] == 11).sum() == 8
    places = {tuple(row) for row in before.positions.round(6).tolist()}
    assert {tuple(row) for row in atoms.positions.round(6).tolist()} == places


def test_all_frames_of_a_file_are_gone_through(tmp_path: Path) -> None:
    of = write(tmp_path / "more.extxyz", molecule("H2O"), molecule("NH3"), molecule("CH4"))
    formulas = [draw(of, index=index)[0].get_chemical_formula() for index in range(6)]
    assert formulas == ["H2O", "H3N", "CH4"] * 2


def test_structures_that_are_too_close_beforehand_are_rejected(tmp_path: Path) -> None:
    of = write(tmp_path / "h2.xyz", Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.4]]))
    made = next(perturb(rng=np.random.default_rng(0), of=check_base(of)))
    assert isinstance(made, Rejection)
    assert made.reason == "overlap"
    assert "before any perturbation" in made.evidence


@pytest.mark.parametrize(
    ("structure", "kinds", "message"),
    [
        (molecule("H2O"), ["strain"], "strain needs a periodic structure, H2O is not; use rattle or swap"),
        (bulk("Cu"), ["swap", "rattle"], "swap needs two elements, Cu has one; leave it out"),
    ],
)
def test_what_does_not_apply_is_refused(structure: Atoms, kinds: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        draw(write(tmp_path / "one.extxyz", structure), kinds=kinds)


def test_what_the_base_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="of: n_atoms: there is no compact supercell of bcc of 5 to 5 atoms"):
        draw({**ALLOY, "n_atoms": 5, "lattices": ["bcc"], "strain": 0})
