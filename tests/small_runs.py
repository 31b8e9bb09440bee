"""Define the smallest run with several units in every stage that can have them, and read its run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory

SMALL = [
    "generate.sources.alloys.n=2",
    "generate.sources.clusters.n=2",
    "generate.partition_size=1",
    "explore.device=cpu",
    "explore.batch_size=1",
    "explore.dynamics.steps=10",
    "explore.dynamics.stride=5",
    "describe.dims=4",
    "describe.sample=6",
    "select.n=6",
    "label.batch_size=1",
]
"""Overrides of the preset emt_alloy."""

UNITS = {
    "generate": 4,
    "explore": 4,
    "describe-fit": 1,
    "describe": 4,
    "select": 1,
    "label": 6,
    "label-check": 5,
    "label-judge": 1,
    "label-atoms": 2,
    "store-sort": 1,
    "store-plan": 1,
    "store-write": 2,
    "store": 1,
}
"""Units of each stage of the small config."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def manifests(run_dir: Path) -> list[Path]:
    """Return the paths of the manifests of the committed units."""
    paths = run_dir.glob("units/*/*/*/manifest.json")
    return sorted(path for path in paths if not path.parent.name.startswith("."))


def committed(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of the manifest of each committed unit, by key; they change if the unit is made again."""
    states = {path.parent.name: path.stat() for path in manifests(run_dir)}
    return {key: (state.st_ino, state.st_mtime_ns) for key, state in states.items()}


def workers_of(run_dir: Path) -> dict[str, set[int]]:
    """Return the process ids of the workers that committed units, by stage."""
    pids: dict[str, set[int]] = {}
    for path in manifests(run_dir):
        receipt = json.loads(path.read_text())["receipt"]
        pids.setdefault(receipt["stage"], set()).add(int(receipt["worker"].rpartition(":")[2]))
    return pids


def last_segment(run_dir: Path) -> list[dict[str, Any]]:
    """Return the events of the driver that started last."""
    events = read_ledger(RunDirectory(run_dir))
    return [event for event in events if event["segment"] == events[-1]["segment"]]


def names_of(events: list[dict[str, Any]], name: str, stage: str) -> int:
    """Return the number of events of a kind in a stage."""
    return sum(event["event"] == name and event["stage"] == stage for event in events)
