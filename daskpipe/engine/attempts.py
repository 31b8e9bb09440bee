"""Marks of units that are being computed: who computes what, and when it last came on.

A mark lies in the unit's work folder while a process computes the unit. One that stays behind tells that its
process died under the unit; a unit that was only waiting for a worker has none.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from daskpipe.core.events import UnitGivenUp
from daskpipe.core.files import make_folders
from daskpipe.core.heartbeat import touching
from daskpipe.core.shared_disk import explained, list_names, numbered_files
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a mark says.

    Parameters
    ----------
    path
        Its file; the time of the file is when the unit last came on.
    worker, nanny
        Addresses of the Dask worker that computes the unit and of its nanny (empty if there is none).
    pid
        Its process.
    note
        Why it ended, if it could still say so.
    began
        When the attempt began, by the clock of the file system.
    """

    path: Path
    worker: str
    nanny: str
    pid: int
    note: str = ""
    began: float = float("inf")

    @property
    def touched(self) -> int:
        """Time of the file, ns, by the clock of its file system; 0 if the unit has ended meanwhile."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_mtime_ns
        return 0

    def seconds_at_work(self, until: float = 0.0) -> float:
        """Return the seconds from when the attempt began until it last came on, or until a later time."""
        with suppress(FileNotFoundError):
            return max(0.0, max(until, self.path.stat().st_mtime) - self.began)
        return 0.0


@dataclass
class Silence:
    """Measures for how long the signs of life of a process have not changed, by the clock of this process alone.

    The times of files are those of another machine, which may be hours off; here they are only compared with each
    other.
    """

    _signs: Hashable = None
    _since: float = field(default_factory=time.monotonic)

    def measure(self, signs: Hashable) -> float:
        """Return for how many seconds the signs have been as they are now."""
        if signs != self._signs:
            self._signs, self._since = signs, time.monotonic()
        return time.monotonic() - self._since


@contextmanager
def marked(root: Path, unit: Unit, *, worker: str, nanny: str) -> Iterator[Path]:
    """Mark a unit as being computed by this process.

    Raises
    ------
    DiskError
        If the disk is full or cannot be written.
    """
    folder = RunDirectory(root).work_dir(unit.stage, unit.key)
    path = folder / f"{uuid.uuid4().hex[:8]}-running"
    with explained(root, path):
        make_folders(root, folder)
        with path.open("w") as file:
            began = os.fstat(file.fileno()).st_mtime
            file.write(json.dumps({"worker": worker, "nanny": nanny, "pid": os.getpid(), "began": began}))
    with touching(path):
        try:
            yield path
        finally:
            # The folder may hold checkpoints or another attempt's mark, or a twin has committed; and a disk that fails
            # now takes nothing from a unit that is committed.
            with suppress(OSError):
                path.unlink(missing_ok=True)
                folder.rmdir()


def note(path: Path, why: str) -> None:
    """Write into a mark why its process ends."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": why}))


def marks(root: Path, unit: Unit) -> list[Mark]:
    """Return the marks of all attempts at a unit that are under way or have died."""
    folder = RunDirectory(root).work_dir(unit.stage, unit.key)
    return list(_read(folder / name for name in list_names(folder) if name.endswith("-running")))


def given_up(directory: RunDirectory) -> list[UnitGivenUp]:
    """Return the attempts at units that ended with earlier drivers, by the marks that `RunDirectory.sweep` removes.

    They ended about when the last of these drivers wrote its last event, or when they last came on.
    """
    segments = numbered_files(directory.root / "ledger", ".jsonl").values()
    until = max((path.stat().st_mtime for path in segments), default=0.0)
    return [
        UnitGivenUp(
            stage=mark.path.parts[-4],
            key=mark.path.parent.name[1 : -len("-work")],
            seconds=round(mark.seconds_at_work(until), 3),
        )
        for mark in _read(sorted(directory.root.glob("units/*/*/.*-work/*-running")))
    ]


def _read(paths: Iterable[Path]) -> Iterator[Mark]:
    for path in paths:
        with suppress(FileNotFoundError, json.JSONDecodeError):  # it has just ended, or just begun
            yield Mark(path=path, **json.loads(path.read_text()))
