"""Outputs that a user names: written beside their place, and swapped in when they are whole.

A symbolic link stays what it is: what it leads to is replaced.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daskpipe.core.errors import ConfigError, DiskError
from daskpipe.core.shared_disk import FULL


def resolve_output(out: Path) -> Path:
    """Return where an output is to be: for a symbolic link, what it leads to.

    Raises
    ------
    ConfigError
        If the links go in a circle.
    """
    place = Path(os.path.realpath(out)) if out.is_symlink() else out.absolute()
    if place.is_symlink():
        raise ConfigError(f"{out} is a symbolic link that leads to itself; remove it, or give another name")
    return place


def check_output(out: Path, force: bool) -> None:
    """See, before any work, that an output can be written.

    Parameters
    ----------
    out
        Its folder must be there.
    force
        Whether something of its kind may be replaced: a file by a file, a Zarr store by a Zarr store.

    Raises
    ------
    ConfigError
        If something is there that may not be replaced, or its folder is not there.
    DiskError
        If its folder cannot be written.
    """
    place = resolve_output(out)
    if place.exists() and not force:
        raise ConfigError(f"{out} exists; give another name, or --force to replace it")
    if place.is_dir():
        names = sorted(name for name in os.listdir(place) if not name.startswith("."))
        if out.suffix != ".zarr":
            raise ConfigError(f"{out} is a folder; give the name of a file")
        if names and "zarr.json" not in names:
            raise ConfigError(f"{out} is a folder that holds {names[0]!r} and is no Zarr store; give another name")
    if not place.parent.is_dir():
        raise ConfigError(f"{place.parent} is no folder; make it, or give another -o")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise DiskError(f"cannot write beside {out}: Permission denied; give another -o")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a name to write to, beside the output; what stands there takes the output's place when all is written.

    Until then, and whatever goes wrong, the output of before stays.

    Raises
    ------
    DiskError
        If the disk is full.
    """
    place = resolve_output(out)
    attempt = place.with_name(f".{place.stem}-{uuid.uuid4().hex[:8]}{out.suffix}")
    try:
        yield attempt
        swap_in(attempt, place)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskError(f"cannot write {out}: {error.strerror}. Make room, or give another -o") from error
    finally:
        remove(attempt)


def swap_in(attempt: Path, place: Path) -> None:
    """Put a whole file or folder in its place, and remove what was there before.

    Parameters
    ----------
    attempt
        On the same file system.
    place
        No symbolic link.
    """
    sync_all(attempt)
    if not (place.exists() and (place.is_dir() or attempt.is_dir())):
        os.replace(attempt, place)
        return
    # No folder can be renamed onto what is there, so that goes aside, and is removed when the new one is in place.
    aside = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}-replaced")
    os.rename(place, aside)
    try:
        os.rename(attempt, place)
    except BaseException:
        os.rename(aside, place)
        raise
    remove(aside)


def sync_all(path: Path) -> None:
    """Write a file, or a folder with all in it, through to the disk."""
    names = [path, *path.rglob("*")] if path.is_dir() else [path]
    for name in names:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, as far as that can be done; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
