"""Wrong input on the command line: one message, an exit code, and no files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import list_states
from small_runs import SMALL

from daskpipe.runs.lease import hold_lease
from daskpipe.runs.run import Result

Command = Callable[..., Any]


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
    "glob of nothing": (3, ["run", "emt_alloy", "generate=files", "generate.paths=['*.xyz']"], "matches no file"),
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
        "'label=emt' cannot be used here: overrides begin with describe, select, cluster, seed",
    ),
    "select against nothing": (
        3,
        ["select", "lost.xyz", "-n", "5", "-o", "picked.xyz", "--against", "lost.zarr"],
        "lost.zarr does not exist; select.against takes a dataset.zarr or a file of frames",
    ),
    "describe nothing": (3, ["describe", "*.traj", "-o", "features.zarr"], "'*.traj' matches no file in"),
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
