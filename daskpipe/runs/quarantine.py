"""List the structures that a run rejected, and release some to be tried again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from daskpipe.core.errors import MOST_LISTED, ConfigError, IntegrityError, Rejection, describe_unknown
from daskpipe.core.events import Emit, UnitForgotten
from daskpipe.core.outputs import remove_path
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.manifests import STAGE_ORDER, parse_json, read_units
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit
from daskpipe.runs import lease

DUPLICATE = "generate/duplicate"
"""Kind of rejection of seeds that equal an earlier one. No unit rejected them, so another try would change nothing."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Rejections that are taken back, and what must be made again.

    Parameters
    ----------
    ids
        Ids of the rejections.
    units
        Units to be made again, by stage.
    """

    ids: list[str]
    units: dict[str, int]


def list_rejections(run_dir: Path | str) -> Iterator[tuple[str, Rejection]]:
    """Yield the id and the content of each rejection of a run, sorted by id.

    Raises
    ------
    ConfigError
        If it is no run directory.
    IntegrityError
        If a file of the quarantine is no rejection.
    """
    for path in RunDirectory.open_existing(run_dir).quarantine_files():
        if (rejection := read_rejection(path)) is None:
            run = quote(str(run_dir))
            raise IntegrityError(f"{path} is no rejection. Type: daskpipe fsck {run} --mend")
        yield path.stem, rejection


def find_ids(run_dir: Path | str, ids: Sequence[str]) -> list[str]:
    """Complete ids of rejections, each given by its first characters.

    Raises
    ------
    ConfigError
        If one is unknown, or is the beginning of several.
    """
    known = [path.stem for path in RunDirectory.open_existing(run_dir).quarantine_files()]
    full = []
    for given in ids:
        matches = [name for name in known if name.startswith(given)] if given else []
        if not matches:
            see = f"see: daskpipe quarantine {quote(str(run_dir))} --json"
            raise ConfigError(f"{describe_unknown('id', given, [name[:8] for name in known])} Or {see}")
        if len(matches) > 1:
            listed = ", ".join(matches[:MOST_LISTED])
            raise ConfigError(f"id {given!r} is the beginning of {len(matches)}: {listed}; give more of it")
        full += matches
    return list(dict.fromkeys(full))


def release_rejections(run_dir: Path | str, ids: Sequence[str], *, try_out: bool = False) -> Release:
    """Take rejections back, so that ``daskpipe resume`` tries their structures again.

    The units that rejected them are removed, with the units that depend on them (see `find_dependents`) and the
    dataset.

    Parameters
    ----------
    run_dir
        A run directory in which no driver works.
    ids
        Ids of rejections, as `find_ids` takes them.
    try_out
        Count what would be made again, and change nothing.

    Raises
    ------
    ConfigError
        If an id is unknown, or of a duplicate; or a driver works there.
    """
    directory = RunDirectory.open_existing(run_dir)
    wanted = find_ids(run_dir, ids)
    with lease.hold_lease(directory.root):
        named = {name: rejection for name, rejection in list_rejections(run_dir) if name in set(wanted)}
        if twins := [name for name, rejection in named.items() if rejection.kind == DUPLICATE]:
            raise ConfigError(
                f"{twins[0]} equals another seed ({named[twins[0]].evidence}), and would do so again; leave it there"
            )
        stages = {rejection.stage for rejection in named.values()}
        units = [
            manifest.unit
            for stage in STAGE_ORDER
            if stage in stages
            for folder, manifest in read_units(directory, stage)
            if manifest.receipt.n_rejected and not named.keys().isdisjoint(_list_names(directory, stage, folder.name))
        ]
        gone = dict.fromkeys([(unit.stage, unit.key) for unit in units])
        gone |= dict.fromkeys(find_dependents(directory, units))
        if not try_out:
            forget_units(directory, gone, Ledger(directory), reason="a rejection was released")
    counts = {stage: sum(each == stage for each, _ in gone) for stage in STAGE_ORDER}
    return Release(ids=wanted, units={stage: n for stage, n in counts.items() if n})


def find_dependents(directory: RunDirectory, units: Sequence[Unit]) -> Iterator[tuple[str, str]]:
    """Yield the stage and the key of each committed unit that may change when some units do.

    That is every unit of all later stages: axes are fitted on all frames, picks are made from all, and the order of
    labels follows the picks. Only explorations of seeds that come before all the units are kept: seeds that follow
    move to other batches when one is added. Keys do not tell, for they name what a unit is made from, not its bytes.
    """
    first = min((STAGE_ORDER.index(unit.stage) for unit in units), default=len(STAGE_ORDER))
    before: set[str] = set()
    if STAGE_ORDER[first : first + 1] == ("generate",):
        lowest = min(unit.index for unit in units if unit.stage == "generate")
        before = {folder.name for folder, each in read_units(directory, "generate") if each.unit.index < lowest}
    for stage in STAGE_ORDER[first + 1 :]:
        for folder, manifest in read_units(directory, stage):
            if stage != "explore" or not set(manifest.unit.upstream) <= before:
                yield stage, folder.name


def forget_units(directory: RunDirectory, units: Iterable[tuple[str, str]], emit: Emit, *, reason: str) -> None:
    """Remove committed units, their quarantine files, and the dataset; units of later stages first."""
    units = sorted(units, key=lambda each: STAGE_ORDER.index(each[0]), reverse=True)
    if units and directory.dataset.exists():
        hidden = directory.root / f".dataset-{uuid.uuid4().hex[:8]}.zarr"
        os.rename(directory.dataset, hidden)  # under its own name it is whole or absent
        remove_path(hidden)
    for stage, key in units:
        for name in _list_names(directory, stage, key):
            (directory.root / "quarantine" / f"{name}.json").unlink(missing_ok=True)
        emit(UnitForgotten(stage=stage, key=key, reason=reason))
        directory.forget_unit(stage, key)
    if any(stage == "generate" for stage, _ in units):  # the driver looks for duplicates anew among all seeds
        for path in directory.quarantine_files():
            if (rejection := read_rejection(path)) and rejection.kind == DUPLICATE:
                path.unlink()


def read_rejection(path: Path) -> Rejection | None:
    """Return the rejection in a file; None if the file is absent or holds something else."""
    try:
        rejection = Rejection(**parse_json(path.read_bytes()))
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError):
        return None
    texts = (rejection.stage, rejection.structure, rejection.reason, rejection.evidence)
    whole = all(isinstance(text, str) for text in texts) and isinstance(rejection.details, dict)
    return rejection if whole else None


def _list_names(directory: RunDirectory, stage: str, key: str) -> list[str]:
    """List the ids of the structures that a unit rejected."""
    return [directory.quarantine_file(rejection).stem for rejection in directory.read_rejections(stage, key)]
