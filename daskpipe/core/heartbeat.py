"""Show that a unit is alive: touch its mark while it computes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOUCH_SECONDS = 1.0
"""A mark is touched no more often than this, however often `come_on` is called."""


_HERE = threading.local()


@contextmanager
def touching(path: Path) -> Iterator[None]:
    """Let `come_on` of this thread touch a mark."""
    _HERE.path, _HERE.touched = path, time.monotonic()
    try:
        yield
    finally:
        del _HERE.path


def come_on() -> None:
    """Tell that the unit which this thread computes comes on; nothing if it computes none."""
    path = getattr(_HERE, "path", None)
    if path is not None and time.monotonic() - _HERE.touched > TOUCH_SECONDS:
        with suppress(FileNotFoundError):  # the run was swept by another driver
            os.utime(path)
        _HERE.touched = time.monotonic()
