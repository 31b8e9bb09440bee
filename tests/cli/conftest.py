"""Folder and scheduler of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import Client


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folder that is the present directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def address(client: Client) -> str:
    """Address of the scheduler that the tests share."""
    return str(client.scheduler.address)


def list_states(folder: Path) -> dict[str, tuple[int, int]]:
    """List size and time of all files and folders below a folder, without leases, whose clock a reading touches."""
    states = {path: path.stat() for path in [folder, *folder.rglob("*")] if "drivers" not in path.parts}
    return {str(path): (state.st_size, state.st_mtime_ns) for path, state in states.items()}
