"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

import daskpipe
from daskpipe.core.structures import from_atoms
from daskpipe.store import arrange_and_write

EXAMPLES = Path(__file__).parents[2] / "examples"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CURSOR = re.compile(r"\r(?!\n)|\x1b\[[0-9;?]*[A-HJKhl]")
"""What moves a terminal's cursor, or erases."""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example finds its neighbours, as a script does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "train_pytorch", raising=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shaken crystals of copper and gold, labelled by EMT."""
    rng = np.random.default_rng(0)
    structures: list[Atoms] = []
    for index in range(24):
        atoms = bulk("Cu", cubic=True, a=3.8)
        atoms.symbols[rng.choice(4, 1 + index % 2, replace=False)] = "Au"
        atoms.rattle(0.12, seed=index)
        atoms.calc = EMT()
        atoms.get_forces()
        structures.append(atoms)
    path = tmp_path_factory.mktemp("examples") / "dataset.zarr"
    arrange_and_write(
        from_atoms(structures), path, seed=0, fractions={"train": 0.8, "val": 0.2}, attrs={"dataset_key": "k1"}
    )
    return path


def test_plain_pytorch_learns(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = example("train_pytorch").main([str(dataset), "--epochs", "20"])
    assert losses[-1] < 0.3 * losses[0]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("epoch  20  loss ")
    assert "force RMSE, eV/Å: train " in last


def test_forces_are_the_gradient_and_turn_with_the_atoms(dataset: Path) -> None:
    import torch

    from daskpipe.load import TorchDataset, collate, spec

    model = example("train_pytorch").Network(spec(dataset, "train", 4.0)).double().eval()
    batch = collate([TorchDataset(dataset, "train")[0]], dtype=torch.float64, cutoff=4.0)
    _, forces = model(batch)
    step = 1e-5
    moved = []
    for sign in (1, -1):
        there = collate(batch, dtype=torch.float64)
        there["positions"][0, 0] += sign * step
        moved.append(float(model(there)[0].sum().detach()))
    assert float(forces[0, 0]) == pytest.approx(-(moved[0] - moved[1]) / (2 * step), abs=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    turned = collate(batch, dtype=torch.float64)
    turned["positions"].copy_(batch["positions"] @ turn)
    turned["shifts"].copy_(batch["shifts"] @ turn)
    torch.testing.assert_close(model(turned)[1].detach(), forces.detach() @ turn)


def test_a_stream_goes_on_in_mid_epoch(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    main = example("resume_stream").main
    n_batches = 5  # of 4 of the 19 training structures
    everything, expected = main([str(dataset), str(tmp_path / "whole.pt"), "--epochs", "2"])
    assert everything == 2 * n_batches
    words = [str(dataset), str(tmp_path / "parts.pt"), "--epochs", "2"]
    stopped, _ = main([*words, "--stop-after", "3"])
    capsys.readouterr()
    rest, weights = main(words)
    assert f"goes on in epoch 0 after batch 3; {n_batches - 3} are left" in capsys.readouterr().out
    assert (stopped, rest) == (3, 7)
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, whose main module is no script; what it shows can be read."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(Path(daskpipe.__file__).parents[1]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(EXAMPLES / "first_dataset.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is committed has none
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    read = COLOUR.sub("", printed + "".join(data.get("text/plain", "") for data in shown))
    assert CURSOR.search(read) is None
    for line in ("daskpipe emt_alloy in ", "explore ", "runs/notebook is complete", "<xarray.Dataset>", " eV"):
        assert line in read
    assert any("image/png" in data for data in shown)
    ds = daskpipe.open_dataset(tmp_path / "runs" / "notebook" / "dataset.zarr")
    assert ds.sizes["structure"] == 16


def test_each_example_is_told_about() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")):
        assert f"`{path.name}`" in text
