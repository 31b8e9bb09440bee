"""Write small files and folders durably."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Buffer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

HEX = "[0-9a-f]"
"""One digit of a key, in a pattern of file names."""


TEMPORARY = f".?*-{HEX * 8}"
"""Files that a process which was killed in `write_atomically` leaves."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that it is whole or absent, even after a power failure."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")  # fits TEMPORARY
    write_synced(temporary, text.encode())
    os.replace(temporary, path)


def write_synced(path: Path, data: Buffer) -> dict[str, Any]:
    """Write a file through to the disk; return its size and sha256."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": memoryview(data).nbytes, "sha256": hashlib.sha256(data).hexdigest()}


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(root: Path, folder: Path) -> None:
    """Make a folder below ``units``; never the run directory itself: one that was removed under a unit stays so."""
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        if folder.parent == root:
            raise
        make_folders(root, folder.parent)
        folder.mkdir(exist_ok=True)


def package_folder(name: str) -> Path:
    """Return ``configs/`` or ``jobqueue/``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name
