"""Constraints of ASE and selective dynamics as fixed Cartesian components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixCom, FixedLine, FixedPlane, FixScaled
from ase.io import write
from ase.io.vasp import write_vasp

from daskpipe.core.constraints import fixed_components, from_constraints, to_constraints
from daskpipe.core.errors import Rejection
from daskpipe.core.structures import from_atoms, to_atoms
from daskpipe.stages.generate.reading.files import files
from daskpipe.stages.generate.reading.frame_ranges import copy_frames

FREE, HELD = [False] * 3, [True] * 3
HEIGHT = [False, False, True]


def slab() -> Atoms:
    atoms = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    atoms.info = {}
    return atoms


def fixed_by(*constraints) -> list[list[bool]] | None:
    atoms = slab()
    atoms.set_constraint(constraints)
    fixed = fixed_components(atoms)
    return None if fixed is None else fixed.tolist()


def read(path: Path) -> list[Atoms | Rejection]:
    return list(files(rng=np.random.default_rng(0), paths=[str(path)]))


@pytest.mark.parametrize(
    ("constraint", "of_first"),
    [
        (FixAtoms([0]), HELD),
        (FixCartesian(0, mask=HEIGHT), HEIGHT),
        (FixScaled(0, mask=HELD), HELD),
        (FixScaled(0, mask=HEIGHT), HEIGHT),
        (FixScaled(0, mask=[True, True, False]), [True, True, False]),
        (FixedPlane(0, [0, 0, 2.0]), HEIGHT),
        (FixedLine(0, [0, 0, -1.0]), [True, True, False]),
    ],
    ids=["atoms", "cartesian", "scaled whole", "scaled c", "scaled a b", "plane", "line"],
)
def test_constraints_fix_components(constraint, of_first: list[bool]) -> None:
    assert fixed_by(constraint) == [of_first, FREE, FREE]


def test_constraints_add_up_and_nothing_fixed_is_none() -> None:
    assert fixed_by(FixAtoms([0]), FixedPlane([0, 1], [0, 0, 1]), FixCom()) == [HELD, HEIGHT, FREE]
    assert fixed_by() is fixed_by(FixCom()) is fixed_by(FixAtoms([])) is None


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (FixBondLength(0, 1), "the constraint FixBondLengths cannot be kept, only FixAtoms, .*Write a move_mask"),
        (FixScaled(0, mask=[True, False, False]), r"FixScaled fixes atoms along .*none of x, y and z.*move_mask"),
        (FixedPlane(0, [1, 1, 0]), "FixedPlane fixes atoms along .*none of x, y and z"),
    ],
)
def test_what_is_no_component_is_refused(constraint, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_by(constraint)


@pytest.mark.parametrize(
    "damaged",
    [
        {"name": "FixAtoms", "kwargs": {}},
        {"name": "FixAtoms", "kwargs": {"indices": [7]}},
        {"name": "FixCartesian", "kwargs": {"a": [0]}},
        {"name": "FixAtoms"},
        {"name": ["FixAtoms"], "kwargs": None},
        "FixAtoms",
    ],
)
def test_damaged_constraints_are_refused(damaged) -> None:
    with pytest.raises(ValueError, match="the constraint .*(is damaged|cannot be kept).*move_mask"):
        from_constraints([damaged], 3, np.eye(3))


def test_fixed_components_make_the_same_constraints_again() -> None:
    fixed = np.array([HELD, HEIGHT, FREE, HELD, [True, False, False]])
    atoms = Atoms("Cu5", positions=3.0 * np.eye(5, 3))
    from ase.constraints import dict2constraint

    atoms.set_constraint([dict2constraint(item) for item in to_constraints(fixed)])
    assert fixed_components(atoms).tolist() == fixed.tolist()
    assert to_constraints(np.zeros((2, 3), dtype=bool)) == []


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
@pytest.mark.parametrize("constraints", [[FixAtoms([0, 1])], [FixAtoms([0]), FixCartesian(1, mask=HEIGHT)]])
def test_files_keep_fixed_atoms(name: str, constraints, tmp_path: Path) -> None:
    atoms = slab()
    atoms.set_constraint(constraints)
    write(tmp_path / name, [atoms, atoms])
    for kept in read(tmp_path / name):
        assert isinstance(kept, Atoms)
        assert kept.arrays["fixed"].tolist() == fixed_components(atoms).tolist()
        assert not kept.constraints  # forces stay as they are
        assert to_atoms(from_atoms([kept]), 0).arrays["fixed"].tolist() == kept.arrays["fixed"].tolist()


def test_selective_dynamics_are_kept_or_refused(tmp_path: Path) -> None:
    atoms = slab()
    atoms.set_constraint([FixAtoms([0]), FixScaled(1, mask=HEIGHT)])
    write_vasp(tmp_path / "POSCAR_kept", atoms)
    assert "Selective" in (tmp_path / "POSCAR_kept").read_text()
    (item,) = read(tmp_path / "POSCAR_kept")
    assert item.arrays["fixed"].tolist() == [HELD, HEIGHT, FREE]
    atoms.set_constraint(FixScaled(1, mask=[True, False, False]))
    write_vasp(tmp_path / "POSCAR_oblique", atoms)
    (item,) = read(tmp_path / "POSCAR_oblique")
    assert isinstance(item, Rejection)
    assert item.reason == "constraint"
    # What is selected from it is still constrained.
    copy_frames([(str(tmp_path / "POSCAR_kept"), [0])], tmp_path / "picked.xyz")
    (picked,) = read(tmp_path / "picked.xyz")
    assert picked.arrays["fixed"].tolist() == [HELD, HEIGHT, FREE]


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_isotopes_are_kept_and_the_masses_of_elements_are_not(name: str, tmp_path: Path) -> None:
    heavy, plain = (Atoms("OH2", positions=[[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]]) for _ in range(2))
    heavy.set_masses([15.999, 2.014, 2.014])
    plain.set_masses([15.9994, 1.00794, 1.00794])  # of an older table
    write(tmp_path / name, [heavy, plain])
    deuterated, usual = read(tmp_path / name)
    assert deuterated.get_masses().tolist() == [15.999, 2.014, 2.014]
    assert not usual.has("masses")
    kept = to_atoms(from_atoms([deuterated, usual]), 0)
    assert np.allclose(kept.get_masses(), [15.999, 2.014, 2.014], rtol=1e-7)
    assert not to_atoms(from_atoms([deuterated, usual]), 1).has("masses")
