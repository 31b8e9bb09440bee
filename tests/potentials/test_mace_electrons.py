"""MACE models that know charge and spin, or have several heads; energies of float32 models; stresses of open cells."""

from __future__ import annotations

import os
import pickle
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from test_mace import random_module, save

from daskpipe.config.load import load_config
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials import Failure, Results, batched_model, build_potential, evaluate, identify_potential
from daskpipe.potentials.batches import make_state
from daskpipe.potentials.mace_pickles import read_class_and_heads
from daskpipe.runs import run

CPU = torch.device("cpu")
SPECS = {
    "total_charge": {"type": "categorical", "per": "graph", "num_classes": 11, "offset": 5, "emb_dim": 4},
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 9, "offset": 0, "emb_dim": 4},
}
"""As of the models on OMol25: charges -5 to 5, multiplicities 0 to 8."""


@cache
def plain_module() -> torch.nn.Module:
    return random_module(atomic_numbers=[1, 6, 8], num_elements=3)


def changed_module(**changes: object) -> torch.nn.Module:
    """Return a random MACE for H, C and O with other arguments than `random_module` can give."""
    from mace.modules import ScaleShiftMACE
    from mace.tools.compile import disable_e3nn_codegen
    from mace.tools.scripts_utils import extract_config_mace_model

    with silence_libraries(), disable_e3nn_codegen():
        arguments = extract_config_mace_model(plain_module()) | changes
        torch.manual_seed(3)
        return ScaleShiftMACE(**arguments)


@pytest.fixture(scope="module")
def charged_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("charged") / "charged.model"
    save(changed_module(embedding_specs=SPECS, use_embedding_readout=True), path)
    return {"model": str(path)}


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "two.model"
    energies = np.arange(6.0).reshape(2, 3)
    heads = {"heads": ["omat", "omol"], "atomic_energies": energies}
    scales = {"atomic_inter_scale": np.ones(2), "atomic_inter_shift": np.zeros(2)}
    save(changed_module(**heads, **scales), path)
    return path


def ions() -> list[Atoms]:
    hydroxide, radical, water, odd = (molecule(name) for name in ("OH", "OH", "H2O", "H2O"))
    hydroxide.info |= {"charge": -1, "spin_multiplicity": 1}
    radical.info |= {"charge": 0, "spin_multiplicity": 2}
    odd.info |= {"charge": 9}
    return [hydroxide, radical, odd, water]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_charge_and_spin_reach_the_model(charged_model: dict[str, str], dtype: str) -> None:
    potential = build_potential("mace", charged_model, "cpu", dtype)
    anion, radical, odd, water = evaluate(potential, ions())
    assert isinstance(anion, Results)
    assert isinstance(radical, Results)
    assert isinstance(water, Results)
    assert abs(anion.energy - radical.energy) > 1e-4, "the same atoms with another charge"
    assert odd == Failure(reason="charge", evidence="charge 9 is not among those that the model knows, -5 to 5")
    tolerance = 1e-9 if dtype == "float64" else 1e-5
    for atoms, found in zip(ions(), (anion, radical, odd, water), strict=True):
        if isinstance(found, Failure):
            with pytest.raises(ValueError, match="charge 9 is not among those that the model knows, -5 to 5"):
                potential.calculator.get_potential_energy(atoms)
        else:
            assert potential.calculator.get_potential_energy(atoms) == pytest.approx(found.energy, abs=tolerance)
            np.testing.assert_allclose(potential.calculator.get_forces(atoms), found.forces, atol=tolerance)


def test_charge_and_spin_reach_the_dynamics(charged_model: dict[str, str]) -> None:
    potential = build_potential("mace", charged_model, "cpu", "float64")
    model = batched_model(potential)
    found = model(make_state(ions(), CPU, torch.float64))
    labels = evaluate(potential, ions())
    assert list(model.failures) == [2]
    assert found["energy"].isnan().tolist() == [False, False, True, False]
    for index in (0, 1, 3):
        assert float(found["energy"][index]) == pytest.approx(labels[index].energy, abs=1e-9)


def test_a_model_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hot.model"
    spec = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
    save(changed_module(embedding_specs={**SPECS, "elec_temp": spec}), path)
    with pytest.raises(InputError, match=r"hot\.model' needs elec_temp of each structure; daskpipe knows"):
        build_potential("mace", {"model": str(path)}, "cpu")


def test_several_heads_need_a_name_before_anything_runs(two_heads: Path) -> None:
    message = (
        r"the model two\.model has the heads omat, omol, and none is called default; give one of them as params\.head, "
        r"e\.g\. label\.potential\.params\.head=omat"
    )
    overrides = ["label.potential.name=mace", f"label.potential.params.model={two_heads}"]
    with pytest.raises(ConfigError, match=message):
        run.check_inputs(load_config("emt_alloy", overrides))
    with pytest.raises(ConfigError, match="unknown head 'omatt'. Did you mean 'omat'"):
        run.check_inputs(load_config("emt_alloy", [*overrides, "label.potential.params.head=omatt"]))
    assert "label" in run.check_inputs(load_config("emt_alloy", [*overrides, "label.potential.params.head=omat"]))
    one, other = (
        evaluate(build_potential("mace", {"model": str(two_heads), "head": head}, "cpu"), [molecule("H2O")])[0]
        for head in ("omat", "omol")
    )
    # Two H and an O: 2 x 0 + 2 eV in one head, 2 x 3 + 5 in the other.
    assert other.energy - one.energy == pytest.approx(9.0, abs=1.0)


def test_heads_are_read_without_running_the_pickle(two_heads: Path, tmp_path: Path) -> None:
    assert read_class_and_heads(two_heads) == ("ScaleShiftMACE", ["omat", "omol"])

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    hostile = tmp_path / "hostile.model"
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("hostile/data.pkl", pickle.dumps(Hostile()))
    read_class_and_heads(hostile)
    identify_potential("mace", {"model": str(hostile)})
    assert not (tmp_path / "made").exists()
    hostile.write_bytes(b"PK not a zip file")
    assert read_class_and_heads(hostile) is None


def test_energies_of_a_float32_model_are_sums_in_float64(tmp_path: Path) -> None:
    """The difference of two structures is the same with all-electron energies of the atoms and with none."""
    ethanol = molecule("CH3CH2OH")
    crowd = Atoms(ethanol.numbers.tolist() * 8, positions=np.vstack([ethanol.positions + 9.0 * n for n in range(8)]))
    swapped = crowd.copy()
    swapped.positions[[1, 2]] = swapped.positions[[2, 1]]  # C and O
    frames, found = [crowd, swapped], {}
    deep = np.array([[-13.6, -1030.0, -2.0e5]])
    for name, energies in (("shallow", np.zeros((1, 3))), ("deep", deep)):
        path = tmp_path / f"{name}.model"
        save(changed_module(atomic_energies=energies), path)
        out = batched_model(build_potential("mace", {"model": str(path)}, "cpu", "float32"))(
            make_state(frames, CPU, torch.float64)
        )
        found[name] = out["energy"].tolist()
    difference = {name: energies[1] - energies[0] for name, energies in found.items()}
    assert abs(difference["shallow"]) > 0.01
    # float32 resolves 0.125 eV of these 1.6 million eV, five times kT at room temperature.
    assert found["deep"][0] < -1.6e6
    assert difference["deep"] == pytest.approx(difference["shallow"], abs=1e-4)


def slab(pbc: tuple[bool, bool, bool]) -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms.info.clear()
    atoms.rattle(0.1, seed=5)
    atoms.pbc = pbc
    return atoms


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False)])
def test_stress_of_open_cells_is_the_slope_of_the_energy_or_nan(pbc: tuple[bool, bool, bool]) -> None:
    """Along the periodic vectors, over the volume of the structure's own cell; MACECalculator's is not (mace#1509)."""
    potential, atoms = build_potential("mace", {}, "cpu", "float64"), slab(pbc)
    found = batched_model(potential, stress=True)(make_state([atoms], CPU, torch.float64))["stress"][0].numpy()
    step = 1e-5
    for axis in np.flatnonzero(pbc):
        along = atoms.cell.array[axis] / np.linalg.norm(atoms.cell.array[axis])
        strain = np.outer(along, along)
        energies = []
        for sign in (1, -1):
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + sign * step * strain), scale_atoms=False)
            strained.positions = atoms.positions @ (np.eye(3) + sign * step * strain)
            energies.append(evaluate(potential, [strained])[0].energy)
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert abs(slope) > 1e-4
        assert along @ found @ along == pytest.approx(slope, abs=1e-6)
    assert np.isnan(potential.calculator.get_stress(atoms)).all()
    (label,) = evaluate(potential, [atoms])
    assert np.isnan(label.stress).all()
    closed = slab((True, True, True))
    np.testing.assert_allclose(
        potential.calculator.get_stress(closed), evaluate(potential, [closed])[0].stress, atol=1e-9
    )
