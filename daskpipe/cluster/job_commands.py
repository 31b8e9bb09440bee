"""Run the commands of a queue that submit, list and cancel jobs.

A process cancels a job that it has not submitted itself only under two conditions. The name of the job begins with a
hash of the run directory's path (`job_name_prefix`), and the queue lists its number under its name
(`daskpipe.cluster.listings`). So a copy of a run directory leaves the jobs of the original alone, and a resume on
another cluster leaves those of strangers alone.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from daskpipe.cluster.job_script import find_user_name, own_jobs_command
from daskpipe.cluster.listings import Fate, Listing
from daskpipe.cluster.sites import Site
from daskpipe.cluster.submitted_jobs import (
    Submission,
    append_line,
    format_time_now,
    job_name_prefix,
    read_submissions,
)
from daskpipe.core.errors import ClusterError

COMMAND_SECONDS = 60.0
"""Seconds that the queue has to answer the job scaler."""

ANSWER_SECONDS = 30.0
"""Seconds that the queue has to answer while a person waits."""

NAME_TRIES, NAME_PAUSE = 5, 1.0
"""Listings in which a job is sought by its name, and seconds between them, if the queue's answer had no id."""


# --- listings ---------------------------------------------------------------------------------------------


def list_jobs(site: Site) -> Listing:
    """Ask a queue for the jobs of the user who runs this process; block until it answers.

    Raises
    ------
    ClusterError
        If it does not answer.
    """
    queue_system = site.queue_system
    words = own_jobs_command(site)
    done = _run_process(words)
    if done.returncode and not queue_system.lists_nothing(done.stderr + done.stdout):
        raise ClusterError(f"{shlex.join(words)}: {done.stderr.strip()}. Try again when it answers")
    cluster_name = None
    if queue_system.cluster_command:
        with suppress(ClusterError):
            cluster_name = queue_system.read_cluster_name(run_command(queue_system.cluster_command))
    return _make_listing(site, cluster_name, "" if done.returncode else done.stdout)


async def list_jobs_async(site: Site, cluster_name: str | None) -> Listing:
    """Ask a queue for the jobs of the user who runs this process; raises as `run_command_async`.

    Parameters
    ----------
    site
        Site of the queue.
    cluster_name
        As `name_cluster` returned it.
    """
    try:
        text = await run_command_async(own_jobs_command(site))
    except RuntimeError as error:
        if not site.queue_system.lists_nothing(str(error)):
            raise
        text = ""
    return _make_listing(site, cluster_name, text)


def _make_listing(site: Site, cluster_name: str | None, text: str) -> Listing:
    jobs = site.queue_system.read_listing(text)
    return Listing(kind=site.kind, cluster_name=cluster_name, user=find_user_name(), jobs=jobs)


async def name_cluster(site: Site) -> str | None:
    """Ask a queue for the name of its cluster; return None if it does not say."""
    queue_system = site.queue_system
    if not queue_system.cluster_command:
        return None
    try:
        return queue_system.read_cluster_name(await run_command_async(queue_system.cluster_command))
    except (OSError, RuntimeError):
        return None


# --- submission -------------------------------------------------------------------------------------------


class NoJobIdError(ClusterError):
    """A queue took a job, its answer has no id, and it lists no job of that name.

    Parameters
    ----------
    message
        Message for people.
    submission
        The job, without an id.
    """

    def __init__(self, message: str, submission: Submission) -> None:
        super().__init__(message)
        self.submission = submission


async def submit_job(site: Site, job: Any, *, pool: str, cluster_name: str | None) -> Submission:
    """Submit a job; return it with the id that the queue gave it.

    Parameters
    ----------
    site, job
        The site, and what `job_script.build_job` returned.
    pool
        Name of the job's pool.
    cluster_name
        As `name_cluster` returned it.

    Raises
    ------
    OSError, RuntimeError
        If the queue does not take the job.
    NoJobIdError
        If the queue takes it, and its id is neither in the queue's answer nor in its listing.
    """
    with job.job_file() as script:
        answer = await job._submit_job(script)
    submission = Submission(
        job_id=None,
        name=job.job_name,
        kind=site.kind,
        cluster_name=cluster_name,
        user=find_user_name(),
        at=format_time_now(),
        pool=pool,
    )
    try:
        job_id, cluster = site.queue_system.read_job_id(answer)
    except ValueError as error:
        for _ in range(NAME_TRIES):
            await asyncio.sleep(NAME_PAUSE)
            try:
                listed_id = (await list_jobs_async(site, cluster_name)).find_id(submission)
            except (OSError, RuntimeError):
                continue
            if listed_id is not None:
                return replace(submission, job_id=listed_id, seen=True)
        raise NoJobIdError(
            f"{error}. {shlex.join(own_jobs_command(site))} does not show its job {job.job_name} either. If that is in "
            "the queue, cancel it by hand; and have the submit command print the queue's own answer",
            submission,
        ) from error
    return replace(submission, job_id=job_id, cluster_name=cluster or cluster_name)


# --- cancelling -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CancelReport:
    """Ids of the cancelled jobs of a run directory, and sentences about its other jobs.

    Parameters
    ----------
    jobs
        Ids of the jobs that were cancelled.
    doubts
        Sentences about jobs that may be left.
    notes
        Sentences about jobs of another run directory, which this one is a copy of.
    """

    jobs: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def cancel_leftover_jobs(site: Site, root: Path) -> CancelReport:
    """Cancel the jobs of a run directory that a dead driver has left.

    Parameters
    ----------
    site
        A site with the queue system that they were submitted to; jobs of other ones are passed over.
    root
        Run directory without a living driver.

    Raises
    ------
    ClusterError
        If the queue does not answer.
    """
    return cancel_jobs(site, root, [job for job in read_submissions(root) if job.kind == site.kind])


def cancel_jobs(site: Site, root: Path, jobs: Sequence[Submission]) -> CancelReport:
    """Cancel those jobs of a run directory that the queue lists under their names.

    Parameters
    ----------
    site, root
        As of `cancel_leftover_jobs`.
    jobs
        Jobs of the run directory, and of those that it is a copy of.

    Raises
    ------
    ClusterError
        If the queue does not answer.
    """
    if not jobs:
        return CancelReport()
    listing = list_jobs(site)
    ours = [job for job in jobs if job.name.startswith(f"{job_name_prefix(root)}-")]
    fates = listing.sort_by_fate(ours)
    for job in ours:
        if not job.seen and listing.find_id(job):
            append_line(root, seen=job.name)  # so that its absence from a later listing proves its end
    ids = [job_id for job in fates["queued"] if (job_id := listing.find_id(job))]
    if ids:
        run_command(cancel_command(site, ids))
    others = [job for job in listing.sort_by_fate([job for job in jobs if job not in ours])["queued"] if job.job_id]
    notes = []
    if others:
        named = ", ".join(map(str, others))
        notes.append(
            f"jobs {named} were submitted by a run in another directory, of which this is a copy, and are left alone. "
            f"If it was moved here, type: {shlex.join(cancel_command(site, map(str, others)))}"
        )
    return CancelReport(ids, describe_doubts(site, root, fates), notes)


def describe_leftover_jobs(site: Site, root: Path, jobs: Sequence[Submission], listing: Listing | None) -> str:
    """Return what to type for jobs that were cancelled and not seen to leave the queue.

    Parameters
    ----------
    site, root, jobs
        As of `cancel_jobs`.
    listing
        The last listing of the queue; None if it does not answer.
    """
    ids = sorted(job.job_id for job in jobs if job.job_id)
    advice = f" Type: {shlex.join(cancel_command(site, ids))}" if ids else ""
    if listing is None:
        return f"the queue does not answer, and may still hold jobs of this run.{advice}"
    doubts = describe_doubts(site, root, listing.sort_by_fate(jobs))
    return " ".join(doubts) or f"jobs were cancelled, and the queue still holds them.{advice}"


def describe_doubts(site: Site, root: Path, fates: dict[Fate, list[Submission]]) -> list[str]:
    """Return a sentence about jobs that the queue does not show, and one about those of other clusters, if any."""
    doubts = []
    if unknown := fates["unknown"]:
        ids = [job.job_id for job in unknown if job.job_id]
        advice = f"; if it still has them, type: {shlex.join(cancel_command(site, ids))}" if ids else ""
        users = " or ".join(sorted({job.user for job in unknown if job.user})) or find_user_name()
        doubts.append(
            f"the queue does not list jobs {', '.join(map(str, unknown))} of this run, and may still hold them. "
            f"Look as user {users}: {shlex.join(own_jobs_command(site))}{advice}"
        )
    if elsewhere := fates["elsewhere"]:
        clusters = " and ".join(sorted({job.cluster_name or "another cluster" for job in elsewhere}))
        doubts.append(
            f"jobs {', '.join(map(str, elsewhere))} of this run were submitted to {clusters}, which is not asked here. "
            f"Type there: daskpipe cancel {shlex.quote(os.fspath(root))}"
        )
    return doubts


def cancel_command(site: Site, ids: Iterable[str]) -> list[str]:
    """Return the words of the command that cancels jobs."""
    return [*site.queue_system.cancel_command.split(), *ids]


# --- processes --------------------------------------------------------------------------------------------


def run_command(words: Sequence[str]) -> str:
    """Run a command of a queue and return its output; block until it ends.

    Raises
    ------
    ClusterError
        If there is no such command, or it fails or does not answer.
    """
    done = _run_process(words)
    if done.returncode:
        raise ClusterError(f"{shlex.join(words)}: {done.stderr.strip()}. Try again when it answers")
    return done.stdout


def _run_process(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{shlex.join(words)}: {error}. Type this where the site's commands are") from error


async def run_command_async(words: Sequence[str]) -> str:
    """Run a command of a queue and return its output, without blocking the event loop.

    Raises
    ------
    OSError
        If there is no such command.
    RuntimeError
        If it fails or does not answer; with its complaint.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeError(f"{words[0]} did not answer in {COMMAND_SECONDS:.0f} s") from None
    if process.returncode:
        raise RuntimeError((err or out).decode(errors="replace"))
    return out.decode(errors="replace")


def describe_error(error: Exception) -> str:
    """Return the complaint of a command on one line, without the words that dask-jobqueue puts around it."""
    return " ".join(str(error).rpartition("stderr:")[2].split()) or type(error).__name__
