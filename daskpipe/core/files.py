"""Write small files and folders durably."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Buffer
from pathlib import Path
from typing import Any

HEX = "[0-9a-f]"
"""Pattern of one digit of a key, for names of files."""

TEMPORARY = f".?*-{HEX * 8}"
"""Pattern of the files that a process killed in `write_atomically` leaves."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that it is whole or absent, even after a power failure."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")  # fits TEMPORARY
    write_synced(temporary, text.encode())
    os.replace(temporary, path)


def write_synced(path: Path, data: Buffer) -> dict[str, Any]:
    """Write a file through to the disk; return its ``size`` in bytes and its ``sha256`` in hex."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": memoryview(data).nbytes, "sha256": hashlib.sha256(data).hexdigest()}


def sync_folder(path: Path) -> None:
    """Write the names in a folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(root: Path, folder: Path) -> None:
    """Make a folder below a run directory, with its parents, but never the run directory itself.

    A run directory that a user removes while units are computed must not come back.

    Raises
    ------
    FileNotFoundError
        If the run directory is not there.
    """
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        if folder.parent == root:
            raise
        make_folders(root, folder.parent)
        folder.mkdir(exist_ok=True)


def package_folder(name: str) -> Path:
    """Return the path of ``configs/`` or ``jobqueue/``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name
