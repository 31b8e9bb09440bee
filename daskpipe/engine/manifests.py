"""Committed units and ledger as they stand on disk: to walk over them, and to read them without trusting them."""

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

ORDER = (
    "generate",
    "explore",
    "describe-fit",
    "describe-against",
    "describe",
    "select",
    "label",
    "store-sort",
    "store-plan",
    "store-write",
    "store",
)
"""Stages of a run in the order in which data flows: what a stage reads comes from stages before it."""

COUNTED = (StageStarted, UnitCommitted, UnitForgotten, UnitSuperseded)
"""Events whose content counts here."""

TYPES = {"int": int, "str": str}

COUNTS = ("n_inputs", "n_out", "n_rejected", "n_bytes")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the manifest of a unit says; `files` has size and sha256 of each."""

    unit: Unit
    receipt: Receipt
    files: dict[str, dict[str, Any]]


def parsed(data: bytes | str) -> Any:
    """Return what JSON says; text that nests too deep is no JSON either.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a unit, which may have been written by anybody.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no manifest, or names a file outside of its folder.
    """
    content = parsed((folder / "manifest.json").read_bytes())
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


def entries(root: Path) -> Iterator[Path]:
    """Yield what stands where units stand, and all else below ``units/`` that attempts do not leave; sorted."""
    for stage in _listed(root / "units"):
        for shard in _listed(stage) if _is_folder(stage) else [stage]:
            yield from _listed(shard) if _is_folder(shard) and shard != stage else [shard]


def units_of(directory: RunDirectory, stage: str) -> Iterator[tuple[Path, Manifest]]:
    """Yield folder and manifest of each unit of a stage, sorted by key.

    Raises
    ------
    IntegrityError
        If a manifest cannot be read.
    """
    for folder in sorted((directory.root / "units" / stage).glob(f"{HEX * 2}/{HEX * 32}")):
        try:
            yield folder, read_manifest(folder)
        except (OSError, ValueError) as error:
            raise directory.damaged(folder, "manifest.json", f"{type(error).__name__}: {error}") from error


def ledger_lines(root: Path) -> Iterator[tuple[Path, int, dict[str, Any] | None]]:
    """Yield segment, line and event of the ledger; ``None`` for a line that is none and is not the torn last one."""
    for path in numbered_files(root / "ledger", ".jsonl").values():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):  # half a line at the end was torn by a crash
                    yield path, number, _event(line)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        content = parsed(line)
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


def _listed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(folder / entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
