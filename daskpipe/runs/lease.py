"""Lease of a run directory: one driver at a time, among all machines that share the directory.

::

    drivers/0003.json   the lease of the third driver: host, process, job, start; the highest number drives
    drivers/clock       touched to read the clock of the file system, since the clocks of machines differ
    cancel              request of ``daskpipe cancel`` that the driver stop

A driver takes the lease by creating the file of the next number, which only one of several can. Only its owner
writes, renames or removes the newest file: there is no moment at which two drivers hold a run. The owner touches the
file every few seconds; it counts as dead when its process is known to be gone, or after a minute without a touch. A
driver that stood still for that long sees a higher number when it wakes up, and ends.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from daskpipe.cluster.queues import find_job_id
from daskpipe.core.deadline import seconds_left
from daskpipe.core.errors import ConfigError, DaskpipeError, Interrupted
from daskpipe.core.files import write_atomically
from daskpipe.core.shared_disk import disk_time, explain_disk_errors, numbered_files
from daskpipe.core.text import utc_timestamp

LEASE_SECONDS = float(os.environ.get("DASKPIPE_LEASE_SECONDS", "60"))
"""Seconds without renewal after which a driver counts as dead. Each lease records its own, so drivers may differ."""

RENEWALS = 12
"""Renewals in `LEASE_SECONDS`."""

WALLTIME_SECONDS = 180.0
"""Seconds before the end of its own job at which a driver stops in order; at most half of the job's time."""

HEED_SECONDS = 10.0
"""Seconds in which a driver that must stop should call `Lease.check_stop`, before its main thread is interrupted."""


class TakenOver(Interrupted):
    """Another driver took the run over while this one stood still."""


class Cancelled(Interrupted):
    """``daskpipe cancel`` asked the driver to stop."""


class WalltimeNear(Interrupted):
    """The job in which the driver runs ends soon."""


@dataclass(frozen=True, kw_only=True)
class LeaseHolder:
    """Driver that holds a lease, as its file records it.

    Parameters
    ----------
    host, pid, command
        Its process, for people.
    machine, born
        Boot and container of its machine, and start of its process: together they identify the process.
    job_id
        Its job, if it runs in one.
    token
        Name of the last detached driver that has begun (`daskpipe.runs.detached`): this one, or an earlier one.
    since, ended
        Start and release of the lease, UTC.
    seconds
        Seconds without renewal after which it counts as dead.
    """

    host: str = "an unknown host"
    pid: int = 0
    machine: str = ""
    born: str = ""
    command: str = ""
    job_id: str | None = None
    token: str | None = None
    since: str = "just now"
    ended: str | None = None
    seconds: float = LEASE_SECONDS

    def __str__(self) -> str:
        job = f", job {self.job_id}" if self.job_id else ""
        return f"{self.host}, process {self.pid}{job}, since {self.since}"


def find_driver(root: Path) -> LeaseHolder | None:
    """Return the driver that works in a run directory now, on any machine; ``None`` if none does."""
    driver, age = _read_lease(root, _find_newest(root))
    return driver if driver is not None and _is_alive(driver, age) else None


def read_last_driver(root: Path) -> LeaseHolder | None:
    """Return the last driver that worked in a run directory, alive or dead."""
    return _read_lease(root, _find_newest(root))[0]


class Lease:
    """The right to drive a run directory; `hold_lease` takes and releases it.

    A thread renews it and watches for reasons to stop: another driver, a request to cancel, the walltime.

    Parameters
    ----------
    root
        The run directory.
    number
        Number of the file of the lease, which exists.
    """

    def __init__(self, root: Path, number: int) -> None:
        self.root = root
        self.number = number
        self.stop: Interrupted | None = None
        self._path = _lease_file(root, number)
        self._since = self._path.stat().st_mtime
        self._reserve = min(WALLTIME_SECONDS, seconds_left() / 2)
        self._main = threading.current_thread() is threading.main_thread()
        self._heeded, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew_lease, name="daskpipe-lease", daemon=True)
        self._thread.start()

    def check_stop(self) -> None:
        """Raise the reason why this driver must stop, if there is one.

        Raises
        ------
        Interrupted
            `TakenOver`, `Cancelled` or `WalltimeNear`.
        """
        if self.stop is not None:
            self._heeded.set()
            raise type(self.stop)(*self.stop.args)

    def close(self) -> None:
        """Release the lease."""
        self._over.set()
        self._thread.join()
        if isinstance(self.stop, TakenOver):
            return
        try:
            driver, _ = _read_lease(self.root, self.number)
            if driver is not None:
                write_atomically(self._path, json.dumps(asdict(driver) | {"ended": utc_timestamp()}, indent=1))
        except OSError:  # the disk is full or does not answer, or the run directory is gone
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        if isinstance(self.stop, Cancelled):
            withdraw_request(self.root)

    def _renew_lease(self) -> None:
        """Renew the lease until it is released, and wake the main thread if it must stop and does not."""
        noticed = None
        interval = LEASE_SECONDS / RENEWALS
        while not self._over.wait(interval):
            with suppress(OSError):  # a file server may not answer now; a removed file is noticed below
                os.utime(self._path)
            if self.stop is None:
                self.stop = self._find_reason()
                noticed = time.monotonic()
            elif noticed is not None and self._main and time.monotonic() - noticed > HEED_SECONDS:
                noticed = None
                # It waits for something, such as a queue: wake it, as Ctrl-C would.
                if not self._heeded.is_set() and callable(signal.getsignal(signal.SIGINT)):
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _find_reason(self) -> Interrupted | None:
        """Return why this driver must stop, if it must."""
        resume = f"To go on type: daskpipe resume {shlex.quote(str(self.root))}"
        with suppress(OSError):
            if (newest := _find_newest(self.root)) > self.number:
                by, _ = _read_lease(self.root, newest)
                return TakenOver(
                    f"another driver took over {self.root} ({by}): this one stood still for longer than "
                    f"{LEASE_SECONDS:.0f} s. To watch it: daskpipe status {shlex.quote(str(self.root))}"
                )
            if newest < self.number:
                return TakenOver(f"the lease of this driver, {self._path}, was removed. {resume}")
            if request := read_request(self.root):
                at, words = request
                if at >= self._since:
                    return Cancelled(f"cancelled {words}. {resume}")
                withdraw_request(self.root)  # it was meant for an earlier driver
        if (left := seconds_left()) < self._reserve:
            return WalltimeNear(f"the job of this driver ends in {max(0.0, left):.0f} s. {resume}")
        return None


@contextmanager
def hold_lease(root: Path, *, patience: float = 0.0, token: str | None = None) -> Iterator[Lease]:
    """Hold the lease of a run directory.

    Parameters
    ----------
    root
        The run directory.
    patience
        Seconds to wait for another driver to end: the death of one on another machine only shows after a while.
    token
        Name of this driver, if it is a detached one.

    Raises
    ------
    ConfigError
        If another driver holds it.
    Interrupted
        In place of a signal or another exception that ended the block, if the driver must stop
        (`Lease.check_stop`).
    """
    lease = Lease(root, _take_lease(root, patience, token))
    try:
        yield lease
    except BaseException as error:
        if lease.stop is not None and not isinstance(error, DaskpipeError):
            raise lease.stop from error
        raise
    finally:
        lease.close()


def explain_busy(root: Path, driver: LeaseHolder) -> ConfigError:
    """Return the error that refuses a second driver."""
    run = shlex.quote(str(root))
    return ConfigError(
        f"another daskpipe works in {root} ({driver}). Wait for it (daskpipe status {run} --watch), stop it "
        f"(daskpipe cancel {run}), or give --run-dir"
    )


def request_stop(root: Path) -> None:
    """Ask the driver of a run to stop."""
    write_atomically(root / "cancel", json.dumps({"host": os.uname().nodename, "at": utc_timestamp()}))


def read_request(root: Path) -> tuple[float, str] | None:
    """Return the time of a request to stop, by the clock of the file system, and its origin in words."""
    try:
        with open(root / "cancel") as file:
            at, content = os.fstat(file.fileno()).st_mtime, _parse_object(file.read())
    except FileNotFoundError:
        return None
    return at, f"from {content['host']} at {content['at']}" if content else "by hand"


def withdraw_request(root: Path) -> None:
    """Remove the request to stop, if there is one."""
    (root / "cancel").unlink(missing_ok=True)


def _take_lease(root: Path, patience: float, token: str | None) -> int:
    """Create the lease of the next number, and return the number.

    Raises
    ------
    ConfigError
        If another driver holds the lease for longer than the patience, in seconds.
    """
    folder = root / "drivers"
    folder.mkdir(exist_ok=True)
    until = time.monotonic() + patience
    number = _find_newest(root)
    while True:
        driver, age = _read_lease(root, number)
        if driver is not None and _is_alive(driver, age):
            if time.monotonic() > until:
                raise explain_busy(root, driver)
            time.sleep(1.0)
            number = max(number, _find_newest(root))
            continue
        try:
            with explain_disk_errors(root, folder):
                _create_lease(_lease_file(root, number + 1), token or (driver.token if driver else None))
        except FileExistsError:
            number += 1  # another driver was faster
            continue
        number += 1
        if (newest := _find_newest(root)) > number:  # this process slept between the read and the creation
            _lease_file(root, number).unlink(missing_ok=True)
            number = newest
            continue
        for other, file in _list_files(root).items():
            if other < number:
                file.unlink(missing_ok=True)
        return number


def _create_lease(path: Path, token: str | None) -> None:
    """Create the file of a lease of this process, which no other process has created."""
    driver = LeaseHolder(
        host=os.uname().nodename,
        pid=os.getpid(),
        machine=_identify_machine(),
        born=_read_start(os.getpid()) or "",
        command=shlex.join(["daskpipe", *sys.argv[1:]]),
        job_id=find_job_id(os.environ),
        token=token,
        since=utc_timestamp(),
        seconds=LEASE_SECONDS,
    )
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        try:
            file.write(json.dumps(asdict(driver), indent=1))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _lease_file(root: Path, number: int) -> Path:
    return root / "drivers" / f"{number:04d}.json"


def _list_files(root: Path) -> dict[int, Path]:
    return numbered_files(root / "drivers", ".json")


def _find_newest(root: Path) -> int:
    """Return the highest number of a lease, or 0."""
    return max(_list_files(root), default=0)


def _read_lease(root: Path, number: int) -> tuple[LeaseHolder | None, float]:
    """Return the holder of a lease, and the seconds since its last renewal by the clock of the file system."""
    try:
        # Opened before its state is read: a network file system then asks its server, and not its cache.
        with open(_lease_file(root, number)) as file:
            renewed, text = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None, float("inf")
    known = {field.name for field in fields(LeaseHolder)}
    driver = LeaseHolder(**{name: value for name, value in _parse_object(text).items() if name in known})
    return driver, disk_time(root) - renewed


def _parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; return an empty one if the text is incomplete: being written, or cut by a crash."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(driver: LeaseHolder, age: float) -> bool:
    """Tell whether a driver works, given the seconds since the last renewal of its lease."""
    if driver.ended is not None:
        return False
    if driver.machine == _identify_machine() and _read_start(driver.pid) != driver.born:
        return False
    return age <= driver.seconds


def _identify_machine() -> str:
    """Return an identity of this machine since its last boot, and of this container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return os.uname().nodename


def _read_start(pid: int) -> str | None:
    """Return when a process of this machine started, or ``None`` if it is gone: process ids are used again."""
    try:
        # In ticks since boot, which do not change with the clock; the name before it may hold any character.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
