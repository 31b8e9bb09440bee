"""Write outputs that a user names: beside their place first, swapped in when they are whole.

A symbolic link stays a link: its target is replaced.
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
    """Return the path at which an output will stand: for a symbolic link, its target.

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
    """Check, before any work, that an output can be written.

    Parameters
    ----------
    out
        Its folder must exist.
    force
        Whether something of its kind may be replaced: a file by a file, a Zarr store by a Zarr store.

    Raises
    ------
    ConfigError
        If something is there that may not be replaced, or the folder does not exist.
    DiskError
        If the folder cannot be written.
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
def replace_output(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside an output; at the end of the block what was written there replaces the output.

    Until then, and if the block raises, the earlier output stays.

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
        remove_path(attempt)


def swap_in(attempt: Path, place: Path) -> None:
    """Move a file or folder that is whole into its place, and remove what was there before.

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
    # A folder cannot be renamed onto an existing one: the old one is renamed first, and removed at the end.
    aside = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}-replaced")
    os.rename(place, aside)
    try:
        os.rename(attempt, place)
    except BaseException:
        os.rename(aside, place)
        raise
    remove_path(aside)


def sync_all(path: Path) -> None:
    """Write a file, or a folder with all in it, through to the disk."""
    names = [path, *path.rglob("*")] if path.is_dir() else [path]
    for name in names:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_path(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it; what is missing or cannot be removed raises no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
