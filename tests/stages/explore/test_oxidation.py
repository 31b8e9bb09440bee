"""Oxidation states: what is given counts, and guesses are those that pymatgen ranks first."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import atomic_numbers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition

from daskpipe.stages.explore.oxidation import guess_states, oxidation_states


def placed(formula: str, **info: int) -> Atoms:
    atoms = Atoms(formula, info=info)
    atoms.positions[:, 0] = 3 * np.arange(len(atoms))
    return atoms


def by_symbol(atoms: Atoms) -> dict[str, float]:
    states = oxidation_states(atoms, {})
    found = {symbol: set(states[atoms.symbols == symbol].tolist()) for symbol in set(atoms.symbols)}
    assert all(len(values) == 1 for values in found.values())
    return {symbol: values.pop() for symbol, values in found.items()}


def test_charges_of_the_structure_come_first():
    atoms = placed("MgO")
    atoms.set_initial_charges([1.7, -1.7])
    assert oxidation_states(atoms, {"Mg": 2, "O": -2}).tolist() == [1.7, -1.7]


def test_charges_that_are_all_zero_say_nothing():
    atoms = placed("MgO")
    atoms.set_initial_charges([0, 0])
    assert oxidation_states(atoms, {"Mg": 1.5, "O": -1.5}).tolist() == [1.5, -1.5]
    assert oxidation_states(atoms, {}).tolist() == [2, -2]


def test_given_states_go_by_symbol_and_must_be_complete():
    atoms = placed("MgNiO2")
    states = oxidation_states(atoms, {"O": -2.0, "Ni": 2.5, "Mg": 1.5, "Au": 3})
    assert states.tolist() == [1.5, 2.5, -2, -2]
    with pytest.raises(ValueError, match="given for O, Au and not for Mg, Ni; give one for each element, or none"):
        oxidation_states(atoms, {"O": -2, "Au": 3})


@pytest.mark.parametrize(
    "atoms",
    [bulk("Cu"), placed("Cu3Au"), placed("CoCrFeMnNi"), placed("NiAl"), placed("GaAs"), molecule("CH3CH2OH"),
     molecule("H2O"), placed("CuArCu"), placed("He")],
    ids=str,
)  # fmt: skip
def test_metals_and_molecules_have_none(atoms):
    assert oxidation_states(atoms, {}).tolist() == [0] * len(atoms)


@pytest.mark.parametrize(
    "formula",
    [
        "MgO", "Fe3O4", "LiMn2O4", "Li7La3Zr2O12", "Mg2Ca3Ni3Fe4Mn4Co4O22", "SiO2", "SiC", "LiCo2O4", "Al2O3", "BaTiO3",
        "CPbNH6I3", "TiN", "MoS2", "WS2", "NiFe2O4", "LaMnO3", "YBa2Cu3O7", "Li3PO4", "CaCO3", "Mg13Ca7Ni12O31", "ZnS",
    ],
)  # fmt: skip
def test_guesses_are_those_of_pymatgen(formula):
    expected = Composition(formula).oxi_state_guesses()[0]
    assert by_symbol(placed(formula)) == pytest.approx(expected, abs=1e-5)


cations = st.dictionaries(
    st.sampled_from(["Li", "Mg", "Ca", "Ti", "Mn", "Fe", "Co", "Ni", "Zn", "La"]),
    st.integers(1, 6),
    min_size=1,
    max_size=3,
)
anions = st.dictionaries(st.sampled_from(["O", "F", "S"]), st.integers(1, 9), min_size=1, max_size=2)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(cations, anions, st.integers(-2, 2))
def test_guesses_balance_wherever_pymatgen_finds_a_balance(cations, anions, total):
    amounts = cations | anions
    assume(Composition(amounts).oxi_state_guesses(target_charge=total))
    found = guess_states(tuple(atomic_numbers[symbol] for symbol in amounts), tuple(amounts.values()), total)
    charge = sum(state * n for state, n in zip(found, amounts.values(), strict=True))
    assert charge == pytest.approx(total, abs=1e-3)


def test_charged_structures_balance_their_charge():
    assert by_symbol(placed("Fe2O3")) == {"Fe": 3, "O": -2}
    assert by_symbol(placed("Fe2O3", charge=-2)) == {"Fe": 2, "O": -2}
    assert by_symbol(placed("Fe2O3", charge=-1)) == {"Fe": 2.5, "O": -2}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("Mg31O32", {"Mg": 2, "O": -2}),
        ("Mg16Ni16O31", {"O": -2}),
        ("Fe7O11", {"Fe": 3, "O": -2}),
        ("Ni20Pt15O", {"Ni": 0, "Pt": 0, "O": -2}),
        ("Fe50C", {"Fe": 0, "C": -4}),
    ],
)
def test_anions_stay_anions_where_nothing_balances(formula, expected):
    found = by_symbol(placed(formula))
    assert {symbol: found[symbol] for symbol in expected} == expected


def test_an_adsorbate_leaves_a_metal_neutral():
    slab = fcc111("Pt", (3, 3, 3), vacuum=8)
    slab.numbers[::2] = 28
    slab += Atoms("O", positions=[slab.positions[-1] + [0, 0, 1.2]])
    assert by_symbol(slab) == {"Ni": 0, "Pt": 0, "O": -2}


def test_order_and_size_of_the_cell_do_not_count():
    atoms = placed("Mg2Ca3Ni3Fe4Mn4Co4O22")
    states = oxidation_states(atoms, {})
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_array_equal(oxidation_states(atoms[order], {}), states[order])
    np.testing.assert_allclose(oxidation_states(Atoms(20 * list(atoms.numbers)), {}), np.tile(states, 20), atol=1e-5)


def test_large_cells_without_a_common_factor_cost_no_more():
    large = ((12, 20, 27, 28, 30, 8), (1001, 1009, 1013, 1019, 1021, 5063))
    allowed = 1.0  # s; whole atoms would take 1e17 combinations
    guess_states((12, 8), (1, 1))  # imports
    start = time.perf_counter()
    states = guess_states(*large)
    assert time.perf_counter() - start < allowed
    np.testing.assert_allclose(states, [2, 2, 2, 2, 2, -2], atol=0.01)
