import numpy as np
import pytest
import xarray as xr
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.structures import from_atoms
from daskpipe.core.variables import (
    SIZES,
    SPLITS,
    VARIABLES,
    annotate_dataset,
    decode_names,
    encode_names,
    is_per_atom,
    validate_dataset,
)

FIXED_WIDTH = "biufV"  # NumPy kinds that a raw chunk can hold
words = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=8)


def dataset() -> xr.Dataset:
    structures = [molecule("H2O"), molecule("CO2"), molecule("H2O")]
    for atoms, kind in zip(structures, ("bent", "linear", "bent"), strict=True):
        atoms.info |= {"system_type": kind, "split": "val", "temperature": 300.0}
    return from_atoms(structures)


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=list(VARIABLES))
def test_declarations_are_consistent(variable):
    assert VARIABLES[variable.name] is variable
    assert variable.dims[0] in ("atom", "structure")
    assert set(variable.dims[1:]) <= {*SIZES, "feature"}
    assert variable.dtype.kind in FIXED_WIDTH
    assert variable.doc == variable.doc.strip() != ""
    if variable.coded:
        assert variable.dtype.kind in "iu"
        assert variable.unit is None
        assert variable.dims == ("structure",)
    assert is_per_atom(variable.name) == (variable.dims[0] == "atom")


def test_a_good_dataset_passes_in_memory_and_encoded():
    validate_dataset(dataset())
    validate_dataset(encode_names(dataset()))
    validate_dataset(dataset()[["charge"]], require=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("cell"), "dataset has no variable 'cell'; it has n_atoms, atom_start, numbers"),
        (lambda ds: ds.assign(enregy=ds["cell"]), "a variable 'enregy' that variables.py does not know"),
        (
            lambda ds: ds.assign(positions=ds["positions"].T),
            r"positions: expected dims \('atom', 'xyz'\), received \('xyz', 'atom'\)",
        ),
        (
            lambda ds: ds.assign(positions=ds["positions"].astype(float)),
            "positions: expected dtype float32, received float64",
        ),
        (lambda ds: ds.assign(numbers=ds["numbers"].astype("U2")), "numbers: expected dtype uint8, received <U2"),
        (lambda ds: ds.isel(xyz=[0, 1]), "dim 'xyz': expected size 3, received 2"),
        (lambda ds: ds.isel(atom=slice(0, -1)), "do not tile the atom axis"),
        (lambda ds: ds.isel(structure=[1, 0, 2]), "do not tile the atom axis"),
        (lambda ds: ds.assign(atom_start=ds["atom_start"] + 1), "do not tile the atom axis"),
    ],
)
def test_a_wrong_dataset_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        validate_dataset(change(dataset()))


def test_annotate_adds_units_and_meanings_and_leaves_the_input_alone():
    ds = dataset()
    annotated = annotate_dataset(ds)
    assert annotated["positions"].attrs == {"long_name": "Cartesian positions", "units": "angstrom"}
    assert annotated["n_atoms"].attrs["sample_dimension"] == "atom"
    assert "units" not in annotated["pbc"].attrs
    assert not any(array.attrs for array in ds.data_vars.values())
    assert np.shares_memory(annotated["positions"].values, ds["positions"].values)


def test_encode_counts_sorted_names_and_fixed_flags():
    ds = encode_names(dataset())
    assert ds["system_type"].values.tolist() == [0, 1, 0]
    kinds, splits = ds["system_type"].attrs, ds["split"].attrs
    assert (kinds["flag_values"], kinds["flag_meanings"]) == ([0, 1], "bent linear")
    assert (splits["flag_values"], splits["flag_meanings"]) == ([0, 1, 2], " ".join(SPLITS))
    assert ds["split"].values.tolist() == [1, 1, 1]
    assert ds["split"].dtype == np.uint8
    xr.testing.assert_identical(encode_names(ds), ds)


@settings(deadline=None)
@given(st.lists(words, max_size=20))
def test_names_survive_the_codes(names):
    ds = xr.Dataset({"composition": ("structure", np.array(names, dtype=str))})
    encoded = encode_names(ds)["composition"]
    assert encoded.dtype == VARIABLES["composition"].dtype
    assert decode_names(encoded).tolist() == names
    assert decode_names(ds["composition"]).tolist() == names


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "system_type",
            ["thin film"],
            "system_type: 'thin film' cannot be a code name; use a word without white space",
        ),
        ("system_type", [""], "system_type: '' cannot be a code name"),
        ("system_type", [f"kind{number}" for number in range(128)], "128 different names do not fit int8"),
        ("split", ["train", "valid"], "split: 'valid' is none of train, val, test"),
    ],
)
def test_names_that_cannot_be_codes(name, values, message):
    with pytest.raises(ValueError, match=message):
        encode_names(xr.Dataset({name: ("structure", np.array(values))}))


def test_127_names_fit_a_byte():
    names = [f"kind{number}" for number in range(127)]
    assert (
        decode_names(encode_names(xr.Dataset({"system_type": ("structure", np.array(names))}))["system_type"]).tolist()
        == names
    )


def test_frames_and_made_structures_inherit_what_is_declared():
    from daskpipe.stages.explore.trajectory import INHERITED
    from daskpipe.stages.generate import INFO_KEYS

    declared = {name for name, variable in VARIABLES.items() if variable.inherited}
    assert declared == {"charge", "spin_multiplicity", "system_type", "generator", "config_type", "reference"}
    assert set(INHERITED) == declared
    assert set(INFO_KEYS) == declared - {"generator"}
