"""Use a disk that several machines share: wait for late files, repeat calls that fail for a moment, explain the rest.

A client of a network file system remembers for half a minute or longer that a name was missing, and loses the handles
of its files when the server restarts. Neither means that a file is missing or damaged.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from daskpipe.core.errors import DiskError, DiskUnreachable

PATIENCE_SECONDS = 120.0
"""Longest wait, s, for a file that another machine has committed, and for a disk that does not answer."""

REMOVED_SECONDS = 40.0
"""Longest wait, s, for a file below a run directory that is not there.

An NFS client remembers for half a minute that it was not there. A unit of a run that was interrupted, and whose
directory is removed, must not hold its worker for longer."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""First and longest pause between two tries, s; each try doubles it."""

_NAMES = (
    "EAGAIN", "ECOMM", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "ENETDOWN", "ENETUNREACH", "ENOLINK", "ENOTCONN",
    "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
)  # fmt: skip
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
"""Errors of a disk or its server, not of the file: the same call may work a moment later."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a disk without room."""

FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Errors of missing permissions."""


def is_transient(error: BaseException) -> bool:
    """Return whether an error comes from the disk and not from the file; the same call may work a moment later."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def raise_if_transient(error: Exception) -> None:
    """Raise a transient error again, so that no input is rejected for it."""
    if is_transient(error):
        raise error


def call_patiently[T](call: Callable[[], T], check: Callable[[], None] = lambda: None) -> T:
    """Call a function that uses a shared disk, and repeat the call while the disk does not answer.

    Parameters
    ----------
    call
        May be called several times.
    check
        Called between two tries; it raises an error to end the wait.

    Raises
    ------
    OSError
        If the disk has not answered for `PATIENCE_SECONDS`, and at once if the error is not transient.
    """
    until, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
    while True:
        try:
            return call()
        except OSError as error:
            if not is_transient(error) or time.monotonic() > until:
                raise
        check()
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def wait_until_visible(path: Path, root: Path, check: Callable[[], None] = lambda: None) -> bool:
    """Wait for a file or folder that another machine has committed; return whether it is visible here.

    Parameters
    ----------
    path
        The file or folder, below `root`.
    root
        The run directory.
    check
        As in `call_patiently`.
    """
    began, pause = time.monotonic(), FIRST_PAUSE
    while not call_patiently(path.exists, check):
        waited = time.monotonic() - began
        if waited > PATIENCE_SECONDS or (waited > REMOVED_SECONDS and not call_patiently(root.exists, check)):
            return False
        check()
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        refresh_names(path, root)
    return True


def refresh_names(path: Path, root: Path) -> None:
    """List the folders from a run directory down to a path, so that the client asks the server for names again."""
    above = [folder for folder in reversed(path.parents) if folder.is_relative_to(root)]
    for folder in above:
        with suppress(OSError):  # this folder may not be visible yet either
            os.listdir(folder)


def disk_time(root: Path) -> float:
    """Return the time by the clock of the file system that holds a run directory.

    Compare times of files with this one: the clocks of two machines may be hours apart.
    """
    clock = root / "drivers" / "clock"
    try:
        clock.parent.mkdir(exist_ok=True)
        clock.touch(mode=0o600)
        return clock.stat().st_mtime
    except OSError:  # the user may read but not write, or the disk is full
        return time.time()


def numbered_files(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files of a folder whose name is a number, in the order of the numbers.

    Parameters
    ----------
    folder
        May be missing.
    suffix
        End of the names, e.g. ``.jsonl`` for ``0001.jsonl``; all other files are left out.
    """
    named = re.compile(rf"([0-9]{{4,}}){re.escape(suffix)}")
    numbered = [(int(match[1]), folder / name) for name in list_names(folder) if (match := named.fullmatch(name))]
    return dict(sorted(numbered))


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it is missing, or is removed at this moment.

    `pathlib.Path.glob` checks that a folder exists before it lists it, and raises if the folder goes in between.
    """
    with suppress(FileNotFoundError):
        return sorted(os.listdir(folder))
    return []


# --- errors -------------------------------------------------------------------------------------------


def disk_error(error: OSError, root: Path | None = None, path: Path | None = None) -> DiskError | None:
    """Return the error that explains to the user what a disk reports, and what to type.

    Parameters
    ----------
    error
        The error that was raised.
    root
        The run directory, if it is known.
    path
        The path that was used; by default the one that `error` names, or the run directory.

    Returns
    -------
    DiskError or None
        None for an error that does not come from the disk, such as a missing file.
    """
    if path is None and isinstance(error.filename, str | os.PathLike):
        path = Path(error.filename)
    path = root if path is None else path
    what = path if path is not None else "a file"
    resume = f"daskpipe resume {quote(str(root)) if root is not None else 'RUN'}"
    if error.errno in FULL:
        return DiskError(f"cannot write {what}: {error.strerror}. Make room, then: {resume}")
    if error.errno in TRANSIENT and (path is not None or error.errno in (errno.EIO, errno.ESTALE)):
        return DiskUnreachable(
            f"cannot use {what}: {error.strerror}. Have the disk or its server looked at, then: {resume}"
        )
    if error.errno in FORBIDDEN:
        return DiskError(f"cannot use {what}: {error.strerror}. {_describe_permissions(path)}")
    return None


def _describe_permissions(path: Path | None) -> str:
    """Return who asked for a path, who owns it, and what to do."""
    if path is None:
        return "See whose the files are: ls -l"
    there = path.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        state = there.stat()
    except OSError:  # the folder may not even be listed
        return f"You are {_name_user(os.geteuid())}. See whose the files are: ls -ld {quote(str(path.parent))}"
    return (
        f"You are {_name_user(os.geteuid())}, and {there} belongs to {_name_user(state.st_uid)} "
        f"({stat.filemode(state.st_mode)}). Type the command as its owner, or name a place of your own"
    )


def _name_user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


@contextmanager
def explain_disk_errors(root: Path, path: Path | None = None, *, permissions: bool = True) -> Iterator[None]:
    """Turn errors of a disk into a `DiskError` that says what to type.

    Parameters
    ----------
    root
        The run directory.
    path
        The path that is used; by default the one that the error names, or the run directory.
    permissions
        Whether missing permissions are explained, too; else that error is raised unchanged.
    """
    try:
        yield
    except OSError as error:
        explained = None if error.errno in FORBIDDEN and not permissions else disk_error(error, root, path)
        if explained is None:
            raise
        raise explained from error
