"""Crystals of known structure types."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.bonding import guess_oxidation, valence_distance
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.crystals import crystals, fit_scale
from daskpipe.stages.generate.prototypes import PROTOTYPES, load_pattern

COORDINATION = {
    "fcc": (12,), "bcc": (8,), "hcp": (12,), "diamond": (4,), "graphite": (3,), "simple_cubic": (6,), "beta_tin": (6,),
    "rocksalt": (6, 6), "cesium_chloride": (8, 8), "zincblende": (4, 4), "wurtzite": (4, 4), "tungsten_carbide": (6, 6),
    "fluorite": (8, 4), "antifluorite": (4, 8), "rutile": (6, 3), "anatase": (6, 3), "brookite": (6, 3),
    "baddeleyite": (7, 3), "cuprite": (2, 4), "cadmium_iodide": (6, 3), "cadmium_chloride": (6, 3),
    "molybdenite": (6, 3), "laves_C15": (16, 6), "L1_2": (12, 12), "D0_19": (12, 12), "rhenium_trioxide": (6, 2),
    "skutterudite": (6, 2), "corundum": (6, 4), "bixbyite": (6, 4), "bismuth_telluride": (6, 6), "heusler": (8, 8, 8),
    "layered_oxide": (6, 6, 6), "delafossite": (2, 6, 4), "chalcopyrite": (4, 4, 4), "perovskite": (12, 6, 2),
    "calcite": (6, 3, 1), "spinel": (4, 6, 4), "zircon": (8, 4, 1), "scheelite": (8, 4, 1), "garnet": (8, 6, 4, 2),
}  # fmt: skip
"""Neighbours within 1.12 times the nearest, by kind of site, as textbooks have them."""

MEASURED = [
    ("rocksalt", ("Mg", "O"), 9.37),  # 4.217 Å
    ("rocksalt", ("Na", "Cl"), 22.43),  # 5.640 Å
    ("cesium_chloride", ("Cs", "Cl"), 35.0),  # 4.123 Å
    ("zincblende", ("Zn", "S"), 19.8),  # 5.410 Å
    ("wurtzite", ("Ga", "N"), 11.42),  # 3.189 and 5.186 Å
    ("fluorite", ("Ca", "F"), 13.59),  # 5.463 Å
    ("rutile", ("Ti", "O"), 10.4),  # 4.594 and 2.959 Å
    ("anatase", ("Ti", "O"), 11.36),  # 3.785 and 9.514 Å
    ("corundum", ("Al", "O"), 8.49),  # 4.759 and 12.99 Å
    ("perovskite", ("Sr", "Ti", "O"), 11.91),  # 3.905 Å
    ("spinel", ("Mg", "Al", "O"), 9.43),  # 8.083 Å
    ("garnet", ("Y", "Al", "Al", "O"), 10.81),  # 12.006 Å
    ("cesium_chloride", ("Cu", "Zn"), 12.85),  # 2.951 Å
    ("L1_2", ("Al", "Ni"), 11.35),  # 3.568 Å
]
"""Structure type, elements by site, measured volume of an atom, Å^3."""

VOLUME_TOLERANCE = 0.1
"""Bond valences and Zen's rule predict volumes to about this."""

PEROVSKITES = {"A": ["Ca", "Sr", "Ba"], "B": ["Ti", "Zr"], "X": ["O"]}


def draw(n: int = 1, *, seed: int = 0, index: int = 0, **params: Any) -> list[Atoms]:
    checked = GENERATORS.check_params("crystals", {"strain": 0, "rattle": 0, **params})
    return list(islice(crystals(rng=np.random.default_rng(seed), index=index, **checked), n))


def space_group(atoms: Atoms) -> int:
    dataset = spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=1e-3)
    assert dataset is not None
    return int(dataset.number)


@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_each_prototype_has_its_space_group(name: str) -> None:
    assert space_group(load_pattern(name).cell) == PROTOTYPES[name].space_group


@pytest.mark.parametrize("name", sorted(COORDINATION))
def test_each_prototype_has_its_coordination(name: str) -> None:
    cell = load_pattern(name).cell
    first, distance = neighbor_list("id", cell, 1.6)
    counts = []
    for kind in np.unique(cell.numbers):
        from_site = distance[first == np.flatnonzero(cell.numbers == kind)[0]]
        counts.append(np.count_nonzero(from_site < 1.12 * from_site.min()))
    assert tuple(counts) == COORDINATION[name]


@pytest.mark.parametrize(("name", "symbols", "volume"), MEASURED)
def test_volumes_are_near_the_measured_ones(name: str, symbols: tuple[str, ...], volume: float) -> None:
    assert fit_scale(name, symbols) ** 3 == pytest.approx(volume, rel=VOLUME_TOLERANCE)


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(PROTOTYPES)), n_cells=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_supercells_keep_symmetry_stoichiometry_and_size(name: str, n_cells: int, seed: int) -> None:
    cell = load_pattern(name).cell
    elements = dict(zip(PROTOTYPES[name].sites, ("Zr", "Ti", "Al", "O"), strict=False))
    high = n_cells * len(cell)
    (atoms,) = draw(prototype=name, elements=elements, n_atoms=[1, high], seed=seed)
    assert len(atoms) <= high
    assert len(atoms) % len(cell) == 0
    expected = np.bincount(cell.numbers)[1:] * len(atoms) // len(cell)
    assert [np.count_nonzero(atoms.symbols == symbol) for symbol in elements.values()] == expected.tolist()
    assert space_group(atoms) == PROTOTYPES[name].space_group
    assert find_fault(atoms, Limits(min_distance=0.55)) is None


def test_elements_are_gone_through_in_turn() -> None:
    drawn = [draw(prototype="perovskite", elements=PEROVSKITES, n_atoms=5, index=index)[0] for index in range(12)]
    formulas = [atoms.get_chemical_formula() for atoms in drawn]
    assert len(set(formulas)) == 6
    assert all(formulas.count(formula) == 2 for formula in formulas)


def test_a_list_on_two_sites_does_not_put_one_element_on_both() -> None:
    both = {"A": ["Ti", "Zr"], "B": ["Ti", "Zr"], "X": ["O"]}
    drawn = [draw(prototype="perovskite", elements=both, n_atoms=5, index=index)[0] for index in range(4)]
    assert {atoms.get_chemical_formula() for atoms in drawn} == {"O3TiZr"}


def test_shared_sites_hold_the_fractions() -> None:
    shared = {"A": {"Ca": 0.25, "Sr": 0.75}, "B": "Ti", "X": "O"}
    (atoms,) = draw(prototype="perovskite", elements=shared, n_atoms=40)
    assert sorted(atoms.get_chemical_formula("metal")) == sorted("Ca2Sr6Ti8O24")
    pure = [fit_scale("perovskite", (symbol, "Ti", "O")) for symbol in ("Ca", "Sr")]
    assert (atoms.get_volume() / 40) ** (1 / 3) == pytest.approx(0.25 * pure[0] + 0.75 * pure[1])


def test_elements_may_stand_in_the_order_of_the_sites() -> None:
    (atoms,) = draw(prototype="rocksalt", elements=["Mg", "O"], n_atoms=8)
    assert atoms.get_chemical_formula() == "Mg4O4"


def test_charge_balance_leaves_out_what_is_not_neutral() -> None:
    mixed = {"A": ["Na", "Sr"], "B": "Ti", "X": "O"}
    drawn = [
        draw(prototype="perovskite", elements=mixed, n_atoms=5, charge_balance=True, index=index)[0]
        for index in range(3)
    ]
    assert {atoms.get_chemical_formula() for atoms in drawn} == {"O3SrTi"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"elements": dict.fromkeys("ABCDEFG", "O"), "n_atoms": 3}, r"perovskite has the sites A, B, X, received"),
        ({"elements": ["Ca", "Sr", "Ba", "Ti", "Zr", "O", "F"], "n_atoms": 3}, r"sites A, B, X, received 7 elements"),
        ({"n_atoms": 3}, r"no supercell of perovskite of 3 to 3 atoms; the nearest sizes are 5"),
        ({"n_atoms": [6, 9]}, r"no supercell of perovskite of 6 to 9 atoms; the nearest sizes are 5, 10"),
        (
            {"elements": {"A": {"Ca": 0.4, "Sr": 0.3, "Ba": 0.3}, "B": "Ti", "X": "O"}, "n_atoms": [5, 10]},
            r"at most 10 atoms has too few sites for 3 elements on one kind of site; raise n_atoms to 15",
        ),
        ({"elements": {"A": "Na", "B": "Ti", "X": "O"}, "charge_balance": True}, r"NaTiO3 do not balance"),
    ],
)
def test_impossible_requests_are_refused_when_called(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**{"prototype": "perovskite", "elements": PEROVSKITES, "n_atoms": 20, **params})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prototype": "perowskite"}, r"unknown prototype 'perowskite'"),
        ({"elements": {"A": "Xx", "B": "Ti", "X": "O"}}, r"unknown element 'Xx'"),
        ({"elements": 3}, r"expected elements by site"),
        ({"elements": {"A": 3}}, r"expected an element, a list of elements or their fractions, received 3"),
        ({"elements": {"A": {"Ca": 0.5}, "B": "Ti", "X": "O"}}, r"fractions of Ca sum to 0\.5"),
    ],
)
def test_parameters_of_the_wrong_kind_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        draw(**{"prototype": "perovskite", "elements": PEROVSKITES, "n_atoms": 20, **params})


def test_oxidation_states_balance_or_there_are_none() -> None:
    assert guess_oxidation("SrTiO3") == {"Sr": 2.0, "Ti": 4.0, "O": -2.0}
    assert guess_oxidation("NaTiO3") == {}
    assert guess_oxidation("CuZn") == {}


def test_bond_of_valence_one_is_the_published_one() -> None:
    assert valence_distance("Ti", "O") == pytest.approx(1.815, abs=0.01)  # Brown and Altermatt's of Ti4+
    assert valence_distance("Ca", "F") == pytest.approx(1.842, abs=0.03)
