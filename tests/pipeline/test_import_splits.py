"""Imported frames: shuffled trajectories stay whole, given splits are kept, and the gate judges them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from distributed import Client

from daskpipe.core.variables import SPLITS
from daskpipe.pipeline import datasets, workspace
from daskpipe.stages.generate.reading.given_splits import split_of_frame, splits_of_files
from daskpipe.store import open_dataset
from daskpipe.store.quality.gate import judge

QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"]
N_TRAJECTORIES, N_FRAMES = 8, 12


def make_labelled(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = EMT()
    results = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces")}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="module")
def trajectories() -> list[Atoms]:
    """Make random walks around eight decorations of one crystal, one after the other, with EMT labels."""
    rng = np.random.default_rng(0)
    frames = []
    for number in range(N_TRAJECTORIES):
        crystal = bulk("Cu", a=3.9, cubic=True) * (2, 1, 1)
        crystal.numbers[[0, number % 7 + 1, *([3] if number == 7 else [])]] = 79
        drift = np.zeros((8, 3))
        for _ in range(N_FRAMES):
            drift = 0.9 * drift + rng.normal(0, 0.04, (8, 3))
            frame = crystal.copy()
            frame.positions += drift
            frames.append(make_labelled(frame))
    return frames


def import_frames(files: list[Path], out: Path, client: Client, *overrides: str) -> workspace.FilesResult:
    return datasets.import_labelled(
        [str(file) for file in files], out, [*QUICK, *overrides], method="EMT", client=client
    )


def read_splits(path: Path) -> list[str]:
    """Read the split of each structure, in the order of the frames in their file."""
    ds = open_dataset(path).load()
    names = np.array(SPLITS)[ds["split"].values]
    return [str(name) for name in names[np.argsort(ds["step"].values)]]


def list_verdicts(path: Path) -> dict[str, str]:
    return {check.name: check.verdict for check in judge(path).checks}


def test_shuffled_trajectories_are_not_torn(trajectories: list[Atoms], client: Client, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(trajectories))
    ase.io.write(tmp_path / "shuffled.xyz", [trajectories[row] for row in order], format="extxyz")
    done = import_frames([tmp_path / "shuffled.xyz"], tmp_path / "out.zarr", client, "store.near_duplicates=0")
    assert done.report["n_groups"] == N_TRAJECTORIES
    split = np.array(read_splits(tmp_path / "out.zarr"))
    for number in range(N_TRAJECTORIES):
        assert len(set(split[order // N_FRAMES == number])) == 1
    assert set(split) == set(SPLITS)
    assert list_verdicts(tmp_path / "out.zarr")["leakage"] == "pass"
    # Pairs of near frames are there whatever the order, and energies fit forces.
    (units,) = (check for check in judge(tmp_path / "out.zarr").checks if check.name == "units")
    assert (units.verdict, units.value) == ("pass", pytest.approx(1, abs=0.3))
    torn = import_frames([tmp_path / "shuffled.xyz"], tmp_path / "torn.zarr", client, "store.split_by=structure")
    assert torn.report["n_groups"] == len(trajectories)
    assert list_verdicts(tmp_path / "torn.zarr")["leakage"] == "fail"


def test_given_splits_are_kept(trajectories: list[Atoms], client: Client, tmp_path: Path) -> None:
    frames = [atoms.copy() for atoms in trajectories]
    given = ["training", "Validation", "test"]
    for number, atoms in enumerate(frames):
        atoms.calc = trajectories[number].calc
        atoms.info["split"] = given[number % 3]
    frames[5].info.pop("split")
    ase.io.write(tmp_path / "all.xyz", frames, format="extxyz")
    done = import_frames([tmp_path / "all.xyz"], tmp_path / "kept.zarr", client)
    expected = [SPLITS[number % 3] for number in range(len(frames))]
    expected[5] = "train"
    assert read_splits(tmp_path / "kept.zarr") == expected
    assert done.report["n_given"] == 95
    # They tear trajectories: the gate says so, and leaves the given splits alone.
    verdict = judge(tmp_path / "kept.zarr")
    assert verdict.profile == "import"
    assert list_verdicts(tmp_path / "kept.zarr")["leakage"] == list_verdicts(tmp_path / "kept.zarr")["splits"] == "warn"
    assert verdict.go
    import_frames(
        [tmp_path / "all.xyz"], tmp_path / "anew.zarr", client, "store.keep_splits=false", "store.near_duplicates=0"
    )
    anew = read_splits(tmp_path / "anew.zarr")
    assert all(len(set(anew[start : start + N_FRAMES])) == 1 for start in range(0, 96, N_FRAMES))


def test_one_file_a_split(trajectories: list[Atoms], client: Client, tmp_path: Path) -> None:
    parts = {"CuAu_train.xyz": trajectories[:60], "CuAu-valid.xyz": trajectories[60:72], "test.xyz": trajectories[72:]}
    for name, frames in parts.items():
        ase.io.write(tmp_path / name, frames, format="extxyz")
    done = import_frames([tmp_path / name for name in parts], tmp_path / "out.zarr", client)
    assert done.report["counts"] == {"train": 60, "val": 12, "test": 24}
    assert done.report["n_given"] == 96


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.xyz", "test.xyz"], ["train", "test"]),
        (["a_train.extxyz", "a_val.extxyz", "a_TEST.extxyz"], ["train", "val", "test"]),
        (["test.xyz"], []),  # just a name
        (["train_1.xyz", "train_2.xyz"], []),
        (["train.xyz", "more.xyz"], []),
        (["train.xyz", "train_test.xyz"], []),
        (["training_set.db", "validation_set.db"], ["train", "val"]),
        (["strain.xyz", "latest.xyz"], []),
    ],
)
def test_names_of_files_that_tell_a_split(names: list[str], expected: list[str]) -> None:
    assert list(splits_of_files([Path(name) for name in names]).values()) == expected


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"split": "train"}, "train"),
        ({"Split": " VALID "}, "val"),
        ({"split": 3}, ""),
        ({}, ""),
        ({"splits": "test"}, ""),
    ],
)
def test_keys_that_tell_a_split(info: dict[str, Any], expected: str) -> None:
    assert split_of_frame(info) == expected


def test_one_trajectory_is_cut_in_time(client: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    crystal, frames, drift = bulk("Cu", a=3.65, cubic=True), [], np.zeros((4, 3))
    for _ in range(60):
        drift = 0.95 * drift + rng.normal(0, 0.03, (4, 3))
        frame = crystal.copy()
        frame.positions += drift
        frames.append(make_labelled(frame))
    ase.io.write(tmp_path / "md.xyz", frames, format="extxyz")
    done = import_frames([tmp_path / "md.xyz"], tmp_path / "out.zarr", client, "store.gap=0.05")
    assert (done.report["n_gap"], done.n_out) == (6, 54)
    assert done.report["counts"] == {"train": 43, "val": 6, "test": 5}
    ds = open_dataset(tmp_path / "out.zarr").load()
    steps = {name: sorted(ds["step"].values[ds["split"].values == code].tolist()) for code, name in enumerate(SPLITS)}
    assert steps == {"train": list(range(43)), "val": list(range(46, 52)), "test": list(range(55, 60))}
    assert json.loads(ds.attrs["split_report"])["gap"] == 0.05
    assert "fail" not in {list_verdicts(tmp_path / "out.zarr")[name] for name in ("splits", "leakage")}


def test_reference_points_are_no_faults(trajectories: list[Atoms], client: Client, tmp_path: Path) -> None:
    """Isolated atoms in a box, a dimer curve, a molecule among crystals, and frames without stress are data."""
    atoms = [Atoms(symbol, cell=3 * [25.0], pbc=True) for symbol in ("Cu", "Au")]
    curve = [
        Atoms("Cu2", positions=[[0, 0, 0], [0, 0, d]], cell=3 * [25.0], pbc=True) for d in np.linspace(1.4, 9.0, 39)
    ]
    frames = [make_labelled(frame) for frame in [*trajectories, *atoms, *curve]]
    for frame in frames[-20:] + frames[:7]:
        frame.calc.results.pop("stress", None)
    ase.io.write(tmp_path / "mixed.xyz", frames, format="extxyz")
    import_frames([tmp_path / "mixed.xyz"], tmp_path / "out.zarr", client)
    verdict = judge(tmp_path / "out.zarr")
    assert {check.name: check.says for check in verdict.checks if check.verdict == "fail"} == {}
    assert verdict.go
    stress = next(check for check in verdict.checks if check.name == "stress")
    assert "more have none" in stress.says
    duplicates = next(check for check in verdict.checks if check.name == "duplicates")
    assert duplicates.n_offenders == 0
