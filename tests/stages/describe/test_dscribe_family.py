import json

import dscribe.descriptors as theirs
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from pydantic import ValidationError

from daskpipe.core.errors import ConfigError, InputError
from daskpipe.stages.describe import DESCRIPTORS, build_descriptor, check_descriptor_settings
from daskpipe.stages.describe.dscribe_family import ACSF, LMBTR, MBTR, ValleOganov
from daskpipe.stages.describe.dscribe_params import FADING
from daskpipe.stages.describe.settings import Describe

SPECIES = ["Au", "Cu"]
ANGLES = {
    "geometry": {"function": "angle"},
    "grid": {"min": 0, "max": 180, "sigma": 5, "n": 30},
    "weighting": {"function": "smooth_cutoff", "r_cut": 4.0},
}
DISTANCES = {
    "geometry": {"function": "distance"},
    "grid": {"min": 1, "max": 5, "sigma": 0.2, "n": 40},
    "weighting": {"function": "inverse_square", "r_cut": 5.0},
}
FADES = {"weighting": {"function": "exp", "scale": 0.5, "threshold": 1e-2}}
PLAIN = {"weighting": {"function": "unity"}}
LOCAL = [
    (ACSF, theirs.ACSF, {"r_cut": 4.5, "g3_params": [1.0, 2.0], "g5_params": [(0.05, 1.0, 1.0)]}),
    (LMBTR, theirs.LMBTR, {**DISTANCES, **FADES}),
    (LMBTR, theirs.LMBTR, {**ANGLES, **FADES, "normalization": "l2", "normalize_gaussians": False}),
]
GLOBAL = [
    (MBTR, theirs.MBTR, DISTANCES),
    (MBTR, theirs.MBTR, {**ANGLES, "normalization": "none"}),
    (MBTR, theirs.MBTR, {**DISTANCES, "normalization": "l2", "normalize_gaussians": False}),
]


def structure(kind: str, seed: int = 0) -> Atoms:
    """A structure with its atoms in its cell, since dscribe wants them there."""
    rng = np.random.default_rng(seed)
    if kind == "periodic":
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3))), scale_atoms=True)
    elif kind == "slab":
        atoms = fcc111("Cu", (1, 2, 3), vacuum=5.0)
    else:
        atoms = Atoms("Cu5", positions=2.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    atoms.rattle(0.15, rng=rng)
    atoms.numbers = rng.choice([29, 79], size=len(atoms))
    if atoms.pbc.any():
        atoms.wrap()
    return atoms


def options_of(ours, periodic: bool) -> dict:
    """Every parameter of ours that dscribe has too, defaults included."""
    options = {**ours.hypers(), "periodic": periodic}
    del options["average"]
    return options


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["periodic", "slab", "open"])
@pytest.mark.parametrize(("ours", "engine", "params"), LOCAL)
def test_rows_of_atoms_are_dscribes(ours, engine, params, kind, dtype):
    descriptor = ours(species=SPECIES, average="off", dtype=dtype, **params)
    structures = [structure(kind, seed) for seed in range(2)]
    found = descriptor.compute(structures)
    direct = engine(**options_of(descriptor, periodic=kind != "open"))
    expected = np.concatenate([direct.create(atoms) for atoms in structures])
    assert found.dtype == np.dtype(dtype)
    assert found.shape == (sum(map(len, structures)), descriptor.n_features)
    assert np.ptp(found, axis=0).max() > 0
    # The same atoms in the same cell; that wrapping them again rounds is all the difference.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    mean = ours(species=SPECIES, average="outer", dtype=dtype, **params).compute(structures[:1])
    of_first = expected[: len(structures[0])].mean(axis=0, keepdims=True)
    np.testing.assert_allclose(mean, of_first, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["periodic", "slab", "open"])
@pytest.mark.parametrize(("ours", "engine", "params"), GLOBAL)
def test_rows_of_structures_are_dscribes(ours, engine, params, kind):
    descriptor = ours(species=SPECIES, dtype="float64", **params)
    structures = [structure(kind, seed) for seed in range(2)]
    found = descriptor.compute(structures)
    direct = engine(**options_of(descriptor, periodic=kind != "open"))
    expected = np.stack([direct.create(atoms) for atoms in structures])
    assert found.shape == (2, descriptor.n_features)
    assert np.ptp(found, axis=0).max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("function", ["distance", "angle"])
def test_valle_oganov_is_dscribes(function):
    params = {"function": function, "n": 50, "sigma": 0.3, "r_cut": 5.0}
    atoms = structure("periodic")
    found = ValleOganov(species=SPECIES, dtype="float64", **params).compute([atoms])
    expected = theirs.ValleOganov(species=SPECIES, **params).create(atoms)
    np.testing.assert_allclose(found[0], expected, atol=1e-8 * np.abs(expected).max())
    assert np.ptp(found) > 0


@pytest.mark.parametrize("kind", ["slab", "open"])
def test_valle_oganov_is_of_crystals(kind):
    with pytest.raises(InputError, match=r"describes crystals, .*of \w+ has pbc=\[.*\]\. Take describe=mbtr or"):
        ValleOganov(species=SPECIES).compute([structure(kind)])


def test_atoms_that_have_left_the_cell_see_all_their_neighbours():
    """They do not with dscribe alone, which puts images around the cell: so what it is given is wrapped first."""
    atoms = structure("periodic")
    left = atoms.copy()
    left.positions += np.arange(len(atoms))[:, None] * atoms.cell.array[0]
    acsf = ACSF(species=SPECIES, r_cut=4.5)
    np.testing.assert_allclose(acsf.compute([left]), acsf.compute([atoms]), rtol=1e-4)
    alone = theirs.ACSF(**options_of(acsf, periodic=True))
    assert np.abs(alone.create(left) - alone.create(atoms)).max() > 0.1, "dscribe needs no help any more"


def test_a_slab_needs_no_third_cell_vector():
    slab = structure("slab")
    flat = slab.copy()
    flat.cell[2] = 0
    for descriptor in (ACSF(species=SPECIES), MBTR(species=SPECIES)):
        np.testing.assert_allclose(descriptor.compute([flat]), descriptor.compute([slab]), rtol=1e-5, atol=1e-6)
    assert flat.cell.rank == 2, "the structure was changed"


@pytest.mark.parametrize("ours", [MBTR, ValleOganov])
def test_rows_of_atoms_of_a_descriptor_of_structures(ours):
    said = rf"{ours.__name__} describes whole structures only, received average='off'; give average='outer'"
    with pytest.raises(ConfigError, match=said):
        ours(species=SPECIES, average="off")


@pytest.mark.parametrize("name", ["mbtr", "valle_oganov"])
def test_level_atom_of_a_descriptor_of_structures(name):
    said = rf"describe.level=atom: {name} describes whole structures only; type describe.level=structure, or"
    with pytest.raises(ConfigError, match=said):
        check_descriptor_settings(Describe(descriptor=name, level="atom"))
    check_descriptor_settings(Describe(descriptor=name))


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("acsf", {"r_cut": 0}, r"r_cut\s+Input should be greater than 0"),
        ("acsf", {"g2_params": [[1.0, 2.0, 3.0]]}, r"g2_params.0\s+Tuple should have at most 2 items"),
        ("acsf", {"cutoff": 5.0}, r"cutoff\s+Extra inputs are not permitted"),
        ("mbtr", {"geometry": {"function": "distances"}}, r"geometry.function\s+Input should be 'atomic_number', "),
        ("lmbtr", {"geometry": {"function": "atomic_number"}}, r"geometry.function\s+Input should be 'distance', "),
        ("mbtr", {"grid": {"min": 0, "max": 1, "n": 10}}, r"grid.sigma\s+Field required"),
        ("mbtr", {"weighting": {"function": "exp", "rcut": 3}}, r"weighting.rcut\s+Extra inputs are not permitted"),
        (
            "lmbtr",
            {"weighting": {"function": "inverse_square"}},
            r"weighting.function\s+Input should be 'unity' or 'exp'",
        ),
        ("valle_oganov", {"function": "cosine"}, r"function\s+Input should be 'distance' or 'angle'"),
    ],
)
def test_wrong_parameters_are_explained(name, params, said):
    with pytest.raises(ValidationError, match=said):
        DESCRIPTORS.check_params(name, params)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"grid": {"min": 2, "max": 1, "sigma": 0.1, "n": 10}}, r"min value should be smaller than the max value"),
        ({"weighting": {"function": "exp", "scale": 1.0}}, r"Missing value for 'threshold'"),
        ({"weighting": {"function": "exp", "threshold": 0.01}}, r"Provide either 'scale' or 'r_cut'"),
    ],
)
@pytest.mark.parametrize("name", ["mbtr", "lmbtr"])
def test_what_dscribe_refuses_is_told_before_anything_runs(name, params, said):
    DESCRIPTORS.check_params(name, params)
    with pytest.raises(
        ConfigError, match=rf"(?i){name} of open structures: .*{said}.* Received .*change describe.params"
    ):
        check_descriptor_settings(Describe(descriptor=name, params=params))


def test_periodic_structures_want_a_weighting():
    mbtr = MBTR(species=SPECIES, **PLAIN)
    assert mbtr.compute([structure("open")]).any()
    with pytest.raises(ConfigError, match=r"MBTR of periodic structures: Periodic systems need to have a weighting"):
        mbtr.compute([structure("periodic")])


@pytest.mark.parametrize("ours", [ACSF, LMBTR, MBTR, ValleOganov])
def test_hypers_are_json_and_a_copy(ours):
    descriptor = ours(species={"Cu", "Au"}, average="outer")
    hypers = descriptor.hypers()
    assert json.loads(json.dumps(hypers)) == hypers
    assert hypers["species"] == SPECIES
    hypers["species"].append("Xe")
    assert descriptor.hypers()["species"] == SPECIES
    assert ours(**descriptor.hypers()).n_features == descriptor.n_features
    assert FADING == {"function": "exp", "scale": 0.5, "threshold": 1e-3}, "dscribe wrote into the defaults"


def test_elements_beyond_species_are_named():
    with pytest.raises(ValueError, match=r"structure of Xe holds Xe, species are Au, Cu; add the missing ones to spec"):
        ACSF(species=SPECIES).compute([Atoms("Xe")])


@pytest.mark.parametrize("name", ["acsf", "lmbtr", "mbtr", "valle_oganov"])
def test_the_config_builds_them_by_name(name):
    descriptor = build_descriptor(Describe(descriptor=name), SPECIES, "outer")
    assert descriptor.compute([structure("periodic")]).shape == (1, descriptor.n_features)
    assert descriptor.compute([]).shape == (0, descriptor.n_features)
