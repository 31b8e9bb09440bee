"""Files cut into frame ranges: the same frames whatever the size, and copies that keep all that is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.reading.files import read_structures
from daskpipe.stages.generate.reading.frame_ranges import FrameRange, copy_frames, cut_frame_ranges, read_frame_range
from daskpipe.stages.generate.reading.left_out import NOTED

WATER = b"3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
GOLD = b"1\nLattice=\"4 0 0 0 4 0 0 0 4\" charge=-1 note='x y'\nAu 0.1 0.2 0.3\n"
CRLF = GOLD.replace(b"\n", b"\r\n")
SPOKEN = WATER.replace(b"\n\n", '\nnote="Å, größer, 水"\n'.encode())
LATIN = WATER.replace(b"\n\n", b"\nnote=caf\xe9\n")
BARE_RETURN = WATER.replace(b"\n\n", b"\nnote=a\rb\n")
ADF = b"1\nsaid by ADF\nCu 0 0 0\nVEC1 0 1.8 1.8\nVEC2 1.8 0 1.8\nVEC3 1.8 1.8 0\n"
WHOLE = [WATER, GOLD, CRLF, SPOKEN, LATIN, BARE_RETURN, ADF]
"""Frames that can be read."""

GARBLED = WATER.replace(b"0.96", b"zero")
UNKNOWN = WATER.replace(b"O 0", b"Xx 0")
NOT_FINITE = WATER.replace(b"0.96", b"nan")
BROKEN = [GARBLED, UNKNOWN, NOT_FINITE]
"""Frames that cannot, and leave those around them whole."""

BLANK = [b"\n", b" \t\r\n\n"]
ENDS = [
    b"3\n\nO 0 0 0\n", b"5", b"999999999999\n\n", b"9" * 30 + b"\n\n", b"H 0 0 0\n", b"-3\n\n", b"VEC1 1 0 0\n",
    b"\n\nVEC1 1 0 0\n", "٣\n\nO 0 0 0\n".encode(),
]  # fmt: skip
"""From where a file cannot be read any more."""

REASONS = {"unreadable", "unknown_element", "not_finite", "cell"}


def cut(path: Path, size: int) -> list[Atoms | Rejection]:
    """Read a file one frame range at a time."""
    return [item for frame_range in cut_frame_ranges(path, size) for item in read_frame_range(frame_range)]


def told(item: Atoms | Rejection) -> Any:
    """What two readings must agree in; positions as they are stored."""
    if isinstance(item, Rejection):
        return item.structure, item.reason, item.evidence
    positions = item.positions.astype(np.float32).tolist()
    return item.numbers.tolist(), positions, item.cell.tolist(), item.pbc.tolist(), item.info.get("charge")


def check_against_whole(path: Path, sizes: tuple[int, ...]) -> list[Atoms | Rejection]:
    """Compare readings of a file in frame ranges with `read_structures`, which knows nothing of them."""
    # What `read_structures` has no eye for: checks of the geometry come after it.
    expected = [
        None if isinstance(item, Atoms) and not np.isfinite(item.positions).all() else told(item)
        for item in read_structures(path, name=str(path))
    ]
    n_frames = sum(frame_range.n_frames for frame_range in cut_frame_ranges(path, 1))
    for size in sizes:
        pieces = cut_frame_ranges(path, size)
        assert len(pieces) == max(1, -(-n_frames // size)), "the cut took no effect"
        assert [piece.first for piece in pieces] == [number * size for number in range(len(pieces))]
        assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        found = cut(path, size)
        for number, (item, wanted) in enumerate(zip(found, expected, strict=True)):
            if wanted is None:
                assert isinstance(item, Rejection)
                assert (item.structure, item.reason) == (f"{path}#{number}", "not_finite")
            else:
                assert told(item) == wanted
                assert isinstance(item, Atoms) or item.stage == "read"
            if isinstance(item, Atoms):
                assert item.info["step"] == number
    return found


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*WHOLE, *BROKEN, *BLANK]), max_size=12),
    end=st.sampled_from([b"", *ENDS]),
    size=st.integers(1, 5),
)
def test_any_size_gives_the_frames_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], end: bytes, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.xyz"
    path.write_bytes(b"".join(pieces) + end)
    found = check_against_whole(path, (size,))
    if not end.startswith(b"VEC"):  # which would belong to the frame before
        assert sum(isinstance(item, Atoms) for item in found) == sum(piece in WHOLE for piece in pieces)
    assert {item.reason for item in found if isinstance(item, Rejection)} <= {*REASONS, "empty"}


def alloys(n: int) -> list[Atoms]:
    """Labelled structures that differ, with notes of their own."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[index % 4] = "Au"
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info = {"note": f"frame {index}"}
        made.append(atoms)
    return made


def save_database(path: Path, structures: list[Atoms]) -> None:
    """Rows of a database, with a gap in their ids."""
    with connect(path) as database:
        gap = database.write(Atoms("H"))
        for atoms in structures:
            database.write(atoms, total_charge=-1)
        del database[gap]


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.extxyz": lambda path: ase.io.write(path, alloys(7)),
    "A.XYZ": lambda path: ase.io.write(path, alloys(7), format="xyz"),
    "a.traj": lambda path: ase.io.write(path, alloys(7)),
    "a.db": lambda path: save_database(path, alloys(7)),
    "a.cif": lambda path: ase.io.write(path, alloys(7)),
    "one.extxyz": lambda path: ase.io.write(path, alloys(1)),
    "POSCAR": lambda path: ase.io.write(path, alloys(1)[0], format="vasp"),
    "cell.poscar": lambda path: ase.io.write(path, alloys(1)[0], format="vasp"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_any_size_gives_the_frames_of_the_whole_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    found = check_against_whole(path, (1, 2, 3, 7, 100))
    assert len(found) == (7 if name[0] in "aA" else 1)
    assert all(isinstance(item, Atoms) for item in found)
    assert len({str(told(item)) for item in found}) == len(found), "frames that are all alike would show nothing"


@pytest.mark.parametrize("name", ["a.xyz", "a.cif", "POSCAR", "a.traj", "a.db", "a.txt"])
def test_files_that_cannot_be_read_are_one_rejection(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", bytes(range(256)) * 20):
        path.write_bytes(content)
        (piece,) = cut_frame_ranges(path, 2)
        n_frames = int(name == "POSCAR")  # one structure by its name, and known to be none when it is read
        assert piece == FrameRange(path=str(path), first=0, n_frames=n_frames, last=True)
        (item,) = read_frame_range(piece)
        assert isinstance(item, Rejection)
        assert item.structure == (f"{path}#0" if name == "POSCAR" and content else str(path))
    assert [told(item) for item in read_frame_range(piece)] == [
        told(item) for item in read_structures(path, name=str(path))
    ]


def test_a_file_that_went_away_is_a_rejection(tmp_path: Path) -> None:
    (item,) = cut(tmp_path / "gone.xyz", 3)
    assert isinstance(item, Rejection)
    assert item.reason == "unreadable"


def test_a_broken_frame_and_a_broken_tail_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "mixed.xyz"
    path.write_bytes(WATER + GARBLED + GOLD + UNKNOWN + ADF + b"3\n\nO 0 0 0\n")
    found = check_against_whole(path, (1, 2, 3, 5, 6))
    assert [item.info["step"] for item in found if isinstance(item, Atoms)] == [0, 2, 4]
    rejected = {item.structure: (item.reason, item.evidence) for item in found if isinstance(item, Rejection)}
    assert rejected.keys() == {f"{path}#1", f"{path}#3", f"{path}#5"}
    assert rejected[f"{path}#3"] == ("unknown_element", "'Xx' is no chemical symbol")
    assert rejected[f"{path}#5"] == ("unreadable", "ValueError: the file ends after 1 of 3 atoms")


def test_frames_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "odd.xyz"
    # Atoms on top of each other, a spin that these electrons cannot have, moments as vectors, a name that is taken.
    columns = "Properties=species:S:1:pos:R:3:initial_magmoms:R:3"
    path.write_text(f"2\n{columns} spin=2 name=mine step=77\nH 0 0 0 0 0 1\nH 0 0 0.01 0 0 1\n")
    (atoms,) = cut(path, 3)
    assert isinstance(atoms, Atoms)
    assert atoms.info == {"step": 0, "system_type": "molecule", NOTED: ("step",)}  # the file's own step is not taken
    assert set(atoms.arrays) == {"numbers", "positions"}


def test_only_the_bytes_of_a_frame_range_and_what_follows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_bytes(WATER + b"\n" + ADF + WATER + GOLD + WATER)
    first, second, third = cut_frame_ranges(path, 2)
    assert (first.offset, second.offset, third.offset) == (
        0,
        len(WATER) + 1 + len(ADF),
        len(WATER) + 1 + len(ADF) + len(WATER) + len(GOLD),
    )
    whole = [told(item) for item in read_frame_range(second)]
    path.write_bytes(b"#" * second.offset + path.read_bytes()[second.offset :])
    assert [told(item) for item in read_frame_range(second)] == whole


# --- copies -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*WHOLE, *BROKEN, *BLANK]), max_size=12),
    data=st.data(),
)
def test_text_is_copied_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    written = [piece for piece in pieces if piece not in BLANK]
    numbers = sorted(data.draw(st.sets(st.integers(0, max(len(written) - 1, 0))))) if written else []
    (folder / "in.xyz").write_bytes(b"".join(pieces))
    copy_frames([(str(folder / "in.xyz"), numbers)] if numbers else [], folder / "out.extxyz")
    assert (folder / "out.extxyz").read_bytes() == b"".join(written[number] for number in numbers)


def test_a_last_line_without_an_end_gets_one(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(WATER + GOLD.rstrip())
    (tmp_path / "b.xyz").write_bytes(GOLD)
    copy_frames([(str(tmp_path / "a.xyz"), [1]), (str(tmp_path / "b.xyz"), [0])], tmp_path / "out.xyz")
    assert (tmp_path / "out.xyz").read_bytes() == GOLD + GOLD


def test_files_are_copied_in_the_order_given(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.extxyz", alloys(4))
    ase.io.write(tmp_path / "b.traj", alloys(7)[4:])
    picked = [(str(tmp_path / "b.traj"), [0, 2]), (str(tmp_path / "a.extxyz"), [1, 3])]
    copy_frames(picked, tmp_path / "out.extxyz")
    copies = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [atoms.info["note"] for atoms in copies] == ["frame 4", "frame 6", "frame 1", "frame 3"]


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_copies_keep_energies_and_forces(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    copy_frames([(str(tmp_path / name), [1, 2, 6])], tmp_path / "out.extxyz")
    copies = ase.io.read(tmp_path / "out.extxyz", ":")
    written = [alloys(7)[number] for number in (1, 2, 6)]
    for copy, atoms in zip(copies, written, strict=True):
        assert copy.numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(copy.positions, atoms.positions, atol=1e-7)
        assert copy.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        assert np.abs(atoms.get_forces()).max() > 1e-2
        np.testing.assert_allclose(copy.get_forces(), atoms.get_forces(), atol=1e-7)
    if name == "a.db":
        assert [copy.info["total_charge"] for copy in copies] == [-1, -1, -1]
    else:
        assert [copy.info["note"] for copy in copies] == ["frame 1", "frame 2", "frame 6"]


def test_copies_of_other_formats_are_the_frames_that_were_read(tmp_path: Path) -> None:
    held = molecule("H2O", cell=[9, 9, 9], pbc=True)
    held.set_constraint(FixAtoms([0]))
    # The names would mean something else to ASE.
    for name in ("cell.poscar", "POSCAR_@1"):
        ase.io.write(tmp_path / name, held, format="vasp")
        (read_,) = cut(tmp_path / name, 1)
        copy_frames([(str(tmp_path / name), [0])], tmp_path / "out.extxyz")
        assert told(ase.io.read(tmp_path / "out.extxyz")) == told(read_)
    path = tmp_path / "paper.cif"
    ase.io.write(path, alloys(4))
    path.write_text("data_global\n_journal_name_full 'Acta'\n" + path.read_text())
    copy_frames([(str(path), [0, 3])], tmp_path / "out.extxyz")
    first, second = ase.io.read(tmp_path / "out.extxyz", ":")
    expected = [item for item in cut(path, 2) if isinstance(item, Atoms)]
    for copy, atoms in ((first, expected[0]), (second, expected[3])):
        assert copy.numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(copy.positions, atoms.positions, atol=1e-6)


def test_what_is_copied_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_bytes(b"\n".join(WHOLE))
    copy_frames([(str(path), range(len(WHOLE)))], tmp_path / "out.extxyz")

    def geometries(path: Path) -> Iterator[Any]:
        return (told(item) for item in cut(path, 2))

    assert list(geometries(tmp_path / "out.extxyz")) == list(geometries(path))
