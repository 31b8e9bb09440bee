import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from daskpipe import potentials
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.stages.describe import (
    DESCRIPTORS,
    build_descriptor,
    check_descriptor_settings,
    identify_model,
    uses_device,
)
from daskpipe.stages.describe.mace import MACE
from daskpipe.stages.describe.settings import Describe

SPECIES = ["Ag", "Au", "Cu"]


def mixed() -> list[Atoms]:
    """Structures of all periodicities, none like the other."""
    rng = np.random.default_rng(0)
    found = [
        bulk("Cu", cubic=True),
        fcc111("Ag", (1, 2, 3), vacuum=5.0),
        Atoms("CuAuAg", [[0, 0, 0], [0, 0, 2.6], [0, 2.5, 0]]),
        bulk("Au"),
        Atoms("Cu"),
    ]
    for atoms in found:
        atoms.rattle(0.1, rng=rng)
    return found


def test_rows_are_those_of_the_calculator() -> None:
    calculator = potentials.build_potential("mace", {}, "cpu", "float64").calculator
    mace = MACE(species=SPECIES, dtype="float64")
    expected = [calculator.get_descriptors(atoms) for atoms in mixed()]
    found = mace.compute(mixed())
    assert found.shape == (sum(map(len, mixed())), mace.n_features)
    assert found.dtype == mace.dtype == np.float64
    assert np.ptp(found, axis=0).min() > 1e-3
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-10, atol=1e-10)
    mean = MACE(species=SPECIES, dtype="float64", average="outer").compute(mixed())
    np.testing.assert_allclose(mean, [rows.mean(axis=0) for rows in expected], rtol=1e-10, atol=1e-10)


def test_layers_are_taken_from_the_first_on() -> None:
    calculator = potentials.build_potential("mace", {}, "cpu", "float64").calculator
    one = MACE(species=SPECIES, num_layers=1, dtype="float64")
    assert one.n_features < MACE(species=SPECIES).n_features
    expected = np.concatenate([calculator.get_descriptors(atoms, num_layers=1) for atoms in mixed()])
    np.testing.assert_allclose(one.compute(mixed()), expected, rtol=1e-10, atol=1e-10)


def test_elements_beyond_the_model_are_named_before_anything_is_computed() -> None:
    said = r"MACE Cu-Ag-Au knows Ag, Au, Cu and not Fe, O; give describe.params.model=MODEL that knows all elements, or"
    with pytest.raises(ConfigError, match=said):
        MACE(species=["Fe", "Cu", "O"])


def test_elements_beyond_species_are_named() -> None:
    with pytest.raises(ValueError, match=r"structure of Au holds Au, species are Cu; add the missing ones to species"):
        MACE(species=["Cu"]).compute([Atoms("Au")])


def test_hypers_give_the_same_descriptor() -> None:
    mace = MACE(species=SPECIES, num_layers=1, average="outer")
    np.testing.assert_array_equal(MACE(**mace.hypers()).compute(mixed()), mace.compute(mixed()))


def test_the_config_says_which_model_and_device() -> None:
    settings = Describe(descriptor="mace", device="cpu")
    assert uses_device(settings)
    assert not uses_device(Describe())
    assert identify_model(settings) == potentials.identify_potential("mace", {})
    assert identify_model(Describe()) is None
    check_descriptor_settings(settings.model_copy(update={"level": "atom"}))
    assert build_descriptor(settings, SPECIES, "off").hypers()["device"] == "cpu"
    assert "device" not in DESCRIPTORS.params_model("mace").model_fields, "it is describe.device"
    missing = settings.model_copy(update={"params": {"model": "nowhere/x.model"}})
    with pytest.raises(InputError, match=r"model file 'nowhere/x.model' does not exist"):
        identify_model(missing)
