"""The run's journal: one segment a driver start, a line an event; an index, rebuildable from the units."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from daskpipe.core.events import Event
from daskpipe.core.shared_disk import call_patiently, numbered_files
from daskpipe.engine.run_directory import RunDirectory


class Ledger:
    """One segment of the run's journal: a line an event, written by one driver.

    Parameters
    ----------
    directory
        The run directory; the first event makes the segment, with the next free number, which no other driver can get.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.folder = directory.root / "ledger"
        self.folder.mkdir(exist_ok=True)
        self.path: Path | None = None

    def __call__(self, event: Event) -> None:
        """Append an event."""
        line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event.as_json()})
        self.path = self.path or self._segment()
        with call_patiently(partial(open, self.path, "a")) as file:
            file.write(line + "\n")

    def _segment(self) -> Path:
        number = 1 + max(numbered_files(self.folder, ".jsonl"), default=0)
        while True:
            path = self.folder / f"{number:04d}.jsonl"
            with suppress(FileExistsError):
                path.open("x").close()
                return path
            number += 1


@dataclass
class Reader:
    """Reads the journal as it grows, each event once.

    Parameters
    ----------
    directory
        The run directory.
    """

    directory: RunDirectory
    _read: dict[Path, int] = field(default_factory=dict)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events, with their segment, that were not yielded before; a line torn by a crash is left out."""
        for file in numbered_files(self.directory.root / "ledger", ".jsonl").values():
            with open(file, "rb") as lines:
                lines.seek(self._read.get(file, 0))
                for line in lines:
                    if not line.endswith(b"\n"):  # half a line: torn for ever, or on its way
                        break
                    self._read[file] = self._read.get(file, 0) + len(line)
                    with suppress(ValueError, TypeError, RecursionError):
                        yield {"segment": file.stem, **json.loads(line)}


def read_ledger(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return all events of all segments in order; a line torn by a crash is left out."""
    return list(Reader(directory).events())
