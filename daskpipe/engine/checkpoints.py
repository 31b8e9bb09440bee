"""Where a unit leaves what it has reached, and when it must hand itself on because its worker ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from daskpipe.core.deadline import YIELD_SECONDS, seconds_left
from daskpipe.core.errors import DiskError, Yielded
from daskpipe.core.files import make_folders, sync_folder, write_synced
from daskpipe.core.shared_disk import explained, list_names
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Unit


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where one attempt at a unit leaves what it has reached, for whoever goes on.

    Each attempt writes into a directory of its own, so that a unit may run twice; a new one goes on from the newest
    checkpoint of all. They are gone when the unit is committed.

    Parameters
    ----------
    root, unit
        Run directory and unit.
    attempt
        Names the directory; `begin` gives it.
    """

    root: Path
    unit: Unit
    attempt: str = ""

    def begin(self) -> Checkpoints:
        """Return the checkpoints of a new attempt, where it runs."""
        return replace(self, attempt=uuid.uuid4().hex[:8])

    @property
    def _folder(self) -> Path:
        return RunDirectory(self.root).work_dir(self.unit.stage, self.unit.key)

    def files(self) -> list[Path]:
        """Return the checkpoints of all attempts, the newest first."""
        written = self._written()
        return sorted(written, key=lambda file: written[file], reverse=True)

    def reached(self) -> int:
        """Return the time of the newest checkpoint, ns, by the clock of its file system; 0 if there is none."""
        return max(self._written().values(), default=0)

    def _written(self) -> dict[Path, int]:
        """Return the checkpoints of all attempts, and when each was written, ns."""
        written = {}
        for name in list_names(self._folder):
            file = self._folder / name / "state"
            if name.endswith("-checkpoint"):
                with suppress(FileNotFoundError):  # another attempt has committed, or gone on from it
                    written[file] = file.stat().st_mtime_ns
        return written

    def newest(self) -> bytes | None:
        """Return the newest checkpoint whose digest is right."""
        for file in self.files():
            data = b""
            with suppress(FileNotFoundError):
                data = file.read_bytes()
            digest, content = data[:32], data[32:]
            if hashlib.sha256(content).digest() == digest:
                return content
        return None

    def save(self, content: bytes) -> None:
        """Write a checkpoint in place of the one before.

        Raises
        ------
        DiskError
            If the disk is full or cannot be written.
        FileNotFoundError
            If the run directory is not there.
        """
        folder = self._folder / f"{self.attempt}-checkpoint"
        older = [file.parent for file in self.files() if file.parent != folder]
        try:
            with explained(self.root, folder):
                make_folders(self.root, folder)
                write_synced(folder / "new", hashlib.sha256(content).digest() + content)
                os.replace(folder / "new", folder / "state")
                sync_folder(folder)
        except DiskError:
            (folder / "new").unlink(missing_ok=True)  # the one before stays
            raise
        for other in older:
            shutil.rmtree(other, ignore_errors=True)

    def ends_soon(self) -> bool:
        """Whether the worker ends so soon that the unit should go on elsewhere."""
        return seconds_left() < YIELD_SECONDS

    def give_way(self) -> None:
        """Hand the unit on if the worker ends soon.

        Raises
        ------
        Yielded
            If it does.
        """
        if self.ends_soon():
            raise Yielded(f"the worker ends in {max(0.0, seconds_left()):.0f} s")
