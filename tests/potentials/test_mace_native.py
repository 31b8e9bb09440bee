"""MACE by the native evaluator: torch's numbers, and torch wherever it cannot be used."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from test_mace import random_module, save
from test_mace_electrons import SPECS, changed_module
from test_mixed_mace import AGREEMENT, agrees, coinage

from daskpipe.core.errors import ConfigError
from daskpipe.core.third_party import import_mace
from daskpipe.potentials import batched_model, build_potential, explain_evaluator, identify_potential
from daskpipe.potentials.batches import make_state
from daskpipe.potentials.mace_evaluators import choose_evaluator
from daskpipe.testing import check_potential

import_mace()
from daskpipe.potentials.mace_native import native_folder  # noqa: E402

pytest.importorskip("symmetrix", reason="needs symmetrix: pip install 'daskpipe[fast]'")
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++20 compiler: apt install g++")

SHAPE = {"max_ell": 3, "correlation": 3, "hidden_irreps": "8x0e"}

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache folder of this file, in which a model is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.model"
    save(random_module(seed=2, **SHAPE), path)
    return path


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Model of other bytes, for which nothing is built or cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "fresh.model"
    save(random_module(seed=int.from_bytes(os.urandom(3)), **SHAPE), path)
    return path


def evaluator_of(model: Path, structures: list[Atoms], dtype: str = "float32", **params: object) -> str:
    """Evaluate structures; return what did it."""
    found = batched_model(build_potential("mace", {"model": str(model), **params}, "cpu", dtype))
    found(make_state(structures, CPU, torch.float64))
    return str(found.evaluated_by)


# --- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", AGREEMENT), ("float32", 5e-5)])
def test_a_mixed_batch_agrees_with_the_calculator(dtype: str, tolerance: float, model_file: Path, make) -> None:
    potential = build_potential("mace", {"model": str(model_file)}, "cpu", dtype)
    agrees(potential, coinage(make), tolerance)
    assert batched_model(potential, stress=True).evaluated_by.startswith("symmetrix 0.")


def test_it_agrees_with_torch_far_closer_than_promised(model_file: Path, make) -> None:
    native, plain = (
        batched_model(build_potential("mace", {"model": str(model_file), **params}, "cpu", "float64"), stress=True)
        for params in ({}, {"acceleration": "none"})
    )
    state = make_state(coinage(make), CPU, torch.float64)
    ours, theirs = native(state), plain(state)
    assert float(theirs["forces"].abs().max()) > 0.01
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, equal_nan=True)


def test_contract(model_file: Path) -> None:
    """Finite differences of energy, rotations, supercells, and the same in any batch."""
    check_potential("mace", {"model": str(model_file)})


def test_an_energy_of_electrons_costs_no_precision(tmp_path: Path, make) -> None:
    path = tmp_path / "heavy.model"
    save(random_module(seed=3, **SHAPE, atomic_energies=[[-45e3, -145e3, -535e3]]), path)
    native, plain = (
        batched_model(build_potential("mace", {"model": str(path), "acceleration": name}, "cpu", "float32"))
        for name in ("symmetrix", "none")
    )
    state = make_state([make("alloy"), make("cluster")], CPU, torch.float64)
    assert native.evaluated_by.startswith("symmetrix")
    torch.testing.assert_close(native(state)["energy"], plain(state)["energy"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_head_that_is_named(tmp_path: Path, make) -> None:
    path = tmp_path / "heads.model"
    energies = [[-1.0, -2.0, -3.0], [-4.0, -6.0, -8.0]]
    heads = {"heads": ["low", "high"], "atomic_energies": energies, "atomic_inter_scale": [1.0, 2.0]}
    save(random_module(seed=4, **SHAPE, **heads, atomic_inter_shift=[0.0, 0.5]), path)
    state = make_state([make("alloy"), make("slab")], CPU, torch.float64)
    found = []
    for head in ("low", "high"):
        native, plain = (
            batched_model(
                build_potential("mace", {"model": str(path), "head": head, "acceleration": name}, "cpu", "float64")
            )
            for name in ("symmetrix", "none")
        )
        out = native(state)
        assert native.evaluated_by.startswith("symmetrix")
        torch.testing.assert_close(out["energy"], plain(state)["energy"], rtol=0, atol=1e-6)
        torch.testing.assert_close(out["forces"], plain(state)["forces"], rtol=0, atol=1e-6)
        found.append(out["energy"])
    assert float((found[0] - found[1]).abs().min()) > 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_alone_and_in_any_batch(dtype: str, model_file: Path, make) -> None:
    structures = coinage(make)
    model = batched_model(build_potential("mace", {"model": str(model_file)}, "cpu", dtype), stress=True)
    whole = model(make_state(structures, CPU, torch.float64))
    turned = model(make_state(structures[::-1], CPU, torch.float64))
    forces = whole["forces"].split([len(atoms) for atoms in structures])
    for index, atoms in enumerate(structures):
        alone = model(make_state([atoms], CPU, torch.float64))
        assert torch.equal(alone["energy"], whole["energy"][[index]])
        assert torch.equal(alone["energy"], turned["energy"][[-1 - index]])
        assert torch.equal(alone["forces"], forces[index])
        assert torch.equal(alone["stress"].nan_to_num(), whole["stress"][[index]].nan_to_num())


def test_lost_systems_leave_the_others_alone(model_file: Path, make) -> None:
    structures = [make("alloy"), make("cluster"), make("slab"), Atoms("Cu2", np.zeros((2, 3)))]
    model = batched_model(build_potential("mace", {"model": str(model_file)}, "cpu", "float64"), stress=True)
    whole = model(make_state(structures[:3], CPU, torch.float64))
    state = make_state(structures, CPU, torch.float64)
    state.positions[len(structures[0])] = torch.nan
    out = model(state)
    assert out["energy"].isnan().tolist() == [False, True, False, True]
    torch.testing.assert_close(out["energy"][[0, 2]], whole["energy"][[0, 2]], rtol=0, atol=0)


def test_dynamics_keep_the_energy(model_file: Path, make) -> None:
    """Velocity Verlet in float64: splines and slopes belong together, also where neighbours come and go."""
    model = batched_model(build_potential("mace", {"model": str(model_file)}, "cpu", "float64"))
    structures = [make("alloy", 1), make("cluster", 2), make("slab", 3)]
    state = make_state(structures, CPU, torch.float64)
    masses, step = state.masses[:, None], 2.0 * units.fs
    velocities = torch.randn(state.positions.shape, dtype=torch.float64, generator=torch.manual_seed(0))
    velocities *= torch.sqrt(units.kB * 600.0 / masses)
    out, total = model(state), []
    for _ in range(150):
        velocities = velocities + 0.5 * step * out["forces"] / masses
        state.positions = state.positions + step * velocities
        out = model(state)
        velocities = velocities + 0.5 * step * out["forces"] / masses
        kinetic = torch.zeros(3, dtype=torch.float64).index_add_(
            0, state.system_idx, (0.5 * masses * velocities**2).sum(1)
        )
        total.append((out["energy"] + kinetic) / state.n_atoms_per_system)
    energies = torch.stack(total)
    assert float(kinetic.sum()) > 0.1
    assert float((energies - energies[0]).abs().max()) < 1e-4


def test_subnormal_numbers_stay(model_file: Path, make) -> None:
    """The compiled code sets the processor to flush them to zero, which would change all that follows in the thread."""
    assert evaluator_of(model_file, [make("alloy")]).startswith("symmetrix")
    assert np.array([np.finfo(np.float64).smallest_normal])[0] / 4 > 0


def test_atoms_without_neighbours(model_file: Path) -> None:
    atoms = Atoms("CuAu", [[0, 0, 0], [20, 0, 0]])
    native, plain = (
        batched_model(build_potential("mace", {"model": str(model_file), **params}, "cpu", "float64"))
        for params in ({}, {"acceleration": "none"})
    )
    state = make_state([atoms], CPU, torch.float64)
    torch.testing.assert_close(native(state), plain(state), rtol=0, atol=1e-8)


def test_it_decides_no_identity(model_file: Path) -> None:
    """Labels and frames of one evaluator count as those of the other."""
    assert identify_potential("mace", {"model": str(model_file)}) == identify_potential(
        "mace", {"model": str(model_file), "acceleration": "none"}
    )


# --- what cannot be evaluated natively ----------------------------------------------------------------


def test_a_model_of_another_shape_is_left_to_torch(make, caplog: pytest.LogCaptureFixture) -> None:
    model = batched_model(build_potential("mace", {}, "cpu", "float32"))
    why = "symmetrix takes models with max_ell 3 and correlation 3, and this one has 2 and 2"
    assert model.evaluated_by == f"torch ({why})"
    assert not caplog.records
    build_potential("mace", {"acceleration": "symmetrix"}, "cpu", "float32")
    assert "MACE is evaluated by torch: symmetrix takes models with max_ell 3" in caplog.text


def test_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.potentials.mace_evaluators.find_spec", lambda name: None)
    assert choose_evaluator("auto", "cpu") == ("torch", "symmetrix is not installed: pip install 'daskpipe[fast]'")
    with pytest.raises(ConfigError, match=r"acceleration=symmetrix is not installed: pip install 'daskpipe\[fast\]'"):
        choose_evaluator("symmetrix", "cpu")
    # The reason does not name a package that would not help.
    assert "pip install" not in explain_evaluator("mace", {}, "cpu")


def test_a_gpu_is_left_to_torch() -> None:
    assert choose_evaluator("auto", "cuda")[0] == "torch"
    with pytest.raises(ConfigError, match=r"runs on a CPU here, and device is cuda: give device=cpu"):
        choose_evaluator("symmetrix", "cuda")


def test_explain(model_file: Path) -> None:
    assert explain_evaluator("mace", {}, "cpu").startswith("mace by torch (symmetrix takes models with max_ell 3")
    assert explain_evaluator("mace", {"acceleration": "none"}, "cpu") == "mace by torch (acceleration=none)"
    text = "mace by symmetrix, if it takes the model (acceleration=auto)"
    assert explain_evaluator("mace", {"model": str(model_file)}, "cpu") == text
    assert explain_evaluator("emt", {}, "cpu") is None


# --- faults -------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["absent", "killed", "failing"])
def test_a_compiler_that_does_not_work(
    compiler: str, fresh: Path, tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "compiler"
    if compiler != "absent":
        script(path, "kill -9 $$" if compiler == "killed" else "echo no such target >&2; exit 1")
    monkeypatch.setenv("CXX", str(path))
    caplog.set_level(logging.WARNING)
    assert evaluator_of(fresh, [make("alloy")]).startswith("torch (the model cannot be compiled: ")
    assert "MACE is evaluated by torch and not by symmetrix-xl: the model cannot be compiled" in caplog.text
    if compiler == "killed":
        # Another process, in which the compiler works, is not held up by what this one has left.
        monkeypatch.delenv("CXX")
        assert evaluators_of_processes(fresh, 1)[0].startswith("symmetrix")


def test_a_cache_folder_that_cannot_be_made(fresh: Path, tmp_path: Path, make) -> None:
    (tmp_path / "cache").write_text("a file")
    assert evaluator_of(fresh, [make("alloy")]).startswith("torch (its cache folder ")


def test_a_cache_folder_that_others_may_read(fresh: Path, make) -> None:
    (native_folder() / "compiled").mkdir(parents=True, mode=0o755)
    assert "must be private" in evaluator_of(fresh, [make("alloy")])


def evaluators_of_processes(model: Path, n: int) -> list[str]:
    """Evaluate a cell of copper in several processes at once; return what did it, and the notices of all."""
    code = """
import sys
import torch
from ase.build import bulk
from daskpipe.potentials import batched_model, build_potential
from daskpipe.potentials.batches import make_state

model = batched_model(build_potential("mace", {"model": sys.argv[1]}, "cpu", "float32"))
energy = model(make_state([bulk("Cu", cubic=True)], torch.device("cpu"), torch.float64))["energy"]
print(model.evaluated_by, energy.item().hex())
"""
    command = [sys.executable, "-c", code, str(model)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(n)]
    answers = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * n, answers
    return [out.strip() for out, _ in answers] + ["".join(err for _, err in answers)]


@pytest.mark.slow
def test_two_processes_compile_once(fresh: Path) -> None:
    one, two, told = evaluators_of_processes(fresh, 2)
    assert one.startswith("symmetrix")
    assert one == two
    assert told.count("symmetrix-xl compiled a MACE model in") == 1
    folder = native_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # A third process finds it; a library that is damaged, or of another machine, is not loaded.
    (library,) = (folder / "compiled" / "artifacts").rglob("*.so")
    three, told = evaluators_of_processes(fresh, 1)
    assert (three, told.count("compiled")) == (one, 0)
    library.chmod(0o600)
    library.write_bytes(b"\x7fELF of another machine")
    four, told = evaluators_of_processes(fresh, 1)
    assert four == one or four.startswith("torch (the model cannot be compiled")


@pytest.mark.slow
def test_numbers_that_differ_from_torch_are_refused(fresh: Path, make, caplog: pytest.LogCaptureFixture) -> None:
    assert evaluators_of_processes(fresh, 1)[0].startswith("symmetrix")
    (converted,) = native_folder().glob("*.json")
    content = json.loads(converted.read_text())
    content["daskpipe_atomic_energies"][0] += 1e-3
    converted.write_text(json.dumps(content))
    copper = bulk("Cu", cubic=True)
    assert evaluator_of(fresh, [copper]).startswith("torch (it differs from torch by 1.0e-03 eV/atom and ")
    assert "MACE is evaluated by torch and not by symmetrix-xl: it differs from torch by 1.0e-03" in caplog.text
    plain = batched_model(build_potential("mace", {"model": str(fresh), "acceleration": "none"}, "cpu", "float32"))
    refused = batched_model(build_potential("mace", {"model": str(fresh)}, "cpu", "float32"))
    state = make_state([copper, make("slab")], CPU, torch.float64)
    assert torch.equal(refused(state)["forces"], plain(state)["forces"])
    # All later processes know it without another comparison.
    assert "it differs from torch by 1.0e-03" in evaluators_of_processes(fresh, 1)[0]


def test_a_model_that_knows_charges_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "charged.model"
    save(changed_module(embedding_specs=SPECS, use_embedding_readout=True), path)
    assert evaluator_of(path, [molecule("H2O")], acceleration="symmetrix") == "torch (the model embeds charge or spin)"
