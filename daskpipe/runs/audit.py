"""Audit a run directory: compare its files with what its units committed.

Each unit is compared with its manifest, and the ledger, the quarantine and the dataset with the units. One pass streams
the units; memory holds a number for each unit and the name of a file for each rejection.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import batched
from pathlib import Path
from typing import Any

from daskpipe.config import saved
from daskpipe.config.models import Config
from daskpipe.core.errors import ConfigError, InputError, Rejection
from daskpipe.core.files import TEMPORARY
from daskpipe.core.hashing import sha256_file
from daskpipe.core.shared_disk import disk_error
from daskpipe.engine.manifests import STAGE_ORDER, Manifest, ledger_lines, list_entries, parse_json, read_manifest
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit
from daskpipe.runs.findings import AuditReport, Finding
from daskpipe.runs.quarantine import find_dependents, read_rejection
from daskpipe.stages.generate import family_size, is_enumerated

THREADS = 2
"""Threads that read units; hashing releases the GIL."""

AHEAD = 64
"""Units that are read ahead."""

DAMAGED = "damaged"
"""Folder of a run directory for what is moved aside; files keep their paths below it."""

ONE_TO_ONE = ("describe", "describe-against", "label", "store-sort", "store-write")
"""Stages in which each input becomes one output or one rejection; so is `generate` if all its sources are random."""

FOLLOWS = {
    "describe": "explore",
    "select": "describe",
    "label": "select",
    "store-sort": "label",
    "store-plan": "label",
    "store": "label",
}
"""Stages whose inputs are the outputs of another stage, all of them."""


class Audit:
    """Audit of a run directory.

    Parameters
    ----------
    directory
        The run directory.
    rehash
        Whether to read every byte and compare its checksum; else sizes and counts alone.
    """

    def __init__(self, directory: RunDirectory, rehash: bool) -> None:
        self.directory, self.rehash = directory, rehash
        self.planned: dict[str, tuple[int, int]] = {}  # units and inputs of stages, by the driver that started last
        self.forgotten: dict[str, bool] = {}  # keys that were ever forgotten, and whether they still are
        self.superseded: set[str] = set()  # keys of units that earlier versions of their stages made
        self.totals: dict[str, Counter[str]] = {}
        self.explained: set[str] = set()  # names of quarantine files that a unit accounts for
        self.absent: dict[str, str] = {}  # those of them that are not there, in words
        self.differing: set[str] = set()
        self.unread: set[str] = set()  # stages of units whose rejections cannot be read
        self.bad_lines: dict[Path, set[int]] = {}
        self.gone: dict[str, str] = {}  # keys that the ledger knows and the run directory does not, and their stages
        self.changed: list[Unit] = []  # made again, and not what they were
        self.waiting: list[str] = []
        self.n_duplicates = 0
        self.config: Config | None = None

    def make_report(self) -> AuditReport:
        """Compare everything, and return the report."""
        findings = [
            *self._read_config(),
            *self._read_plan(),
            *self._check_units(),
            *self._check_redone(),
            *self._check_ledger(),
        ]
        findings += [
            *self._check_quarantine(),
            *self._check_dataset(any("store-write" in each.path for each in findings)),
        ]
        findings += self._check_conservation() if not findings else []
        stages: dict[str, dict[str, int | None]] = {}
        for stage in sorted(self.totals.keys() | self.planned.keys(), key=_order_stage):
            row, plan = self.totals.get(stage, Counter()), self.planned.get(stage)
            stages[stage] = {name: row[name] for name in ("units", "inputs", "out", "rejected")}
            stages[stage]["pending"] = plan[1] - row["inputs"] if plan else None
        return AuditReport(
            run_dir=self.directory.root,
            rehashed=self.rehash,
            stages=stages,
            findings=findings,
            leftovers=list(_list_leftovers(self.directory.root)),
            waiting=self.waiting,
        )

    def _read_config(self) -> Iterator[Finding]:
        """Read the config of the run; yield a finding if it cannot be read."""
        try:
            self.config = saved.from_yaml(self.directory.config)
        except ConfigError as error:
            yield Finding(path="config.yaml", expected="the config of the run; put it back", found=str(error))

    def _read_plan(self) -> Iterator[Finding]:
        """Read the ledger once: the units that were planned, and those that were removed on purpose."""
        for path, number, event in ledger_lines(self.directory.root):
            if event is None:
                self.bad_lines.setdefault(path, set()).add(number)
                present = f"none on line {number}"
                yield Finding(path=f"ledger/{path.name}", expected="an event on each line", found=present)
                continue
            match event["event"]:
                case "RunStarted":
                    self.planned = {}
                case "StageStarted":
                    self.planned[event["stage"]] = (event["n_units"], event["n_inputs"])
                case "UnitSuperseded":
                    self.superseded.add(event["key"])
                case "UnitForgotten":
                    self.forgotten[event["key"]] = True
                case "UnitCommitted" if event["key"] in self.forgotten:
                    self.forgotten[event["key"]] = False

    # --- units ------------------------------------------------------------------------------------------

    def _check_units(self) -> Iterator[Finding]:
        """Compare all units with their manifests, and add up their counts."""
        indices: dict[str, set[int]] = {}
        doubled: set[tuple[str, int]] = set()
        with ThreadPoolExecutor(THREADS) as threads:
            for batch in batched(list_entries(self.directory.root), AHEAD):
                for folder, (faults, manifest) in zip(batch, threads.map(self._check_unit, batch), strict=True):
                    yield from faults
                    if manifest is None:
                        self.unread.add(folder.relative_to(self.directory.root).parts[1])
                        continue
                    self._compare_rejections(folder, manifest)
                    if manifest.unit.key not in self.superseded and not any(fault.aside for fault in faults):
                        unit, receipt = manifest.unit, manifest.receipt
                        seen = indices.setdefault(unit.stage, set())
                        if unit.index in seen:
                            doubled.add((unit.stage, unit.index))
                        seen.add(unit.index)
                        row = self.totals.setdefault(unit.stage, Counter())
                        row.update(units=1, inputs=unit.n_inputs, out=receipt.n_out, rejected=receipt.n_rejected)
        for stage, index in sorted(doubled):
            twins = [
                folder
                for folder in self._list_sound(stage)
                if folder.name not in self.superseded and read_manifest(folder).unit.index == index
            ]
            for folder in twins:
                path = str(folder.relative_to(self.directory.root))
                present = f"{len(twins)}: {', '.join(twin.name for twin in twins)}"
                yield Finding(path=path, expected=f"one unit {index} of {stage}", found=present, aside=path)

    def _list_sound(self, stage: str) -> Iterator[Path]:
        """Yield the folders of the units of a stage with which nothing is wrong."""
        for folder in list_entries(self.directory.root):
            if folder.parent.parent.name == stage and not any(fault.aside for fault in self._check_unit(folder)[0]):
                yield folder

    def _check_unit(self, folder: Path) -> tuple[list[Finding], Manifest | None]:
        """Compare one folder of ``units/`` with its manifest."""
        aside = str(folder.relative_to(self.directory.root))
        if folder.is_symlink() or not folder.is_dir():
            return [Finding(path=aside, expected="nothing", found="a foreign file", aside=aside)], None
        try:
            manifest = read_manifest(folder)
        except (OSError, ValueError) as error:
            _raise_if_unreadable(error, folder / "manifest.json")
            present = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            expected = "the manifest of a unit"
            return [Finding(path=f"{aside}/manifest.json", expected=expected, found=present[:200], aside=aside)], None
        unit, receipt, files = manifest.unit, manifest.receipt, manifest.files
        faults = []

        def add_fault(path: str, expected: str, present: str) -> None:
            faults.append(Finding(path=path, unit=str(unit), expected=expected, found=present, aside=aside))

        if folder != (place := self.directory.unit_dir(unit.stage, unit.key)):
            add_fault(aside, f"it at {place.relative_to(self.directory.root)}", "it here")
        shared = ("stage", "index", "key", "n_inputs")
        if any(getattr(receipt, name) != getattr(unit, name) for name in shared):
            add_fault(
                f"{aside}/manifest.json", "a receipt of that unit", f"one of {receipt.stage} unit {receipt.index}"
            )
        for extra in sorted(set(os.listdir(folder)) - files.keys() - {"manifest.json"}):
            if extra.startswith("."):  # what a file manager leaves
                continue
            add_fault(f"{aside}/{extra}", "no such file", "one that the manifest does not name")
        for name, entry in files.items():
            if wrong := self._check_file(folder / name, entry):
                add_fault(f"{aside}/{name}", *wrong)
        random = unit.stage == "generate" and self.config is not None and _is_random(self.config)
        n_done = receipt.n_out + receipt.n_rejected
        if (unit.stage in ONE_TO_ONE or random) and n_done != receipt.n_inputs:
            present = f"{receipt.n_out} outputs and {receipt.n_rejected} rejections"
            add_fault(f"{aside}/manifest.json", f"as many as its {receipt.n_inputs} inputs", present)
        for key in unit.upstream:
            if not self.forgotten.get(key) and not any((self.directory.root / "units").glob(f"*/{key[:2]}/{key}")):
                expected = f"the unit {key} that it was made from"
                faults.append(Finding(path=aside, unit=str(unit), expected=expected, found="no such unit"))
        return faults, manifest

    def _check_file(self, path: Path, entry: dict[str, Any]) -> tuple[str, str] | None:
        """Compare one file with its line in a manifest; return expected and present state if they differ."""
        if path.is_symlink() or not path.is_file():
            return f"a file of {entry['size']} bytes", "no such file"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{entry['size']} bytes", f"{size} bytes"
        if self.rehash and (digest := sha256_file(path)) != entry["sha256"]:
            return f"sha256 {entry['sha256']}", f"sha256 {digest}"
        return None

    def _compare_rejections(self, folder: Path, manifest: Manifest) -> None:
        """Compare the rejections of a unit with the quarantine."""
        if not manifest.receipt.n_rejected:
            return
        try:
            rows = [Rejection(**row) for row in parse_json((folder / "rejected.json").read_bytes())]
        except (OSError, ValueError, TypeError) as error:
            _raise_if_unreadable(error, folder / "rejected.json")
            self.unread.add(manifest.unit.stage)
            return
        for rejection in rows:
            path = self.directory.quarantine_file(rejection)
            known, there = path.name in self.explained, read_rejection(path)
            self.explained.add(path.name)
            # Of several rejections of one structure in one stage the quarantine holds the first that was written.
            if not path.exists():
                self.absent[path.name] = f"{rejection.kind} of {rejection.structure}"
            elif there == rejection:
                self.differing.discard(path.name)
            elif not known:
                self.differing.add(path.name)

    def _check_redone(self) -> Iterator[Finding]:
        """Compare units that were moved aside with those that were made in their places."""
        for path in sorted((self.directory.root / DAMAGED).glob("units/*/*/*/manifest.json")):
            try:
                before = read_manifest(path.parent)
                folder = self.directory.unit_dir(before.unit.stage, before.unit.key)
                if not folder.exists():
                    self.waiting.append(str(before.unit))
                    continue
                now = read_manifest(folder)
            except (OSError, ValueError) as error:
                _raise_if_unreadable(error, path)
                continue  # nothing to compare; a unit that cannot be read is a finding of its own
            differing = [
                name
                for name in sorted(before.files.keys() | now.files.keys())
                if now.files.get(name) != before.files.get(name)
                and not _matches_entry(path.parent / name, now.files.get(name))
            ]
            if differing:
                stands = Counter(stage for stage, _ in find_dependents(self.directory, [before.unit]))
                listed = ", ".join(f"{n} of {stage}" for stage, n in stands.items()) or "none"
                self.changed.append(before.unit)
                yield Finding(
                    path=str((folder / differing[0]).relative_to(self.directory.root)),
                    unit=str(before.unit),
                    expected=f"the bytes that {path.parent.relative_to(self.directory.root)} had before it was damaged",
                    found=f"others; what stands on that unit must be made again: {listed}",
                )

    # --- what follows from the units --------------------------------------------------------------------

    def _check_ledger(self) -> Iterator[Finding]:
        for path, number, event in ledger_lines(self.directory.root):
            if not event or event["event"] != "UnitCommitted" or self.forgotten.get(event["key"]):
                continue
            stage, key = event["stage"], event["key"]
            folder = self.directory.unit_dir(stage, key)
            try:
                receipt = read_manifest(folder).receipt
            except FileNotFoundError:
                if folder.exists() or (stage == "store" and not self.directory.dataset.exists()):
                    continue  # the unit has a finding of its own; or the user removed the dataset
                difference, self.gone[key] = "no such unit", stage
            except (OSError, ValueError) as error:
                _raise_if_unreadable(error, folder / "manifest.json")
                continue
            else:
                # A line may be older than the unit, which was forgotten and made again.
                names = () if key in self.forgotten else ("n_inputs", "n_out", "n_rejected")
                difference = ", ".join(
                    f"{name} {getattr(receipt, name)}" for name in names if getattr(receipt, name) != event[name]
                )
            if difference:
                if key not in self.gone:
                    self.bad_lines.setdefault(path, set()).add(number)
                yield Finding(
                    path=str(folder.relative_to(self.directory.root)),
                    unit=f"{stage} unit {event['index']} ({key[:8]})",
                    expected=f"what line {number} of ledger/{path.name} says of it",
                    found=difference,
                )

    def _check_quarantine(self) -> Iterator[Finding]:
        """Compare the files of the quarantine with the rejections of the units."""
        for name in sorted(self.absent):
            yield Finding(path=f"quarantine/{name}", expected=self.absent[name], found="no such file")
        folder = self.directory.root / "quarantine"
        for entry in sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []:
            path = f"quarantine/{entry}"
            if entry.startswith("."):
                continue
            there = read_rejection(folder / entry)
            if there is None or self.directory.quarantine_file(there).name != entry:
                yield Finding(path=path, expected="a rejection", found="something else", aside=path)
            elif there.kind == "generate/duplicate":  # seeds of different units; the driver writes these
                self.n_duplicates += 1
            elif entry in self.differing:
                expected = "the rejection that the unit holds"
                yield Finding(path=path, expected=expected, found="another of the same structure", aside=path)
            elif entry not in self.explained and there.stage not in self.unread:
                present = f"{there.kind} of {there.structure}"
                yield Finding(path=path, expected="no file that no unit explains", found=present, aside=path)

    def _check_dataset(self, suspicious: bool) -> Iterator[Finding]:
        """Compare the dataset with its checksums, if asked for or suspicious, and with the unit that published it."""
        from daskpipe.core.root_metadata import read_root
        from daskpipe.store import verify

        if not self.directory.dataset.exists():
            return
        try:
            root = read_root(self.directory.dataset)
            # The dataset's files are those of store-write under a second name: what harms one harms both.
            problems = verify(self.directory.dataset) if self.rehash or suspicious else []
        except InputError as error:
            problems = [f"zarr.json: {error}"]
        for problem in problems:
            name, _, what = problem.partition(": ")
            path = f"dataset.zarr/{name}"
            yield Finding(path=path, expected="it as written", found=what, aside="dataset.zarr")
        if problems:
            return
        held, made = root["attributes"].get("n_structures"), self.totals.get("store", Counter())
        if made["units"] and held != made["out"]:
            expected = f"the {made['out']} structures of the unit that published it"
            yield Finding(path="dataset.zarr", expected=expected, found=str(held), aside="dataset.zarr")

    def _check_conservation(self) -> list[Finding]:
        """Compare the counts of the stages with each other; only useful where no unit is damaged."""
        findings = []

        def compare_counts(stage: str, expected: str, n_expected: int, n_present: int, what: str) -> None:
            if n_expected != n_present:
                present = f"{n_present} {what}"
                findings.append(Finding(path=f"units/{stage}", expected=f"{n_expected} {expected}", found=present))

        def is_complete(stage: str) -> bool:
            return stage in self.planned and self.totals.get(stage, Counter())["units"] == self.planned[stage][0]

        for stage, (n_units, n_inputs) in self.planned.items():
            row = self.totals.get(stage, Counter())
            if row["units"] > n_units or row["inputs"] > n_inputs or is_complete(stage):
                compare_counts(stage, "units, as planned", n_units, row["units"], "units")
                compare_counts(stage, "inputs, as planned", n_inputs, row["inputs"], "inputs")
            if (before := FOLLOWS.get(stage)) and is_complete(before):
                compare_counts(
                    stage, f"inputs, the outputs of {before}", self.totals[before]["out"], n_inputs, "inputs"
                )
        if self.config is not None and is_complete("generate") and "explore" in self.planned:
            dynamics = self.config.explore.dynamics
            n_seeds = self.totals["generate"]["out"] - self.n_duplicates
            alike = len(dynamics.pressures) == 1 and not dynamics.temperatures_by_type
            if alike and self.config.shard is None:
                n = n_seeds * max(1, len(dynamics.temperatures)) * dynamics.replicas
                compare_counts("explore", "trajectories of distinct seeds", n, self.planned["explore"][1], "planned")
        return findings


def _list_leftovers(root: Path) -> Iterator[dict[str, Any]]:
    """Yield files that attempts and interrupted writes left behind, and what was moved aside."""
    leftovers = [(path, "checkpoints") for path in root.glob("units/*/*/.*-work")]
    leftovers += [(path, "attempt") for path in root.glob("units/*/*/.*-attempt")]
    leftovers += [(path, "temporary") for folder in (root, root / "ledger", root / "quarantine", root / "drivers")
              for path in folder.glob(TEMPORARY)]  # fmt: skip
    leftovers += [(path, "dataset") for path in root.glob(".dataset-*.zarr")]
    leftovers += [(path, "keys") for path in root.glob("keys-*")]
    leftovers += [(path, "moved aside") for path in root.glob(DAMAGED)]
    for path, what in sorted(leftovers):
        n_bytes = sum(_list_sizes(path))
        yield {"path": str(path.relative_to(root)), "bytes": n_bytes, "what": what}


def _raise_if_unreadable(error: Exception, path: Path) -> None:
    """Raise an error that comes from the disk or from permissions: the file itself may not be damaged."""
    if isinstance(error, OSError) and (cause := disk_error(error, path=path)) is not None:
        raise cause from error


def _list_sizes(path: Path) -> Iterator[int]:
    """Yield the size of a file, or of all files below a folder, except those that an attempt removes meanwhile."""
    files = [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names]
    for file in files or [str(path)]:
        with suppress(FileNotFoundError):
            state = os.lstat(file)
            if stat.S_ISREG(state.st_mode):
                yield state.st_size


def _is_random(config: Config) -> bool:
    """Tell whether each request of ``generate`` makes one structure."""
    return not config.generate.paths and not any(
        is_enumerated(source.generator) or family_size(source.generator, source.params) > 1
        for source in config.generate.sources.values()
    )


def _matches_entry(path: Path, entry: dict[str, Any] | None) -> bool:
    """Tell whether a file has the checksum in a line of a manifest."""
    return entry is not None and path.is_file() and sha256_file(path) == entry["sha256"]


def _order_stage(stage: str) -> int:
    """Return the position of a stage in a run; unknown ones come last."""
    return STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER)
