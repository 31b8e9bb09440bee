"""Measurements for other processes, which need nothing but the standard library and so start quickly."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from gpu import RATE, Row

ROWS = [Row("bundled", "first", 1.0, RATE), Row("bundled", "second", 2.0, RATE)]


def two_rows_and_a_wait(seconds: float) -> Iterator[Row]:
    yield from ROWS
    time.sleep(seconds)


def two_rows_and_an_end(how: str) -> Iterator[Row]:
    yield from ROWS
    if how == "exit":
        os._exit(9)
    raise ValueError(how)
