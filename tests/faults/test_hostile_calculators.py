"""Calculators that segfault, hang or leak: what they kill is quarantined, and all else is as if they had not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_emt
import numpy as np
import pytest
from small_runs import SMALL, last_segment, manifests

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.core.errors import EXIT_QUARANTINED
from daskpipe.core.structures import concat, hex_ids, take, to_atoms
from daskpipe.engine.dask_pool import Workers
from daskpipe.engine.rows import read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result
from daskpipe.runs.status import read_status

ATTEMPTS = {"none": 3, "segfault": 3, "hang": 2, "leak": 3}

REASONS = {"segfault": "crashed", "hang": "hung", "leak": "memory"}

HANG_SECONDS = 30.0
"""A fresh process imports torch first, on a machine that does other work."""


def config_of(stage: str, fault: str, formula: str) -> Config:
    """The small run, one unit of exploration and two of labels, one stage of it with the hostile potential."""
    hostile = f"{{name: {hostile_emt.NAME}, params: {{fault: {fault}, formula: {formula}}}}}"
    return load_config(
        "emt_alloy",
        [
            *SMALL,
            "explore.batch_size=4",
            "label.batch_size=3",
            f"{stage}.potential={hostile}",
            f"faults.hang={HANG_SECONDS if fault == 'hang' else 3600}",
            f"faults.attempts={ATTEMPTS[fault]}",
            "faults.disk_reserve=0MB",
        ],
    )


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with hostile_emt.installed(tmp_path_factory.mktemp("plugin")):
        yield


@pytest.fixture(scope="module")
def workers(plugin: None) -> Iterator[Workers]:
    """Two workers of their own, which know the plugin, and may hold little."""
    cluster = load_config("emt_alloy", ["cluster.workers=2", "cluster.gpus=0", "cluster.memory=3GB"]).cluster
    with connect(cluster) as connected:
        yield connected


@pytest.fixture(scope="module")
def harmless(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Runs in which the plugin does no harm, by the stage that has it."""
    folder = tmp_path_factory.mktemp("harmless")
    return {
        stage: daskpipe.run(config_of(stage, "none", "X"), run_dir=folder / stage, client=workers.client)
        for stage in ("explore", "label")
    }


def frames_of(result: Result, stage: str) -> Any:
    """All structures that the units of a stage gave."""
    directory = RunDirectory(result.run_dir)
    keys = [json.loads(path.read_text())["unit"] for path in manifests(result.run_dir)]
    units = sorted((unit["index"], unit["key"]) for unit in keys if unit["stage"] == stage)
    return concat([read_unit(directory.root, stage, key) for _, key in units])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "fault"), [("explore", "segfault"), ("label", "leak"), ("label", "hang")])
def test_what_kills_its_process_is_quarantined_alone(
    stage: str, fault: str, harmless: dict[str, Result], workers: Workers, tmp_path: Path
) -> None:
    before = frames_of(harmless[stage], stage)
    # In the order of the atoms, of the first structure of the first unit.
    formula = str(to_atoms(before, 0).symbols)
    result = daskpipe.run(config_of(stage, fault, formula), run_dir=tmp_path / "run", client=workers.client)
    assert result.exit_code == EXIT_QUARANTINED

    after = frames_of(result, stage)
    poisoned = np.array([str(to_atoms(before, row).symbols) == formula for row in range(before.sizes["structure"])])
    assert 0 < poisoned.sum() < len(poisoned)
    sane = take(before, np.flatnonzero(~poisoned).tolist())
    assert hex_ids(after) == hex_ids(sane)
    for name in sane.data_vars:
        np.testing.assert_array_equal(after[name].values, sane[name].values, err_msg=str(name))

    rejected = [item for item in RunDirectory(result.run_dir).read_quarantine() if item.reason == REASONS[fault]]
    assert {item.stage for item in rejected} == {stage}
    assert {item.attempts for item in rejected} == {ATTEMPTS[fault] + 1}
    assert all("alone in its process, 2 times" in item.evidence for item in rejected)
    n_inputs = len({item.structure for item in rejected})
    assert n_inputs == (1 if stage == "explore" else poisoned.sum())
    lost = [event for event in last_segment(result.run_dir) if event["event"] == "UnitLost"]
    assert {event["kind"] for event in lost if event["stage"] == stage} == {"suspect"}
    assert read_status(result.run_dir)["state"] == "complete"
    assert not list(result.run_dir.rglob("*-work"))
