"""The user's own files: every format, every way to be broken, and nothing that runs."""

from __future__ import annotations

import logging
import os
import pickle
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write

from daskpipe.core.errors import InputError, Rejection
from daskpipe.runs.outcome_lines import format_left_out_of_seeds
from daskpipe.stages.generate.reading.files import expand_requests, files, find_files
from daskpipe.stages.generate.reading.left_out import MOST_NAMES, NOTED
from daskpipe.stages.generate.stage import to_payloads

WATER = "3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"

PARTLY_OCCUPIED = """data_CuAu
_cell_length_a 3.8
_cell_length_b 3.8
_cell_length_c 3.8
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cu1 Cu 0 0 0 0.75
Au1 Au 0 0 0 0.25
"""


def read(*paths: Path) -> list[Atoms | Rejection]:
    return list(files(rng=np.random.default_rng(0), paths=[str(path) for path in paths]))


def rejected(path: Path) -> Rejection:
    (found,) = read(path)
    assert isinstance(found, Rejection)
    assert found.stage == "generate"
    return found


def frames() -> list[Atoms]:
    """Structures of different size, element and periodicity."""
    return [bulk("Cu") * (2, 1, 1), bulk("NaCl", "rocksalt", a=5.64), molecule("H2O", cell=[9, 9, 9])]


def same(first: Atoms, second: Atoms) -> bool:
    return (
        first.numbers.tolist() == second.numbers.tolist()
        and first.pbc.tolist() == second.pbc.tolist()
        and np.allclose(first.positions, second.positions, atol=1e-6)
        and np.allclose(first.cell.array, second.cell.array, atol=1e-6)
    )


def save_database(path: Path, structures: list[Atoms]) -> None:
    with connect(path) as database:
        for atoms in structures:
            database.write(atoms, total_charge=-1)


@pytest.mark.parametrize("name", ["all.extxyz", "all.xyz", "all.traj", "ALL.XYZ"])
def test_all_frames_come_back(tmp_path: Path, name: str) -> None:
    format_ = "traj" if name.endswith("traj") else "extxyz"
    write(tmp_path / name, frames(), format=format_)
    found = read(tmp_path / name)
    assert len(found) == 3
    for number, (atoms, written) in enumerate(zip(found, frames(), strict=True)):
        assert isinstance(atoms, Atoms)
        assert same(atoms, written)
        assert atoms.info == {"name": f"{tmp_path / name}#{number}"}


def test_database_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    save_database(path, frames())
    before = path.read_bytes()
    found = read(path)
    assert all(isinstance(atoms, Atoms) and same(atoms, row) for atoms, row in zip(found, frames(), strict=True))
    assert all(isinstance(atoms, Atoms) and atoms.info["charge"] == -1 for atoms in found)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.db"]


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR_2", "cell.vasp", "cell.poscar"])
def test_poscar(tmp_path: Path, name: str) -> None:
    written = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    written.set_constraint(FixAtoms([0]))
    write(tmp_path / name, written, format="vasp")
    (atoms,) = read(tmp_path / name)
    assert isinstance(atoms, Atoms)
    assert same(atoms, written)
    assert not atoms.constraints


def test_cif_with_symmetry_and_blocks_without_structure(tmp_path: Path) -> None:
    path = tmp_path / "two.cif"
    write(path, [bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.64, cubic=True)])
    path.write_text("data_global\n_journal_name_full 'Acta'\n" + path.read_text())
    found = read(path)
    assert [len(atoms) for atoms in found if isinstance(atoms, Atoms)] == [4, 8]
    assert all(isinstance(atoms, Atoms) and atoms.pbc.all() for atoms in found)


def test_adf_cell_vectors(tmp_path: Path) -> None:
    path = tmp_path / "adf.xyz"
    path.write_text("1\n\nCu 0 0 0\nVEC1 0 1.8 1.8\nVEC2 1.8 0 1.8\nVEC3 1.8 1.8 0\n" + WATER)
    crystal, water = read(path)
    assert isinstance(crystal, Atoms)
    assert isinstance(water, Atoms)
    assert same(crystal, bulk("Cu", "fcc", a=3.6))
    assert len(water) == 3


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_charges_and_moments_of_atoms_come_back(tmp_path: Path, name: str) -> None:
    written = bulk("NaCl", "rocksalt", a=5.64)
    written.set_initial_charges([0.9, -0.9])
    written.set_initial_magnetic_moments([0.0, 1.5])
    bare = bulk("Cu")
    if name.endswith("db"):
        save_database(tmp_path / name, [written, bare])
    else:
        write(tmp_path / name, [written, bare])
    found, without = read(tmp_path / name)
    assert isinstance(found, Atoms)
    assert found.get_initial_charges().tolist() == [0.9, -0.9]
    assert found.get_initial_magnetic_moments().tolist() == [0.0, 1.5]
    assert isinstance(without, Atoms)
    assert set(without.arrays) == {"numbers", "positions"}


def test_only_geometry_charge_spin_and_fixed_atoms_survive(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info = {"total_charge": 1, "spin": 2, "secret": "x", "virial_note": [1, 2]}
    atoms.set_tags([1, 2, 3])
    atoms.set_velocities(np.ones((3, 3)))
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((3, 3)))
    for name in ("a.extxyz", "a.traj"):
        path = tmp_path / name
        write(path, atoms)
        (found,) = read(path)
        assert isinstance(found, Atoms)
        left_out = found.info.pop(NOTED)
        assert found.info == {"name": f"{path}#0", "charge": 1, "spin_multiplicity": 2}
        assert left_out == ("energy", "forces", "secret", "tags", "velocities", "virial_note")
        assert found.calc is None
        assert not found.constraints
        assert set(found.arrays) == {"numbers", "positions", "fixed"}
        assert found.arrays["fixed"].tolist() == [[True] * 3, [False] * 3, [False] * 3]


def test_spin_zero_means_not_given(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(WATER.replace("\n\n", "\ncharge=0 spin=0\n"))
    (found,) = read(path)
    assert isinstance(found, Atoms)
    assert "spin_multiplicity" not in found.info


@pytest.mark.parametrize(
    ("info", "reason", "evidence"),
    [
        ("charge=0.5", "charge", "charge is .*0.5.*; it must be a whole number"),
        ("total_charge=many", "charge", "total_charge is 'many'"),
        ("charge=300", "charge", "300 e; it must lie within -127 and 127"),
        ("multiplicity=-1", "spin", "spin multiplicity -1"),
        ("spin=1.5", "spin", "spin is"),
    ],
)
def test_impossible_charge_and_spin(tmp_path: Path, info: str, reason: str, evidence: str) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(WATER.replace("\n\n", f"\n{info}\n"))
    found = rejected(path)
    assert found.reason == reason
    assert re.search(evidence, found.evidence)


def test_a_broken_frame_leaves_those_around_it(tmp_path: Path) -> None:
    path = tmp_path / "mixed.xyz"
    path.write_text(WATER + WATER.replace("0.96", "zero") + WATER.replace("O", "Xx") + WATER)
    whole, garbled, unknown, last = read(path)
    assert isinstance(whole, Atoms)
    assert isinstance(last, Atoms)
    assert last.info["name"] == f"{path}#3"
    assert isinstance(garbled, Rejection)
    assert (garbled.structure, garbled.reason) == (f"{path}#1", "unreadable")
    assert "zero" in garbled.evidence
    assert isinstance(unknown, Rejection)
    assert (unknown.structure, unknown.reason) == (f"{path}#2", "unknown_element")
    assert unknown.evidence == "'Xx' is no chemical symbol"


@pytest.mark.parametrize(
    ("tail", "evidence"),
    [
        ("3\n\nO 0 0 0\n", "the file ends after 1 of 3 atoms"),
        ("5", "the file ends after 0 of 5 atoms"),
        ("999999999999\n\n", "the file claims 1e+12 atoms, and has"),
        ("H 0 0 0\n", "expected a line with the number of atoms, received 'H 0 0 0'"),
        ("-3\n\n", "received '-3'"),
    ],
)
def test_frames_before_a_broken_tail_are_kept(tmp_path: Path, tail: str, evidence: str) -> None:
    path = tmp_path / "cut.extxyz"
    path.write_text(WATER + "\n" + WATER + tail)
    first, second, broken = read(path)
    assert isinstance(first, Atoms)
    assert isinstance(second, Atoms)
    assert isinstance(broken, Rejection)
    assert (broken.structure, broken.reason) == (f"{path}#2", "unreadable")
    assert evidence in broken.evidence


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.cif", "POSCAR", "a.vasp", "a.traj", "a.db"])
def test_empty_and_garbage(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    assert (rejected(path).structure, rejected(path).reason) == (str(path), "empty")
    path.write_bytes(bytes(range(256)) * 20)
    assert rejected(path).reason == "unreadable"
    assert rejected(path).evidence.rstrip(": ") != ""


def test_files_without_structures_are_empty(tmp_path: Path) -> None:
    (tmp_path / "blank.xyz").write_text("\n \n")
    (tmp_path / "text.cif").write_text("data_global\n_journal_name_full 'Acta'\n")
    save_database(tmp_path / "none.db", [])
    with connect(tmp_path / "none.db") as database:  # the tables come with the first row
        del database[database.write(Atoms("H"))]
    for name in ("blank.xyz", "text.cif", "none.db"):
        assert rejected(tmp_path / name).reason == "empty", name


def test_unknown_elements_in_other_formats(tmp_path: Path) -> None:
    write(tmp_path / "POSCAR", bulk("Cu"), format="vasp")
    poscar = (tmp_path / "POSCAR").read_text().replace("Cu", "Qq")
    (tmp_path / "POSCAR").write_text(poscar)
    (tmp_path / "a.cif").write_text(
        PARTLY_OCCUPIED.replace("Au1 Au 0 0 0 0.25\n", "").replace("Cu 0 0 0 0.75", "Qq 0 0 0 1")
    )
    for name in ("POSCAR", "a.cif"):
        assert rejected(tmp_path / name).reason == "unknown_element"
        assert rejected(tmp_path / name).evidence == "'Qq' is no chemical symbol"


def test_partial_occupancy(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text(PARTLY_OCCUPIED)
    found = rejected(tmp_path / "a.cif")
    assert found.reason == "partial_occupancy"
    assert "2 of 2 sites are partly occupied, the least by 0.25" in found.evidence


def test_missing_and_strange_files_are_rejections_here(tmp_path: Path) -> None:
    assert rejected(tmp_path / "gone.xyz").reason == "unreadable"
    (tmp_path / "notes.txt").write_text("x")
    found = rejected(tmp_path / "notes.txt")
    assert found.reason == "unknown_format"
    assert "notes.txt is in no known format; known names: POSCAR*, CONTCAR*, *.extxyz" in found.evidence


def test_database_of_another_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    assert "no such table: systems" in rejected(path).evidence
    assert path.read_bytes() == before


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_no_pickle_is_ever_run(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Bomb(canary), protocol=protocol)
    for name in ("a.traj", "a.db", "a.xyz", "a.cif", "POSCAR"):
        for magic in (b"", b"PickleTrajectory"):
            (tmp_path / name).write_bytes(magic + payload)
            assert rejected(tmp_path / name).reason == "unreadable", name
    trajectory = tmp_path / "arrays.traj"
    write(trajectory, bulk("Cu"))
    # An array of objects would hold a pickle; the container's own dtypes are named in its JSON.
    trajectory.write_bytes(trajectory.read_bytes().replace(b'"float64"', b'"object" ') + payload)
    assert rejected(trajectory).reason == "unreadable"
    assert not canary.exists()
    pickle.loads(payload)
    assert canary.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.xyz", "a.xyz", "sub/deep/c.xyz", "sub/POSCAR", ".hidden/d.xyz", "README.md", "e.py", ".f.xyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(WATER)
    return tmp_path


def names(found: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_folders_are_searched_in_order_of_names(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="daskpipe.stages.generate.reading.files"):
        assert names(find_files(["."], folder), folder) == ["a.xyz", "b.xyz", "sub/POSCAR", "sub/deep/c.xyz"]
    assert "skipped 2 files that are in no known format" in caplog.text


def test_globs_and_names_are_taken_as_they_are_and_once(folder: Path) -> None:
    assert names(find_files(["b.xyz", "*.xyz", str(folder / "a.xyz")], folder), folder) == ["b.xyz", "a.xyz"]
    assert names(find_files(["**/*.xyz"], folder), folder) == ["a.xyz", "b.xyz", "sub/deep/c.xyz"]
    assert names(find_files(["README.md", "*.py"], folder), folder) == ["README.md", "e.py"]


def test_a_name_that_looks_like_a_glob_is_a_name_first(folder: Path) -> None:
    (folder / "run[1]").mkdir()
    (folder / "run[1]" / "a.xyz").write_text(WATER)
    assert names(find_files(["run[1]"], folder), folder) == ["run[1]/a.xyz"]
    assert names(find_files(["*.xyz"], folder / "run[1]"), folder) == ["run[1]/a.xyz"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.xyz", r"paths: 'missing.xyz' does not exist in .*; give a file, a folder or a glob"),
        ("*.cif", r"paths: '\*.cif' matches no file in"),
        ("empty", r"paths: 'empty' holds no file of a known name; known: POSCAR\*"),
        ("pipe.xyz", "is neither a file nor a folder"),
    ],
)
def test_paths_that_lead_nowhere(folder: Path, path: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "README").touch()
    os.mkfifo(folder / "pipe.xyz")
    with pytest.raises(InputError, match=message):
        find_files([path], folder)


def test_expand_names_files_from_the_folder_and_sums_their_bytes(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "o.xyz"
    outside.write_text(WATER + WATER)
    params = {"paths": ["*.xyz", str(outside)], "base_dir": "."}
    items = expand_requests(params, None, folder)
    assert [item["paths"] for item, _ in items] == [["a.xyz"], ["b.xyz"], [outside.as_posix()]]
    first, second, third = (digest for _, digest in items)
    assert first == second != third
    (atoms,) = files(rng=np.random.default_rng(0), **items[0][0])
    assert isinstance(atoms, Atoms)
    assert atoms.info["name"] == "a.xyz#0"


# --- what is not taken --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_what_files_hold_and_seeds_have_no_place_for_is_named(name: str, tmp_path: Path) -> None:
    moving = bulk("Cu", cubic=True)
    moving.set_velocities(np.ones((4, 3)))
    moving.set_tags([1, 0, 0, 0])
    moving.set_constraint(FixAtoms([0]))
    moving.set_initial_magnetic_moments([1.0] * 4)
    moving.info |= {"note": "from the beamline", "config_type": "bulk"}
    moving.calc = SinglePointCalculator(moving, energy=-1.0, forces=np.zeros((4, 3)))
    if name.endswith(".db"):
        with connect(tmp_path / name) as database:
            database.write(moving, key_value_pairs={"note": "beamline"}, data={"spectrum": [1.0, 2.0]})
    else:
        write(tmp_path / name, moving)
    (atoms,) = files(rng=np.random.default_rng(0), paths=[name], base_dir=str(tmp_path))
    assert isinstance(atoms, Atoms)
    further = {"spectrum"} if name.endswith(".db") else set()
    assert set(atoms.info[NOTED]) == {"energy", "forces", "note", "tags", "velocities"} | further


@pytest.mark.parametrize(("name", "kind"), [("a.cif", "cif"), ("POSCAR", "vasp"), ("a.traj", None), ("a.extxyz", None)])
def test_of_a_structure_alone_all_is_taken(name: str, kind: str | None, tmp_path: Path) -> None:
    write(tmp_path / name, bulk("NaCl", "rocksalt", a=5.6), format=kind)
    (atoms,) = files(rng=np.random.default_rng(0), paths=[name], base_dir=str(tmp_path))
    assert isinstance(atoms, Atoms)
    assert NOTED not in atoms.info


def test_names_that_are_not_taken_are_counted_and_few(tmp_path: Path) -> None:
    """They go into the receipt of a unit, which is small."""
    notes = " ".join(f"key_{number:02d}=1" for number in range(20))
    (tmp_path / "a.xyz").write_text(
        "".join(f"1\n{notes} often=1\nCu 0 0 {frame}\n" for frame in range(3)) + "1\nrare=1\nCu 0 0 9\n"
    )
    items = list(files(rng=np.random.default_rng(0), paths=["a.xyz"], base_dir=str(tmp_path)))
    (payload,) = to_payloads(items)
    assert len(payload.tallies) == MOST_NAMES + 1
    assert payload.tallies["left_out/key_00"] == 3
    assert sum(payload.tallies.values()) == 3 * 21 + 1
    (line,) = format_left_out_of_seeds(payload.tallies)
    assert line.startswith("not taken: other keys (28), key_00 (3), key_01 (3)")
    assert format_left_out_of_seeds({}) == []
