"""Wait in tests until something has happened; on a busy machine it comes late, and no test fails for that."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 900.0
"""Seconds after which a test stops waiting and fails."""


def wait_until[T](reached: Callable[[], T], explain: Callable[[], object] = str, *, pause: float = 0.05) -> T:
    """Call a function until it returns something true, and return that; fail with an explanation if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not (result := reached()):
        assert time.monotonic() < deadline, f"this did not happen in {PATIENCE:.0f} s: {explain()}"
        time.sleep(pause)
    return result
