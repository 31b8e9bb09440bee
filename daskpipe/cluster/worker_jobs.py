"""A job of workers, as the scaler knows it: its submission, its workers, and what it printed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskpipe.cluster.job_script import ON_HOST
from daskpipe.cluster.listings import Listing
from daskpipe.cluster.queues import JobState
from daskpipe.cluster.sites import Site
from daskpipe.cluster.submitted_jobs import Submission

HOST_LIMIT = 2
"""Jobs in a row that end early on one host, after which it is left out."""

LOG_LINES = 15
"""Last lines of a job's log that an error shows."""


@dataclass(eq=False)
class WorkerJob:
    """A job that was submitted and is not known to be over.

    Parameters
    ----------
    submission
        Its number and name.
    submitted
        When, by the monotonic clock.
    """

    submission: Submission
    submitted: float
    listed: bool = False
    """Whether the queue has named it."""
    missed: int = 0
    """How often in a row it has not since."""
    pending: bool = True
    running_since: float | None = None
    ending_since: float | None = None
    host: str | None = None
    workers: list[Any] = field(default_factory=list)
    """Those of it that are registered now, as the scheduler knows them."""
    seen: float | None = None
    """When one was last."""
    idle_since: float | None = None
    """Since when it has had nothing to do while there were more jobs than work."""
    cancelled_unseen: bool = False
    """Whether it was cancelled by its number though the queue had not named it."""

    @property
    def job_id(self) -> str:
        """Its number, or words for want of one."""
        return str(self.submission)

    @property
    def pool(self) -> str:
        """The pool that it belongs to."""
        return self.submission.pool

    @property
    def name(self) -> str:
        """Its name, and that of its workers."""
        return self.submission.name

    def state_in(self, listing: Listing) -> JobState | None:
        """Return its state; None if it is not listed, or over."""
        state = listing.find_state(self.submission)
        return None if state is None or state.state == "over" else state

    def host_in_log(self, folder: Path) -> str | None:
        """Return its host from what it printed first; None if it has not begun, as far as a log tells."""
        for file in folder.glob(f"{self.name}[-.]*"):
            if found := re.search(rf"^{ON_HOST} (\S+)", _read_log(file), re.MULTILINE):
                return found[1]
        return None

    def end_of_log(self, folder: Path) -> str:
        """Return the last lines of what it printed."""
        for file in sorted(folder.glob(f"{self.name}[-.]*")):
            lines = _read_log(file).splitlines()[-LOG_LINES:]
            return "\n".join(["", *lines, f"({file})"]).lstrip("\n")
        return f"(it left no log in {folder})"


def _read_log(file: Path) -> str:
    """Return the text of a log; none if the disk does not give it now, since it only explains."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


class HostFailures:
    """Counts jobs in a row that ended early on a host."""

    def __init__(self) -> None:
        self.excluded: set[str] = set()
        """Hosts that new jobs leave out."""
        self._strikes: dict[str, int] = {}

    def add(self, host: str) -> bool:
        """Count a job that ended early; return whether the host is left out from now on."""
        self._strikes[host] = self._strikes.get(host, 0) + 1
        if self._strikes[host] < HOST_LIMIT or host in self.excluded:
            return False
        self.excluded.add(host)
        return True

    def remove(self, host: str | None) -> None:
        """Forget the jobs that ended early on a host."""
        self._strikes.pop(host or "", None)

    def clear(self) -> None:
        """Forget all."""
        self.excluded.clear()
        self._strikes.clear()


def count_wanted_jobs(site: Site, units: Mapping[str, int]) -> dict[str, int]:
    """Return how many jobs of each pool the work needs; pools of one resource are filled in their order.

    Parameters
    ----------
    site
        Has the pools.
    units
        Units that wait or are under way, by resource.
    """
    left = dict(units)
    wanted = {}
    for name, pool in site.pools.items():
        n_units = left.get(pool.resource, 0)
        wanted[name] = max(pool.keep, min(pool.jobs, math.ceil(n_units / pool.n_processes)))
        left[pool.resource] = max(0, n_units - wanted[name] * pool.n_processes)
    return wanted
