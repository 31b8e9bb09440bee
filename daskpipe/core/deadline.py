"""Tell when the walltime of this process ends."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress
from functools import cache

DEADLINE = ("DASKPIPE_DEADLINE", "SLURM_JOB_END_TIME")
"""Environment variables that tell a worker when it will be ended, in seconds since 1970."""


YIELD_SECONDS = 60.0
"""Time before the end of its worker at which a unit leaves its last checkpoint."""


def seconds_left() -> float:
    """Return the time until this process will be ended, as its environment tells; infinite if nothing tells it."""
    ends = [end for end in _deadlines().values() if end > _began()]
    return min(ends, default=float("inf")) - time.time()


def stale_deadlines() -> dict[str, float]:
    """Return the environment variables that name a time before this process began, and that time, s since 1970.

    They are left over from another job, for example in a shell that outlived its ``salloc``.
    """
    return {name: end for name, end in _deadlines().items() if end <= _began()}


def _deadlines() -> dict[str, float]:
    return {name: float(os.environ[name]) for name in DEADLINE if os.environ.get(name)}


@cache
def _began() -> float:
    """Return when the process began that a person or a queue started, s since 1970.

    For a worker that is the process of its nanny: one that is started again after the deadline of its job still has it.
    """
    import psutil

    parent = multiprocessing.parent_process()
    with suppress(psutil.NoSuchProcess):
        if parent is not None and parent.pid is not None:
            return float(psutil.Process(parent.pid).create_time())
    return float(psutil.Process().create_time())
