"""Use a disk that several machines share: wait for what is late, try again what fails for a moment, explain the rest.

A client of a network file system remembers for half a minute or longer that a name was not there, and loses the
handles of its files when the server restarts. Neither says anything about the files.
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
"""Longest wait for a file that another machine has committed, and for a disk that does not answer."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two tries; each try doubles them."""

_NAMES = (
    "EAGAIN", "ECOMM", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "ENETDOWN", "ENETUNREACH", "ENOLINK", "ENOTCONN",
    "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
)  # fmt: skip
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
"""Errors of a disk or its server that say nothing about the file: the same call may work a moment later."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def is_transient(error: BaseException) -> bool:
    """Tell whether an error says nothing about the file, and the same call may work a moment later."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def raise_if_transient(error: Exception) -> None:
    """Raise an error again that says nothing about the file: no input is rejected for it."""
    if is_transient(error):
        raise error


def call_patiently[T](call: Callable[[], T], check: Callable[[], None] = lambda: None) -> T:
    """Call a function that uses a shared disk, again and again while the disk does not answer.

    Parameters
    ----------
    call
        May be called several times.
    check
        Called between two tries; raises what speaks against waiting longer.

    Raises
    ------
    OSError
        If the disk has not answered for `PATIENCE_SECONDS`, or says anything else.
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
    """Wait for a file or folder that another machine has committed, and return whether it can be seen here.

    Parameters
    ----------
    path
        What is waited for, somewhere below `root`.
    root
        The run directory.
    check
        As `call_patiently` takes it.
    """
    until, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
    while not call_patiently(path.exists, check):
        if time.monotonic() > until:
            return False
        check()
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        refresh_names(path, root)
    return True


def refresh_names(path: Path, root: Path) -> None:
    """List the folders from a run directory down to a path: opening them makes a client ask the server anew."""
    above = [folder for folder in reversed(path.parents) if folder.is_relative_to(root)]
    for folder in above:
        with suppress(OSError):  # of a folder that cannot be seen yet either
            os.listdir(folder)


def disk_time(root: Path) -> float:
    """Return the time by the clock of the file system that holds a run directory.

    Times of files are compared with this one: the clocks of two machines may be hours apart.
    """
    clock = root / "drivers" / "clock"
    try:
        clock.parent.mkdir(exist_ok=True)
        clock.touch(mode=0o600)
        return clock.stat().st_mtime
    except OSError:  # someone who may look and not write; or the disk is full
        return time.time()


def numbered_files(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files of a folder that are named by a number, in its order; others' files are left out.

    Parameters
    ----------
    folder
        Need not be there.
    suffix
        Of the names, e.g. ``.jsonl`` for ``0001.jsonl``.
    """
    named = re.compile(rf"([0-9]{{4,}}){re.escape(suffix)}")
    found = [(int(match[1]), folder / name) for name in list_names(folder) if (match := named.fullmatch(name))]
    return dict(sorted(found))


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it is not there, or is removed at this moment.

    `pathlib.Path.glob` looks whether a folder is there before it lists it, and raises if it goes in between.
    """
    with suppress(FileNotFoundError):
        return sorted(os.listdir(folder))
    return []


# --- errors -------------------------------------------------------------------------------------------


def disk_error(error: OSError, root: Path | None = None, path: Path | None = None) -> DiskError | None:
    """Return the error that tells a person what a disk says and what to type.

    Parameters
    ----------
    error
        What was raised.
    root
        The run directory, if it is known.
    path
        What was used; by default what `error` names, or the run directory.

    Returns
    -------
    DiskError or None
        None for an error that is no matter of a disk, such as a file that is not there.
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
        return DiskError(f"cannot use {what}: {error.strerror}. {_permissions(path)}")
    return None


def _permissions(path: Path | None) -> str:
    """Say who asked for a path, whose it is, and what to do."""
    if path is None:
        return "See whose the files are: ls -l"
    there = path.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        state = there.stat()
    except OSError:  # of a folder that may not even be looked into
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
def explained(root: Path, path: Path | None = None, *, permissions: bool = True) -> Iterator[None]:
    """Turn what a disk says into a `DiskError` that says what to type.

    Parameters
    ----------
    root
        The run directory.
    path
        What is written; by default what the error names, or the run directory.
    permissions
        Whether a refusal is explained, too; else it is raised as it is.
    """
    try:
        yield
    except OSError as error:
        found = None if error.errno in FORBIDDEN and not permissions else disk_error(error, root, path)
        if found is None:
            raise
        raise found from error
