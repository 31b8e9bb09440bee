"""The verb run: its output, files of the user, and clusters that cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from small_runs import SMALL, UNITS, files_of

import daskpipe
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result

Command = Callable[..., Any]


def test_run_prints_a_summary_and_commands_that_work(
    type_command: Command, reference: Result, address: str, here: Path
) -> None:
    typed = type_command("run", "emt_alloy", *SMALL, "--cluster", address, "--run-dir", "a [b]/run")
    assert typed.code == 0
    assert "2 workers, dashboard http://127.0.0.1:" in typed.err
    table = {line.split()[0]: line.split() for line in typed.out.splitlines() if line.strip()}
    assert table["stage"] == ["stage", "in", "out", "alloy", "cluster", "rejected", "seconds"]
    assert table["explore"][1:5] == ["4", "8", "4", "4"]
    assert "Dataset a [b]/run/dataset.zarr" in " ".join(typed.out.split())
    assert files_of(here / "a [b]" / "run" / "dataset.zarr") == files_of(reference.dataset)
    commands = [line.strip() for line in typed.out.partition("Next")[2].splitlines() if line.strip()]
    assert len(commands) == 3
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
    assert len(ase.io.read("a [b]/run/dataset.extxyz", ":")) == 6
    log = (here / "a [b]" / "run" / "daskpipe.log").read_text()
    assert "StageFinished stage=explore" in log


def test_json_is_one_object(type_command: Command, address: str, here: Path) -> None:
    typed = type_command("run", "emt_alloy", *SMALL, "--cluster", address, "--run-dir", "run", "--json")
    answer = json.loads(typed.out)
    assert typed.err == ""
    assert typed.code == answer["exit_code"] == 0
    assert {stage: row["units"] for stage, row in answer["stages"].items()} == UNITS
    again = json.loads(type_command("resume", "run", "--cluster", address, "--json").out)
    assert sum(row["computed"] for row in again["stages"].values()) == 0


def write_mixed_folder(folder: Path) -> None:
    """Structures of the user's own in five formats, and four files that are wrong in four ways."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def alloy() -> Atoms:
        atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
        atoms.symbols[rng.integers(4)] = "Au"
        atoms.rattle(0.05, rng=rng)
        return atoms

    ase.io.write(folder / "two.extxyz", [alloy(), alloy()])
    ase.io.write(folder / "one.cif", alloy())
    ase.io.write(folder / "POSCAR", alloy(), format="vasp")
    ase.io.write(folder / "one.traj", alloy())
    ase.io.write(folder / "one.db", alloy())
    (folder / "malformed.xyz").write_text("3\n\nCu 0 0 0\n")
    (folder / "element.xyz").write_text("1\n\nXq 0 0 0\n")
    (folder / "overlap.xyz").write_text("2\n\nCu 0 0 0\nAu 0 0 0.3\n")
    (folder / "empty.cif").write_text("")
    (folder / "notes.txt").write_text("not a structure")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("x.xyz", "1\n\nCu 0 0 0\n")


FILE_WITH_DEFAULTS = "defaults: [emt_alloy, _self_]\nexplore: {dynamics: {steps: 10}}\nselect: {n: 6}\n"
FILE_WITHOUT = """
explore: {potential: {name: emt}, dtype: float64, dynamics: {temperatures: [600], steps: 10, stride: 5}}
select: {n: 6}
label: {potential: {name: emt}}
describe: {params: {n_max: 4, l_max: 3}, dims: 4}
"""


@pytest.mark.parametrize("content", [FILE_WITH_DEFAULTS, FILE_WITHOUT], ids=["defaults", "no defaults"])
def test_files_of_the_users_own(content: str, type_command: Command, address: str, here: Path) -> None:
    write_mixed_folder(here / "mixed")
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "mine.yaml").write_text(content)
    words = ["run", "elsewhere/mine.yaml", "generate=files", "generate.paths=[mixed]", "--cluster", address]
    typed = type_command(*words, "--run-dir", "run")
    assert typed.code == 10, typed.err
    rejected = {item.structure: item.reason for item in RunDirectory(here / "run").read_quarantine()}
    assert rejected == {
        "mixed/malformed.xyz": "unreadable",
        "mixed/element.xyz#0": "unknown_element",
        "mixed/overlap.xyz#0": "overlap",
        "mixed/empty.cif": "empty",
    }
    for reason in sorted(rejected.values()):
        assert f"generate/{reason}: 1" in typed.out
    state = json.loads(type_command("status", "run", "--json").out)
    row = {"committed": 3, "planned": 3, "out": 6, "rejected": 4, "lost": 0, "suspect": 0, "yielded": 0}
    assert state["stages"]["generate"] == row
    assert daskpipe.open_dataset(here / "run" / "dataset.zarr").sizes["structure"] == 6


# --- the cluster ------------------------------------------------------------------------------------------


def test_cuda_without_a_gpu_worker_ends_at_once(type_command: Command, here: Path) -> None:
    words = ["explore.device=cuda", "cluster.gpus=0", "cluster.workers=1", "--run-dir", "run"]
    typed = type_command("run", "emt_alloy", *SMALL, *words)
    assert typed.code == 4
    assert "explore.device=cuda needs a worker that offers GPU=1, and none of the 1 workers does" in typed.err
    assert "they offer: tls://127.0.0.1:" in typed.err
    assert ": nothing. Give cluster.gpus=1" in typed.err
    assert "Traceback" not in typed.err
    assert not list((here / "run").glob("units/*"))


def test_a_run_that_found_no_gpu_goes_on_without(type_command: Command, address: str, here: Path) -> None:
    (here / "run").mkdir()
    daskpipe_config = type_command("config", "show", "emt_alloy", *SMALL, "explore.device=cuda").out
    (here / "run" / "config.yaml").write_text(daskpipe_config)
    typed = type_command("run", "emt_alloy", *SMALL, "--cluster", address, "--run-dir", "run")
    assert typed.code == 0, typed.err


def test_slurm_where_there_is_none(type_command: Command, here: Path) -> None:
    if shutil.which("sbatch"):
        pytest.skip("there is a Slurm here")
    typed = type_command("run", "emt_alloy", "--cluster", "slurm", "--run-dir", "run")
    assert typed.code == 4
    assert "cluster slurm needs sbatch, and there is none on the PATH" in typed.err
    assert list(here.iterdir()) == []


def test_a_scheduler_that_does_not_answer(type_command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.cluster.local.CONNECT_SECONDS", 1)
    typed = type_command("run", "emt_alloy", *SMALL, "--cluster", "tcp://127.0.0.1:1", "--run-dir", "run")
    assert typed.code == 4
    assert "no scheduler answers at tcp://127.0.0.1:1" in typed.err
    assert "Start one: dask scheduler" in typed.err
