"""Teachers of a run: what is added to them, one that changes, and the isolated atoms that they label."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from distributed import Client

import daskpipe
from daskpipe.config.models import Teacher
from daskpipe.core.errors import ConfigError
from daskpipe.core.events import Event, Notice
from daskpipe.pipeline.label_files import label_files
from daskpipe.pipeline.labels import build_teacher
from daskpipe.potentials import identify_potential


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    made = []
    for seed in range(12):
        atoms = bulk("CuAu"[2 * (seed % 2) :][:2], cubic=True)
        atoms.rattle(0.05, seed=seed)
        made.append(atoms)
    ase.io.write(tmp_path / "frames.extxyz", made)
    return tmp_path / "frames.extxyz"


def test_a_teacher_that_is_another_one_by_now_is_not_built() -> None:
    choice = Teacher(name="mace", params={})
    with pytest.raises(ConfigError, match=r"the teacher 'mace' has changed since the run began.*Put the file back"):
        build_teacher(choice, "0" * 64, "cpu", "float64")
    assert build_teacher(choice, identify_potential("mace", {}).hash, "cpu", "float64").elements


def test_isolated_atoms_are_labelled_and_stored(
    frames: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = label_files([str(frames)], "out.zarr", ["cluster.workers=1"], teacher="emt", client=client)
    assert done.n_out == 12
    energies = json.loads(daskpipe.open_dataset("out.zarr").attrs["isolated_atom_energies"])
    expected = {}
    for symbol in ("Au", "Cu"):
        atom = Atoms(symbol)
        atom.calc = EMT()
        expected[symbol] = pytest.approx(atom.get_potential_energy(), abs=1e-9)
    assert energies == {"Default": expected}
    assert daskpipe.load.spec("out.zarr", split=None).isolated == ["Cu", "Au"]


@pytest.mark.slow
def test_an_atom_that_the_teacher_refuses_is_told_and_fitted(
    frames: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    heard: list[Event] = []
    label_files([str(frames)], "out.zarr", [], teacher="chgnet", client=client, subscribers=[heard.append])
    (told,) = [event.message for event in heard if isinstance(event, Notice) and "isolated" in event.message]
    assert told.startswith("the teacher gives no energy of an isolated atom of Au, Cu (Au: ")
    assert "isolated_atom_energies" not in daskpipe.open_dataset("out.zarr").attrs
    assert daskpipe.load.spec("out.zarr", split=None).isolated == []


def test_dispersion_is_added_to_the_labels(
    frames: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dftd3", reason="pip install 'daskpipe[dispersion]'")
    monkeypatch.chdir(tmp_path)
    added = ["label.potential.dispersion.method=d3", "label.potential.dispersion.functional=PBE"]
    label_files([str(frames)], "plain.zarr", [], teacher="emt", client=client)
    label_files([str(frames)], "more.zarr", added, teacher="emt", client=client)
    plain, more = (daskpipe.open_dataset(name) for name in ("plain.zarr", "more.zarr"))
    assert json.loads(more.attrs["label_potential"])["name"] == "EMT with D3"
    lower = np.sort(more["energy"].values) - np.sort(plain["energy"].values)
    assert (lower < -0.5).all(), "eV of four atoms"
    with pytest.raises(ConfigError, match="unknown key in explore.potential: 'dispersion'"):
        daskpipe.run("emt_alloy", ["explore.potential.dispersion.method=d3"], run_dir=tmp_path / "run", client=client)
