"""Rows of the matrix of faults: calculators that segfault, hang or leak at the structures of one formula."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import hostile_emt
import numpy as np
from driver import Driver
from small_runs import last_segment, manifests
from strikes import Bench, Row, ended
from test_hostile_calculators import REASONS, config_of

from daskpipe.config.models import Config
from daskpipe.config.saved import to_yaml
from daskpipe.core.errors import EXIT_COMPLETE, EXIT_QUARANTINED
from daskpipe.core.structures import concat, hex_ids, take, to_atoms
from daskpipe.engine.rows import read_unit
from daskpipe.engine.run_directory import RunDirectory

MEMORY = "3GB"
"""Memory of a worker, small so that a leak ends soon."""


def calculators(bench: Bench) -> list[Row]:
    """Compute with a hostile potential; structures that kill it are quarantined, all others keep their results."""
    folder = bench.fresh()
    rows = []
    with hostile_emt.installed(folder):
        for stage in ("explore", "label"):
            if stage not in bench.stages:
                continue
            harmless = run_of(folder / f"{stage}-none", config_of(stage, "none", "X"), EXIT_COMPLETE)
            before = frames_of(harmless, stage)
            formula = str(to_atoms(before, 0).symbols)
            formulas = [str(to_atoms(before, row).symbols) for row in range(before.sizes["structure"])]
            poisoned = np.array(formulas) == formula
            sane = take(before, np.flatnonzero(~poisoned).tolist())
            for fault, reason in REASONS.items():
                at = time.time()
                run_dir = run_of(folder / f"{stage}-{fault}", config_of(stage, fault, formula), EXIT_QUARANTINED)
                after = frames_of(run_dir, stage)
                rejected = [item for item in RunDirectory(run_dir).read_quarantine() if item.reason == reason]
                lost = [event for event in last_segment(run_dir) if event["event"] == "UnitLost"]
                ids, expected = hex_ids(after), hex_ids(sane)
                same = ids == expected and all(
                    np.array_equal(after[name].values, sane[name].values, equal_nan=after[name].dtype.kind == "f")
                    for name in sane.data_vars
                )
                rows.append(
                    Row(
                        fault=f"calculator: {fault}",
                        stage=stage,
                        injected=len(lost),
                        survived=len(lost) if rejected else 0,
                        lost=len(set(expected) - set(ids)),
                        duplicates=len(ids) - len(set(ids)),
                        seconds=time.time() - at,
                        identical=same,
                        note="the whole run's seconds; the structures that harm nothing are the same",
                    )
                )
    return rows


def run_of(run_dir: Path, config: Config, code: int) -> Path:
    """Run a config in a driver of its own; return the run directory."""
    cluster = config.cluster.model_copy(update={"workers": 2, "gpus": 0, "memory": MEMORY})
    file = run_dir.with_suffix(".yaml")
    file.write_text(to_yaml(config.model_copy(update={"cluster": cluster})))
    ended(Driver(run_dir, "run", str(file), "--run-dir", str(run_dir)), code)
    return run_dir


def frames_of(run_dir: Path, stage: str) -> Any:
    """Return all structures that the units of a stage gave, in their order."""
    units = [json.loads(path.read_text())["unit"] for path in manifests(run_dir)]
    keys = sorted((unit["index"], unit["key"]) for unit in units if unit["stage"] == stage)
    return concat([read_unit(run_dir, stage, key) for _, key in keys])
