"""Know a job of workers: its submission, its workers, and its log."""

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

LOG_LINES = 15
"""Last lines of a job's log that an error shows."""


@dataclass(eq=False)
class WorkerJob:
    """A job of workers that was submitted and is not known to be over.

    Times are those of the monotonic clock, in s.

    Parameters
    ----------
    submission
        Id and name of the job.
    submitted
        Time of the submission.
    """

    submission: Submission
    submitted: float
    listed: bool = False
    """Whether the queue has ever listed it."""
    missed: int = 0
    """Listings in a row that lack it, after one that had it."""
    pending: bool = True
    running_since: float | None = None
    ending_since: float | None = None
    host: str | None = None
    workers: list[Any] = field(default_factory=list)
    """Its workers that are registered now, as the scheduler knows them."""
    seen: float | None = None
    """Time at which a worker of it was last registered."""
    idle_since: float | None = None
    """Time since which it has had nothing to do while there were more jobs than work."""
    cancelled_unseen: bool = False
    """Whether it was cancelled by its id though the queue had not listed it."""

    @property
    def job_id(self) -> str:
        """Its id, or words in place of one."""
        return str(self.submission)

    @property
    def pool(self) -> str:
        """Name of its pool."""
        return self.submission.pool

    @property
    def name(self) -> str:
        """Name of the job and of its workers."""
        return self.submission.name

    def find_state(self, listing: Listing) -> JobState | None:
        """Return its state in a listing; None if it is not listed, or over."""
        state = listing.find_state(self.submission)
        return None if state is None or state.state == "over" else state

    def read_host(self, folder: Path) -> str | None:
        """Read from its log on which host it runs; None if no log says that it has begun."""
        for file in folder.glob(f"{self.name}[-.]*"):
            if match := re.search(rf"^{ON_HOST} (\S+)", _read_log(file), re.MULTILINE):
                return match[1]
        return None

    def read_end_of_log(self, folder: Path) -> str:
        """Return the last lines of its log."""
        for file in sorted(folder.glob(f"{self.name}[-.]*")):
            lines = _read_log(file).splitlines()[-LOG_LINES:]
            return "\n".join(["", *lines, f"({file})"]).lstrip("\n")
        return f"(it left no log in {folder})"


def _read_log(file: Path) -> str:
    """Return the text of a log; an empty one if the disk fails, since a log only explains."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def count_wanted_jobs(site: Site, units: Mapping[str, int]) -> dict[str, int]:
    """Return how many jobs of each pool the work needs; fill pools of one resource in their order.

    Parameters
    ----------
    site
        The site, with its pools.
    units
        Units that wait or are under way, by resource.

    Examples
    --------
    >>> from daskpipe.cluster.sites import Site
    >>> pools = {"small": {"jobs": 1, "cores": 2}, "large": {"jobs": 5, "cores": 4}}
    >>> site = Site.model_validate({"name": "here", "class": "SLURM", "pools": pools})
    >>> count_wanted_jobs(site, {"CPU": 7})
    {'small': 1, 'large': 2}
    """
    left = dict(units)
    wanted = {}
    for name, pool in site.pools.items():
        n_units = left.get(pool.resource, 0)
        wanted[name] = max(pool.keep, min(pool.jobs, math.ceil(n_units / pool.n_processes)))
        left[pool.resource] = max(0, n_units - wanted[name] * pool.n_processes)
    return wanted
