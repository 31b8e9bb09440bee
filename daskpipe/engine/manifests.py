"""List and read committed units and ledgers, which anybody may have written, without trusting them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from daskpipe.core.events import StageStarted, UnitCommitted, UnitForgotten, UnitSuperseded
from daskpipe.core.files import HEX
from daskpipe.core.shared_disk import numbered_files
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt, Unit

STAGE_ORDER = (
    "generate",
    "explore",
    "describe-fit",
    "describe-against",
    "describe",
    "select",
    "label",
    "label-check",
    "label-judge",
    "label-atoms",
    "store-sort",
    "store-plan",
    "store-write",
    "store",
)
"""Stages of a run in the order in which data flows: a stage reads only from stages before it."""

COUNTED = (StageStarted, UnitCommitted, UnitForgotten, UnitSuperseded)
"""Events whose fields are checked."""

TYPES = {"int": int, "str": str}
"""Types of the fields that are checked, by their annotation."""

COUNTS = ("n_inputs", "n_out", "n_rejected", "n_bytes")
"""Fields of a receipt that are no number below 0."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Hold the manifest of a unit; `files` gives ``size`` and ``sha256`` of each file by name."""

    unit: Unit
    receipt: Receipt
    files: dict[str, dict[str, Any]]


def parse_json(data: bytes | str) -> Any:
    """Parse JSON.

    Raises
    ------
    ValueError
        If it is no JSON, or nests too deep.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a unit, which anybody may have written.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no manifest, or names a file outside the folder of the unit.
    """
    content = parse_json((folder / "manifest.json").read_bytes())
    try:
        unit, receipt, files = Unit(**content["unit"]), Receipt(**content["receipt"]), content["files"]
        named = all(os.path.basename(name) == name and name not in ("", ".", "..") for name in files)
        sized = all(isinstance(file["size"], int) and isinstance(file["sha256"], str) for file in files.values())
        counted = all(isinstance(getattr(receipt, name), int) and getattr(receipt, name) >= 0 for name in COUNTS)
        keyed = all(re.fullmatch("[0-9a-f]{32}", key) for key in (unit.key, receipt.key, *unit.upstream))
        placed = re.fullmatch("[a-z-]+", unit.stage) and isinstance(unit.index, int) and isinstance(unit.n_inputs, int)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not (named and sized and counted and keyed and placed and {"payload.npz", "rejected.json"} <= files.keys()):
        raise ValueError("a key, a count or the name of a file is none")
    return Manifest(unit=unit, receipt=receipt, files=files)


def list_entries(root: Path) -> Iterator[Path]:
    """Yield the units of a run directory and all foreign files and folders below ``units/``, sorted.

    Names that begin with a dot, which attempts leave, are left out.
    """
    for stage in _list_folder(root / "units"):
        for shard in _list_folder(stage) if _is_folder(stage) else [stage]:
            yield from _list_folder(shard) if _is_folder(shard) and shard != stage else [shard]


def read_units(directory: RunDirectory, stage: str) -> Iterator[tuple[Path, Manifest]]:
    """Yield the folder and the manifest of each committed unit of a stage, sorted by key.

    Raises
    ------
    IntegrityError
        If a manifest cannot be read.
    """
    for folder in sorted((directory.root / "units" / stage).glob(f"{HEX * 2}/{HEX * 32}")):
        try:
            yield folder, read_manifest(folder)
        except (OSError, ValueError) as error:
            raise directory.damage_error(folder, "manifest.json", f"{type(error).__name__}: {error}") from error


def ledger_lines(root: Path) -> Iterator[tuple[Path, int, dict[str, Any] | None]]:
    """Yield segment, line number and event of each line of the ledger; ``None`` for a line that is no event.

    A last line without its end was torn by a crash, and is left out.
    """
    for path in numbered_files(root / "ledger", ".jsonl").values():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    yield path, number, _parse_event(line)


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the event in a line of the ledger; None if there is none, or its fields are of a wrong kind."""
    try:
        content = parse_json(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("event"), str):
        return None
    for kind in COUNTED:
        if content["event"] == kind.__name__:
            typed = {each.name: TYPES[str(each.type)] for each in fields(kind) if str(each.type) in TYPES}
            if not all(isinstance(content.get(name), type_) for name, type_ in typed.items()):
                return None
            if not re.fullmatch("[a-z-]+", content["stage"]) or not re.fullmatch("[0-9a-f]*", content.get("key", "")):
                return None
    return content


def _list_folder(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted, without names that begin with a dot; none if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(folder / entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
