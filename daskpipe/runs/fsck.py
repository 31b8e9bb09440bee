"""Check a run directory, and move damaged files aside so that ``daskpipe resume`` makes them again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from daskpipe.core.errors import ConfigError
from daskpipe.core.events import UnitForgotten
from daskpipe.core.files import write_atomically
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.manifests import STAGE_ORDER, read_units
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import lease
from daskpipe.runs.audit import DAMAGED, Audit
from daskpipe.runs.findings import AuditReport, Finding
from daskpipe.runs.quarantine import find_dependents, forget_units


def check_run(run_dir: Path | str, *, rehash: bool = False, mend: bool = False) -> AuditReport:
    """Compare a run directory with what its units committed.

    Parameters
    ----------
    run_dir
        A run directory; need not be complete.
    rehash
        Read every byte of units and dataset and compare it with its checksum; else sizes and counts alone.
    mend
        Move what is damaged to ``damaged/``, so that ``daskpipe resume`` makes it again, and make the quarantine and
        the ledger agree with the units. Where a unit was made again and differs from what it was, the units that
        depend on it are removed. Nothing else that is as it was committed is removed.

    Returns
    -------
    Report
        Findings; after mending, those that are left.

    Raises
    ------
    ConfigError
        If it is no run directory, or `mend` is set and a driver works in it.
    """
    directory = RunDirectory(Path(run_dir).absolute())
    if not directory.config.exists() and not (directory.root / "units").is_dir():
        raise ConfigError(f"{run_dir} is no run directory (it has no config.yaml and no units); see: ls runs")
    if not mend:
        return Audit(directory, rehash).make_report()
    with lease.hold_lease(directory.root):
        look = Audit(directory, rehash)
        mended = _mend_findings(directory, look, look.make_report().findings)
        # Every byte was read before mending: what only that reveals has been moved aside.
        return replace(Audit(directory, rehash=False).make_report(), mended=mended, rehashed=rehash)


def _mend_findings(directory: RunDirectory, look: Audit, findings: list[Finding]) -> list[str]:
    """Mend findings where possible, and list the repairs; the caller must hold the lease."""
    done = []
    emit = Ledger(directory)
    for path in dict.fromkeys(finding.aside for finding in findings if finding.aside):
        target = _choose_free(directory.root / DAMAGED / path)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(directory.root / path, target)
        done.append(f"moved {path} to {target.relative_to(directory.root)}")
        if re.fullmatch(r"units/[a-z-]+/[0-9a-f]{2}/[0-9a-f]{32}", path):
            emit(UnitForgotten(stage=path.split("/")[1], key=path[-32:], reason="damaged"))
    for key, stage in look.gone.items():
        emit(UnitForgotten(stage=stage, key=key, reason="it was gone"))
        done.append(f"noted that {stage} unit {key} is gone")
    if look.changed:
        outdated = list(find_dependents(directory, look.changed))
        forget_units(directory, outdated, emit, reason="made from a unit that is another one now")
        done.append(f"removed {len(outdated)} units that stood on units which are others now, and the dataset")
        for unit in look.changed:
            for manifest in (directory.root / DAMAGED).glob(
                f"units/{unit.stage}/{unit.key[:2]}/{unit.key}*/manifest.json"
            ):
                manifest.rename(manifest.with_name("manifest-settled.json"))
    for segment, numbers in look.bad_lines.items():
        kept = _choose_free(directory.root / DAMAGED / "ledger" / segment.name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(segment, kept)
        lines = kept.read_bytes().splitlines(keepends=True)
        text = b"".join(line for number, line in enumerate(lines, start=1) if number not in numbers)
        write_atomically(segment, text.decode(errors="replace"))
        done.append(f"took {len(numbers)} lines out of ledger/{segment.name}")
    return done + [f"wrote quarantine/{name}" for name in _restore_quarantine(directory)]


def _restore_quarantine(directory: RunDirectory) -> Iterator[str]:
    """Write rejections of units that are missing in the quarantine; yield the names of the files."""
    for stage in STAGE_ORDER:
        for folder, manifest in read_units(directory, stage):
            rejections = directory.read_rejections(stage, folder.name) if manifest.receipt.n_rejected else []
            for rejection in rejections:
                if not (path := directory.quarantine_file(rejection)).exists():
                    directory.write_quarantine([rejection])
                    yield path.name


def _choose_free(path: Path) -> Path:
    """Return the path, with a number added if something is there already."""
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
