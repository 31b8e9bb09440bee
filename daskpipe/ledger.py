"""The run's journal: one segment a driver start, a line an event; an index, rebuildable from the tree."""

from __future__ import annotations

import json
import time
from typing import Any

from daskpipe.events import Event
from daskpipe.work import Tree


class Ledger:
    """One segment of the run's journal: a line an event, written by one driver.

    Parameters
    ----------
    tree
        The run directory; the segment gets the next free number.
    """

    def __init__(self, tree: Tree) -> None:
        folder = tree.root / "ledger"
        folder.mkdir(exist_ok=True)
        number = 1 + max((int(file.stem) for file in folder.glob("*.jsonl")), default=0)
        self.path = folder / f"{number:04d}.jsonl"

    def __call__(self, event: Event) -> None:
        """Append an event."""
        line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event.as_json()})
        with open(self.path, "a") as file:
            file.write(line + "\n")


def read_ledger(tree: Tree) -> list[dict[str, Any]]:
    """Return all events of all segments in order; a line torn by a crash is left out."""
    events = []
    for file in sorted((tree.root / "ledger").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                events.append({"segment": file.stem, **json.loads(line)})
            except json.JSONDecodeError:  # only the last line of a segment can be torn: one writer, append only
                continue
    return events
