"""Mark units that are being computed: by which process, and when it last sent a heartbeat.

A mark is a file in the work folder of a unit while a process computes the unit. A mark that stays behind shows that its
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
from daskpipe.core.heartbeat import record_heartbeats
from daskpipe.core.shared_disk import explain_disk_errors, list_names, numbered_files
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Hold the content of a mark.

    Parameters
    ----------
    path
        Its file; the time of the file is that of the last heartbeat.
    worker, nanny
        Addresses of the Dask worker that computes the unit and of its nanny (empty if there is none).
    pid
        Id of the process that computes the unit.
    note
        Why the process ended, if it could still write that.
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
    def touched_ns(self) -> int:
        """Time of the last heartbeat, ns, by the clock of the file system; 0 if the unit has ended meanwhile."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_mtime_ns
        return 0

    def seconds_at_work(self, until: float = 0.0) -> float:
        """Return the seconds from the start of the attempt to its last heartbeat, or to `until` if that is later."""
        with suppress(FileNotFoundError):
            return max(0.0, max(until, self.path.stat().st_mtime) - self.began)
        return 0.0


@dataclass
class Silence:
    """Measure for how long the signs of life of a process have not changed, by the clock of this process alone.

    The times of files come from another machine, whose clock may be hours off; here they are only compared with each
    other.
    """

    _signs: Hashable = None
    _since: float = field(default_factory=time.monotonic)

    def measure_seconds(self, signs: Hashable) -> float:
        """Return the seconds since the signs last changed, and remember the signs."""
        if signs != self._signs:
            self._signs, self._since = signs, time.monotonic()
        return time.monotonic() - self._since


@contextmanager
def mark_attempt(root: Path, unit: Unit, *, worker: str, nanny: str) -> Iterator[Path]:
    """Mark a unit as computed by this process during the block; yield the file of the mark.

    Parameters
    ----------
    root, unit
        Run directory and unit.
    worker, nanny
        Addresses of the Dask worker that this process is, and of its nanny (empty if there is none).

    Raises
    ------
    DiskError
        If the disk is full or cannot be written.
    """
    folder = RunDirectory(root).work_dir(unit.stage, unit.key)
    path = folder / f"{uuid.uuid4().hex[:8]}-running"
    with explain_disk_errors(root, path):
        make_folders(root, folder)
        with path.open("w") as file:
            began = os.fstat(file.fileno()).st_mtime
            file.write(json.dumps({"worker": worker, "nanny": nanny, "pid": os.getpid(), "began": began}))
    with record_heartbeats(path):
        try:
            yield path
        finally:
            # The folder may hold checkpoints or the mark of another attempt, or be gone because that one has committed.
            # And a disk that fails here must not fail a unit that is committed.
            with suppress(OSError):
                path.unlink(missing_ok=True)
                folder.rmdir()


def write_note(path: Path, reason: str) -> None:
    """Write into a mark why its process ends."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": reason}))


def read_marks(root: Path, unit: Unit) -> list[Mark]:
    """Return the marks of all attempts at a unit that are under way or whose process has died."""
    folder = RunDirectory(root).work_dir(unit.stage, unit.key)
    return list(_read_files(folder / name for name in list_names(folder) if name.endswith("-running")))


def list_given_up(directory: RunDirectory) -> list[UnitGivenUp]:
    """Return the attempts at units that ended with earlier drivers, by their marks.

    Call this before `RunDirectory.remove_leftovers`, which removes the marks. An attempt is taken to have ended at its
    last heartbeat, or when the last of these drivers wrote its last event.
    """
    segments = numbered_files(directory.root / "ledger", ".jsonl").values()
    until = max((path.stat().st_mtime for path in segments), default=0.0)
    return [
        UnitGivenUp(
            stage=mark.path.parts[-4],
            key=mark.path.parent.name[1 : -len("-work")],
            seconds=round(mark.seconds_at_work(until), 3),
        )
        for mark in _read_files(sorted(directory.root.glob("units/*/*/.*-work/*-running")))
    ]


def _read_files(paths: Iterable[Path]) -> Iterator[Mark]:
    for path in paths:
        with suppress(FileNotFoundError, json.JSONDecodeError):  # the attempt has just ended, or just begun
            yield Mark(path=path, **json.loads(path.read_text()))
