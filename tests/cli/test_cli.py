"""The command line: its output, its exit codes, and that wrong input leaves no files."""

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
import typer
import xarray as xr
from ase import Atoms
from ase.build import bulk
from distributed import Client
from small_runs import SMALL, UNITS, files_of

import daskpipe
from daskpipe.cli.main import app
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.lease import hold_lease
from daskpipe.runs.run import Result

Command = Callable[..., Any]

HEAVY = ("torch", "dask", "distributed", "numba", "ase", "xarray", "zarr", "sklearn", "hydra", "numpy")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def address(client: Client) -> str:
    """Of the scheduler that the tests share."""
    return str(client.scheduler.address)


def list_states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files and folders below a folder, but for leases: to look at one is to touch a clock."""
    states = {path: path.stat() for path in [folder, *folder.rglob("*")] if "drivers" not in path.parts}
    return {str(path): (state.st_size, state.st_mtime_ns) for path, state in states.items()}


# --- wrong input ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[int, list[str], str]] = {
    "unknown preset": (2, ["run", "quickstar"], "unknown preset 'quickstar'. Did you mean 'quickstart'?"),
    "no such file": (2, ["run", "mine.yaml"], "config file mine.yaml does not exist"),
    "unknown key": (2, ["run", "emt_alloy", "explore.dynamics.step=3"], "unknown key in explore.dynamics: 'step'"),
    "unknown parameter of a generator": (
        2,
        ["run", "emt_alloy", "generate.sources.alloys.ratle=0.1"],
        "Did you mean 'rattle'?",
    ),
    "unknown parameter of a potential": (
        2,
        ["run", "emt_alloy", "explore.potential.params.k=1"],
        "unknown key in explore.potential.params: 'k'",
    ),
    "unknown parameter of a descriptor": (2, ["run", "emt_alloy", "describe.params.rcut=1"], "Did you mean 'r_cut'?"),
    "split": (2, ["run", "emt_alloy", "store.split.train=0.5"], "the splits must sum to 1; received train=0.5"),
    "composition": (
        2,
        ["run", "emt_alloy", "generate.sources.alloys.elements={Cu: 0.5, Au: 0.6}"],
        "sum to 1.1; they must sum to 1",
    ),
    "negative temperature": (
        2,
        ["run", "emt_alloy", "explore.dynamics.temperatures=[300, -5]"],
        "temperatures.1: Input should be greater than 0",
    ),
    "unknown element": (
        2,
        ["run", "emt_alloy", "generate.sources.alloys.elements={Gold: [0, 1]}"],
        "unknown element 'Gold'. Did you mean 'Au'?",
    ),
    "model file missing": (
        3,
        ["run", "emt_alloy", "explore=mace", "explore.potential.params.model=lost.model"],
        "lost.model",
    ),
    "input file missing": (
        3,
        ["run", "emt_alloy", "generate=files", "generate.paths=[lost.xyz]"],
        "lost.xyz' does not exist",
    ),
    "glob of nothing": (3, ["run", "emt_alloy", "generate=files", "generate.paths=['*.xyz']"], "meets no file"),
    "nothing to generate": (
        2,
        ["run", "emt_alloy", "generate=files"],
        "nothing to generate from: give generate.sources",
    ),
    "unknown cluster": (
        2,
        ["run", "emt_alloy", "--cluster", "nowhere"],
        "unknown cluster 'nowhere'. Known: local, example-site",
    ),
    "unknown site file": (2, ["run", "emt_alloy", "--cluster", "nowhere.yaml"], "nowhere.yaml'. Known: local"),
    "unknown choice": (
        2,
        ["run", "emt_alloy", "select=rand"],
        "unknown choice of select 'rand'. Did you mean 'random'?",
    ),
    "malformed override": (2, ["run", "emt_alloy", "select.n"], "must read key.path=value or group=choice"),
    "malformed value": (2, ["run", "emt_alloy", "select.n=[1"], "no viable alternative at input '[1'"),
    "select from nothing": (
        3,
        ["select", "lost.xyz", "-n", "5", "-o", "picked.xyz"],
        "'lost.xyz' does not exist in",
    ),
    "select without frames": (
        2,
        ["select", "seed=3", "-n", "5", "-o", "picked.xyz"],
        "no frames: give a file, a folder or a glob, e.g. md.extxyz",
    ),
    "select by an unknown method": (
        2,
        ["select", "lost.xyz", "-n", "5", "-o", "picked.xyz", "--method", "kmeens"],
        "unknown choice of select 'kmeens'. Did you mean 'kmeans'? "
        "Known: direct, environments, fps, kmeans, random, stride.",
    ),
    "select into another format": (
        2,
        ["select", "lost.xyz", "-n", "5", "-o", "picked.traj"],
        "picked.traj must end in .extxyz or .xyz; type e.g. -o picked.extxyz",
    ),
    "select with an override of a run": (
        2,
        ["select", "lost.xyz", "label=emt", "-n", "5", "-o", "picked.xyz"],
        "'label=emt' is of no use here: overrides begin with describe, select, cluster, seed",
    ),
    "select against nothing": (
        3,
        ["select", "lost.xyz", "-n", "5", "-o", "picked.xyz", "--against", "lost.zarr"],
        "lost.zarr does not exist; select.against wants a dataset.zarr or a file of frames",
    ),
    "describe nothing": (3, ["describe", "*.traj", "-o", "features.zarr"], "'*.traj' meets no file in"),
    "describe into another format": (
        2,
        ["describe", "lost.xyz", "-o", "features.csv"],
        "features.csv must end in .zarr or .npz; type e.g. -o features.zarr",
    ),
    "describe by an unknown descriptor": (
        2,
        ["describe", "lost.xyz", "-o", "features.npz", "describe=soup"],
        "unknown choice of describe 'soup'. Did you mean 'soap'?",
    ),
    "resume of nothing": (2, ["resume", "lost"], "lost is no run directory"),
    "status of nothing": (2, ["status", "lost"], "lost is no run directory"),
    "dataset that is not there": (3, ["export", "lost.zarr", "out.extxyz"], "lost.zarr does not exist"),
    "plan of a wrong config": (2, ["plan", "emt_alloy", "seed=-1"], "seed: Input should be greater than or equal to 0"),
    "config of a wrong preset": (2, ["config", "show", "nope"], "unknown preset 'nope'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_message_and_leaves_nothing(case: str, type_command: Command, here: Path) -> None:
    code, words, said = WRONG[case]
    typed = type_command(*words, *(["--run-dir", "out/run"] if words[0] == "run" else []))
    assert typed.code == code
    assert typed.err.startswith("error: ")
    assert said in typed.err
    assert "Traceback" not in typed.err
    assert typed.out == ""
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "case",
    [
        "unknown preset",
        "model file missing",
        "resume of nothing",
        "dataset that is not there",
        "select from nothing",
        "describe nothing",
    ],
)
def test_wrong_input_is_one_json_object_for_machines(case: str, type_command: Command, here: Path) -> None:
    code, words, said = WRONG[case]
    typed = type_command(*words, "--json")
    assert typed.code == code
    answer = json.loads(typed.out)
    assert answer["exit_code"] == code
    assert said in answer["error"]
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "emt_alloy", "--runs-dir", "x"], "--runs-dir"),
        (["run"], "PRESET|FILE.yaml"),
        (["runn"], "runn"),
        (["select", "a.xyz", "-o", "b.xyz"], "-n"),
        (["select", "a.xyz", "-o", "b.xyz", "-n", "0"], "-n"),
        (["select", "-n", "3", "-o", "b.xyz"], "FRAMES"),
        (["describe", "a.xyz"], "--out"),
    ],
)
def test_wrong_options_are_errors_of_usage(words: list[str], said: str, type_command: Command, here: Path) -> None:
    typed = type_command(*words)
    assert typed.code == 2
    assert said in typed.err
    typed = type_command(*words, "--json")
    assert typed.code == 2
    assert said in json.loads(typed.out)["error"]
    assert list(here.iterdir()) == []


def test_a_yaml_tag_runs_nothing(type_command: Command, here: Path) -> None:
    (here / "evil.yaml").write_text("seed: !!python/object/apply:os.system ['touch canary']\n")
    typed = type_command("run", "evil.yaml")
    assert typed.code == 2
    assert "could not determine a constructor for the tag" in typed.err
    assert [path.name for path in here.iterdir()] == ["evil.yaml"]


def test_a_run_of_another_config_is_left_alone(type_command: Command, reference: Result, here: Path) -> None:
    before = list_states(reference.run_dir)
    typed = type_command("run", "emt_alloy", *SMALL, "seed=9", "--run-dir", str(reference.run_dir))
    assert typed.code == 2
    assert "holds a run of another config (seed: 9 here, 0 there)" in typed.err
    assert list_states(reference.run_dir) == before


def test_a_folder_that_is_no_run_is_left_alone(type_command: Command, here: Path) -> None:
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.tex").write_text("x")
    before = list_states(here)
    for words, said in (
        (["run", "emt_alloy", "--run-dir", "thesis"], "thesis is neither empty nor a run directory"),
        (["run", "emt_alloy", "--run-dir", "thesis/chapter.tex"], "chapter.tex is or lies below a file"),
        (["run", "emt_alloy", "--run-dir", "thesis/chapter.tex/run"], "run is or lies below a file"),
        (["resume", "thesis"], "thesis is no run directory"),
        (["resume", "thesis/chapter.tex"], "chapter.tex is no run directory"),
        (["status", "thesis"], "thesis is no run directory"),
    ):
        typed = type_command(*words)
        assert typed.code == 2, words
        assert said in typed.err
        assert "Traceback" not in typed.err
    typed = type_command("export", "thesis", "out.extxyz")
    assert typed.code == 3
    assert "thesis is not a Zarr store" in typed.err
    assert list_states(here) == before


def test_a_second_driver_is_refused_and_writes_nothing(type_command: Command, reference: Result, here: Path) -> None:
    shutil.copytree(reference.run_dir, here / "run")
    before = list_states(here)
    with hold_lease(here / "run"):
        for words in (["run", "emt_alloy", *SMALL, "--run-dir", "run"], ["resume", "run"]):
            typed = type_command(*words)
            assert typed.code == 2
            assert "another daskpipe works in" in typed.err
            assert json.loads(type_command("status", "run", "--json").out)["state"] == "running"
    assert list_states(here) == before
    assert json.loads(type_command("status", "run", "--json").out)["state"] == "complete"


# --- runs -----------------------------------------------------------------------------------------------


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


# --- select and describe --------------------------------------------------------------------------------

QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"]
"""A descriptor that takes no time."""


def write_frames(path: Path, n: int = 12) -> None:
    """A trajectory of an alloy that heats up."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(n):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
        atoms.symbols[index % 4] = "Au"
        atoms.rattle(0.02 * (index + 1), rng=rng)
        frames.append(atoms)
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(path, frames)


def test_select_prints_what_it_did(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    words = ["select", "md.extxyz", "-n", "5", "-o", "picked [5].extxyz", "--cluster", address, *QUICK]
    typed = type_command(*words)
    assert typed.code == 0, typed.err
    assert "daskpipe select 5 in picked [5].extxyz" in typed.err
    assert "2 workers" in typed.err
    lines = typed.out.splitlines()
    assert any(line.startswith("12 frames described in ") for line in lines)
    assert "near-duplicates left out: 0 of an earlier frame (closer than 0.001 of the pool's spread)" in lines
    assert any(line.startswith("5 of 12 frames picked by kmeans: they hit ") for line in lines)
    assert lines[-1] == "Wrote picked [5].extxyz: 5 frames"
    assert len(ase.io.read(here / "picked [5].extxyz", ":")) == 5
    before = list_states(here)
    again = type_command(*words)
    assert again.code == 2
    assert "picked [5].extxyz exists; give another name, or --force to replace it" in again.err
    assert list_states(here) == before
    assert type_command(*words, "--force", "seed=3").code == 0
    assert sorted(os.listdir(here)) == ["md.extxyz", "picked [5].extxyz"]


@pytest.mark.parametrize("method", ["kmeans", "direct", "fps", "environments", "random", "stride"])
def test_select_by_each_method_for_machines(method: str, type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    words = ["md.extxyz", "-n", "5", "-o", "picked.xyz", "--method", method, "--cluster", address, *QUICK]
    typed = type_command("select", *words, "--json")
    assert (typed.code, typed.err) == (0, "")
    answer = json.loads(typed.out)
    report = answer.pop("report")
    assert answer.pop("seconds") > 0
    assert answer == {
        "out": "picked.xyz", "n_frames": 12, "n_out": 5, "rejected": {}, "examples": {}, "exit_code": 0,
    }  # fmt: skip
    assert (report["method"], report["n_picked"]) == (method, 5)
    assert report["coverage"]["n_pool"] == 12


def test_select_tells_what_it_could_not_read(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.xyz")
    with open(here / "md.xyz", "a") as file:
        file.write("1\n\nXq 0 0 0\n1\n\nXr 0 0 0\n3\n\nCu 0 0 0\n")
    words = ["select", "md.xyz", "-n", "5", "-o", "picked.xyz", "--cluster", address, *QUICK, "--force"]
    typed = type_command(*words)
    assert typed.code == 10
    assert "12 frames described, 3 rejected in " in typed.out
    assert "  read/unknown_element: 2, e.g. " in typed.out
    assert f"  read/unreadable: 1, e.g. {here / 'md.xyz'}#14: ValueError: the file ends after 1 of 3" in typed.out
    answer = json.loads(type_command(*words, "--json").out)
    assert answer["exit_code"] == 10
    assert answer["rejected"] == {"read/unknown_element": 2, "read/unreadable": 1}
    assert answer["examples"].keys() == answer["rejected"].keys()


def test_select_against_what_there_is(type_command: Command, reference: Result, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    (here / "it's old").mkdir()
    shutil.copytree(reference.dataset, here / "it's old" / "dataset.zarr")
    type_command("export", "it's old/dataset.zarr", "old.extxyz")
    words = ["select", "md.extxyz", "old.extxyz", "-n", "50", "--cluster", address, "--json", *QUICK]
    words.append("select.duplicate_distance=1e-6")  # what is in the dataset itself, and not what is near
    for number, against in enumerate(("it's old/dataset.zarr", "old.extxyz")):
        typed = type_command(*words, "-o", f"{number}.xyz", "--against", against)
        assert typed.code == 0, typed.out
        answer = json.loads(typed.out)
        assert answer["report"]["duplicates"]["against_dataset"] == 6
        assert answer["n_out"] == 12
    typed = type_command(*words, "-o", "run.xyz", "--against", str(reference.run_dir))
    assert typed.code == 3
    assert "is a run and not a dataset; type " in json.loads(typed.out)["error"]


def test_names_of_files_may_hold_signs_of_overrides(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "T=300 K" / "md=1.extxyz", 3)
    write_frames(here / "T=600 K" / "md=1.extxyz", 4)
    write_frames(here / "select.n=3.xyz", 5)
    for paths, n_frames in (
        (["T=300 K/md=1.extxyz"], 3),
        (["T=300 K"], 3),
        (["T=*/*.extxyz"], 7),
        (["T=600 K", "select.n=3.xyz"], 9),
    ):
        words = [*paths, "describe.dims=2", QUICK[0], "-o", "features.npz", "--force", "--cluster", address, "--json"]
        typed = type_command("describe", *words)
        assert typed.code == 0, typed.out
        assert json.loads(typed.out)["n_frames"] == n_frames
        assert np.load(here / "features.npz")["features"].shape == (n_frames, 2)


def test_overrides_may_be_longer_than_a_name_of_a_file(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.xyz", 3)
    words = [
        "md.xyz",
        "-o",
        "features.npz",
        "--cluster",
        address,
        f"describe.params={{r_cut: 4.{'0' * 300}, n_max: 3}}",
    ]
    typed = type_command("describe", *words)
    assert typed.code == 0, typed.err


def test_describe_writes_what_xarray_opens(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    words = ["describe", "md.extxyz", "-o", "features.zarr", "describe.level=atom", *QUICK, "--cluster", address]
    typed = type_command(*words)
    assert typed.code == 0, typed.err
    assert "Wrote features.zarr: 12 frames" in typed.out
    ds = xr.open_zarr("features.zarr", consolidated=False)
    assert ds.sizes == {"structure": 12, "feature": 4, "atom": 48}
    assert type_command(*words).code == 2
    answer = json.loads(type_command(*words, "--force", "--json").out)
    assert answer["report"]["describe"]["level"] == "atom"
    assert sorted(os.listdir(here)) == ["features.zarr", "md.extxyz"]


# --- the other verbs --------------------------------------------------------------------------------------


def test_config_show_is_yaml_that_runs(type_command: Command, here: Path) -> None:
    shown = type_command("config", "show", "emt_alloy", "select.n=3")
    assert shown.code == 0
    (here / "mine.yaml").write_text(shown.out)
    again = type_command("config", "show", "mine.yaml")
    assert again.out == shown.out
    as_json = type_command("config", "show", "mine.yaml", "--json")
    assert json.loads(as_json.out)["select"]["n"] == 3


def test_config_schema_is_json(type_command: Command) -> None:
    typed = type_command("config", "schema")
    assert typed.code == 0
    assert "generate" in json.loads(typed.out)["properties"]


def test_export_writes_extxyz_and_does_not_overwrite(type_command: Command, reference: Result, here: Path) -> None:
    typed = type_command("export", str(reference.run_dir), "out.extxyz")
    assert typed.code == 0
    assert "6 structures in out.extxyz" in typed.out
    assert len(ase.io.read("out.extxyz", ":")) == 6
    before = list_states(here)
    typed = type_command("export", str(reference.run_dir), "out.xyz", "--to", "extxzy")
    assert typed.code == 2
    assert "'extxzy'. Did you mean 'extxyz'?" in typed.err
    typed = type_command("export", str(reference.run_dir), "out.extxyz")
    assert typed.code == 2
    assert "out.extxyz" in typed.err
    assert list_states(here) == before
    assert json.loads(type_command("export", str(reference.dataset), "out.extxyz", "--force", "--json").out) == {
        "out": "out.extxyz", "to": "extxyz", "structures": 6, "files": 1, "reader": "ase.io.iread",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["-h"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["daskpipe", *{words!r}]
from daskpipe.cli.main import main
try:
    main()
except SystemExit as stop:
    print(stop.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "0 []"
    assert "Usage" in said


VERBS = sorted(
    words
    for name, verb in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for words in ([(name, each) for each in verb.commands] if hasattr(verb, "commands") else [(name,)])
)


@pytest.mark.parametrize("words", [(), ("config",), *VERBS], ids=" ".join)
def test_help_names_no_type_of_flags(
    words: tuple[str, ...], type_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    typed = type_command(*words, "--help")
    assert typed.code == 0
    assert "--help" in typed.out
    assert "bool" not in typed.out
    assert "--no-" not in typed.out
    assert "[[" not in typed.out
    assert not [line for line in typed.out.splitlines() if len(line) > 80]


def test_python_m_daskpipe_is_the_command() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "daskpipe", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "Exit codes: 0 complete" in " ".join(said.split())
