"""Write and read the checkpoints of a unit, and hand the unit on when its worker ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from daskpipe.core import deadline
from daskpipe.core.errors import DiskError
from daskpipe.core.files import make_folders, sync_folder, write_synced
from daskpipe.core.shared_disk import explain_disk_errors, list_names
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Write the checkpoints of one attempt at a unit, and read those of all attempts.

    Each attempt writes into a directory of its own, so that a unit may run twice at a time. A new attempt continues
    from the newest checkpoint of all. The commit of the unit removes them.

    Parameters
    ----------
    root, unit
        Run directory and unit.
    attempt
        Name of the directory of the attempt; `begin_attempt` gives it.
    """

    root: Path
    unit: Unit
    attempt: str = ""

    def begin_attempt(self) -> Checkpoints:
        """Return the checkpoints of a new attempt; call this in the process that computes the unit."""
        return replace(self, attempt=uuid.uuid4().hex[:8])

    @property
    def _work_dir(self) -> Path:
        return RunDirectory(self.root).work_dir(self.unit.stage, self.unit.key)

    def list_files(self) -> list[Path]:
        """Return the checkpoints of all attempts, the newest first."""
        times = self._read_times()
        return sorted(times, key=lambda file: times[file], reverse=True)

    def newest_time(self) -> int:
        """Return the time of the newest checkpoint, ns, by the clock of its file system; 0 if there is none."""
        return max(self._read_times().values(), default=0)

    def _read_times(self) -> dict[Path, int]:
        """Return the checkpoints of all attempts, and the time at which each was written, ns."""
        times = {}
        for name in list_names(self._work_dir):
            file = self._work_dir / name / "state"
            if name.endswith("-checkpoint"):
                with suppress(FileNotFoundError):  # another attempt has committed, or has continued from it
                    times[file] = file.stat().st_mtime_ns
        return times

    def read_newest(self) -> bytes | None:
        """Return the content of the newest checkpoint whose digest is right; None if there is none."""
        for file in self.list_files():
            data = b""
            with suppress(FileNotFoundError):
                data = file.read_bytes()
            digest, content = data[:32], data[32:]
            if hashlib.sha256(content).digest() == digest:
                return content
        return None

    def save(self, content: bytes) -> None:
        """Write a checkpoint that replaces all earlier ones.

        Raises
        ------
        DiskError
            If the disk is full or cannot be written.
        FileNotFoundError
            If the run directory was removed.
        """
        folder = self._work_dir / f"{self.attempt}-checkpoint"
        older = [file.parent for file in self.list_files() if file.parent != folder]
        try:
            with explain_disk_errors(self.root, folder):
                make_folders(self.root, folder)
                write_synced(folder / "new", hashlib.sha256(content).digest() + content)
                os.replace(folder / "new", folder / "state")
                sync_folder(folder)
        except DiskError:
            (folder / "new").unlink(missing_ok=True)  # the earlier one stays
            raise
        for other in older:
            shutil.rmtree(other, ignore_errors=True)

    def ends_soon(self) -> bool:
        """Return whether the worker ends so soon that another one should continue the unit."""
        return deadline.ends_soon()

    def yield_if_ending(self) -> None:
        """Hand the unit on if the worker ends soon; call this after `save`.

        Raises
        ------
        Yielded
            If the worker ends soon.
        """
        deadline.yield_if_ending()
