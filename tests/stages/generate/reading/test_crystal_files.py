"""POSCAR and CIF: elements are read where they are named, and what is missing is said in the field's words."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.reading.files import read_structures

POSCAR = "{header}\n1.0\n 4.0 0.0 0.0\n 0.0 4.0 0.0\n 0.0 0.0 4.0\n{species} {counts}\nDirect\n" + (
    "0.1 0.1 0.1\n0.5 0.5 0.5\n0.3 0.7 0.2\n"
)

CIF = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
{group}
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cu1 Cu 0 0 0
Au1 Au 0.5 {y} 0.5
"""


def only(path: Path, text: str) -> Atoms | Rejection:
    path.write_text(text)
    (item,) = read_structures(path, name=path.name)
    return item


@pytest.mark.parametrize(
    ("header", "counts"),
    [
        ("In situ relaxed", "2 1"),  # indium and silence
        ("No comment", "3"),  # nobelium
        ("He said", "3"),
        ("Cu slab with O", "2 1"),
        ("POSCAR Cu Au", "2 1"),  # P, O, S, C and argon
        ("Cu Au O", "2 1"),
        ("Cu", "2 1"),
        ("CuAu", "2 1"),
        ("", "3"),
    ],
)
def test_free_text_names_no_elements(header: str, counts: str, tmp_path: Path) -> None:
    item = only(tmp_path / "POSCAR", POSCAR.format(header=header, species="", counts=counts))
    assert isinstance(item, Rejection)
    assert item.reason == "no_species"
    n = len(counts.split())
    assert item.evidence == (
        f"no line of species, and the header {header!r} is not made of {n} chemical symbol{'s' * (n > 1)}; add one "
        f"before the line of counts {counts!r}, e.g. {'Cu Au' if n > 1 else 'Cu'!r}"
    )


@pytest.mark.parametrize(
    ("header", "species", "counts", "formula"),
    [
        ("Cu Au", "", "2 1", "Cu2Au"),
        ("No comment", "Cu Au\n", "2 1", "Cu2Au"),
        ("Au Cu", "Cu Au\n", "2 1", "Cu2Au"),
        ("x", "Cu_pv Au/6a2f546d\n", "2 1 ! counts", "Cu2Au"),
        ("x", "Cu Au Cu\n", "1 1 1", "CuAuCu"),
        ("In", "", "3", "In3"),
    ],
)
def test_a_line_of_species_names_them(header: str, species: str, counts: str, formula: str, tmp_path: Path) -> None:
    item = only(tmp_path / "POSCAR", POSCAR.format(header=header, species=species, counts=counts))
    assert isinstance(item, Atoms)
    assert str(item.symbols) == formula


def test_as_many_counts_as_species(tmp_path: Path) -> None:
    """ASE takes the first species where there are too many."""
    item = only(tmp_path / "POSCAR", POSCAR.format(header="x", species="Cu Au O\n", counts="2 1"))
    assert isinstance(item, Rejection)
    assert item.evidence == "3 species (Cu Au O) and 2 counts (2 1); give a count for each species"


@pytest.mark.parametrize(
    ("group", "received"), [("_symmetry_space_group_name_H-M 'weird'", "weird"), ("_space_group_IT_number 999", "999")]
)
def test_a_cif_without_a_known_group(group: str, received: str, tmp_path: Path) -> None:
    item = only(tmp_path / "a.cif", CIF.format(group=group, y=0.5))
    assert isinstance(item, Rejection)
    assert re.fullmatch(
        rf"the space group is not known \(received '{received}'\): add the line _space_group_IT_number with its "
        "number, or the symmetry operations, or write the structure in P1",
        item.evidence,
    )


def test_a_cif_that_says_nothing_of_symmetry_is_p1(tmp_path: Path) -> None:
    item = only(tmp_path / "a.cif", CIF.format(group="", y=0.5))
    assert isinstance(item, Atoms)
    assert str(item.symbols) == "CuAu"
    np.testing.assert_allclose(item.positions[1], [2, 2, 2])


@pytest.mark.parametrize("unknown", ["?", "."])
def test_a_cif_with_unknown_coordinates(unknown: str, tmp_path: Path) -> None:
    item = only(tmp_path / "a.cif", CIF.format(group="", y=unknown))
    assert isinstance(item, Rejection)
    assert item.evidence == (
        f"1 of 2 sites have no number for _atom_site_fract_y (but {unknown!r}); give a structure in which each site "
        "has its coordinates"
    )
