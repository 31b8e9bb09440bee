"""Import the programs of ``benchmarks/`` that are tested; they import each other by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks")

# It does not stay on the path: other tests would find its modules in place of helpers and folders of the same names.
sys.path.insert(0, FOLDER)
import gpu  # noqa: E402, F401
import gpu_measurements  # noqa: E402, F401
import gpu_wheels  # noqa: E402, F401

sys.path.remove(FOLDER)


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that a test starts, and imports within functions, find the programs."""
    monkeypatch.syspath_prepend(FOLDER)
