"""A probe runs a small part of a config and predicts the cost of the whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from small_runs import SMALL

import daskpipe
from daskpipe.config.load import load_config
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Event, StageStarted
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.budget import measure_spent
from daskpipe.runs.costs import Measurements
from daskpipe.runs.plan import plan_run
from daskpipe.runs.probe import _choose_requests, _fit_line, measure_disk, probe_run
from daskpipe.runs.run import Result
from daskpipe.stages.generate.stage import list_requests

LONGER = [
    *SMALL, "generate.sources.alloys.n=12", "generate.sources.clusters.n=12", "explore.batch_size=4",
    "explore.device=auto", "explore.dynamics.steps=400", "select.n=24", "label.batch_size=6",
]  # fmt: skip
"""Six units of exploration; more MD steps than a probe needs."""


@pytest.fixture(scope="module")
def probed(client: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurements, list[Event], Path]:
    folder = tmp_path_factory.mktemp("probe")
    heard: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daskpipe.runs.probe.SECONDS", (4.0, 8.0))
        measured = probe_run(
            load_config("emt_alloy", LONGER), folder / "runs" / "mine", client=client, subscribers=[heard.append]
        )
    return measured, heard, folder


@pytest.fixture(scope="module")
def whole_run(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return daskpipe.run("emt_alloy", LONGER, run_dir=tmp_path_factory.mktemp("ran") / "run", client=client)


def test_a_probe_leaves_nothing(probed: tuple[Measurements, list[Event], Path]) -> None:
    _, _, folder = probed
    assert list(folder.iterdir()) == []


def test_a_probe_runs_full_units_with_fewer_steps(probed: tuple[Measurements, list[Event], Path]) -> None:
    measured, heard, _ = probed
    explored = [event for event in heard if isinstance(event, StageStarted) and event.stage == "explore"]
    assert [(event.n_units, event.n_inputs) for event in explored] == [(4, 16)] * 3  # of six, each of four trajectories
    probed_explore = measured.as_json()["stages"]["explore"]
    assert probed_explore["probed_units"] == 4
    assert 10 <= probed_explore["probed_size"] < 400
    assert probed_explore["extrapolated_by"] == pytest.approx(400 / probed_explore["probed_size"], rel=0.01)
    json.dumps(measured.as_json())


def test_predicted_bytes_are_those_of_the_run(
    probed: tuple[Measurements, list[Event], Path], whole_run: Result
) -> None:
    planned = plan_run(load_config("emt_alloy", LONGER), probed[0])
    assert planned["totals"]["bytes"] == pytest.approx(measure_disk(whole_run.run_dir), rel=0.1)
    assert planned["totals"]["dataset_bytes"] == pytest.approx(measure_disk(whole_run.dataset), rel=0.1)
    real = measure_spent(RunDirectory(whole_run.run_dir)).bytes
    overhead = probed[0].overhead[0]
    for stage in ("explore", "describe", "label"):
        row = planned["stages"][stage]
        assert row["bytes"] - row["units"] * overhead == pytest.approx(real[stage], rel=0.1), stage


def test_predicted_work_is_of_the_size_of_what_was_done(
    probed: tuple[Measurements, list[Event], Path], whole_run: Result
) -> None:
    """Three times more or less: tests share their machine. benchmarks/probe.py measures how good it is."""
    planned = plan_run(load_config("emt_alloy", LONGER), probed[0])
    real = measure_spent(RunDirectory(whole_run.run_dir)).seconds["explore"] / 3600
    assert real / 3 < planned["stages"]["explore"]["hours"] < real * 3
    assert planned["pools"]["gpu"]["stages"] == ["explore"]  # one of the test's workers offers a GPU
    assert planned["pools"]["gpu"]["workers"] == 1
    assert planned["pools"]["cpu"]["workers"] == 2
    clock = sum(pool["wall_hours"] for pool in planned["pools"].values()) * 3600
    assert planned["seconds"] == pytest.approx(clock + probed[0].around, abs=0.1)


def test_a_plan_with_a_probe_says_go_or_not(probed: tuple[Measurements, list[Event], Path]) -> None:
    go = plan_run(load_config("emt_alloy", [*LONGER, "budget.hours=100", "budget.bytes=1GB"]), probed[0])["budget"]
    assert go["says"] == "GO: within the budget"
    over = plan_run(load_config("emt_alloy", [*LONGER, "budget.hours=1e-6"]), probed[0])["budget"]
    assert over["verdict"] == "over budget"
    assert over["says"].startswith("over budget (hours: ")
    assert over["says"].endswith("the run will stop there with exit code 75")


def test_costs_grow_with_the_config(probed: tuple[Measurements, list[Event], Path]) -> None:
    one = plan_run(load_config("emt_alloy", LONGER), probed[0])
    ten = plan_run(load_config("emt_alloy", [*LONGER, "explore.dynamics.replicas=10"]), probed[0])
    assert ten["stages"]["explore"]["hours"] == pytest.approx(10 * one["stages"]["explore"]["hours"], rel=0.01)
    assert ten["totals"]["bytes"] > 5 * one["totals"]["bytes"]
    assert ten["stages"]["label"]["hours"] == one["stages"]["label"]["hours"]


def test_seeds_of_a_probe_are_stretches_of_all() -> None:
    config = load_config("emt_alloy", ["generate.sources.alloys.n=600", "generate.sources.clusters.n=400"])
    wanted = list_requests(config.generate.sources, [], Path())
    some, n_seeds = _choose_requests(wanted, config, 4)
    assert n_seeds == len(some) == 4 * config.explore.batch_size
    stretches: dict[tuple[str, int], int] = defaultdict(int)
    rows = [wanted.index(request) for request in some]
    for place, row in enumerate(rows):
        stretches[("stretch", row - place)] += 1
    assert list(stretches.values()) == [config.explore.batch_size] * 4
    assert (rows[0], rows[-1]) == (0, len(wanted) - 1)
    assert {request.source for request in some} == {"alloys", "clusters"}


def test_conditions_count_as_trajectories() -> None:
    config = load_config("emt_alloy", ["explore.dynamics.temperatures=[300,600]", "generate.sources.alloys.n=600"])
    some, n_seeds = _choose_requests(list_requests(config.generate.sources, [], Path()), config, 4)
    assert n_seeds == len(some) == 4 * config.explore.batch_size // 2


def test_a_probe_that_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.cluster.local.CONNECT_SECONDS", 1)
    config = load_config("emt_alloy", [*SMALL, "cluster.address=tcp://127.0.0.1:9"])
    with pytest.raises(ClusterError, match="no scheduler answers at tcp://127.0.0.1:9"):
        probe_run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_probe_on_the_command_line(type_command: Callable[..., Any], client: Client, tmp_path: Path) -> None:
    words = ["plan", "emt_alloy", *SMALL, "--cluster", client.scheduler.address, "--run-dir", str(tmp_path / "run")]
    typed = type_command(*words, "budget.hours=1", "--probe")
    assert typed.code == 0
    assert "on these workers the run takes " in typed.out
    assert "budget: GO: within the budget" in typed.out
    assert "h of work" in typed.out
    assert "the rest is extrapolated" in typed.out
    answer = json.loads(type_command(*words, "--probe", "--json").out)
    assert answer["probe"]["stages"]["explore"]["probed_units"] == 4
    assert list(tmp_path.iterdir()) == []


def test_noise_does_not_make_steps_free() -> None:
    assert _fit_line("explore", (20, 4.0), (60, 4.1))(600) == pytest.approx(41)
    assert _fit_line("explore", (20, 4.0), (60, 8.0))(600) == pytest.approx(2 + 0.1 * 600)
    assert _fit_line("select", (20, 4.0), (60, 4.0))(600) == 4.0
