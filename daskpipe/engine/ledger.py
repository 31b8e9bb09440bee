"""Write and read the ledger of a run: one file a driver start, one line an event.

The ledger is an index: it can be rebuilt from the committed units.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from daskpipe.core.events import Event
from daskpipe.core.shared_disk import call_patiently, numbered_files
from daskpipe.core.text import utc_timestamp
from daskpipe.engine.run_directory import RunDirectory


class Ledger:
    """Write the segment of one driver: call it with each event.

    Parameters
    ----------
    directory
        The run directory. The first event makes the segment, under the next free number, which no other driver can get.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.folder = directory.root / "ledger"
        self.folder.mkdir(exist_ok=True)
        self.path: Path | None = None

    def __call__(self, event: Event) -> None:
        """Append an event."""
        line = json.dumps({"at": utc_timestamp(), **event.as_json()})
        self.path = self.path or self._make_segment()
        with call_patiently(partial(open, self.path, "a")) as file:
            file.write(line + "\n")

    def _make_segment(self) -> Path:
        """Make an empty segment under the next free number; return its path."""
        number = 1 + max(numbered_files(self.folder, ".jsonl"), default=0)
        while True:
            path = self.folder / f"{number:04d}.jsonl"
            with suppress(FileExistsError):
                path.open("x").close()
                return path
            number += 1


@dataclass
class LedgerReader:
    """Read a ledger as it grows, each event once.

    Parameters
    ----------
    directory
        The run directory.
    """

    directory: RunDirectory
    _read: dict[Path, int] = field(default_factory=dict)
    """Bytes of each segment that were read."""

    def read_new_events(self) -> Iterator[dict[str, Any]]:
        """Yield the events that were not yielded before, each with its segment; a line torn by a crash is left out."""
        for file in numbered_files(self.directory.root / "ledger", ".jsonl").values():
            with open(file, "rb") as lines:
                lines.seek(self._read.get(file, 0))
                for line in lines:
                    if not line.endswith(b"\n"):  # half a line: torn by a crash, or being written
                        break
                    self._read[file] = self._read.get(file, 0) + len(line)
                    with suppress(ValueError, TypeError, RecursionError):
                        yield {"segment": file.stem, **json.loads(line)}


def read_ledger(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return all events of all segments in order; a line torn by a crash is left out."""
    return list(LedgerReader(directory).read_new_events())
