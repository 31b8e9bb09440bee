"""Conclude from a queue's list where the jobs of a run directory are.

A number alone names no job: queues use their numbers again, other clusters have the same ones, and the run directory
may be a copy of another. So a job is found under its number *and* its name.

A list without a job does not tell that the job is gone: it may be a list of another user's jobs, one that hides them,
or one that comes too early. It tells so of a job that such a list of the same user and cluster has shown before; and of
one that was submitted more than a minute ago, if such a list is known to show jobs of this run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from daskpipe.cluster.queues import JobState, Kind, is_named
from daskpipe.cluster.submitted_jobs import Submission, differ

SETTLED_SECONDS = 60.0
"""Time after its submission in which every queue lists a job, if it lists any to this user."""

Fate = Literal["queued", "gone", "unknown", "elsewhere"]
"""Place of a job by a list of a queue: in it, over, not known, or in another cluster."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The jobs that a queue has listed.

    Parameters
    ----------
    kind, cluster_name, user
        The queue that was asked, its cluster if that is known, and for whose jobs.
    jobs
        By id.
    """

    kind: Kind
    cluster_name: str | None
    user: str
    jobs: dict[str, JobState]

    def id_of(self, job: Submission) -> str | None:
        """Return the id under which a job is listed with its name; None if it is not listed."""
        ids = [job.job_id] if job.job_id is not None else self.jobs
        named = [each for each in ids if each in self.jobs and is_named(self.kind, self.jobs[each].name, job.name)]
        return named[0] if len(named) == 1 and not self.is_elsewhere(job) else None

    def state_of(self, job: Submission) -> JobState | None:
        """Return the state of a job; None if it is not listed."""
        job_id = self.id_of(job)
        return None if job_id is None else self.jobs[job_id]

    def is_elsewhere(self, job: Submission) -> bool:
        """Tell whether a job was submitted to another cluster."""
        return job.kind != self.kind or differ(job.cluster_name, self.cluster_name)

    def has_other(self, job: Submission) -> bool:
        """Tell whether the number of a job is that of another one here."""
        return job.job_id in self.jobs and self.id_of(job) is None

    def fate_of(self, job: Submission, *, shows_ours: bool) -> Fate:
        """Return where a job is.

        Parameters
        ----------
        job
            Of this run.
        shows_ours
            Whether such a list is known to show jobs of this run.
        """
        state = self.state_of(job)
        if state is not None:
            return "gone" if state.state == "over" else "queued"
        if self.is_elsewhere(job) or (self.has_other(job) and None in (job.cluster_name, self.cluster_name)):
            return "elsewhere"
        if differ(job.user, self.user):
            return "unknown"
        return "gone" if job.seen or self.has_other(job) or (shows_ours and job.age > SETTLED_SECONDS) else "unknown"

    def fates(self, jobs: Iterable[Submission]) -> dict[Fate, list[Submission]]:
        """Return jobs of this run by where they are."""
        jobs = list(jobs)
        shows_ours = any(
            self.id_of(job) or (job.seen and not self.is_elsewhere(job) and not differ(job.user, self.user))
            for job in jobs
        )
        fates: dict[Fate, list[Submission]] = {"queued": [], "gone": [], "unknown": [], "elsewhere": []}
        for job in jobs:
            fates[self.fate_of(job, shows_ours=shows_ours)].append(job)
        return fates
