from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from daskpipe.core.errors import ConfigError, InputError
from daskpipe.core.third_party import UNPICKLE_ANYTHING, import_mace, silence_libraries
from daskpipe.potentials import Failure, Results, batched_model, build_potential, evaluate, identify_potential
from daskpipe.potentials.mace import BUNDLED, node_feature_columns, node_features
from daskpipe.potentials.mace_files import build_module, hyper_file, load_model, read_hypers, save_model

OFFLINE_MESSAGE = (
    r"foundation model 'NAME' is not cached in .*/mace and cannot be fetched .*; fetch it where there is a network "
    r"and give its path: explore\.potential\.params\.model=/path/to/file\.model"
)


def random_module(seed: int = 0, **changes: object) -> torch.nn.Module:
    """MACE for Cu, Ag, Au with random weights, as small as it gets."""
    hypers = read_hypers(BUNDLED) | {"hidden_irreps": "4x0e", "MLP_irreps": "4x0e", "radial_MLP": [8]} | changes
    torch.manual_seed(seed)
    return build_module(hypers, "float32")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "random.model"
    save(random_module(), path)
    return path


def save(content: object, path: Path) -> None:
    with silence_libraries():  # MACE's modules hold TorchScript, which torch deprecates
        torch.save(content, path)


def one(atoms: Atoms, dtype: str = "float64", **params: object) -> Results:
    (found,) = evaluate(build_potential("mace", params, "cpu", dtype), [atoms])
    assert isinstance(found, Results), found
    return found


def test_bundled_model_is_the_default() -> None:
    found = identify_potential("mace", {})
    assert found == identify_potential("mace", {"model": "bundled"})
    assert found.name == "MACE Cu-Ag-Au"
    assert found.elements == {"Cu", "Ag", "Au"}
    assert build_potential("mace", {}, "cpu", "float32") is build_potential(
        "mace", {"model": "bundled"}, "cpu", "float32"
    )


def test_bundled_model_follows_its_teacher(metals: list[Atoms]) -> None:
    """The structures are hotter than what it was made for; the model card has the errors on a held-out set."""
    student = evaluate(build_potential("mace", {}, "cpu", "float32"), metals)
    teacher = evaluate(build_potential("chgnet", {}, "cpu", "float32"), metals)
    for atoms, found, wanted in zip(metals, student, teacher, strict=True):
        assert isinstance(found, Results)
        assert isinstance(wanted, Results)
        assert abs(found.energy - wanted.energy) / len(atoms) < 0.15
        assert np.sqrt(np.mean((found.forces - wanted.forces) ** 2)) < 0.35 * np.sqrt(np.mean(wanted.forces**2))


def test_bundled_model_repels() -> None:
    # From where the guards of exploration stop a trajectory to where the teacher's wall ends, Å.
    distances = np.linspace(1.5, 2.1, 13)
    for pair in ("Cu2", "Ag2", "Au2", "CuAu"):
        dimers = [Atoms(pair, positions=[[0, 0, 0], [0, 0, distance]]) for distance in distances]
        found = evaluate(build_potential("mace", {}, "cpu", "float32"), dimers)
        energies = [item.energy for item in found if isinstance(item, Results)]
        assert len(energies) == len(distances)
        assert np.all(np.diff(energies) < 0), f"{pair} must not fall into a hole"


def test_unknown_element(make) -> None:
    atoms = make("cluster")
    atoms.symbols[0] = "Fe"
    found = evaluate(build_potential("mace", {}, "cpu", "float32"), [atoms, make("alloy")])
    assert found[0] == Failure(reason="unknown_element", evidence="Fe not among Ag Au Cu")
    assert isinstance(found[1], Results)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_safetensors_give_the_same_as_a_pickle(dtype: str, model_file: Path, tmp_path: Path, make) -> None:
    stem = tmp_path / "random.safetensors"
    save_model(random_module(), stem, note="for a test")
    assert read_hypers(stem)["note"] == "for a test"
    pickled = one(make("alloy"), dtype, model=str(model_file))
    safe = one(make("alloy"), dtype, model=str(stem))
    # The pickle holds constants of the module in float32, the JSON gives them in full.
    tolerance = 1e-5
    assert safe.energy == pytest.approx(pickled.energy, abs=tolerance)
    np.testing.assert_allclose(safe.forces, pickled.forces, atol=tolerance)
    np.testing.assert_allclose(safe.stress, pickled.stress, atol=tolerance)
    assert np.abs(safe.forces).max() > 100 * tolerance
    again = load_model(stem, "float32").state_dict()
    for name, value in random_module().named_parameters():
        assert torch.equal(again[name], value)


def test_a_model_with_vectors_and_without_repulsion_is_given_back(tmp_path: Path) -> None:
    stem = tmp_path / "other.safetensors"
    module = random_module(hidden_irreps="4x0e+4x1o", pair_repulsion=False, correlation=3, distance_transform="Agnesi")
    save_model(module, stem)
    again = load_model(stem, "float32").state_dict()
    assert again.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(again[name], value)


def test_trained_constants_are_refused(tmp_path: Path) -> None:
    module = random_module()
    module.radial_embedding.bessel_fn.bessel_weights *= 1.1
    with pytest.raises(InputError, match="bessel_weights does not follow from its hyper-parameters"):
        save_model(module, tmp_path / "odd.safetensors")


def test_weights_and_hypers_that_do_not_fit(tmp_path: Path) -> None:
    stem = tmp_path / "a.safetensors"
    save_model(random_module(), stem)
    other = tmp_path / "b.safetensors"
    save_model(random_module(hidden_irreps="8x0e"), other)
    shutil.copy(hyper_file(other), hyper_file(stem))
    with pytest.raises(InputError, match=r"a\.safetensors: .*size mismatch for .*write both files of a model with"):
        load_model(stem, "float32")
    hyper_file(stem).write_text('{"format": "daskpipe-mace/9"}')
    with pytest.raises(InputError, match=r"a\.json: expected format 'daskpipe-mace/1', received 'daskpipe-mace/9'"):
        load_model(stem, "float32")
    hyper_file(stem).unlink()
    with pytest.raises(InputError, match=r"a\.json: .*No such file.*needs its hyper-parameters beside it"):
        identify_potential("mace", {"model": str(stem)})


def test_damaged_weights(tmp_path: Path) -> None:
    stem = tmp_path / "a.safetensors"
    save_model(random_module(), stem)
    stem.write_bytes(stem.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.safetensors: .*write both files of a model with"):
        build_potential("mace", {"model": str(stem)}, "cpu", "float32")


def test_a_file_of_your_own(model_file: Path, make) -> None:
    found = identify_potential("mace", {"model": str(model_file)})
    assert found.name == "MACE random.model"
    assert found.hash == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert found.elements is None, "only loading the program would tell"
    potential = build_potential("mace", {"model": str(model_file)}, "cpu", "float64")
    assert potential.elements == {"Cu", "Ag", "Au"}
    assert potential.cutoff == pytest.approx(4.5)
    assert batched_model(potential).dtype == torch.float64
    assert one(make("alloy"), model=str(model_file)).energy != one(make("alloy")).energy


def test_a_changed_file_is_another_potential(model_file: Path) -> None:
    params = {"model": str(model_file)}
    before, first = identify_potential("mace", params), build_potential("mace", params, "cpu", "float32")
    assert build_potential("mace", params, "cpu", "float32") is first
    save(random_module(seed=1), model_file)
    assert identify_potential("mace", params).hash != before.hash
    assert build_potential("mace", params, "cpu", "float32") is not first


def test_missing_file() -> None:
    message = r"model file 'nowhere/x\.model' does not exist; give the path of a MACE model file or model=bundled"
    with pytest.raises(InputError, match=message):
        identify_potential("mace", {"model": "nowhere/x.model"})
    with pytest.raises(InputError, match=message):
        build_potential("mace", {"model": "nowhere/x.model"}, "cpu")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"'smal' does not exist; .* Foundation models: small, medium, .*off:small"):
        identify_potential("mace", {"model": "smal"})


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, torch.nn.Linear(2, 2)])
def test_a_file_without_a_model(content: object, tmp_path: Path) -> None:
    path = tmp_path / "state.model"
    torch.save(content, path)
    with pytest.raises(InputError, match=rf"state\.model' holds a {type(content).__name__}, not a MACE model"):
        build_potential("mace", {"model": str(path)}, "cpu")


class MACELES(torch.nn.Module):
    """As far as a loader sees it; the real one needs a package of its own."""

    r_max, atomic_numbers, interactions = 4.5, (29,), ()


def test_a_model_with_a_long_range(tmp_path: Path) -> None:
    path = tmp_path / "les.model"
    save(MACELES(), path)
    with pytest.raises(InputError, match=r"les\.model' holds a MACELES, whose long range is not made of edges"):
        build_potential("mace", {"model": str(path)}, "cpu")


def test_a_file_that_torch_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "text.model"
    path.write_text("weights")
    with pytest.raises(InputError, match=r"text\.model' cannot be loaded \(UnpicklingError: "):
        build_potential("mace", {"model": str(path)}, "cpu")


def test_unknown_head(model_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown head 'omat'\. Known: Default"):
        build_potential("mace", {"model": str(model_file), "head": "omat"}, "cpu")
    assert build_potential("mace", {"model": str(model_file), "head": "Default"}, "cpu", "float32").cutoff


@pytest.mark.parametrize("name", ["small", "medium-mpa-0", "off:small"])
def test_foundation_model_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(InputError, match=OFFLINE_MESSAGE.replace("NAME", name)):
        identify_potential("mace", {"model": name})


@pytest.mark.parametrize(
    ("name", "file"),
    [("small", "20231210mace128L0_energy_epoch249model"), ("off:small", "MACE-OFF23_small.model")],
)
def test_cached_foundation_model(
    name: str, file: str, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "mace").mkdir()
    shutil.copy(model_file, tmp_path / "mace" / file)
    found = identify_potential("mace", {"model": name})
    assert found.name == f"MACE {name}"
    assert found.hash == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert build_potential("mace", {"model": name}, "cpu", "float32").elements == {"Cu", "Ag", "Au"}


class Bomb:
    """What a hostile data file would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("before", [None, "0"])
def test_mace_leaves_torchs_safe_loading_alone(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(UNPICKLE_ANYTHING, raising=False)
    if before is not None:
        monkeypatch.setenv(UNPICKLE_ANYTHING, before)
    import_mace()
    build_potential("mace", {}, "cpu", "float32")
    assert os.environ.get(UNPICKLE_ANYTHING) == before
    torch.save(Bomb(), tmp_path / "bomb.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "bomb.pt")


def test_building_leaves_torchs_default_dtype_alone(model_file: Path) -> None:
    before = torch.get_default_dtype()
    build_potential("mace", {}, "cpu", "float64")
    one(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.3]]), model=str(model_file))
    assert torch.get_default_dtype() == before


def test_nothing_is_printed_while_building(model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_potential("mace", {"model": str(model_file)}, "cpu", "float64")
    assert capfd.readouterr() == ("", "")


# --- node features ------------------------------------------------------------------------------------


@pytest.fixture
def vector_model(tmp_path: Path) -> Path:
    """Random model whose first layer has vectors beside scalars, as a pickle like those of foundation models."""
    path = tmp_path / "vectors.model"
    save(random_module(hidden_irreps="4x0e+4x1o"), path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("invariants_only", [True, False])
@pytest.mark.parametrize("num_layers", [-1, 1, 2])
def test_node_features_are_the_calculators(
    num_layers: int, invariants_only: bool, dtype: str, vector_model: Path, metals: list[Atoms]
) -> None:
    potential = build_potential("mace", {"model": str(vector_model)}, "cpu", dtype)
    choice = {"invariants_only": invariants_only, "num_layers": num_layers}
    found = node_features(potential, metals, **choice)
    expected = np.concatenate([potential.calculator.get_descriptors(atoms, **choice) for atoms in metals])
    assert found.dtype == expected.dtype == np.dtype(dtype)
    assert found.shape == (sum(map(len, metals)), len(node_feature_columns(potential, **choice)))
    assert np.ptp(expected, axis=0).min() > 1e-3
    tolerance = {"float32": 1e-4, "float64": 1e-11}[dtype]
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_vectors_are_left_out_of_the_invariants(vector_model: Path) -> None:
    potential = build_potential("mace", {"model": str(vector_model)}, "cpu", "float32")
    # Two layers: four scalars and four vectors, then four scalars.
    assert node_feature_columns(potential).tolist() == [0, 1, 2, 3, 16, 17, 18, 19]
    assert node_feature_columns(potential, invariants_only=False).tolist() == list(range(20))


def test_batches_of_node_features_hold_a_number_of_atoms(monkeypatch: pytest.MonkeyPatch, make) -> None:
    potential = build_potential("mace", {}, "cpu", "float64")
    structures = [make(kind, seed=seed) for seed in range(2) for kind in ("alloy", "slab", "cluster")]
    expected = node_features(potential, structures)
    sizes = []
    (module,) = potential.calculator.models
    hook = module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]["positions"])))
    monkeypatch.setattr("daskpipe.potentials.mace.FEATURE_ATOMS", 25)
    found = node_features(potential, structures)
    hook.remove()
    assert [len(atoms) for atoms in structures] == [8, 12, 13, 8, 12, 13]
    assert sizes == [20, 21, 25]
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert node_features(potential, []).shape == (0, expected.shape[1])


def test_node_features_of_layers_that_are_not_there() -> None:
    potential = build_potential("mace", {}, "cpu", "float32")
    for wrong in (0, 3, -2):
        with pytest.raises(ConfigError, match=rf"num_layers={wrong}: the model has 2 layers; give 1 to 2 or -1"):
            node_feature_columns(potential, num_layers=wrong)


def test_node_features_leave_torch_and_the_structures_alone(metals: list[Atoms]) -> None:
    before, copies = torch.get_default_dtype(), [atoms.copy() for atoms in metals]
    node_features(build_potential("mace", {}, "cpu", "float64"), metals)
    assert torch.get_default_dtype() == before
    assert torch.is_grad_enabled()
    assert metals == copies
