"""The recipe of the bundled model, on a handful of structures and for two epochs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import ase.io
import pytest
from ase.stress import voigt_6_to_full_3x3_stress

from daskpipe.potentials import Results, build_potential, evaluate, identify_potential

RECIPE = Path(__file__).parents[2] / "recipes" / "bundled_mace.py"
SPLITS = ("train", "train", "train", "val", "test")


@pytest.fixture
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundled_mace", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dataset(tmp_path: Path, make) -> Path:
    """What `daskpipe export` writes, labelled by EMT."""
    frames = []
    for seed, split in enumerate(SPLITS):
        for kind, system_type in (("alloy", "alloy"), ("slab", "surface"), ("cluster", "cluster")):
            atoms = make(kind, seed)
            (found,) = evaluate(build_potential("emt", {}, "cpu", "float64"), [atoms])
            assert isinstance(found, Results)
            atoms.info |= {"split": split, "system_type": system_type, "REF_energy": found.energy}
            atoms.arrays["REF_forces"] = found.forces
            if kind == "alloy":
                atoms.info["REF_stress"] = voigt_6_to_full_3x3_stress(found.stress)
            frames.append(atoms)
    path = tmp_path / "data.extxyz"
    ase.io.write(path, frames)
    return path


@pytest.mark.slow
def test_training_ends_in_a_model_that_loads(
    recipe: ModuleType, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make
) -> None:
    target = tmp_path / "tiny.safetensors"
    monkeypatch.setattr(recipe, "ARCHITECTURE", recipe.ARCHITECTURE | {"hidden_irreps": "4x0e", "max_ell": 1})
    monkeypatch.setitem(recipe.TRAINING, "eval_interval", 1)
    recipe.train([dataset], tmp_path / "work", epochs=2, out=target)
    assert identify_potential("mace", {"model": str(target)}).elements == {"Cu", "Ag", "Au"}
    (found,) = evaluate(build_potential("mace", {"model": str(target)}, "cpu", "float32"), [make("alloy")])
    assert isinstance(found, Results)


def test_table_of_errors(recipe: ModuleType, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = recipe.read([dataset], "test")
    beyond_any_force, below_any_force = 1000, 0
    monkeypatch.setattr(recipe, "COLLISION", beyond_any_force)
    rows = recipe.errors(structures).splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| alloy", "| cluster", "| surface"]
    assert rows[1].endswith("| - |"), "a cluster has no stress"
    assert sum(int(row.split(" | ")[1]) for row in rows) == len(structures)
    monkeypatch.setattr(recipe, "COLLISION", below_any_force)
    (row,) = recipe.errors(structures).splitlines()
    assert row.startswith(f"| any, a force above 0 eV/Å | {len(structures)} |")
    assert recipe.rms([3.0, -3.0]) == 3.0


def test_a_piece_that_left_is_seen(recipe: ModuleType, make) -> None:
    for kind in ("alloy", "slab", "cluster"):
        assert recipe.in_one_piece(make(kind))
    atoms = make("cluster")
    atoms.positions[0] += 10.0
    assert not recipe.in_one_piece(atoms)
