"""Conclude from a queue's listing whether the jobs of a run directory wait, run, are gone, or are unknown.

A number alone identifies no job: queues use numbers again, other clusters have the same ones, and the run directory
may be a copy of another one. So a job counts as listed only if its number *and* its name are listed.

A listing without a job does not prove that the job is gone: it may list another user's jobs, hide some, or come too
early. It is a proof for a job that a listing of the same user and cluster has shown before. It is also a proof for a
job that was submitted more than a minute ago, if such a listing is known to show jobs of this run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daskpipe.cluster.queues import JobState, get_queue_system
from daskpipe.cluster.submitted_jobs import Submission, job_name_prefix, names_differ, read_submissions, record_closed

SETTLED_SECONDS = 60.0
"""Seconds after its submission in which every queue lists a job, if it lists the job to this user at all."""

Fate = Literal["queued", "gone", "unknown", "elsewhere"]
"""Conclusion about a job: in the queue, over, unknown, or in another cluster."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Jobs that a queue has listed.

    Parameters
    ----------
    kind, cluster_name, user
        Queue system that was asked, its cluster if that is known, and the user whose jobs it listed.
    jobs
        State of each job, by id.
    """

    kind: str
    cluster_name: str | None
    user: str
    jobs: dict[str, JobState]

    def find_id(self, job: Submission) -> str | None:
        """Return the id under which a job is listed with its name; None if it is not listed."""
        queue_system = get_queue_system(self.kind)
        candidates = [job.job_id] if job.job_id is not None else self.jobs
        ids = [
            job_id
            for job_id in candidates
            if job_id in self.jobs and queue_system.matches_name(self.jobs[job_id].name, job.name)
        ]
        return ids[0] if len(ids) == 1 and not self.is_elsewhere(job) else None

    def find_state(self, job: Submission) -> JobState | None:
        """Return the state of a job; None if it is not listed."""
        job_id = self.find_id(job)
        return None if job_id is None else self.jobs[job_id]

    def is_elsewhere(self, job: Submission) -> bool:
        """Tell whether a job was submitted to another cluster."""
        return job.kind != self.kind or names_differ(job.cluster_name, self.cluster_name)

    def has_other(self, job: Submission) -> bool:
        """Tell whether another job is listed under the number of this one."""
        return job.job_id in self.jobs and self.find_id(job) is None

    def conclude_fate(self, job: Submission, *, shows_ours: bool) -> Fate:
        """Conclude where a job is.

        Parameters
        ----------
        job
            Job of this run.
        shows_ours
            Whether such a listing is known to show jobs of this run.
        """
        state = self.find_state(job)
        if state is not None:
            return "gone" if state.state == "over" else "queued"
        if self.is_elsewhere(job) or (self.has_other(job) and None in (job.cluster_name, self.cluster_name)):
            return "elsewhere"
        if names_differ(job.user, self.user):
            return "unknown"
        return "gone" if job.seen or self.has_other(job) or (shows_ours and job.age > SETTLED_SECONDS) else "unknown"

    def sort_by_fate(self, jobs: Iterable[Submission]) -> dict[Fate, list[Submission]]:
        """Return jobs of this run by where they are."""
        jobs = list(jobs)
        shows_ours = any(
            self.find_id(job) or (job.seen and not self.is_elsewhere(job) and not names_differ(job.user, self.user))
            for job in jobs
        )
        fates: dict[Fate, list[Submission]] = {"queued": [], "gone": [], "unknown": [], "elsewhere": []}
        for job in jobs:
            fates[self.conclude_fate(job, shows_ours=shows_ours)].append(job)
        return fates


def record_end_of_jobs(root: Path, listing: Listing) -> None:
    """Record that all jobs of a run directory are gone, those of earlier drivers included, if a listing proves it.

    A job that is listed as ending was cancelled before, so it will not be back.

    Parameters
    ----------
    root
        Run directory.
    listing
        Listing made after all jobs were cancelled.
    """
    ours = [job for job in read_submissions(root) if job.name.startswith(f"{job_name_prefix(root)}-")]
    fates = listing.sort_by_fate(job for job in ours if not listing.is_elsewhere(job))
    states = [listing.find_state(job) for job in fates["queued"]]
    all_end = all(state is not None and state.ends_by_itself for state in states)
    if (fates["gone"] or states) and all_end and not fates["unknown"]:
        record_closed(root, listing.kind, listing.cluster_name)
