"""What the README shows is true."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from distributed import Client

import daskpipe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_two_commands_come_first() -> None:
    run, test = blocks("sh")
    assert run.strip().endswith("daskpipe run quickstart")
    assert test.strip().endswith("pytest")


def test_python_example_runs(reference: daskpipe.Result) -> None:
    (example,) = blocks("python")
    assert "runs/quickstart/dataset.zarr" in example
    names: dict[str, Any] = {}
    exec(example.replace("runs/quickstart/dataset.zarr", str(reference.dataset)), names)
    assert names["ds"].sizes["structure"] == reference.stages["store"]["out"]
    assert names["atoms"].get_potential_energy() == float(names["ds"]["energy"][0])
    assert 0 < len(names["train"]) < reference.stages["store"]["out"]


def make_frames(n: int) -> list[Atoms]:
    """Return shaken cells of silver and copper."""
    made = []
    for index in range(n):
        atoms = bulk("Ag", "fcc", a=4.0, cubic=True)
        atoms.symbols[index % 4] = "Cu"
        atoms.rattle(0.2, seed=index)
        made.append(atoms)
    return made


@pytest.mark.slow
def test_commands_run(
    type_command: Callable[..., Any],
    reference: daskpipe.Result,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reference.run_dir, "runs/quickstart")
    ase.io.write("md.extxyz", make_frames(12))
    old = make_frames(6)
    for atoms in old:
        atoms.calc = EMT()
        atoms.get_forces()
    ase.io.write("old.extxyz", old)
    (text,) = blocks("console")
    commands = [line.split("#")[0].split()[2:] for line in text.splitlines()]
    assert {words[0] for words in commands} == {
        "quality", "report", "train", "export", "select", "import", "merge", "verify",
    }  # fmt: skip
    here = ["--cluster", str(client.scheduler.address)]
    for words in commands:
        extra = {"train": ["--epochs", "1", "batch_size=2"], "quality": ["quality.diversity=null"]}.get(words[0], [])
        if words[0] in ("select", "import", "merge"):
            extra = here
        answer = type_command(*words, *extra)
        assert answer.code == 0, (words, answer.err, answer.out)
    for made in (
        "runs/quickstart/report.html",
        "runs/quickstart/model/model.model",
        "train.extxyz",
        "picked.extxyz",
        "all.zarr",
    ):
        assert Path(made).exists()
    assert len(ase.io.read("picked.extxyz", ":")) == 12  # fewer than asked for
    assert "as it was written" in " ".join(answer.out.split())


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"daskpipe ([a-z]+)\b", README.read_text())) - {"makes"}))
def test_commands_exist(verb: str, type_command: Callable[..., object]) -> None:
    answer = type_command(verb, "--help")
    assert answer.code == 0  # type: ignore[attr-defined]


def test_files_that_it_names_are_there() -> None:
    names = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    names += re.findall(r"`((?:benchmarks|examples)/[^`]*)`", README.read_text())
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []
