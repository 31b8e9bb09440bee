"""The smallest run with several units in every stage that can have them, and how to look at what it left."""

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
    "store-sort": 1,
    "store-plan": 1,
    "store-write": 2,
    "store": 1,
}
"""Units of each stage of the small config."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path from there."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def manifests(run_dir: Path) -> list[Path]:
    """Manifests of the committed units."""
    found = run_dir.glob("units/*/*/*/manifest.json")
    return sorted(path for path in found if not path.parent.name.startswith("."))


def committed(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the manifest of each committed unit, by key: they change if the unit is made again."""
    states = {path.parent.name: path.stat() for path in manifests(run_dir)}
    return {key: (state.st_ino, state.st_mtime_ns) for key, state in states.items()}


def workers_of(run_dir: Path) -> dict[str, set[int]]:
    """Process ids of the workers that committed units, by stage."""
    found: dict[str, set[int]] = {}
    for path in manifests(run_dir):
        receipt = json.loads(path.read_text())["receipt"]
        found.setdefault(receipt["stage"], set()).add(int(receipt["worker"].rpartition(":")[2]))
    return found


def last_segment(run_dir: Path) -> list[dict[str, Any]]:
    """Events of the driver that started last."""
    events = read_ledger(RunDirectory(run_dir))
    return [event for event in events if event["segment"] == events[-1]["segment"]]


def names_of(events: list[dict[str, Any]], name: str, stage: str) -> int:
    """How many events of a kind there are of a stage."""
    return sum(event["event"] == name and event["stage"] == stage for event in events)
