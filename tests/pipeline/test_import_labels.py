"""Verbs on files report labels, what they leave out, and picks whose atoms overlap."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from distributed import Client
from rich.console import Console

from daskpipe.cli.dataset import import_
from daskpipe.cli.progress import dump_files_result, print_files_summary
from daskpipe.core.errors import InputError
from daskpipe.pipeline import datasets
from daskpipe.pipeline.frames import select_files
from daskpipe.pipeline.workspace import FilesResult
from daskpipe.stages.generate.reading.labels import LabelKeys
from daskpipe.store import open_dataset

QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"]
N_FRAMES = 6


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_frames(name: str, *, prefix: str = "dft_", overlap: bool = False) -> list[float]:
    """Write frames whose labels have a prefix, and a virial instead of a stress; return their energies."""
    rng = np.random.default_rng(0)
    frames, energies = [], []
    for number in range(N_FRAMES):
        atoms = bulk("Cu", cubic=True)
        atoms.numbers[3] = 79
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
        atoms.info = {f"{prefix}energy": energies[-1], "note": f"frame {number}"}
        stress = atoms.get_stress(voigt=False)
        atoms.arrays[f"{prefix}forces"] = atoms.get_forces()
        if number:
            atoms.info[f"{prefix}virial"] = -stress * atoms.get_volume()
        atoms.calc = None
        if overlap and number == 2:
            atoms.positions[1] = atoms.positions[0] + [0, 0, 0.7]
        frames.append(atoms)
    ase.io.write(name, frames)
    return energies


def print_to_text(done: FilesResult) -> list[str]:
    console = Console(width=1000, force_terminal=False, record=True)
    with console.capture() as captured:
        print_files_summary(done, console)
    return captured.get().splitlines()


def test_the_summary_of_an_import_says_what_was_taken(client: Client, here: Path) -> None:
    energies = write_frames("a.extxyz")
    done = datasets.import_labelled(["a.extxyz"], "a.zarr", QUICK, method="EMT", client=client)
    lines = print_to_text(done)
    assert (
        "labels of 6 frames: energy 6, forces 6, stress 5; from dft_energy, dft_forces, dft_virial (5); "
        "dft_energy, dft_forces (1)"
    ) in lines
    assert "not taken: note (6)" in lines
    report = json.loads(json.dumps(dump_files_result(done)))["report"]
    assert report["labels"] == {"energy": 6, "forces": 6, "stress": 5}
    assert report["left_out"] == {"note": 6}
    stored = open_dataset(here / "a.zarr")
    assert sorted(stored["energy"].values) == pytest.approx(sorted(energies))
    assert np.isnan(stored["stress"].values).any(axis=1).sum() == 1
    assert "label_keys" not in json.loads(stored.attrs["sources"])[0]


def test_families_that_disagree_are_listed_and_can_be_chosen(client: Client, here: Path) -> None:
    energies = write_frames("a.extxyz", prefix="REF_")
    frames = ase.io.read("a.extxyz", ":")
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.info["REF_energy"] - 999)
    ase.io.write("a.extxyz", frames)
    message = r"no frame can be described: 6 import/families; e.g. labels of more than one method"
    with pytest.raises(InputError, match=message):
        datasets.import_labelled(["a.extxyz"], "a.zarr", QUICK, method="EMT", client=client)
    keys = LabelKeys(energy="REF_energy")
    done = datasets.import_labelled(["a.extxyz"], "a.zarr", QUICK, method="EMT", keys=keys, client=client)
    assert "not taken: energy (6), note (6)" in print_to_text(done)
    stored = open_dataset(here / "a.zarr")
    assert sorted(stored["energy"].values) == pytest.approx(sorted(energies))
    assert json.loads(stored.attrs["sources"])[0]["label_keys"] == {"energy": "REF_energy"}


def test_energies_alone_are_imported_and_said_to_be_alone(client: Client, here: Path) -> None:
    energies = write_frames("a.extxyz")
    keys = LabelKeys(forces="none", virial="none")
    done = datasets.import_labelled(["a.extxyz"], "a.zarr", QUICK, method="EMT", keys=keys, client=client)
    assert "labels of 6 frames: energy 6, forces 0, stress 0; from dft_energy (6)" in print_to_text(done)
    stored = open_dataset(here / "a.zarr")
    assert sorted(stored["energy"].values) == pytest.approx(sorted(energies))
    assert "forces" not in stored
    datasets.export_on_cluster("a.zarr", "extxyz", "back.extxyz")
    assert all("forces" not in atoms.calc.results for atoms in ase.io.read("back.extxyz", ":"))


def test_picks_whose_atoms_overlap_get_a_line(client: Client, here: Path) -> None:
    write_frames("a.extxyz", overlap=True)
    done = select_files(["a.extxyz"], 6, "picked.extxyz", QUICK, client=client)
    (line,) = [line for line in print_to_text(done) if "overlap" in line]
    assert line.startswith("picks with overlapping atoms: 1, e.g. ")
    assert "a.extxyz#2: atom 0 (Cu) is 0.700 Å from atom 1 (Cu); the limit is 1.584 Å" in line
    assert done.report["overlaps"]["n"] == 1
    assert done.n_out == 6
    write_frames("b.extxyz")
    done = select_files(["b.extxyz"], 6, "b_picked.extxyz", QUICK, client=client)
    assert done.report["overlaps"] == {"n": 0, "example": None}
    assert not [line for line in print_to_text(done) if "overlap" in line]


def test_bad_labels_cost_no_pick(client: Client, here: Path) -> None:
    write_frames("a.extxyz")
    text = Path("a.extxyz").read_text()
    lines = ["stress=None", 'stress="1 2 3 4 5 6"', "energy=many", 'virial="1 2"', "energy=1 energy=2", "stress="]
    for line in lines:
        text = text.replace(" pbc=", f" {line} PBC=", 1)
    Path("a.extxyz").write_text(text)
    done = select_files(["a.extxyz"], 6, "picked.extxyz", QUICK, client=client)
    assert (done.n_frames, done.n_out, done.rejected) == (6, 6, {})
    assert all(f" {line} " in Path("picked.extxyz").read_text() for line in lines)


def test_each_key_and_unit_can_be_typed() -> None:
    typed = set(inspect.signature(import_).parameters)
    assert set(LabelKeys.model_fields) <= typed
    assert {"energy", "forces", "stress", "virial"} <= set(LabelKeys.model_fields)
