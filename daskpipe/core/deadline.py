"""Read the walltime of this process from its environment, and decide when its work must go elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress
from functools import cache

from daskpipe.core.errors import Yielded

DEADLINE = ("DASKPIPE_DEADLINE", "SLURM_JOB_END_TIME")
"""Environment variables that give the time at which a worker will be ended, in seconds since 1970."""

YIELD_SECONDS = 60.0
"""Seconds before the end of its worker at which a unit writes its last checkpoint."""


def seconds_left() -> float:
    """Return the seconds until this process will be ended, by its environment; infinite if that gives no end."""
    ends = [end for end in _read_deadlines().values() if end > _process_start()]
    return min(ends, default=float("inf")) - time.time()


def ends_soon(needed: float = 0.0) -> bool:
    """Return whether this process ends too soon for work of `needed` seconds and a last checkpoint."""
    return seconds_left() < YIELD_SECONDS + needed


def yield_if_ending(needed: float = 0.0) -> None:
    """Raise an error that hands the unit to another worker, if this one ends soon.

    Parameters
    ----------
    needed
        Seconds of work that must fit in before the end.

    Raises
    ------
    Yielded
        If `ends_soon`.
    """
    if ends_soon(needed):
        reason = f", and the unit may need {needed:.0f} s" if needed else ""
        raise Yielded(f"the worker ends in {max(0.0, seconds_left()):.0f} s{reason}")


def stale_deadlines() -> dict[str, float]:
    """Return the environment variables that give a time before this process began, and that time, s since 1970.

    They are left over from another job, for example in a shell that outlived its ``salloc``.
    """
    return {name: end for name, end in _read_deadlines().items() if end <= _process_start()}


def _read_deadlines() -> dict[str, float]:
    return {name: float(os.environ[name]) for name in DEADLINE if os.environ.get(name)}


@cache
def _process_start() -> float:
    """Return when the process began that a person or a queue started, s since 1970.

    For a worker that is the process of its nanny: one that is started again after the deadline of its job still has it.
    """
    import psutil

    parent = multiprocessing.parent_process()
    with suppress(psutil.NoSuchProcess):
        if parent is not None and parent.pid is not None:
            return float(psutil.Process(parent.pid).create_time())
    return float(psutil.Process().create_time())
