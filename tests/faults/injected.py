"""Strike a process from inside, at one call; `sitecustomize` loads this in every Python process below a driver.

The folder that FAULTS_PLAN names holds ``strikes.json``. Each strike leaves a marker there before it acts, and none
acts more often than its rule says: a marker is a file that only one process can make.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAN = os.environ.get("FAULTS_PLAN", "")
FILLER = "filler"

REAL_OPEN = open


def strike(index: int, rule: dict[str, Any], subject: str) -> None:
    """Leave a marker, then act by the rule; do nothing if the rule has acted as often as it may."""
    for turn in range(rule["times"]):
        try:
            descriptor = os.open(f"{PLAN}/struck-{index}-{turn}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        at = {"at": time.time(), "pid": os.getpid(), "parent": os.getppid(), "subject": subject}
        os.write(descriptor, json.dumps(at).encode())
        os.close(descriptor)
        act(rule["act"], subject)
        return


def act(what: str, subject: str) -> None:
    """Act: raise an error, fill the disk, kill processes, wait for a file, or stop."""
    kind, _, detail = what.partition(" ")
    if kind == "raise":
        number = getattr(errno, detail)
        raise OSError(number, os.strerror(number))
    if kind == "fill":  # the disk on which the run is
        root = subject.partition("/units/")[0]
        try:
            with REAL_OPEN(f"{root}/{FILLER}", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        except OSError:
            return
    if kind == "kill":
        # `parent` is the driver for a local worker, the nanny for one of a scheduler of its own.
        for target in detail.split():
            own = {"self": os.getpid, "parent": os.getppid}
            pid = own[target]() if target in own else int(Path(PLAN, target).read_text())
            assert pid > 1
            os.kill(pid, signal.SIGKILL)
        return
    if kind == "wait":  # for a file
        while not Path(PLAN, detail).exists():
            time.sleep(0.05)
        return
    assert kind == "stop", what
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.2)  # another thread may have taken the signal, and this one still run for a moment


class Watched:
    """Wrap a file that is struck as it is written."""

    def __init__(self, file: Any, path: str, hit: Callable[[str, str, str], None]) -> None:
        self._file, self._path, self._hit = file, path, hit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, text: Any) -> Any:
        """Write a text in two halves, with strikes before, between and after."""
        subject = f"{self._path}: {text}"
        self._hit("write", "before", subject)
        half = len(text) // 2
        written = self._file.write(text[:half])
        self._file.flush()
        self._hit("write", "half", subject)
        written += self._file.write(text[half:])
        self._file.flush()
        self._hit("write", "after", subject)
        return written


def install(rules: list[dict[str, Any]]) -> None:
    """Wrap the calls that the rules name."""
    compiled = [(index, rule, re.compile(rule["pattern"])) for index, rule in enumerate(rules)]

    def hit(call: str, when: str, subject: str) -> None:
        for index, rule, pattern in compiled:
            if rule["call"] == call and rule["when"] == when and pattern.search(subject):
                strike(index, rule, subject)

    def wrap(call: str, real: Callable[..., Any], tell: Callable[..., str]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            subject = tell(*args)
            hit(call, "before", subject)
            result = real(*args, **options)
            hit(call, "after", subject)
            return result

        return wrapped

    def open_watched(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = REAL_OPEN(file, mode, *args, **options)
        if mode[0] in "wax" and isinstance(file, str | os.PathLike):
            path = str(file)
            if any(rule["call"] == "write" and re.search(rule["file"], path) for rule in rules):
                return Watched(opened, path, hit)
        return opened

    def path_of(file: Any) -> str:
        return os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")

    os.mkdir = wrap("mkdir", os.mkdir, lambda path, *_: str(path))
    os.fsync = wrap("fsync", os.fsync, path_of)
    os.rename = wrap("rename", os.rename, lambda source, target: f"{source} -> {target}")
    os.replace = wrap("rename", os.replace, lambda source, target: f"{source} -> {target}")
    if any(rule["call"] == "write" for rule in rules):
        builtins.open = open_watched
        io.open = open_watched


if PLAN:
    install(json.loads(Path(PLAN, "strikes.json").read_text()))
