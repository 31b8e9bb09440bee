"""Run ``mace_run_train`` as a process of its own, follow it, and stop it when its time is up."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from daskpipe.core.errors import InputError
from daskpipe.core.events import Emit, Event
from daskpipe.train.options import Options, command_line

NAME = "model"
"""Prefix of the files of MACE."""

LAST_LINES = 12
"""Lines of the log in the message of a training that failed."""

POLL = 0.2
"""Seconds between two readings of the results of MACE."""


@dataclass(frozen=True, kw_only=True)
class EpochFinished(Event):
    """An epoch of training with its validation: energy in eV per atom, forces in eV/Å, seconds since the start."""

    epoch: int
    n_epochs: int
    loss: float
    energy_rmse: float
    force_rmse: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:>4} of {self.n_epochs}  loss {self.loss:.3g}  validation RMSE: "
            f"energy {1e3 * self.energy_rmse:.1f} meV/atom, forces {self.force_rmse:.4f} eV/Å  {self.seconds:.0f} s"
        )


def run_mace(
    options: Options, work: Path, log: Path, emit: Emit, max_minutes: float | None = None
) -> list[EpochFinished]:
    """Run ``mace_run_train``, which writes ``model.model`` with the weights of the lowest validation loss into `work`.

    Parameters
    ----------
    options
        Options of ``mace_run_train``.
    work
        Folder with the data, in which MACE runs.
    log
        File for the output of MACE.
    emit
        Receives each epoch.
    max_minutes
        Stop after the first epoch that ends later.

    Returns
    -------
    list of EpochFinished
        All epochs that were validated.

    Raises
    ------
    InputError
        If MACE fails or diverges, with the last lines of its log.
    """
    deadline = math.inf if max_minutes is None else 60 * max_minutes
    with log.open("w") as stream:
        history, stopped = _follow_mace(options, work, stream, emit, deadline)
        if stopped:
            # MACE loads its best weights, trains no further epoch, and writes its model.
            last = options | {"restart_latest": True, "max_num_epochs": 0}
            _follow_mace(last, work, stream, lambda _: None, math.inf)
    return history


def _follow_mace(
    options: Options, work: Path, log: TextIO, emit: Emit, deadline: float
) -> tuple[list[EpochFinished], bool]:
    """Run MACE to its end, or stop it at the deadline; return the epochs, and whether it was stopped."""
    words = command_line({"name": NAME, **options})
    log.write(f"mace_run_train {' '.join(words)}\n")
    log.flush()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "mace.cli.run_train", *words],
        cwd=work, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    history: list[EpochFinished] = []
    results = work / "results" / f"{NAME}_run-{options['seed']}_train.txt"
    try:
        while process.poll() is None:
            time.sleep(POLL)
            seconds = time.perf_counter() - started
            for line in _read_evaluations(results)[len(history) :]:
                history.append(_make_event(line, int(options["max_num_epochs"]), seconds))
                emit(history[-1])
                if not math.isfinite(history[-1].loss):
                    raise InputError(
                        f"training diverged in epoch {history[-1].epoch}: the loss is {history[-1].loss}; give a "
                        f"smaller learning rate, e.g. lr=0.001. The log is {log.name}"
                    )
            if seconds > deadline and _stop_between_saves(process, results):
                return history, True
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise InputError(
            f"mace_run_train failed with exit code {process.returncode}; the end of its log {log.name} is\n"
            f"{_read_tail(Path(log.name))}"
        )
    # Read the results that MACE wrote between the last reading and its end.
    for line in _read_evaluations(results)[len(history) :]:
        history.append(_make_event(line, int(options["max_num_epochs"]), time.perf_counter() - started))
        emit(history[-1])
    return history, False


def _read_results(results: Path) -> list[dict[str, Any]]:
    """Read the results of MACE; an incomplete last line is left out."""
    text = results.read_text() if results.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _read_evaluations(results: Path) -> list[dict[str, Any]]:
    """Read the validations after epochs; the one before the first epoch has no number."""
    return [line for line in _read_results(results) if line["mode"] == "eval" and line["epoch"] is not None]


def _make_event(line: dict[str, Any], n_epochs: int, seconds: float) -> EpochFinished:
    """Convert a line of the results to an event."""
    return EpochFinished(
        epoch=line["epoch"], n_epochs=n_epochs, loss=line["loss"], energy_rmse=line["rmse_e_per_atom"],
        force_rmse=line["rmse_f"], seconds=seconds,
    )  # fmt: skip


def _stop_between_saves(process: subprocess.Popen[bytes], results: Path) -> bool:
    """Kill MACE if it is within an epoch after the first, when it writes no checkpoint; return whether it was."""
    process.send_signal(signal.SIGSTOP)
    lines = _read_results(results)
    if lines and lines[-1]["mode"] == "opt" and lines[-1]["epoch"] > 0:
        process.kill()
        return True
    process.send_signal(signal.SIGCONT)
    return False


def _read_tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-LAST_LINES:])
