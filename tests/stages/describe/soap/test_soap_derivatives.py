"""Derivatives of SOAP: with dscribe's, by finite differences, and projected as they are made."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from dscribe.descriptors import SOAP as DSCRIBE
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe import SOAP

COMPRESSIONS = ("off", "mu2", "mu1nu1", "crossover")
SMALL = {"species": ["H", "O"], "r_cut": 3.0, "n_max": 3, "l_max": 2}
AGREEMENT = 1e-5
"""Of derivatives, of the largest: central differences over 1e-4 Å have errors of some 1e-7, and more near a cutoff."""
EXACT = 1e-10
"""Of sums in another order, of the largest."""


def structure(rng: np.random.Generator, species: list[str], n_atoms: int) -> Atoms:
    """Return atoms in a skewed cell, some far outside of it."""
    cell = np.diag(rng.uniform(3.0, 6.0, 3)) + np.tril(rng.uniform(-2.0, 2.0, (3, 3)), -1)
    atoms = Atoms(rng.choice(species, size=n_atoms), scaled_positions=rng.random((n_atoms, 3)), cell=cell)
    atoms.positions[rng.integers(n_atoms)] += atoms.cell.array[0]
    atoms.pbc = rng.random(3) < 0.5
    return atoms


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Atoms, dict[str, Any], list[Any] | None, bool]:
    """Draw a structure, arguments, centres and whether these move with their atoms."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    species = rng.choice(["H", "C", "O", "Cu"], size=draw(st.integers(1, 3)), replace=False).tolist()
    atoms = structure(rng, species, draw(st.integers(2, 5)))
    attach, average = draw(st.booleans()), draw(st.sampled_from(["off", "inner", "outer"]))
    weighting: dict[str, Any] = {}
    if attach and draw(st.booleans()):
        weighting["w0"] = float(rng.uniform(0, 2))  # makes features jump where an atom leaves a centre that stays
    if (function := draw(st.sampled_from(["", "poly", "pow"]))) != "":  # exp has a kink at an atom on the centre
        weighting |= {"function": function, "r0": float(rng.uniform(1, 5)), "c": 1.5, "d": 0.5, "m": 2.5}
    hypers = {
        "species": species,
        "r_cut": float(rng.uniform(3.0, 4.0)),
        "n_max": draw(st.sampled_from([1, 2, 3, 4, 5, 9])),  # 9 are two vectors
        "l_max": draw(st.integers(0, 7)),
        "sigma": float(rng.uniform(0.3, 1.0)),
        "rbf": draw(st.sampled_from(["gto", "polynomial"])),
        "weighting": weighting or None,
        "average": average,
        "compression": {
            "mode": draw(st.sampled_from(COMPRESSIONS)),
            "species_weighting": {one: float(rng.uniform(0.2, 2.0)) for one in species} if rng.random() < 0.5 else None,
        },
        "periodic": draw(st.booleans()),
    }
    if hypers["rbf"] == "polynomial":
        hypers["n_max"] = min(hypers["n_max"], 5)  # more are hardly independent
    indices = [int(index) for index in rng.integers(0, len(atoms), 2)]
    centers = draw(st.sampled_from([None, indices, [*indices, [0.1, 0.2, 0.3]]]))
    return atoms, hypers, centers, attach


@settings(max_examples=10, deadline=None)
@given(drawn())
def test_derivatives_are_those_of_finite_differences(case) -> None:
    atoms, hypers, centers, attach = case
    soap = SOAP(**hypers)
    features = soap.create(atoms, centers)
    expected, first = soap.derivatives(atoms, centers, method="numerical", attach=attach)
    received, second = soap.derivatives(atoms, centers, attach=attach)
    assert received.shape == expected.shape
    assert received.dtype == np.float64
    scale = max(np.abs(expected).max(), np.abs(features).max())
    np.testing.assert_allclose(received, expected, atol=AGREEMENT * scale)
    for rows in (first, second):
        np.testing.assert_allclose(rows, np.atleast_2d(features), rtol=1e-12)


@settings(max_examples=10, deadline=None)
@given(drawn(), st.booleans(), st.integers(0, 2**32 - 1))
def test_projections_are_sums_over_the_derivatives(case, same, seed) -> None:
    atoms, hypers, centers, attach = case
    soap = SOAP(**hypers)
    derivatives = soap.derivatives(atoms, centers, attach=attach, return_descriptor=False)
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=derivatives.shape[3:] if same else derivatives.shape[::3])
    received = soap.project_derivatives(atoms, weights, centers, attach)
    rows = np.broadcast_to(weights, derivatives.shape[::3])
    expected = np.einsum("caxf,cf->ax", derivatives, rows)
    scale = np.einsum("caxf,cf->ax", np.abs(derivatives), np.abs(rows)).max()
    assert received.shape == (len(atoms), 3)
    np.testing.assert_allclose(received, expected, atol=EXACT * max(scale, 1e-6))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["off", "crossover"]))
def test_derivatives_are_the_analytical_ones_of_dscribe(seed, attach, mode) -> None:
    rng = np.random.default_rng(seed)
    species = rng.choice(["H", "C", "O", "Cu"], size=rng.integers(1, 4), replace=False).tolist()
    atoms = structure(rng, species, int(rng.integers(2, 8)))
    hypers = {
        "species": species,
        "r_cut": float(rng.uniform(2.0, 5.0)),
        "sigma": float(rng.uniform(0.4, 1.0)),
        "n_max": int(rng.integers(1, 7)),
        "l_max": int(rng.integers(0, 7)),
        "compression": {"mode": mode},
    }
    include = rng.permutation(len(atoms))[: rng.integers(1, len(atoms))].tolist()
    arguments = {"include": include, "method": "analytical", "attach": attach}
    expected = DSCRIBE(**hypers).derivatives(atoms, **arguments)
    received = SOAP(**hypers).derivatives(atoms, **arguments)
    # dscribe leaves out products of coefficients below 1e-8.
    scale = max(np.abs(array).max() for array in expected)
    for ours, theirs in zip(received, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=AGREEMENT * scale, rtol=0)


@pytest.mark.parametrize("mode", COMPRESSIONS)
@pytest.mark.parametrize("average", ["off", "inner", "outer"])
def test_derivatives_of_periodic_structures_are_the_numerical_ones_of_dscribe(average, mode) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.2, seed=0)
    atoms.wrap()
    atoms.symbols[0] = "Au"
    hypers = {"species": ["Cu", "Au"], "r_cut": 3.5, "n_max": 3, "l_max": 3, "periodic": True, "average": average}
    hypers |= {"compression": {"mode": mode}}
    centers = atoms.positions[:2] + 0.3
    expected, _ = DSCRIBE(**hypers).derivatives(atoms, centers, method="numerical")
    received, _ = SOAP(**hypers).derivatives(atoms, centers)
    assert received.shape == expected.shape
    np.testing.assert_allclose(received, expected, atol=AGREEMENT * np.abs(expected).max())


def test_forces_of_a_linear_model_are_the_slopes_of_its_energy() -> None:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.2, seed=1)
    atoms.symbols[::3] = "Au"
    soap = SOAP(species=["Cu", "Au"], r_cut=4.0, n_max=4, l_max=3, periodic=True)
    weights = np.random.default_rng(0).normal(size=soap.n_features)
    slopes = soap.project_derivatives(atoms, weights)
    np.testing.assert_allclose(slopes.sum(axis=0), 0, atol=1e-8 * np.abs(slopes).max())
    step = 1e-3  # Å; the energies are exact to 1e-11
    for atom, axis in [(0, 0), (3, 1), (7, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(float((soap.create(moved) @ weights).sum()))
        assert slopes[atom, axis] == pytest.approx((energies[0] - energies[1]) / (2 * step), rel=1e-4)


def test_projections_of_a_large_structure_take_little_memory() -> None:
    """The derivatives themselves would be 500 x 500 x 3 x 3,696 numbers, 22 GB."""
    atoms = bulk("Cu", cubic=True) * (5, 5, 5)
    atoms.rattle(0.1, seed=2)
    atoms.symbols[:] = np.random.default_rng(3).choice(["Cu", "Ag", "Au", "Pt"], len(atoms))
    soap = SOAP(species=["Cu", "Ag", "Au", "Pt"], r_cut=5.0, n_max=8, l_max=6, periodic=True)
    slopes = soap.project_derivatives(atoms, np.ones(soap.n_features))
    assert np.abs(slopes).max() > 1
    np.testing.assert_allclose(slopes.sum(axis=0), 0, atol=1e-8 * np.abs(slopes).max())


MOLECULES = [molecule("H2O"), molecule("H2O2")]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("system", "arguments"),
    [
        (MOLECULES[0], {}),
        ([MOLECULES[0]], {}),
        (MOLECULES, {}),
        (MOLECULES, {"include": [1, 0]}),
        (MOLECULES, {"include": [[1], [2, 0]]}),
        (MOLECULES, {"exclude": [2]}),
        (MOLECULES, {"centers": [[0], [1]], "include": [1, 0], "attach": True}),
        ([MOLECULES[0], MOLECULES[0]], {"exclude": [[0], [1]], "return_descriptor": True}),
    ],
)
def test_shapes_are_those_of_dscribe(system, arguments, sparse) -> None:
    expected = DSCRIBE(**SMALL, sparse=sparse).derivatives(system, **arguments)
    received = SOAP(**SMALL, sparse=sparse).derivatives(system, **arguments, n_jobs=2)
    for ours, theirs in zip(received, expected, strict=True):
        assert type(ours) is type(theirs)
        pairs = zip(ours, theirs, strict=True) if isinstance(theirs, list) else [(ours, theirs)]
        for one, other in pairs:
            dense = [array.todense() if sparse else array for array in (one, other)]
            np.testing.assert_allclose(*dense, atol=1e-5)


def test_derivatives_alone_are_no_tuple() -> None:
    soap = SOAP(**SMALL)
    for system in (MOLECULES[0], [MOLECULES[0], MOLECULES[0]]):
        both = soap.derivatives(system)
        np.testing.assert_array_equal(soap.derivatives(system, return_descriptor=False), both[0])


def test_derivatives_of_float32_are_those_of_float64() -> None:
    expected = SOAP(**SMALL).derivatives(MOLECULES[0])[0]
    received = SOAP(**SMALL, dtype="float32").derivatives(MOLECULES[0])[0]
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, expected.astype(np.float32))


def test_an_atom_that_is_included_twice_has_its_derivatives_twice() -> None:
    derivatives = SOAP(**SMALL).derivatives(MOLECULES[0], include=[1, 2, 1])[0]
    expected = SOAP(**SMALL).derivatives(MOLECULES[0])[0]
    np.testing.assert_array_equal(derivatives, expected[:, [1, 2, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": []}, "at least one atom must be included in the derivatives, received none"),
        ({"include": [3]}, r"include must hold indices from 0 to 2, received \[3\]"),
        ({"exclude": [-1]}, r"exclude must hold indices from 0 to 2, received \[-1\]"),
        ({"exclude": [0, 1, 2]}, "at least one atom must be included"),
        ({"include": [0], "exclude": [1]}, "include and exclude cannot be given together; leave one out"),
        ({"method": "exact"}, "method must be one of numerical, analytical, auto, received 'exact'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        SOAP(**SMALL).derivatives(MOLECULES[0], **arguments)


@pytest.mark.parametrize(
    "hypers",
    [
        {"rbf": "polynomial"},
        {"average": "inner"},
        {"compression": {"mode": "mu2"}},
        {"periodic": True},
        {"weighting": {"w0": 1}},
    ],
)
def test_method_analytical_is_refused_where_dscribe_refuses_it(hypers) -> None:
    with pytest.raises(ValueError, match="Analytical derivatives ") as expected:
        DSCRIBE(**SMALL, **hypers).derivatives(MOLECULES[0], method="analytical")
    message = str(expected.value).replace("not currently", "currently not")
    with pytest.raises(ValueError, match=f"^{message}$"):
        SOAP(**SMALL, **hypers).derivatives(MOLECULES[0], method="analytical")
    assert SOAP(**SMALL, **hypers).validate_derivatives_method("auto") == "analytical"


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights must have the shape \(3, 63\) or \(63,\), received \(62,\)"):
        SOAP(**SMALL).project_derivatives(MOLECULES[0], np.ones(62))
