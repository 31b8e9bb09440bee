"""Extended XYZ as users write it: what it says is read, and what it does not say clearly is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.reading.extxyz import parse_frame, parse_pbc, split_comment
from daskpipe.stages.generate.reading.files import read_structures
from daskpipe.stages.generate.reading.left_out import NOTED

CELL = 'Lattice="4 0 0 0 5 0 0 0 6"'
ROWS = "Cu 0 0 0\nAu 2 2 2\n"


def frame(comment: str, rows: str = ROWS) -> Atoms:
    return parse_frame(f"2\n{comment}\n{rows}".encode())


def refusal(comment: str, folder: Path, rows: str = ROWS) -> Rejection:
    (folder / "a.xyz").write_text(f"2\n{comment}\n{rows}")
    (item,) = read_structures(folder / "a.xyz", name="a.xyz")
    assert isinstance(item, Rejection), item
    return item


# --- keys and periodicity -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["Lattice", "lattice", "LATTICE", "LaTTice"])
def test_a_cell_is_a_cell_in_any_case(word: str) -> None:
    atoms = frame(f'{word}="4 0 0 0 5 0 0 0 6" properties=species:S:1:pos:R:3 Energy=-1')
    assert atoms.cell.array.tolist() == np.diag([4.0, 5.0, 6.0]).tolist()
    assert atoms.pbc.all()
    assert atoms.info == {"Energy": -1}


def test_without_a_cell_nothing_is_periodic() -> None:
    assert not frame("energy=1").pbc.any()
    assert not frame("").pbc.any()


@pytest.mark.parametrize(
    "text",
    [
        "TTF",
        "T T F",
        "T, T, F",
        "ttf",
        "1 1 0",
        "110",
        "true true false",
        "True True False",
        "TRUE TRUE FALSE",
        "[T,T,F]",
    ],
)
def test_forms_of_pbc(text: str) -> None:
    assert parse_pbc(text) == (True, True, False)
    assert frame(f'{CELL} PBC="{text}"').pbc.tolist() == [True, True, False]


@pytest.mark.parametrize(("text", "periodic"), [("T", True), ("F", False), ("1", True), ("0", False), ("true", True)])
def test_one_truth_stands_for_all_axes(text: str, periodic: bool) -> None:
    assert frame(f"{CELL} pbc={text}").pbc.tolist() == [periodic] * 3


@pytest.mark.parametrize("text", ["p p f", "xyz", "TF", "T T", "2 1 1", "yes", "1.0 1.0 0.0", "T T F F", ""])
def test_other_forms_of_pbc_are_refused(text: str, tmp_path: Path) -> None:
    item = refusal(f'{CELL} pbc="{text}"', tmp_path)
    assert item.reason == "pbc"
    assert item.evidence == f'pbc={text!r} is not understood; write three of T and F, e.g. pbc="T T F"'


@pytest.mark.parametrize(
    ("comment", "reason", "evidence"),
    [
        ('Lattice="4 5 6"', "cell", "Lattice='4 5 6'; write nine numbers"),
        ('Lattice="4 5 6 90 90 90"', "cell", "write nine numbers"),
        ("Lattice=[[4,0,0],[0,5,0],[0,0,6]]", "cell", "write nine numbers"),
        ("Lattice=bcc", "cell", "Lattice='bcc'; write nine numbers"),
        ('cell="4 0 0 0 5 0 0 0 6"', "cell", "the comment has 'cell' and no Lattice; write Lattice="),
        ('Box="4 5 6" energy=1', "cell", "the comment has 'Box' and no Lattice"),
        (f'{CELL} lattice="4 0 0 0 5 0 0 0 7"', "unreadable", "the comment has two values for lattice"),
        (f'note="unclosed {CELL}', "unreadable", "Lattice= stands within another value of the comment"),
        (f"{CELL} Properties=species:S:1:pos:R:3:x", "unreadable", "is no list of NAME:TYPE:COUNT"),
        (f"{CELL} Properties=species:S:1:pos:R:3:x:Q:1", "unreadable", "x:Q:1 is no NAME:R|I|S|L:COUNT"),
        (f"{CELL} Properties=species:S:1:frac_pos:R:3", "unreadable", r"lacks species:S:1 (or Z:I:1) or pos:R:3"),
        (f"{CELL} Properties=species:S:1:pos:R:3:x:R:1", "unreadable", "claims 5 columns, and the first atom has 4"),
        (f"{CELL} Properties=pos:R:3:species:S:1", "unreadable", "positions: could not convert string to float: 'Cu'"),
    ],
)
def test_what_would_be_guessed_is_refused(comment: str, reason: str, evidence: str, tmp_path: Path) -> None:
    item = refusal(comment, tmp_path)
    assert item.reason == reason
    assert evidence in item.evidence


def test_more_columns_than_properties_names_are_refused(tmp_path: Path) -> None:
    item = refusal(f"{CELL} Properties=species:S:1:pos:R:3", tmp_path, "Cu 0 0 0\nAu 2 2 2 0.5\n")
    assert item.evidence == "the comment claims 4 columns, and atom 1 has 5"
    # A file that names no columns has those of plain XYZ, and further ones without a name.
    assert frame("", "Cu 0 0 0 0.5\nAu 2 2 2 0.7\n").arrays["column 5"].tolist() == ["0.5", "0.7"]


def test_symbols_and_atomic_numbers_must_agree(tmp_path: Path) -> None:
    properties = "Properties=species:S:1:Z:I:1:pos:R:3"
    assert frame(properties, "Cu 29 0 0 0\nAu 79 2 2 2\n").numbers.tolist() == [29, 79]
    item = refusal(properties, tmp_path, "Cu 29 0 0 0\nAu 78 2 2 2\n")
    assert item.evidence == "atom 1 is 'Au' and has the atomic number 78"


# --- bad labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label",
    [
        "stress=None", 'stress="1 2 3 4 5 6"', 'stress="1 2 3"', "stress=1.0", "stress=", 'virial="1 2 3 4 5 6"',
        "virial=None", "energy=None", "energy=", "energy=many", "energy=1 energy=2", 'energy="1 2"', "free_energy=x",
        "dipole=None", 'magmom="1 2 3"', 'j="_JSON {"', 'j="_JSON [[1], [1, 2]]"',
    ],
)  # fmt: skip
def test_a_bad_label_never_costs_the_geometry(label: str) -> None:
    atoms = frame(f"{label} {CELL}")
    assert atoms.numbers.tolist() == [29, 79]
    assert atoms.cell.volume == pytest.approx(120)


@pytest.mark.parametrize(
    ("column", "words"), [("forces:R:3", "1 2 nan?"), ("forces:R:2", "1 2"), ("tags:I:1", "1.5"), ("spin:L:1", "up")]
)
def test_a_bad_column_never_costs_the_geometry(column: str, words: str) -> None:
    atoms = frame(f"{CELL} Properties=species:S:1:pos:R:3:{column}", f"Cu 0 0 0 {words}\nAu 2 2 2 {words}\n")
    name = column.partition(":")[0]
    assert atoms.positions[1].tolist() == [2, 2, 2]
    assert atoms.calc is None
    assert np.ravel(atoms.arrays[name])[:1].astype(str).tolist() in ([words.split()[0]], ["1.0"])


def test_results_are_those_of_ase() -> None:
    keys = 'energy=-3 free_energy=-4 stress="1 2 3 2 5 6 3 6 9" note=x'
    atoms = frame(
        f"{CELL} {keys} Properties=species:S:1:pos:R:3:forces:R:3:magmoms:R:1",
        "Cu 0 0 0 1 2 3 0.5\nAu 2 2 2 -1 -2 -3 0.25\n",
    )
    assert atoms.calc is not None
    found = atoms.calc.results
    assert (found["energy"], found["free_energy"]) == (-3, -4)
    assert found["stress"].tolist() == [1, 5, 9, 6, 3, 2]
    assert found["forces"].tolist() == [[1, 2, 3], [-1, -2, -3]]
    assert found["magmoms"].tolist() == [0.5, 0.25]
    assert atoms.info == {"note": "x"}


def test_what_may_not_move_is_a_constraint() -> None:
    atoms = frame(f"{CELL} Properties=species:S:1:pos:R:3:move_mask:L:1", "Cu 0 0 0 F\nAu 2 2 2 T\n")
    assert atoms.constraints[0].index.tolist() == [0]
    atoms = frame(f"{CELL} Properties=species:S:1:pos:R:3:move_mask:L:3", "Cu 0 0 0 F T T\nAu 2 2 2 T T 1\n")
    assert [constraint.mask.tolist() for constraint in atoms.constraints] == [[True, False, False], [False] * 3]


# --- the comment --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comment", "pairs", "words"),
    [
        ("a=1 b = 2 c= 3 d =4", [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")], []),
        ("""a="x y" b='x "y"' c={x y} d=[x y]""", [("a", "x y"), ("b", 'x "y"'), ("c", "x y"), ("d", "x y")], []),
        ("a=[[1, 2], [3, 4]] b=2", [("a", "[1, 2], [3, 4]"), ("b", "2")], []),
        (r'a="say \"x\"" b=2', [("a", 'say "x"'), ("b", "2")], []),
        ("it's a=don't b=2", [("a", "don't"), ("b", "2")], ["it's"]),
        ('a=5" b=2', [("a", '5"'), ("b", "2")], []),
        ("url=http://x?y=z b=2", [("url", "http://x?y=z"), ("b", "2")], []),
        ("plain words", [], ["plain", "words"]),
        ("a=", [("a", "")], []),
        ("a= b=2", [("a", ""), ("b", "2")], []),
    ],
)
def test_comments_are_split_where_people_mean_it(comment: str, pairs: list[tuple[str, str]], words: list[str]) -> None:
    assert split_comment(comment) == (pairs, words)


def test_words_of_a_comment_are_no_keys(tmp_path: Path) -> None:
    """ASE makes each a truth, and a charge of True would be +1."""
    (tmp_path / "a.xyz").write_text(f"2\nno charge, no spin, pbc unknown\n{ROWS}")
    (item,) = read_structures(tmp_path / "a.xyz", name="a.xyz")
    assert isinstance(item, Atoms)
    assert item.info == {"name": "a.xyz#0", NOTED: ("comment",)}
    assert not item.pbc.any()
    assert re.search("whole number", refusal("charge=T", tmp_path).evidence)
