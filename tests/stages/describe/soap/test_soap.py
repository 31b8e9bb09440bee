"""`daskpipe.SOAP` in place of dscribe's class: numbers, shapes, methods and checks of arguments."""

import inspect
import itertools
import json
import pickle
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from dscribe.descriptors import SOAP as DSCRIBE
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import LinAlgWarning

from daskpipe import SOAP

COMPRESSIONS = ("off", "mu2", "mu1nu1", "crossover")
SMALL = {"species": ["H", "O"], "r_cut": 3.0, "n_max": 3, "l_max": 2}
AGREEMENT = 1e-6
"""With dscribe, of the largest feature: its Bessel functions of the polynomial basis are off by up to some 1e-7."""


def draw_weighting(rng: np.random.Generator) -> dict[str, Any] | None:
    function = str(rng.choice(["", "poly", "pow", "exp"]))
    weighting: dict[str, Any] = {"w0": float(rng.uniform(0, 2))} if rng.random() < 0.5 else {}
    if function:
        weighting |= {"function": function, "r0": float(rng.uniform(1, 5)), "c": float(rng.uniform(0.5, 2))}
        weighting |= {"d": float(rng.uniform(0.5, 2)), "m": float(rng.uniform(1.5, 4))}
    return weighting or None


def draw_structure(rng: np.random.Generator, species: list[str]) -> Atoms:
    """Return atoms inside of a skewed cell: outside of it dscribe misses images."""
    n_atoms = int(rng.integers(1, 7))
    cell = np.diag(rng.uniform(3.0, 8.0, 3)) + np.tril(rng.uniform(-2.0, 2.0, (3, 3)), -1)
    atoms = Atoms(rng.choice(species, size=n_atoms), scaled_positions=rng.random((n_atoms, 3)), cell=cell)
    atoms.pbc = rng.random(3) < 0.5
    return atoms


def draw_centers(rng: np.random.Generator, atoms: Atoms) -> list[Any] | None:
    indices = [int(index) for index in rng.integers(0, len(atoms), 2)]
    points = (rng.random((3, 3)) @ atoms.cell.array).tolist()
    choices = [None, indices, points, [*indices, *points]]
    return choices[rng.integers(len(choices))]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Atoms, dict[str, Any], list[Any] | None]:
    """Draw a structure, arguments of dscribe's class and centres."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    species = rng.choice(["H", "C", "O", "Cu", "Au"], size=draw(st.integers(1, 3)), replace=False).tolist()
    rbf, mode = draw(st.sampled_from(["gto", "polynomial"])), draw(st.sampled_from(COMPRESSIONS))
    # For both together dscribe gives an atom on a centre the weight of another.
    weighted = draw(st.booleans()) and (rbf, mode) != ("polynomial", "mu2")
    hypers = {
        "species": species,
        "r_cut": float(rng.uniform(2.0, 5.0)),
        "n_max": draw(st.integers(1, 6)),
        "l_max": draw(st.integers(0, 8)),
        "sigma": float(rng.uniform(0.3, 1.0)),
        "rbf": rbf,
        "weighting": draw_weighting(rng),
        "average": draw(st.sampled_from(["off", "inner", "outer"])),
        "compression": {
            "mode": mode,
            "species_weighting": {one: float(rng.uniform(0.2, 2.0)) for one in species} if weighted else None,
        },
        "periodic": draw(st.booleans()),
    }
    atoms = draw_structure(rng, species)
    return atoms, hypers, draw_centers(rng, atoms)


def dscribe_soap(**hypers: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        if weighting := hypers.get("weighting"):
            hypers = {**hypers, "weighting": dict(weighting)}  # dscribe changes it
        return DSCRIBE(**hypers)


@settings(max_examples=15, deadline=None)
@given(drawn())
def test_features_are_those_of_dscribe(case) -> None:
    atoms, hypers, centers = case
    expected = dscribe_soap(**hypers).create(atoms, centers)
    received = SOAP(**hypers).create(atoms, centers)
    assert received.shape == expected.shape
    assert received.dtype == np.float64
    np.testing.assert_allclose(received, expected, rtol=AGREEMENT, atol=AGREEMENT * np.abs(expected).max())


@pytest.mark.parametrize("name", ["__init__", "create", "create_single", "derivatives", "derivatives_single"])
def test_arguments_and_defaults_are_those_of_dscribe(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (SOAP, DSCRIBE))
    wanted = {key: parameter.default for key, parameter in theirs.items() if not key.startswith("return_deriv")}
    if name == "create_single":
        del wanted["return_descriptor"]  # dscribe's own wiring
    assert {key: parameter.default for key, parameter in ours.items()} == wanted


PAIR = [molecule("H2O"), molecule("H2O2")]
TWINS = [molecule("H2O"), molecule("H2O")]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("average", ["off", "outer"])
@pytest.mark.parametrize(
    ("system", "centers"),
    [
        (PAIR[0], None),
        ([PAIR[0]], None),
        (PAIR, None),
        (TWINS, None),
        (PAIR, [[0], [[0.0, 0.0, 1.0]]]),
        (PAIR, [[0], [0, 1]]),
        (PAIR, [None, [0, 1, 2]]),
    ],
)
def test_shapes_are_those_of_dscribe(system, centers, average, sparse) -> None:
    expected = dscribe_soap(**SMALL, average=average, sparse=sparse).create(system, centers)
    received = SOAP(**SMALL, average=average, sparse=sparse).create(system, centers, n_jobs=2)
    assert type(received) is type(expected)
    parts = zip(received, expected, strict=True) if isinstance(expected, list) else [(received, expected)]
    for ours, theirs in parts:
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        dense = [array.todense() if sparse else array for array in (ours, theirs)]
        np.testing.assert_allclose(*dense, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", COMPRESSIONS)
def test_locations_are_those_of_dscribe(mode: str) -> None:
    hypers = {**SMALL, "species": [8, 1, 29], "compression": {"mode": mode}}
    ours, theirs = SOAP(**hypers), dscribe_soap(**hypers)
    assert ours.get_number_of_features() == ours.n_features == theirs.get_number_of_features()
    for pair in itertools.product(["H", "O", 29], repeat=2):
        try:
            expected = theirs.get_location(pair)
        except ValueError:
            with pytest.raises(ValueError, match=f"compression {mode} has no features of two elements"):
                ours.get_location(pair)
        else:
            assert ours.get_location(pair) == expected


def test_radial_bases_are_those_of_dscribe() -> None:
    ours, theirs = SOAP(**SMALL), dscribe_soap(**SMALL)
    assert ours.get_cutoff_padding() == pytest.approx(theirs.get_cutoff_padding())
    for expected, received in zip(theirs.get_basis_gto(4.0, 4, 3), ours.get_basis_gto(4.0, 4, 3), strict=True):
        np.testing.assert_allclose(received, expected)
    for expected, received in zip(theirs.get_basis_poly(4.0, 4), ours.get_basis_poly(4.0, 4), strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-9)


@pytest.mark.parametrize(
    "weighting",
    [
        {"function": "poly", "c": 2, "m": 3, "r0": 4},
        {"function": "pow", "threshold": 1e-3, "c": 0.1, "d": 1, "m": 2, "r0": 1},
        {"function": "exp", "c": 2, "d": 1, "r0": 2},
    ],
)
def test_the_weighting_ends_the_environment_where_no_radius_is_given(weighting) -> None:
    hypers = {"n_max": 2, "l_max": 1, "weighting": weighting, "species": ["H", "O"]}
    expected = dscribe_soap(**hypers)
    assert SOAP(**hypers).hypers()["r_cut"] == pytest.approx(expected._r_cut)
    np.testing.assert_allclose(SOAP(**hypers).create(PAIR[0]), expected.create(PAIR[0]), rtol=1e-6)


def test_attributes_can_be_changed_between_calls() -> None:
    atoms = Atoms("HO", positions=[[0, 0, 0], [0.9, 0.2, 0.1]], cell=[4, 4, 4], pbc=True)
    changed = SOAP(**SMALL)
    changed.create(atoms)
    changed.periodic, changed.average, changed.compression = True, "outer", {"mode": "mu2"}
    changed.species = ["H", "C", "O"]
    fresh = SOAP(**{**SMALL, "species": ["H", "C", "O"]}, periodic=True, average="outer", compression="mu2")
    np.testing.assert_array_equal(changed.create(atoms), fresh.create(atoms))
    assert changed.compression["mode"] == "mu2"
    assert changed.species == ["H", "C", "O"]


def test_the_arguments_are_left_as_they_are() -> None:
    weighting, compression = {"function": "exp", "c": 2, "d": 1, "r0": 2}, {"mode": "off"}
    SOAP(**SMALL, weighting=weighting, compression=compression)
    assert weighting == {"function": "exp", "c": 2, "d": 1, "r0": 2}
    assert compression == {"mode": "off"}


def test_hypers_make_the_same_descriptor_and_are_json() -> None:
    soap = SOAP(**SMALL, weighting={"w0": 0}, compression={"mode": "mu2", "species_weighting": {"H": 1, "O": 2}})
    hypers = json.loads(json.dumps(soap.hypers()))
    assert SOAP(**hypers).hypers() == soap.hypers() == hypers
    np.testing.assert_array_equal(SOAP(**hypers).create(PAIR[0]), soap.create(PAIR[0]))


def test_a_pickled_descriptor_is_the_same() -> None:
    soap = SOAP(**SMALL, weighting={"w0": 0.5})
    soap.create(PAIR[0])
    again = pickle.loads(pickle.dumps(soap))
    np.testing.assert_array_equal(again.create(PAIR[0]), soap.create(PAIR[0]))


def test_compute_sees_the_images_of_structures_that_are_periodic() -> None:
    structures = [bulk("Cu"), Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]])]
    hypers = {"species": ["Cu"], "r_cut": 4.0, "n_max": 3, "l_max": 2}
    rows = SOAP(**hypers).compute(structures)
    assert rows.dtype == np.float64
    one = SOAP(**hypers, periodic=True).create(structures[0])
    np.testing.assert_allclose(rows, np.concatenate([one, SOAP(**hypers).create(structures[1])]))
    assert np.abs(one - SOAP(**hypers).create(structures[0])).max() > 0.1, "the images do not show"


@pytest.mark.parametrize("periodic", [False, True])
def test_a_point_outside_of_the_cell_sees_what_its_image_sees(periodic: bool) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    soap = SOAP(species=["Cu"], r_cut=4.0, n_max=3, l_max=2, periodic=periodic)
    point = np.array([1.0, 0.5, 0.2])
    inside, outside = soap.create(atoms, [point, point + 3 * atoms.cell.array[0]])
    assert np.allclose(inside, outside) == periodic


def test_a_point_far_from_all_atoms_has_no_features() -> None:
    rows = SOAP(**SMALL).create(PAIR[0], [[50.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert not rows[0].any()
    assert rows[1].any()


def test_float32_is_close_to_float64() -> None:
    expected = SOAP(**SMALL).create(PAIR[0])
    received = SOAP(**SMALL, dtype="float32").create(PAIR[0])
    assert received.dtype == np.float32
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_progress_is_printed_where_it_is_asked_for(capsys) -> None:
    SOAP(**SMALL).create(PAIR, verbose=True)
    assert capsys.readouterr().out.splitlines() == ["1 of 2 structures, 50.0%", "2 of 2 structures, 100.0%"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of float32, float64, received 'float16'"),
        ({"rbf": "spline"}, "rbf must be one of gto, polynomial, received 'spline'"),
        ({"average": "mean"}, "average must be one of off, inner, outer, received 'mean'"),
        ({"sigma": 0}, "sigma must be a positive width in Å, received 0"),
        ({"n_max": None}, "n_max and l_max must be given"),
        ({"n_max": 0}, "n_max must be at least one radial function, received 0"),
        ({"l_max": 21}, "l_max must be from 0 to 20, received 21"),
        ({"r_cut": 0.5}, "r_cut must be more than 1 Å"),
        ({"r_cut": None}, "r_cut or a weighting function must be given"),
        ({"r_cut": 10, "n_max": 20}, "20 radial functions within 10.0 Å are not independent in float64"),
        ({"species": None}, "species must be a list of chemical symbols or of atomic numbers, received None"),
        ({"species": "HO"}, "species must be a list of chemical symbols or of atomic numbers, received 'HO'"),
        ({"species": []}, "species must name at least one element"),
        ({"species": [1, -8]}, "species must be atomic numbers from 0 to 118, received -8"),
        ({"species": ["H", "Q"]}, "species must be chemical symbols such as Cu, or all numbers, received Q"),
        ({"weighting": {"w0": -1}}, "weighting: w0 must not be negative, received -1"),
        ({"weighting": {"function": "cos"}}, "weighting: function must be one of poly, pow, exp, received 'cos'"),
        ({"weighting": {"function": "poly", "c": 1, "m": 1, "r0": 0}}, "poly needs r0, positive; received 0"),
        ({"weighting": {"function": "exp", "c": 1, "r0": 1}}, "exp needs d, at least 0; received None"),
        ({"compression": {"mode": "zip"}}, "compression: mode must be one of off, mu2, mu1nu1, crossover"),
        ({"compression": {"species_weighting": [1, 2]}}, "species_weighting must be None or a dict by species"),
        ({"compression": {"species_weighting": {"H": 1}}}, "species_weighting must have the keys of species"),
    ],
)
def test_wrong_arguments_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        SOAP(**{**SMALL, **changes})


def test_a_polynomial_basis_that_is_singular_is_refused() -> None:
    with pytest.raises(ValueError, match="15 radial functions within 10.0 Å are not independent"):
        SOAP(**{**SMALL, "rbf": "polynomial", "r_cut": 10, "n_max": 15}).create(PAIR[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"centers": []}, "centers must be a list of atomic indices .* with at least one; received"),
        ({"centers": 3}, "centers must be a list of atomic indices"),
        ({"centers": [[0.0, 1.0]]}, r"centers must be .* three numbers; received \[0.0, 1.0\]"),
        ({"system": PAIR, "centers": [[0]]}, "centers must have an item for each of 2 structures, received 1"),
        ({"system": []}, "system must hold at least one structure, received none"),
        ({"system": PAIR, "n_jobs": 0}, "n_jobs must leave at least one thread"),
        ({"system": molecule("CO2")}, "structure of CO2 holds C, species are H, O; add the missing ones"),
        ({"system": Atoms()}, "a structure without atoms has no descriptor"),
    ],
)
def test_what_cannot_be_described_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        SOAP(**SMALL).create(**{"system": PAIR[0], **arguments})


def test_a_structure_without_a_cell_is_not_periodic() -> None:
    with pytest.raises(ValueError, match="structure of H2O has no cell with a volume; set atoms.cell or periodic=Fal"):
        SOAP(**SMALL, periodic=True).create(PAIR[0])


def test_a_location_of_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="get_location takes a pair of species"):
        SOAP(**SMALL).get_location(["H"])
    with pytest.raises(ValueError, match=r"atomic number 6 is not among those of species, \[1, 8\]"):
        SOAP(**SMALL).get_location(("H", "C"))


def test_sparse_results_need_the_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sparse", None)
    with pytest.raises(ImportError, match="sparse=True needs the package sparse: pip install sparse"):
        SOAP(**SMALL, sparse=True).create(PAIR[0])
