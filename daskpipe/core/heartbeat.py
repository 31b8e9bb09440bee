"""Show that a unit is alive: its computation sends heartbeats, which set the time of a file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT_SECONDS = 1.0
"""Shortest time between two changes of the file, however often `send_heartbeat` is called."""

_HERE = threading.local()


@contextmanager
def record_heartbeats(path: Path) -> Iterator[None]:
    """Let each `send_heartbeat` of this thread set the time of a file that is there."""
    _HERE.path, _HERE.sent_at = path, time.monotonic()
    try:
        yield
    finally:
        del _HERE.path


def send_heartbeat() -> None:
    """Report that the unit which this thread computes makes progress; do nothing if it computes none."""
    path = getattr(_HERE, "path", None)
    if path is not None and time.monotonic() - _HERE.sent_at > HEARTBEAT_SECONDS:
        with suppress(FileNotFoundError):  # another driver has removed it
            os.utime(path)
        _HERE.sent_at = time.monotonic()
