"""What the README shows is true."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from distributed import Client

import daskpipe
from daskpipe.cluster.sites import read_site
from daskpipe.config.load import load_config

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_two_commands_come_first() -> None:
    run, test = blocks("sh")
    assert run.strip().endswith("daskpipe run quickstart")
    assert test.strip().endswith("pytest")


def test_python_example_runs(reference: daskpipe.Result) -> None:
    example = blocks("python")[0]
    assert "runs/quickstart/dataset.zarr" in example
    names: dict[str, Any] = {}
    exec(example.replace("runs/quickstart/dataset.zarr", str(reference.dataset)), names)
    assert names["ds"].sizes["structure"] == reference.stages["store"]["out"]
    assert names["atoms"].get_potential_energy() == float(names["ds"]["energy"][0])
    assert 0 < len(names["train"]) < reference.stages["store"]["out"]


def frames(n: int) -> list[Atoms]:
    """Frames of a user's own."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(n):
        atoms = bulk("Ag", "fcc", a=4.0, cubic=True)
        atoms.symbols[index % 4] = "Cu"
        atoms.rattle(0.2, rng=rng)
        made.append(atoms)
    return made


def test_python_example_of_description_and_selection_runs() -> None:
    example = blocks("python")[1]
    names: dict[str, Any] = {"daskpipe": daskpipe, "frames": frames(120)}
    exec(example, names)
    assert names["X"].shape == (120, names["soap"].n_features)
    assert names["X"].dtype == np.float32
    assert len(names["picked"]) == 100
    assert (np.diff(names["picked"]) > 0).all()


def test_commands_for_frames_of_ones_own_run(
    type_command: Callable[..., Any],
    reference: daskpipe.Result,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("md").mkdir()
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/dataset.zarr").symlink_to(reference.dataset)
    for name in ("md.extxyz", "md.traj", "md/a.extxyz"):
        ase.io.write(name, frames(12))
    commands = re.findall(r"^\$ daskpipe ((?:select|describe) [^#\n]+)", README.read_text(), flags=re.MULTILINE)
    typed = [command.split() for command in commands]
    assert {words[0] for words in typed} == {"select", "describe"}
    for words in typed:
        out = Path(words[words.index("-o") + 1])
        answer = type_command(*words, "--cluster", str(client.scheduler.address), "--force")
        assert answer.code == 0, answer.err
        assert out.exists()
    assert len(ase.io.read("picked.extxyz", ":")) == 12  # fewer than asked for


def test_commands_for_datasets_run(
    type_command: Callable[..., Any], reference: daskpipe.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reference.run_dir, "runs/quickstart")
    commands = [
        command.split("#")[0].split()
        for command in re.findall(
            r"^\$ daskpipe ((?:quality|report|train|export|import|merge|verify) .+)", README.read_text(), re.MULTILINE
        )
        if "*" not in command  # which a shell expands: shards, see test_shard.py
    ]
    assert {words[0] for words in commands} == {"quality", "report", "train", "export", "import", "merge", "verify"}
    old = frames(6)
    for atoms in old:
        atoms.calc = EMT()
        atoms.get_forces()
    ase.io.write("old.extxyz", old)
    for words in commands:
        extra = {"train": ["--epochs", "1", "batch_size=2"], "quality": ["quality.diversity=null"]}.get(words[0], [])
        if words[0] in ("import", "merge"):
            extra = ["cluster.workers=1"]
        answer = type_command(*words, *extra)
        assert answer.code == 0, (words, answer.err, answer.out)
    for made in (
        "runs/quickstart/report.html",
        "runs/quickstart/model/model.model",
        "train.extxyz",
        "lmdb",
        "all.zarr",
    ):
        assert Path(made).exists()
    assert "as it was written" in " ".join(answer.out.split())


def test_config_example_is_valid(tmp_path: Path) -> None:
    example, _, _ = blocks("yaml")
    assert yaml.safe_load(example)["explore"]["potential"]["params"]["model"] == "/path/to/my.model"
    file = tmp_path / "my.yaml"
    file.write_text(example)
    loaded = load_config(str(file))
    assert loaded.name == "mine"
    assert loaded.explore.dynamics.temperatures == [300, 900]
    assert loaded.select.n == 200


def test_example_of_exploration_is_valid(tmp_path: Path) -> None:
    _, example, _ = blocks("yaml")
    file = tmp_path / "exploration.yaml"
    file.write_text("defaults: [quickstart, _self_]\n" + example)
    explore = load_config(str(file)).explore
    assert explore.dynamics.ensemble == "auto"
    assert explore.dynamics.ensembles == {"surface": "nvt_rescale"}
    assert explore.monte_carlo is not None
    assert explore.monte_carlo.swaps == 10
    assert explore.guards.on_stop == "retry"
    assert explore.repulsion == "zbl"


def test_example_of_a_site_is_valid(tmp_path: Path) -> None:
    *_, example = blocks("yaml")
    (tmp_path / "fram.yaml").write_text(example)
    site = read_site(str(tmp_path / "fram.yaml"))
    assert site.name == "fram"
    assert {name: pool.n_processes for name, pool in site.pools.items()} == {"cpu": 32, "gpu": 4}


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"daskpipe ([a-z]+)\b", README.read_text())) - {"makes"}))
def test_commands_exist(verb: str, type_command: Callable[..., object]) -> None:
    answer = type_command(verb, "--help")
    assert answer.code == 0  # type: ignore[attr-defined]
