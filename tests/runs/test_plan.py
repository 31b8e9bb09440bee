"""A plan counts what a config would do before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SMALL

from daskpipe.config.load import load_config
from daskpipe.core.errors import InputError
from daskpipe.runs.costs import Line
from daskpipe.runs.plan import plan_run
from daskpipe.runs.probe import measure_disk
from daskpipe.runs.run import Result


def test_plan_is_what_the_run_did(reference: Result) -> None:
    planned = plan_run(load_config("emt_alloy", SMALL))
    assert planned["exact"]
    assert list(planned["stages"]) == list(reference.stages)
    for stage, row in planned["stages"].items():
        did = reference.stages[stage]
        assert row["units"] == row["tasks"] == did["units"], stage
        if stage != "store-write":  # its inputs are files there
            assert (row["inputs"], row["outputs"]) == (did["inputs"], did["out"]), stage
    assert planned["md_steps"] == 4 * 10  # trajectories, steps
    assert planned["totals"]["units"] == sum(row["units"] for row in reference.stages.values())


def test_planned_bytes_and_files_are_near_what_the_run_left(reference: Result) -> None:
    totals = plan_run(load_config("emt_alloy", SMALL))["totals"]
    assert totals["bytes"] == pytest.approx(measure_disk(reference.run_dir), rel=0.25)
    assert totals["dataset_bytes"] == pytest.approx(measure_disk(reference.dataset), rel=0.25)
    names = {path.lstat().st_ino for path in reference.run_dir.rglob("*")}
    assert totals["inodes"] == pytest.approx(len(names), rel=0.2)


def test_plan_counts_temperatures_replicas_and_remainders() -> None:
    dynamics = ["explore.dynamics.temperatures=[300,600]", "explore.dynamics.replicas=3", "explore.batch_size=5"]
    stages = plan_run(load_config("emt_alloy", [*SMALL, *dynamics, "select.n=1000"]))["stages"]
    assert [stages["explore"][key] for key in ("inputs", "outputs", "units")] == [24, 48, 5]
    assert stages["label"]["inputs"] == 48  # fewer frames than were asked for


def test_bytes_grow_with_the_frames() -> None:
    one, ten = (plan_run(load_config("emt_alloy", [*SMALL, f"explore.dynamics.steps={steps}"])) for steps in (10, 100))
    grown = ten["stages"]["explore"]["bytes"] - one["stages"]["explore"]["bytes"]
    n_atoms, n_frames = 10, 4 * (20 - 2)  # 8 to 14 atoms a seed
    assert n_frames * n_atoms * 13 < grown < n_frames * 1000  # positions and numbers; and what is said of a frame


def test_plan_tells_ensembles_and_time_steps() -> None:
    planned = plan_run(load_config("quickstart", []))["dynamics"]
    assert planned["n_sampled"] == sum(planned["ensembles"].values()) == sum(planned["timesteps"].values()) > 10
    assert planned["ensembles"].keys() == {"npt_triclinic", "nvt_langevin"}, "its alloys are strained at random"
    assert (planned["timesteps"].keys(), planned["warning"]) == ({"4"}, None)
    long = plan_run(load_config("molecules", ["explore.dynamics.timestep=4"]))["dynamics"]
    assert long["ensembles"].keys() == {"nvt_langevin"}
    assert re.search(
        r"explore\.dynamics\.timestep=4 fs is long for atoms of 1\.01 amu, .* give timestep=auto \(0\.5 fs",
        long["warning"],
    )
    relaxed = plan_run(load_config("molecules", ["explore.dynamics.steps=0", "explore.relax={}"]))["dynamics"]
    assert relaxed == {"n_sampled": 0, "ensembles": {}, "timesteps": {}, "warning": None}


def test_plan_under_several_pressures_is_an_upper_bound() -> None:
    one, two = (plan_run(load_config("emt_alloy", [f"explore.dynamics.pressures={grid}"])) for grid in ("[0]", "[0,1]"))
    assert (one["exact"], two["exact"]) == (True, False)
    assert two["stages"]["explore"]["inputs"] == 2 * one["stages"]["explore"]["inputs"]
    assert two["doubts"][0].startswith("each structure is counted under each pressure")


def test_plan_of_files_is_not_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xyz").write_text("1\n\nCu 0 0 0\n")
    monkeypatch.chdir(tmp_path)
    planned = plan_run(load_config("emt_alloy", ["generate=files", "generate.paths=[.]"]))
    assert not planned["exact"]
    assert planned["doubts"] == ["plan does not read files: each counts as one structure"]
    generate = planned["stages"]["generate"]
    assert (generate["inputs"], generate["outputs"], generate["units"]) == (1, 1, 1)
    with pytest.raises(InputError, match="lost.xyz' does not exist"):
        plan_run(load_config("emt_alloy", ["generate=files", "generate.paths=[lost.xyz]"]))


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.runs.plan.SMALL_FILE", 10)
    (tmp_path / "a.xyz").write_text("no structure at all")
    planned = plan_run(load_config("emt_alloy", ["generate=files", f"generate.paths=[{tmp_path}/a.xyz]"]))
    assert planned["totals"]["bytes"] is None
    assert planned["stages"]["explore"]["bytes"] is None
    assert planned["totals"]["inodes"] > 0


def test_stages_go_to_the_pools_that_there_are() -> None:
    cpu = plan_run(load_config("emt_alloy", ["cluster.gpus=0", "cluster.workers=3"]))["pools"]
    assert list(cpu) == ["cpu"]
    assert cpu["cpu"]["workers"] == 3
    assert cpu["cpu"]["hours"] is None
    both = plan_run(load_config("emt_alloy", ["cluster.gpus=1", "cluster.workers=3", "label.device=auto"]))["pools"]
    assert both["gpu"]["stages"] == ["explore", "label", "label-check", "label-atoms"]
    assert both["gpu"]["workers"] == 1
    assert "explore" not in both["cpu"]["stages"]


def test_budget_in_a_plan() -> None:
    budget = plan_run(load_config("emt_alloy", [*SMALL, "budget.bytes=1kB", "budget.labels=5"]))["budget"]
    assert budget["verdict"] == "over budget"
    assert "of 1 kB" in budget["says"]
    assert budget["says"].endswith("budget.labels=5 cuts select.n=6")
    assert plan_run(load_config("emt_alloy", ["budget.bytes=1GB"]))["budget"]["says"] == "GO: within the budget"
    assert plan_run(load_config("emt_alloy", ["budget.hours=1"]))["budget"]["says"] == "hours unknown: type --probe"
    assert plan_run(load_config("emt_alloy"))["budget"] is None


def test_plan_in_words(type_command: Callable[..., Any]) -> None:
    typed = type_command("plan", "emt_alloy", *SMALL, "budget.hours=3")
    assert typed.code == 0
    assert "explore cpu 4 8 4" in " ".join(typed.out.split())
    assert "40 MD steps" in typed.out
    assert "hours unknown: type --probe" in typed.out
    assert "budget: hours unknown" in typed.out
    assert json.loads(type_command("plan", "emt_alloy", *SMALL, "--json").out) == plan_run(
        load_config("emt_alloy", SMALL)
    )


def test_plan_shows_job_scripts(type_command: Callable[..., Any]) -> None:
    typed = type_command("plan", "emt_alloy", "--cluster", "slurm", "--show-script")
    assert typed.code == 0
    for name in ("cpu", "gpu"):
        assert f"# --- job script of {name} ---" in typed.out
    assert "#SBATCH" in typed.out
    scripts = json.loads(type_command("plan", "emt_alloy", "--cluster", "slurm", "--show-script", "--json").out)
    assert "#SBATCH" in scripts["scripts"]["cpu"]


def test_no_job_scripts_without_a_queue(type_command: Callable[..., Any]) -> None:
    typed = type_command("plan", "emt_alloy", "--show-script")
    assert typed.code == 2
    assert "there are no job scripts without a job queue; type e.g. --cluster slurm" in typed.err


POSITIVE = st.floats(0.001, 1e6)


@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE)
def test_costs_never_fall_and_never_grow_faster_than_in_proportion(
    x1: float, y1: float, dx: float, y2: float, a: float, b: float
) -> None:
    line = Line((x1, y1), (x1 + dx, y2))
    small, large = sorted((a, b))
    assert 0 <= line(small) <= line(large) * (1 + 1e-9)
    assert line(x1 + dx) == pytest.approx(y2)
    assert line(large + x1 + dx) <= (large + x1 + dx) / (x1 + dx) * y2 * (1 + 1e-9)


def test_a_line_goes_through_its_points() -> None:
    line = Line((10.0, 3.0), (20.0, 5.0))  # 1 + 0.2 x
    assert [line(size) for size in (0, 10, 20, 100)] == pytest.approx([1, 3, 5, 21])
    assert Line((5.0, 1.0), (5.0, 2.0))(10) == 4.0  # one size: in proportion
