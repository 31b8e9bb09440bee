"""Run a program that computes for this process; end it when it hangs, holds too much memory or closes its pipe."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from daskpipe.core.deadline import yield_if_ending
from daskpipe.core.heartbeat import send_heartbeat

TRIES = 3
"""Tries of a structure at which the program ends; each has a new process."""

POLL_SECONDS = 0.2
"""Seconds between two looks at the program."""

MEMORY_SECONDS = 1.0
"""Seconds between two measurements of its memory."""

SHARE_OF_MEMORY = 0.8
"""Share of the machine's memory that the program may hold if no other limit is given."""

MOST_STDERR = 2000
"""Characters of its standard error that evidence quotes, from the end."""

# Linux kills the program when its parent dies; a program that was started before cannot outlive its worker.
START = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


class ChildEnded(Exception):
    """The program ended, or was ended, before it answered.

    Parameters
    ----------
    reason
        ``crashed``, ``hung`` or ``memory``.
    evidence
        What happened, with the end of its standard error.
    """

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(f"{reason}: {evidence}")
        self.reason = reason
        self.evidence = evidence


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """Limits of a program.

    Parameters
    ----------
    silence
        Seconds that it may take for an answer.
    memory
        Bytes that it and its own children may hold; 0 for `SHARE_OF_MEMORY` of the machine's memory.
    """

    silence: float = 3600.0
    memory: int = 0


class ChildProcess:
    """Program that is asked through its standard input and answers on its standard output.

    While this process waits for it, heartbeats are sent, and the unit is given up if the worker ends soon.

    Parameters
    ----------
    command
        Program and arguments.
    limits
        What it may take.
    folder
        Its current directory.
    environment
        Variables that are added to this process's environment.
    """

    def __init__(
        self,
        command: Sequence[str],
        limits: ChildLimits,
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        import psutil

        self.limits = limits
        self._memory = limits.memory or int(SHARE_OF_MEMORY * psutil.virtual_memory().total)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", START, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, cwd=folder,
            env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._received = bytearray()
        self._wrote = ""
        # Also when nothing refers to it any more, and when this process ends.
        self._end = weakref.finalize(self, _end_process, self._process, self._stderr)

    def write(self, data: bytes) -> None:
        """Send bytes.

        Raises
        ------
        ChildEnded
            If the program ends, or does not take them in time.
        """
        started = time.monotonic()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._input, rest) :]
                started = time.monotonic()
            except BlockingIOError:
                self._watch(started)
                select.select([], [self._input], [], POLL_SECONDS)
            except BrokenPipeError:
                raise self._ended() from None

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes of its answer.

        Raises
        ------
        ChildEnded
            If the program ends, or is silent for too long, or holds too much memory.
        Yielded
            If this worker ends soon.
        """
        self._receive(lambda: len(self._received) >= size)
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def read_line(self) -> str:
        """Return the next line of its answer, without its end; raise as `read` does."""
        self._receive(lambda: b"\n" in self._received)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return line.decode(errors="replace").rstrip("\r")

    def _receive(self, is_enough: Callable[[], bool]) -> None:
        started = measured = time.monotonic()
        while not is_enough():
            ready, _, _ = select.select([self._output], [], [], POLL_SECONDS)
            if ready:
                data = os.read(self._output, 1 << 20)
                if not data:
                    raise self._ended()
                self._received += data
                started = time.monotonic()
                continue
            if self._process.poll() is not None:  # a process that it forked may keep the pipe open
                raise self._ended()
            self._watch(started)
            if time.monotonic() - measured > MEMORY_SECONDS:
                self._check_memory()
                measured = time.monotonic()

    def _watch(self, started: float) -> None:
        """Send a heartbeat, and end the program if it has been silent for too long or this worker ends."""
        send_heartbeat()
        try:
            yield_if_ending()
        except BaseException:
            self.kill()
            raise
        silent = time.monotonic() - started
        if silent > self.limits.silence:
            self.kill()
            raise ChildEnded(
                "hung", f"no answer for {silent:.0f} s (the limit is {self.limits.silence:g} s){self._quote_stderr()}"
            )

    def _check_memory(self) -> None:
        used = measure_memory(self._process.pid)
        if used > self._memory:
            self.kill()
            raise ChildEnded("memory", f"it held {used / 1e9:.2f} GB of the {self._memory / 1e9:.2f} GB that it may")

    def _ended(self) -> ChildEnded:
        """Return the error for a program that has closed its pipe or ended, after ending what is left of it."""
        try:
            code: int | None = self._process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        if code is None:
            how = "it closed its pipe"
        elif code < 0:
            how = f"its process ended with {signal.Signals(-code).name}"
        else:
            how = f"its process ended with exit code {code}"
        return ChildEnded("crashed", how + self._quote_stderr())

    def _quote_stderr(self) -> str:
        """Return the end of its standard error, as the end of a sentence; empty if it wrote nothing."""
        return f"; it wrote: {self._wrote}" if self._wrote else ""

    @property
    def lives(self) -> bool:
        """Return whether the program runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the program and all that it started, and keep the end of what it wrote."""
        if not self._end.alive:
            return
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - MOST_STDERR))
        self._wrote = self._stderr.read().decode(errors="replace").strip()
        self._end()


def _end_process(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    """End a program and all that it started, and close what leads to it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, stderr):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()


def measure_memory(pid: int) -> int:
    """Return the resident memory of a process and of those that it started, bytes; 0 if it has ended."""
    import psutil

    used = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                used += each.memory_info().rss
    return used
