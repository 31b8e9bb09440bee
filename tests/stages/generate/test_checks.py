"""What is rejected, and the kinds of systems."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from daskpipe.stages.generate.checks import Fault, Limits, find_fault, system_type

LIMITS = Limits()


def fault(atoms: Atoms, **limits: float) -> Fault:
    found = find_fault(atoms, Limits.model_validate(limits))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "atoms", [molecule("CH3CH2OH"), bulk("Cu"), bulk("NaCl", "rocksalt", a=5.64), fcc111("Au", (1, 1, 3), vacuum=5)]
)
def test_real_structures_pass(atoms: Atoms) -> None:
    assert find_fault(atoms, LIMITS) is None


def test_check_leaves_the_structure_alone() -> None:
    atoms = bulk("Cu") * (2, 2, 2)
    atoms.positions += 100
    before = atoms.copy()
    find_fault(atoms, LIMITS)
    assert atoms == before


@pytest.mark.parametrize(
    ("atoms", "reason", "evidence"),
    [
        (Atoms(), "empty", "no atoms"),
        (Atoms("X"), "unknown_element", "atom 0 has atomic number 0"),
        (Atoms([29, 119], [[0, 0, 0], [0, 0, 3]]), "unknown_element", "atom 1 has atomic number 119"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), "not_finite", r"atom 1 is at \[ ?0\. +0\. +nan\]"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.inf]]), "not_finite", "inf"),
        (Atoms("H", [[0, 0, 1e30]]), "not_finite", "within 1e"),
        (Atoms("H", cell=[np.nan, 5, 5], pbc=True), "not_finite", "the cell is"),
        (Atoms("H", pbc=True), "cell", "periodic along a, b, c but the cell vectors span nothing"),
        (Atoms("H", cell=[[5, 0, 0], [10, 0, 0], [0, 0, 5]], pbc=True), "cell", "span nothing"),
        (Atoms("H", cell=[5, 0, 5], pbc=(True, True, False)), "cell", "periodic along a, b "),
        (Atoms("H", cell=[5, 5, 0.1], pbc=True), "cell", r"the cell is 0\.1 Å thin; the limit is 0\.5 Å"),
        (Atoms("HF", charges=[1, np.nan]), "charge", "initial_charges of atom 1 is nan; give one number for each atom"),
        (Atoms("HF", magmoms=[np.inf, 0]), "spin", "initial_magmoms of atom 0 is inf"),
        (Atoms("HF", magmoms=np.zeros((2, 3))), "spin", "initial_magmoms are vectors of 3; give one number an atom"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.3]]), "overlap", r"atom 1 \(H\) is 0\.300 Å from atom 0 \(H\); .* 0\.372 Å"),
        (Atoms("H2"), "overlap", r"is 0\.000 Å"),
        (Atoms("Cu", cell=[1.5, 9, 9], pbc=True), "overlap", r"atom 0 \(Cu\) is 1\.500 Å from its own image \(Cu\)"),
        (Atoms("CuAu", [[0.1, 0, 0], [9.8, 0, 0]], cell=[10, 10, 10], pbc=True), "overlap", r"0\.300 Å"),
        (Atoms("Cu500", np.zeros((500, 3)), cell=[5, 5, 5], pbc=True), "overlap", "leaves no room"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_bad_structures_are_named(atoms: Atoms, reason: str, evidence: str) -> None:
    found = fault(atoms)
    assert found.reason == reason
    assert re.search(evidence, found.evidence), found.evidence


def test_a_cell_is_as_wide_as_the_potential_needs() -> None:
    slab = Atoms("Cu4", [[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [2.5, 2.5, 0]], cell=[5, 5, 0], pbc=(True, True, False))
    assert find_fault(slab, Limits(min_width=4.9)) is None  # the open axis has no width
    assert fault(slab, min_width=12.0) == Fault("cell", "the cell is 5 Å thin; the limit is 12 Å")


def test_too_large() -> None:
    assert fault(bulk("Cu") * (3, 3, 3), max_atoms=26) == Fault("too_large", "27 atoms; the limit is max_atoms = 26")
    assert find_fault(bulk("Cu") * (3, 3, 3), Limits(max_atoms=27)) is None


def test_open_axes_need_no_cell_vector() -> None:
    wire = Atoms("Au", cell=[0, 0, 2.9], pbc=(False, False, True))
    assert find_fault(wire, LIMITS) is None
    wire.cell[2, 2] = 1.0
    assert fault(wire).reason == "overlap"


def test_images_count_only_along_periodic_axes() -> None:
    atoms = Atoms("Cu2", [[0.1, 0, 0], [9.9, 0, 0]], cell=[10, 10, 10], pbc=(True, False, False))
    assert fault(atoms).reason == "overlap"
    atoms.pbc = (False, True, True)
    assert find_fault(atoms, LIMITS) is None


def test_limit_scales_with_the_covalent_radii() -> None:
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 1.8]])
    assert find_fault(atoms, Limits(min_distance=0.6)) is None
    assert fault(atoms, min_distance=0.7).reason == "overlap"
    atoms.positions[1] = 0
    assert find_fault(atoms, Limits(min_distance=0)) is None


@pytest.mark.parametrize(
    ("charge", "multiplicity", "passes"),
    [(0, 1, True), (0, 3, True), (0, 2, False), (1, 2, True), (11, 1, False), (0, 13, False)],
)
def test_spin_must_fit_the_electrons(charge: int, multiplicity: int, passes: bool) -> None:
    water = molecule("H2O")
    water.info = {"charge": charge, "spin_multiplicity": multiplicity}
    found = find_fault(water, LIMITS)
    assert (found is None) == passes
    assert found is None or re.search("electrons cannot have spin multiplicity", found.evidence)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n_atoms=st.integers(1, 30),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    size=st.floats(3, 12),
)
def test_overlap_agrees_with_a_neighbour_list(
    seed: int, n_atoms: int, pbc: tuple[bool, bool, bool], size: float
) -> None:
    rng = np.random.default_rng(seed)
    atoms = Atoms(
        rng.choice([1, 6, 29, 55], n_atoms),
        rng.uniform(-20, 20, (n_atoms, 3)),
        cell=size * (np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3))),
        pbc=pbc,
    )
    radii = LIMITS.min_distance * covalent_radii[atoms.numbers]
    found = find_fault(atoms, LIMITS)
    assert (found is not None) == bool(len(neighbor_list("i", atoms, radii)))
    assert found is None or found.reason == "overlap"


def test_a_heap_of_atoms_in_one_place_is_found_at_once() -> None:
    """All pairs of it would be 5e7."""
    assert fault(Atoms(np.full(10_000, 29), np.zeros((10_000, 3)))).reason == "overlap"


def test_limits_refuse_unknown_keys_and_nonsense() -> None:
    with pytest.raises(ValidationError, match="max_atom"):
        Limits.model_validate({"max_atom": 5})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Limits(max_atoms=0)


def across_the_vacuum() -> Atoms:
    """Slab whose in-plane vectors are written as sums with the one through the vacuum: no face of the cell is empty."""
    atoms = fcc111("Au", (2, 2, 3), vacuum=6, periodic=True)
    vectors = atoms.cell.array
    atoms.set_cell([vectors[0] + vectors[2], vectors[1] - vectors[2], vectors[2]])
    atoms.wrap()
    return atoms


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (bulk("Cu"), "bulk"),
        (bulk("Cu") * (5, 5, 5), "bulk"),
        (fcc111("Au", (2, 2, 3), vacuum=6), "surface"),
        (fcc111("Au", (2, 2, 3), vacuum=6, periodic=True), "surface"),
        (Atoms("Au", cell=[20, 20, 2.9], pbc=True), "wire"),
        (Atoms("Au", cell=[0, 0, 2.9], pbc=[False, False, True]), "wire"),
        (across_the_vacuum(), "surface"),
        (molecule("C6H6"), "molecule"),
        (molecule("C6H6", cell=[15, 15, 15], pbc=True), "molecule"),
        (Atoms("Au2Cu", [[0, 0, 0], [0, 0, 2.6], [0, 0, 5.2]]), "cluster"),
    ],
)
def test_system_type_goes_by_geometry(atoms: Atoms, kind: str) -> None:
    pbc = atoms.pbc.copy()
    assert system_type(atoms) == kind
    np.testing.assert_array_equal(atoms.pbc, pbc)
