"""Start drivers as processes of their own, which tests can kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from small_runs import SMALL, last_segment
from waiting import PATIENCE

Events = list[dict[str, Any]]


class Driver:
    """Run ``daskpipe run`` or ``daskpipe resume`` in a process and a process group of its own."""

    def __init__(
        self, run_dir: Path, *words: str, program: Sequence[str] = ("-m", "daskpipe"), prefix: Sequence[str] = ()
    ) -> None:
        self.run_dir = run_dir
        self.log = run_dir.with_name(f"{run_dir.name}.txt")
        command = [*prefix, sys.executable, *program, *words]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_until(self, reached: Callable[[Events], bool]) -> list[psutil.Process]:
        """Return the child processes of the driver as soon as its ledger meets a condition."""
        before = set((self.run_dir / "ledger").glob("*.jsonl")) if self.run_dir.exists() else set()
        deadline = time.monotonic() + PATIENCE
        children: list[psutil.Process] = []
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the driver ended with {self.process.returncode}: {self.log.read_text()}")
            if set((self.run_dir / "ledger").glob("*.jsonl")) - before:
                children = children or psutil.Process(self.process.pid).children(recursive=True)
                if reached(last_segment(self.run_dir)):
                    return children
            time.sleep(0.003)
        raise AssertionError(f"the driver never met the condition: {self.log.read_text()}")

    def send(self, number: int, *, group: bool = False) -> int:
        """Send a signal to the driver, or to its whole group as a terminal does; return its exit code."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self.process.wait(PATIENCE)

    def finish(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(PATIENCE)


def run(run_dir: Path) -> Driver:
    """Start the small config with two workers."""
    return Driver(run_dir, "run", "emt_alloy", *SMALL, "cluster.workers=2", "cluster.gpus=0", "--run-dir", str(run_dir))


def resume(run_dir: Path) -> Driver:
    """Resume the run in a directory."""
    return Driver(run_dir, "resume", str(run_dir))


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    """Check that no process outlives its driver for long."""
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert [process.cmdline() for process in alive] == []


SIGKILL, SIGTERM, SIGINT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
