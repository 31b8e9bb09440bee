import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from daskpipe.core.structures import (
    NO_PARENT,
    as_void,
    atom_starts,
    concat,
    from_atoms,
    hex_ids,
    round_positions,
    spin_multiplicity,
    structure_id,
    take,
    to_atoms,
)
from daskpipe.core.variables import ARRAY_KEYS, LABEL_KEYS, VARIABLES, decode_names, encode_names, validate_dataset

float32 = st.floats(-50, 50, width=32)
float64 = st.floats(-1e6, 1e6)


@st.composite
def atoms_with_facts(draw):
    """Any structure, with any of the facts that daskpipe keeps."""
    n = draw(st.integers(1, 5))
    atoms = Atoms(
        numbers=draw(st.lists(st.integers(1, 118), min_size=n, max_size=n)),
        positions=draw(arrays(np.float32, (n, 3), elements=float32)).astype(float),
        cell=draw(st.just(np.zeros((3, 3))) | arrays(float, (3, 3), elements=float64)),
        pbc=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        info={
            "charge": draw(st.integers(-3, 3)),
            "parent_id": draw(st.binary(min_size=16, max_size=16)),
        },
    )
    facts = st.fixed_dictionaries(
        {},
        optional={
            "system_type": st.sampled_from(["alloy", "surface"]),
            "generator": st.sampled_from(["a", "b"]),
            "split": st.sampled_from(["train", "val", "test"]),
            "temperature": st.floats(0, 2000, width=32),
            "pressure": st.floats(-100, 100, width=32),
            "time": st.floats(0, 2**20, width=32),
            "step": st.integers(0, 2**31 - 1),
            "replica": st.integers(0, 99),
            "cluster": st.integers(-1, 99),
            "group": st.integers(0, 99),
            "force_disagreement": st.floats(0, 100, width=32),
            "candidate": st.booleans(),
            "spin_multiplicity": st.integers(1, 7),
            "config_type": st.sampled_from(["bulk", "IsolatedAtom", "100 % relaxed"]),
            "head": st.sampled_from(["pbe", "r2 scan"]),
            "config_weight": st.floats(0, 100, width=32),
        },
    )
    atoms.info |= draw(facts)
    given = {name: arrays(np.float32, n, elements=float32) for name in ("initial_charges", "initial_magmoms", "masses")}
    for name, values in draw(st.fixed_dictionaries({}, optional=given)).items():
        atoms.set_array(name, values.astype(float))
    if (fixed := draw(arrays(bool, (n, 3)))).any():
        atoms.set_array("fixed", fixed)
    labels = {
        "energy": float64,
        "forces": arrays(np.float32, (n, 3), elements=float32),
        "stress": arrays(float, 6, elements=float64),
        "magmoms": arrays(np.float32, n, elements=float32),
    }
    results = draw(st.fixed_dictionaries({}, optional=labels))
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def plain(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@settings(deadline=None, max_examples=40)
@given(st.lists(atoms_with_facts(), min_size=1, max_size=5), st.booleans())
def test_atoms_survive_the_flat_form(structures, encoded):
    flat = from_atoms(structures)
    ds = encode_names(flat) if encoded and "split" not in flat else flat  # "unknown" is no split
    for index, before in enumerate(structures):
        after = to_atoms(ds, index)
        assert plain(after.numbers) == plain(before.numbers)
        assert plain(after.positions) == plain(before.positions)
        assert plain(after.cell.array) == plain(before.cell.array)
        assert after.pbc.tolist() == before.pbc.tolist()
        for name, value in before.info.items():
            assert after.info[name] == value, name
        assert after.arrays.keys() == before.arrays.keys()
        for name in ARRAY_KEYS:
            assert plain(after.arrays.get(name)) == plain(before.arrays.get(name)), name
        assert after.info["structure_id"] == structure_id(before) == structure_id(after)
        before_results = before.calc.results if before.calc else {}
        after_results = after.calc.results if after.calc else {}
        assert after_results.keys() == before_results.keys()
        for name, value in before_results.items():
            assert np.array_equal(after_results[name], value), name


@settings(deadline=None, max_examples=40)
@given(st.lists(atoms_with_facts(), min_size=1, max_size=5))
def test_the_flat_form_survives_atoms(structures):
    ds = from_atoms(structures)
    validate_dataset(ds)
    again = from_atoms([to_atoms(ds, index) for index in range(len(structures))])
    for name in ds.data_vars:
        if name in (*LABEL_KEYS, *ARRAY_KEYS) and name not in again:
            assert np.isnan(ds[name]).all()
        else:
            np.testing.assert_array_equal(again[name].values, ds[name].values, err_msg=str(name))


@settings(deadline=None, max_examples=40)
@given(st.lists(atoms_with_facts(), min_size=1, max_size=6), st.data())
def test_take_is_a_slow_loop(structures, data):
    rows = data.draw(st.lists(st.integers(-len(structures), len(structures) - 1), max_size=8))
    ds = from_atoms(structures)
    taken = take(ds, rows)
    validate_dataset(taken)
    assert taken.sizes["structure"] == len(rows)
    for place, row in enumerate(rows):
        slow, fast = to_atoms(ds, row), to_atoms(taken, place)
        assert plain(fast.positions) == plain(slow.positions)
        assert plain(fast.numbers) == plain(slow.numbers)
        assert fast.arrays.keys() == slow.arrays.keys()
        for name in slow.arrays:
            assert plain(fast.arrays[name]) == plain(slow.arrays[name]), name
        assert fast.info["structure_id"] == slow.info["structure_id"]
        if "forces" in ds:
            np.testing.assert_array_equal(*(atoms.calc and atoms.calc.results.get("forces") for atoms in (fast, slow)))


def test_take_of_a_lazy_dataset_stays_lazy():
    ds = from_atoms([molecule(name) for name in ("H2O", "CO2", "CH4", "NH3")])
    taken = take(ds.chunk(atom=3), [3, 1])
    assert taken["positions"].chunks is not None
    xr.testing.assert_equal(taken.compute(), take(ds, [3, 1]))


def test_take_refuses_a_mask():
    ds = from_atoms([molecule("H2O"), molecule("CO2")])
    with pytest.raises(TypeError, match=r"rows must be indices, received a mask; give numpy.flatnonzero\(mask\)"):
        take(ds, np.array([False, True]))
    with pytest.raises(IndexError, match="index 2 is out of bounds"):
        take(ds, [2])


@settings(deadline=None, max_examples=40)
@given(st.lists(atoms_with_facts(), min_size=1, max_size=6), st.data())
def test_concat_of_parts_is_the_whole(structures, data):
    cut = data.draw(st.integers(0, len(structures)))
    whole, joined = from_atoms(structures), concat([from_atoms(structures[:cut]), from_atoms(structures[cut:])])
    validate_dataset(joined)
    assert set(joined.data_vars) == set(whole.data_vars)
    for name in whole.data_vars:  # also where one part lacks a variable that the other has
        np.testing.assert_array_equal(joined[name].values, whole[name].values, err_msg=str(name))
        assert joined[name].dtype.kind == whole[name].dtype.kind


def test_no_structures_at_all():
    ds = from_atoms([])
    validate_dataset(ds)
    assert (ds.sizes["structure"], ds.sizes["atom"]) == (0, 0)
    assert concat([ds, from_atoms([molecule("H2O")])]).sizes["structure"] == 1
    with pytest.raises(IndexError, match="structure 0 of 0"):
        to_atoms(ds, 0)


def test_what_one_structure_lacks_is_filled_with_missing_values():
    labelled = bulk("Cu")
    labelled.calc = EMT()
    labelled.get_stress()
    labelled.info |= {"temperature": 300.0, "step": 4, "system_type": "alloy", "candidate": True}
    labelled.set_initial_charges([0.5])
    ds = from_atoms([labelled, molecule("H2O")])
    assert np.isnan(ds["temperature"].values).tolist() == [False, True]
    assert ds["step"].values.tolist() == [4, -1]
    assert ds["system_type"].values.tolist() == ["alloy", "unknown"]
    assert np.isnan(ds["forces"].values).all(axis=1).tolist() == [False, True, True, True]
    assert np.isnan(ds["stress"].values).all(axis=1).tolist() == [False, True]
    assert ds["candidate"].values.tolist() == [True, False]
    assert np.isnan(ds["initial_charges"].values).tolist() == [False, True, True, True]
    assert "initial_magmoms" not in ds
    assert not to_atoms(ds, 1).has("initial_charges")
    assert to_atoms(ds, 1).calc is None
    assert ds["parent_id"].values[0].tobytes() == NO_PARENT


def test_composition_is_in_hill_order():
    ds = from_atoms([molecule("CH3CH2OH"), bulk("NaCl", "rocksalt", a=5.6)])
    assert decode_names(ds["composition"]).tolist() == ["C2H6O", "ClNa"]


def test_index_counts_from_either_end():
    ds = from_atoms([molecule("H2O"), molecule("CO2")])
    assert to_atoms(ds, -1) == to_atoms(ds, 1) != to_atoms(ds, 0)
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"structure {index} of 2: give an index from 0 to 1"):
            to_atoms(ds, index)


BASE = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5]], cell=[3, 3, 5], pbc=[True, True, False])


def test_structure_id_is_the_same_in_every_version_and_on_every_machine():
    assert structure_id(BASE).hex() == "eb17a3c25a5e03cb9cc4a295d8745a44"


def changed(change) -> Atoms:
    atoms = BASE.copy()
    change(atoms)
    return atoms


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.symbols.__setitem__(0, "Ag"),
        lambda atoms: atoms.positions.__setitem__((1, 2), 2.50001),
        lambda atoms: atoms.set_cell([3, 3, 5.0000000001]),
        lambda atoms: atoms.set_pbc(True),
        lambda atoms: atoms.info.update(charge=1),
        lambda atoms: atoms.info.update(spin_multiplicity=3),
        lambda atoms: atoms.__imul__((1, 1, 2)),
        lambda atoms: atoms.set_initial_magnetic_moments([2.2, 2.2]),
        lambda atoms: atoms.set_array("fixed", np.array([[True, False, False], [False] * 3])),
        lambda atoms: atoms.set_masses([62.93, None]),
    ],
    ids=["element", "position", "cell", "pbc", "charge", "spin", "size", "moments", "fixed atoms", "isotopes"],
)
def test_structure_id_sees(change):
    assert structure_id(changed(change)) != structure_id(BASE)


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.info.update(temperature=300.0, name="x"),
        lambda atoms: atoms.set_velocities(np.ones((2, 3))),
        lambda atoms: atoms.set_initial_charges([1, -1]),
        lambda atoms: atoms.set_initial_magnetic_moments([0, 0]),
        lambda atoms: setattr(atoms, "calc", EMT()),
        lambda atoms: setattr(atoms, "positions", atoms.positions * -0.0 + atoms.positions),
        lambda atoms: atoms.positions.__setitem__((1, 2), 2.5 + 1e-9),  # less than float32 tells apart
        lambda atoms: atoms.info.update(charge=0, spin_multiplicity=1),  # what is assumed
    ],
    ids=[
        "info",
        "velocities",
        "charges",
        "moments of zero",
        "calculator",
        "minus zero",
        "below float32",
        "defaults given",
    ],
)
def test_structure_id_does_not_see(change):
    assert structure_id(changed(change)) == structure_id(BASE)


def test_minus_zero_is_zero():
    atoms = BASE.copy()
    atoms.positions[0] = -0.0
    assert np.signbit(atoms.positions[0]).all()
    assert structure_id(atoms) == structure_id(BASE)


@settings(deadline=None, max_examples=40)
@given(arrays(float, (2, 3), elements=st.floats(-1000, 1000)))
def test_rounded_positions_are_those_that_are_stored(positions):
    atoms = Atoms("Cu2", positions=positions)
    before = structure_id(atoms)
    assert round_positions(atoms) is atoms
    assert np.array_equal(to_atoms(from_atoms([atoms]), 0).positions, atoms.positions)
    assert structure_id(atoms) == before


@pytest.mark.parametrize(
    ("symbols", "info", "multiplicity"),
    [("H2O", {}, 1), ("OH", {}, 2), ("OH", {"charge": -1}, 1), ("O2", {"spin_multiplicity": 3}, 3)],
)
def test_spin_multiplicity_is_the_least_that_the_electrons_allow(symbols, info, multiplicity):
    atoms = Atoms(symbols, info=info)
    ds = from_atoms([atoms])
    assert spin_multiplicity(atoms) == multiplicity
    assert ds["spin_multiplicity"].values.tolist() == [
        info.get("spin_multiplicity", 0)
    ]  # what nobody says is not stored
    assert ds["charge"].values.tolist() == [info.get("charge", 0)]


def test_ids_in_hex_keep_their_zeros():
    ids = [bytes(15) + b"\x01", b"\x01" + bytes(15)]
    ds = xr.Dataset({"structure_id": ("structure", as_void(ids))})
    assert hex_ids(ds) == ["0" * 31 + "1", "01" + "0" * 30]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=9))
def test_atom_starts_is_a_slow_loop(n_atoms):
    starts = atom_starts(np.array(n_atoms, dtype=np.int32))
    assert starts.tolist() == [sum(n_atoms[:index]) for index in range(len(n_atoms))]
    assert starts.dtype == VARIABLES["atom_start"].dtype
