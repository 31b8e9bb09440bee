"""Wait in tests for what must come: on a machine that does other work it comes late, and no test fails for that."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 900.0
"""Seconds after which what has not come is taken not to come."""


def wait_until[T](reached: Callable[[], T], explain: Callable[[], object] = str, *, pause: float = 0.05) -> T:
    """Call a function until it returns something true, and return that; fail with an explanation if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not (found := reached()):
        assert time.monotonic() < deadline, f"it did not come to this in {PATIENCE:.0f} s: {explain()}"
        time.sleep(pause)
    return found
