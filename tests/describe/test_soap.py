import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from dscribe.descriptors import SOAP as DSCRIBE
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from daskpipe.describe import DESCRIPTORS
from daskpipe.describe.soap import SOAP
from daskpipe.errors import ConfigError

HYPERS = {"species": ["Au", "Cu"], "r_cut": 4.0, "n_max": 3, "l_max": 2, "sigma": 0.5}
COMPRESSIONS = ("off", "mu2", "mu1nu1", "crossover")
ROUNDING = 1e-5
"""Relative; dscribe computes in float64 and gives float32."""


def structure(kind: str, rng: np.random.Generator) -> Atoms:
    if kind == "periodic":
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3))), scale_atoms=True)
    elif kind == "slab":
        atoms = fcc111("Cu", (1, 2, 3), vacuum=5.0)
    else:
        atoms = Atoms("Cu5", positions=2.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    atoms.rattle(0.15, rng=rng)
    atoms.numbers = rng.choice([29, 79], size=len(atoms))
    return atoms


@pytest.mark.parametrize("kind", ["periodic", "slab", "open"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("average", ["off", "inner", "outer"])
def test_is_dscribe(average, compression, kind):
    rng = np.random.default_rng(0)
    structures = [structure(kind, rng) for _ in range(2)]
    soap = SOAP(**HYPERS, average=average, compression=compression, dtype="float64")
    direct = DSCRIBE(
        **HYPERS,
        average=average,
        compression={"mode": compression, "species_weighting": None},
        periodic=kind != "open",
        dtype="float64",
    )
    found = soap.compute(structures)
    expected = np.concatenate([np.atleast_2d(direct.create(atoms)) for atoms in structures])
    n_rows = sum(map(len, structures)) if average == "off" else len(structures)
    assert found.shape == (n_rows, soap.n_features)
    assert np.ptp(found, axis=0).max() > 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_and_width_are_known_before_anything_is_computed(dtype):
    soap = SOAP(**HYPERS, dtype=dtype)
    found = soap.compute([bulk("Cu")])
    assert found.dtype == soap.dtype == np.dtype(dtype)
    assert found.shape == (1, soap.n_features)


def test_a_slab_sees_its_images_within_the_plane_only():
    """The foreign check is on an open piece of the slab, large enough for its middle to see no edge."""
    slab = structure("slab", np.random.default_rng(1))
    soap = SOAP(**HYPERS)
    copies = 7  # of a cell of 2.5 Å: on either side more than the radius and the tail of a Gaussian, 4 Å + 2 Å
    piece = slab.repeat((copies, copies, 1))
    piece.pbc = False
    middle = (copies * copies // 2) * len(slab)
    found = soap.compute([slab])
    np.testing.assert_allclose(found, soap.compute([piece])[middle : middle + len(slab)], rtol=ROUNDING, atol=1e-6)
    other = slab.copy()
    other.pbc = False
    assert np.abs(found - soap.compute([other])).max() > 0.1, "the images do not show"


@pytest.mark.parametrize("average", ["off", "outer"])
def test_a_slab_needs_no_third_cell_vector(average):
    slab = structure("slab", np.random.default_rng(2))
    flat = slab.copy()
    flat.cell[2] = 0
    soap = SOAP(**HYPERS, average=average)
    np.testing.assert_allclose(soap.compute([flat]), soap.compute([slab]), rtol=ROUNDING)
    assert flat.cell.rank == 2, "the structure was changed"


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(["periodic", "slab", "open"]), seed=st.integers(0, 2**32 - 1))
def test_outer_average_is_invariant(kind, seed):
    rng = np.random.default_rng(seed)
    atoms = structure(kind, rng)
    rotation = Rotation.random(rng=rng).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions @ rotation.T + rng.uniform(-5, 5, 3)
    turned = turned[rng.permutation(len(turned))]
    soap = SOAP(**HYPERS, average="outer")
    expected = soap.compute([atoms])
    np.testing.assert_allclose(soap.compute([turned]), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    moved = atoms.copy()
    moved.positions[0] += 0.3
    assert not np.allclose(soap.compute([moved]), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_supercell_has_the_same_average():
    atoms = structure("periodic", np.random.default_rng(3))
    soap = SOAP(**HYPERS, average="outer")
    np.testing.assert_allclose(soap.compute([atoms.repeat((2, 1, 1))]), soap.compute([atoms]), rtol=1e-4, atol=1e-5)


def test_average_is_the_mean_of_the_rows_of_the_atoms():
    atoms = structure("periodic", np.random.default_rng(4))
    rows = SOAP(**HYPERS, dtype="float64").compute([atoms])
    mean = SOAP(**HYPERS, average="outer", dtype="float64").compute([atoms])
    np.testing.assert_allclose(mean[0], rows.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("average", ["off", "outer"])
def test_a_structure_owes_nothing_to_its_neighbours(average):
    rng = np.random.default_rng(5)
    structures = [structure(kind, rng) for kind in ("periodic", "open", "slab")]
    soap = SOAP(**HYPERS, average=average)
    alone = np.concatenate([soap.compute([atoms]) for atoms in structures])
    np.testing.assert_array_equal(soap.compute(structures), alone)


def test_no_structures_give_no_rows():
    soap = SOAP(**HYPERS)
    assert soap.compute([]).shape == (0, soap.n_features)


def test_hypers_make_the_same_descriptor_and_are_json():
    soap = SOAP(**HYPERS, average="outer", compression="mu2", dtype="float64")
    hypers = json.loads(json.dumps(soap.hypers()))
    again = SOAP(**hypers)
    atoms = [structure("slab", np.random.default_rng(6))]
    assert again.hypers() == soap.hypers() == hypers
    np.testing.assert_array_equal(again.compute(atoms), soap.compute(atoms))
    soap.hypers()["species"].append("Fe")
    assert soap.hypers() == hypers, "hypers() handed out its own list"


def test_order_and_repeats_of_species_do_not_matter():
    atoms = [structure("open", np.random.default_rng(7))]
    one = SOAP(**HYPERS)
    other = SOAP(**{**HYPERS, "species": ["Cu", "Au", "Cu"]})
    assert one.hypers() == other.hypers()
    np.testing.assert_array_equal(one.compute(atoms), other.compute(atoms))


def test_unknown_species_are_named():
    with pytest.raises(ValueError, match=r"AgCuPd holds Ag, Pd, species are Au, Cu; add the missing ones to species"):
        SOAP(**HYPERS).compute([Atoms("AgCuPd", positions=3 * np.eye(3))])


def test_what_dscribe_refuses_is_a_value_error():
    with pytest.raises(ValueError, match="cutoff"):
        SOAP(**{**HYPERS, "r_cut": 0.5})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"r_cut": -1}, "greater than 0"),
        ({"n_maxx": 3}, "n_maxx\n.*not permitted"),
        ({"compression": "zip"}, "'mu1nu1'"),
        ({"species": ["Cu"]}, "species\n.*not permitted"),
    ],
)
def test_wrong_parameters_in_a_config_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        DESCRIPTORS.check_params("soap", params)


def test_unknown_descriptor_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown descriptor 'soup'. Did you mean 'soap'\? Known: soap"):
        DESCRIPTORS.get("soup")
