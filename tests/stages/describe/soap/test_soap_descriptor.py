import inspect
import json
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from dscribe.descriptors import SOAP as DSCRIBE
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference import soap as slow
from scipy.linalg import LinAlgWarning
from scipy.spatial.transform import Rotation

from daskpipe.core.errors import ConfigError
from daskpipe.core.neighbours import neighbour_grid
from daskpipe.core.neighbours_kernels import write_neighbours
from daskpipe.core.simd import WIDTH
from daskpipe.stages.describe import DESCRIPTORS
from daskpipe.stages.describe.catalogue import build_descriptor
from daskpipe.stages.describe.settings import Describe
from daskpipe.stages.describe.soap.descriptor import SoapDescriptor

COMPRESSIONS = ("off", "mu2", "mu1nu1", "crossover")
HYPERS = {"species": ["Cu", "Au"], "r_cut": 4.0, "n_max": 3, "l_max": 2, "sigma": 0.5}
ELEMENTS = ["H", "C", "O", "Na", "Al", "Ti", "Cu", "Ag", "Pt", "Au"]
ROUNDING = 1e-4
"""Relative, of float32."""
AGREEMENT = {"float64": {"rtol": 1e-6, "atol": 1e-9}, "float32": {"rtol": 1e-4, "atol": 1e-6}}
"""With dscribe; `atol` is in units of the largest feature, since sums of both signs leave small ones uncertain.

In float32 it is some eight units of the last place."""


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


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Atoms, dict[str, object]]:
    """Any structure and parameters that dscribe takes; atoms inside the cell, outside of it dscribe misses images."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    species = rng.choice(ELEMENTS, size=draw(st.integers(1, len(ELEMENTS))), replace=False).tolist()
    n_atoms = draw(st.integers(1, 8))
    # From a lattice vector far shorter than the cutoff to one beyond it, and skewed by up to half of another.
    cell = np.diag(rng.uniform(2.0, 9.0, 3)) + np.tril(rng.uniform(-3.0, 3.0, (3, 3)), -1)
    atoms = Atoms(rng.choice(species, size=n_atoms), scaled_positions=rng.random((n_atoms, 3)), cell=cell)
    atoms.pbc = [draw(st.booleans()) for _ in range(3)]
    hypers = {
        "species": species,
        "r_cut": rng.uniform(3.0, 6.0),
        "n_max": draw(st.integers(1, 12)),
        "l_max": draw(st.integers(0, 9)),
        "sigma": rng.uniform(0.2, 1.0),
        "average": draw(st.sampled_from(["off", "inner", "outer"])),
        "compression": draw(st.sampled_from(COMPRESSIONS)),
    }
    return atoms, hypers


@settings(max_examples=150, deadline=None)
@given(drawn(), st.sampled_from(["float32", "float64"]))
def test_is_dscribe(case, dtype):
    atoms, hypers = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # of dscribe's many radial functions
        direct = DSCRIBE(
            **{**hypers, "compression": {"mode": hypers["compression"], "species_weighting": None}},
            periodic=bool(atoms.pbc.any()),
            dtype="float64",
        )
    expected = np.atleast_2d(direct.create(atoms))
    soap = SoapDescriptor(**hypers, dtype=dtype)
    found = soap.compute([atoms])
    assert found.shape == (len(atoms) if hypers["average"] == "off" else 1, soap.n_features) == expected.shape
    assert expected.max() > 0
    tolerance = AGREEMENT[dtype]
    np.testing.assert_allclose(found, expected, tolerance["rtol"], tolerance["atol"] * np.abs(expected).max())


@pytest.mark.parametrize("average", ["off", "inner", "outer"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_is_dscribe_on_a_large_cell(compression, average):
    """Hundreds of neighbours an atom, whole vectors of them for each species."""
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", cubic=True) * (2, 3, 2)
    atoms.rattle(0.1, rng=rng)
    atoms.wrap()
    atoms.symbols[:] = rng.choice(["Cu", "Ag", "Au"], size=len(atoms))
    hypers = {"species": ["Cu", "Ag", "Au"], "r_cut": 5.0, "n_max": 8, "l_max": 6, "sigma": 1.0, "average": average}
    mode = {"mode": compression, "species_weighting": None}
    expected = np.atleast_2d(DSCRIBE(**hypers, compression=mode, periodic=True, dtype="float64").create(atoms))
    for dtype, tolerance in AGREEMENT.items():
        found = SoapDescriptor(**hypers, compression=compression, dtype=dtype).compute([atoms])
        np.testing.assert_allclose(found, expected, tolerance["rtol"], tolerance["atol"] * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["periodic", "slab", "open"])
def test_is_the_slow_reference(kind):
    atoms = structure(kind, np.random.default_rng(8))
    found = SoapDescriptor(**HYPERS, dtype="float64").compute([atoms])
    hypers = {name: HYPERS[name] for name in ("r_cut", "n_max", "l_max", "sigma")}
    expected = slow.power_spectrum(atoms, [29, 79], **hypers)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


@settings(max_examples=30, deadline=None)
@given(drawn(), st.floats(0.5, 5.0))
def test_points_around_an_atom_are_its_neighbours(case, cutoff):
    atoms, _ = case
    atoms.positions += atoms.cell.array.sum(axis=0) * np.arange(len(atoms))[:, None]  # far outside of the cell
    grid = neighbour_grid(atoms, cutoff)
    # Atoms that are pushed out of a cell that is not periodic are far from the others, as they should be.
    expected = slow.neighbours(atoms, cutoff)
    found = np.empty(grid.points.shape[1] + WIDTH, np.int32)
    for atom, position in enumerate(grid.positions):
        n_found = write_neighbours(position, grid, found)
        points = found[:n_found]
        rows = np.column_stack([grid.atom_index[points], grid.points[:, points].T - grid.positions[atom]])
        wanted = np.array([[other, *vector] for other, vector in expected[atom]])
        assert len(rows) == len(wanted)
        order = np.lexsort(np.round(rows, 6).T), np.lexsort(np.round(wanted, 6).T)
        np.testing.assert_allclose(rows[order[0]], wanted[order[1]], atol=1e-8)


def test_few_atoms_in_much_space_take_little_memory():
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [3e4, 2e4, 1e4]])
    grid = neighbour_grid(atoms, 3.0)
    assert grid.points.shape == (3, 2)
    assert len(grid.bin_ptr) < 100


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_and_width_are_known_before_anything_is_computed(dtype):
    soap = SoapDescriptor(**HYPERS, dtype=dtype)
    found = soap.compute([bulk("Cu")])
    assert found.dtype == soap.dtype == np.dtype(dtype)
    assert found.shape == (1, soap.n_features)


def test_a_slab_sees_its_images_within_the_plane_only():
    """The foreign check is on an open piece of the slab, large enough for its middle to see no edge."""
    slab = structure("slab", np.random.default_rng(1))
    soap = SoapDescriptor(**HYPERS)
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
    soap = SoapDescriptor(**HYPERS, average=average)
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
    soap = SoapDescriptor(**HYPERS, average="outer")
    expected = soap.compute([atoms])
    np.testing.assert_allclose(soap.compute([turned]), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    moved = atoms.copy()
    moved.positions[0] += 0.3
    assert not np.allclose(soap.compute([moved]), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_supercell_has_the_same_average():
    atoms = structure("periodic", np.random.default_rng(3))
    soap = SoapDescriptor(**HYPERS, average="outer")
    np.testing.assert_allclose(soap.compute([atoms.repeat((2, 1, 1))]), soap.compute([atoms]), rtol=1e-4, atol=1e-5)


def test_average_is_the_mean_of_the_rows_of_the_atoms():
    atoms = structure("periodic", np.random.default_rng(4))
    rows = SoapDescriptor(**HYPERS, dtype="float64").compute([atoms])
    mean = SoapDescriptor(**HYPERS, average="outer", dtype="float64").compute([atoms])
    np.testing.assert_allclose(mean[0], rows.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("average", ["off", "outer"])
def test_a_structure_owes_nothing_to_its_neighbours(average):
    rng = np.random.default_rng(5)
    structures = [structure(kind, rng) for kind in ("periodic", "open", "slab")]
    soap = SoapDescriptor(**HYPERS, average=average)
    alone = np.concatenate([soap.compute([atoms]) for atoms in structures])
    np.testing.assert_array_equal(soap.compute(structures), alone)


def test_no_structures_give_no_rows():
    soap = SoapDescriptor(**HYPERS)
    assert soap.compute([]).shape == (0, soap.n_features)


def test_hypers_make_the_same_descriptor_and_are_json():
    soap = SoapDescriptor(**HYPERS, average="outer", compression="mu2", dtype="float64")
    hypers = json.loads(json.dumps(soap.hypers()))
    again = SoapDescriptor(**hypers)
    atoms = [structure("slab", np.random.default_rng(6))]
    assert again.hypers() == soap.hypers() == hypers
    np.testing.assert_array_equal(again.compute(atoms), soap.compute(atoms))
    soap.hypers()["species"].append("Fe")
    assert soap.hypers() == hypers, "hypers() handed out its own list"


def test_order_and_repeats_of_species_do_not_matter():
    atoms = [structure("open", np.random.default_rng(7))]
    one = SoapDescriptor(**HYPERS)
    other = SoapDescriptor(**{**HYPERS, "species": ["Cu", "Au", "Cu"]})
    assert one.hypers() == other.hypers()
    np.testing.assert_array_equal(one.compute(atoms), other.compute(atoms))


def test_unknown_species_are_named():
    with pytest.raises(ValueError, match=r"AgCuPd holds Ag, Pd, species are Cu, Au; add the missing ones to species"):
        SoapDescriptor(**HYPERS).compute([Atoms("AgCuPd", positions=3 * np.eye(3))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r_cut": 0.5}, "r_cut must be more than 1 Å, where the radial functions begin, received 0.5"),
        (
            {"r_cut": 1.5, "n_max": 12},
            "12 radial functions within 1.5 Å are not independent .* lower n_max",
        ),
        ({"species": []}, "species must name at least one element, received none"),
        ({"species": ["Cu", "Xx9"]}, "species must be chemical symbols such as Cu, received Xx9"),
    ],
)
def test_parameters_without_a_descriptor_say_why(changes, message):
    with pytest.raises(ValueError, match=message):
        SoapDescriptor(**{**HYPERS, **changes})


def test_a_structure_without_atoms_is_refused():
    with pytest.raises(ValueError, match="without atoms has no descriptor; drop it"):
        SoapDescriptor(**HYPERS).compute([Atoms()])


def test_a_lattice_without_volume_is_refused():
    atoms = Atoms("Cu", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True)
    with pytest.raises(ValueError, match="structure of Cu is periodic .* span no lattice; set atoms.cell or atoms.pbc"):
        SoapDescriptor(**HYPERS).compute([atoms])


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
    with pytest.raises(ConfigError, match=r"unknown descriptor 'soup'. Did you mean 'soap'\? Known: .*soap"):
        DESCRIPTORS.get("soup")


def test_defaults_are_those_of_dscribe():
    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in (SoapDescriptor, DSCRIBE))
    assert ours["sigma"].default == theirs["sigma"].default == 1.0
    assert ours["average"].default == theirs["average"].default
    assert ours["compression"].default == theirs["compression"].default["mode"]


def test_a_config_that_leaves_sigma_out_gives_the_features_that_it_gave():
    built = build_descriptor(Describe(descriptor="soap", params={"r_cut": 4.0}), ["Cu"], "outer")
    assert built.hypers()["sigma"] == 0.75
