"""Commands of queues: what submits jobs, lists them, and cancels them.

A job is cancelled under two conditions by a process that has not submitted it: its name begins with `tag` of the run
directory, which is a hash of the path, and the queue lists its number under its name (`daskpipe.cluster.listings`). So
a copy of a run directory leaves the jobs of the original alone, and a resume on another cluster those of strangers.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from daskpipe.cluster import job_script, sites
from daskpipe.cluster.listings import Fate, Listing
from daskpipe.cluster.queues import CLUSTER_NAME, lists_nothing, read_job_id
from daskpipe.cluster.submitted_jobs import Submission, record, recorded, tag, time_now
from daskpipe.core.errors import ClusterError

COMMAND_SECONDS = 60.0
"""Time that the queue has to answer the scaler."""

ANSWER_SECONDS = 30.0
"""Time that it has to answer somebody who waits."""

NAME_TRIES, NAME_PAUSE = 5, 1.0
"""Looks for a job by its name, and seconds between them, where the queue's answer had no id."""


# --- lists ------------------------------------------------------------------------------------------------


def list_jobs(site: sites.Site) -> Listing:
    """Ask a queue for the jobs of whoever runs this, where nothing else has to go on.

    Raises
    ------
    ClusterError
        If it does not answer.
    """
    words = job_script.queue(site)
    done = _run(words)
    if done.returncode and not lists_nothing(site.kind, done.stderr + done.stdout):
        raise ClusterError(f"{shlex.join(words)}: {done.stderr.strip()}. Try again when it answers")
    jobs = job_script.parse(site, "" if done.returncode else done.stdout)
    cluster_name = None
    if site.kind in CLUSTER_NAME:
        words, pattern = CLUSTER_NAME[site.kind]
        with suppress(ClusterError):
            cluster_name = _first_group(pattern, ask(words))
    return Listing(kind=site.kind, cluster_name=cluster_name, user=job_script.user_name(), jobs=jobs)


async def list_jobs_async(site: sites.Site, cluster_name: str | None) -> Listing:
    """Ask a queue for the jobs of whoever runs this, in a cluster whose name is known; raises as `output`."""
    try:
        text = await output(job_script.queue(site))
    except RuntimeError as error:
        if not lists_nothing(site.kind, str(error)):
            raise
        text = ""
    return Listing(
        kind=site.kind, cluster_name=cluster_name, user=job_script.user_name(), jobs=job_script.parse(site, text)
    )


async def name_cluster(site: sites.Site) -> str | None:
    """Ask a queue for the name of its cluster; return None if it does not say."""
    if site.kind not in CLUSTER_NAME:
        return None
    words, pattern = CLUSTER_NAME[site.kind]
    try:
        return _first_group(pattern, await output(words))
    except (OSError, RuntimeError):
        return None


def _first_group(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


# --- jobs begin -------------------------------------------------------------------------------------------


class NoJobIdError(ClusterError):
    """A queue took a job, its answer has no id, and it lists no job of that name.

    Parameters
    ----------
    message
        For people.
    submission
        The job, without an id.
    """

    def __init__(self, message: str, submission: Submission) -> None:
        super().__init__(message)
        self.submission = submission


async def submit(site: sites.Site, job: Any, *, pool: str, cluster_name: str | None) -> Submission:
    """Submit a job; return it with the id that the queue gave it.

    Parameters
    ----------
    site, job
        Where, and what `sites.job` returned.
    pool
        Name of its pool.
    cluster_name
        As `name_cluster` returned it.

    Raises
    ------
    OSError, RuntimeError
        If the queue does not take it.
    NoJobIdError
        If it does, and the job's id is neither in its answer nor in its list.
    """
    with job.job_file() as script:
        answer = await job._submit_job(script)
    submission = Submission(
        job_id=None,
        name=job.job_name,
        kind=site.kind,
        cluster_name=cluster_name,
        user=job_script.user_name(),
        at=time_now(),
        pool=pool,
    )
    try:
        job_id, cluster = read_job_id(site.kind, answer)
    except ValueError as error:
        for _ in range(NAME_TRIES):
            await asyncio.sleep(NAME_PAUSE)
            try:
                found = (await list_jobs_async(site, cluster_name)).id_of(submission)
            except (OSError, RuntimeError):
                continue
            if found is not None:
                return replace(submission, job_id=found, seen=True)
        raise NoJobIdError(
            f"{error}. {shlex.join(job_script.queue(site))} does not show its job {job.job_name} either. If that is in "
            "the queue, cancel it by hand; and have the submit command print the queue's own answer",
            submission,
        ) from error
    return replace(submission, job_id=job_id, cluster_name=cluster or cluster_name)


# --- jobs end ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cancelled:
    """Ids of the cancelled jobs of a run directory, and sentences on its other jobs.

    Parameters
    ----------
    jobs
        Ids of those that were cancelled.
    doubts
        Sentences on those that may be left.
    notes
        Sentences on jobs of another run directory, which this one is a copy of.
    """

    jobs: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def cancel_left(site: sites.Site, root: Path) -> Cancelled:
    """Cancel jobs of a run directory that no driver keeps any more.

    Parameters
    ----------
    site
        A site with the queue that they were submitted to; jobs of other queues are passed over.
    root
        Run directory of which no driver lives.

    Raises
    ------
    ClusterError
        If the queue does not answer.
    """
    return cancel_jobs(site, root, [job for job in recorded(root) if job.kind == site.kind])


def cancel_jobs(site: sites.Site, root: Path, jobs: Sequence[Submission]) -> Cancelled:
    """Cancel those jobs of a run directory that the queue lists under their names; parameters as `cancel_left`."""
    if not jobs:
        return Cancelled()
    listing = list_jobs(site)
    ours = [job for job in jobs if job.name.startswith(f"{tag(root)}-")]
    fates = listing.fates(ours)
    for job in ours:
        if not job.seen and listing.id_of(job):
            record(root, seen=job.name)  # so that its absence will tell that it is gone
    ids = [job_id for job in fates["queued"] if (job_id := listing.id_of(job))]
    if ids:
        ask([*cancel_command(site), *ids])
    others = [job for job in listing.fates([job for job in jobs if job not in ours])["queued"] if job.job_id]
    notes = []
    if others:
        named = ", ".join(map(str, others))
        notes.append(
            f"jobs {named} were submitted by a run in another directory, of which this is a copy, and are left alone. "
            f"If it was moved here, type: {shlex.join([*cancel_command(site), *(str(job) for job in others)])}"
        )
    return Cancelled(ids, doubts_of(site, root, fates), notes)


def describe_left(site: sites.Site, root: Path, jobs: Sequence[Submission], listing: Listing | None) -> str:
    """Return what to type for jobs that were cancelled and not seen to leave the queue.

    Parameters
    ----------
    site, root, jobs
        As of `cancel_jobs`.
    listing
        The last list of the queue; None if it does not answer.
    """
    ids = sorted(job.job_id for job in jobs if job.job_id)
    words = f" Type: {shlex.join([*cancel_command(site), *ids])}" if ids else ""
    if listing is None:
        return f"the queue does not answer, and may still hold jobs of this run.{words}"
    doubts = doubts_of(site, root, listing.fates(jobs))
    return " ".join(doubts) or f"jobs were cancelled, and the queue still holds them.{words}"


def doubts_of(site: sites.Site, root: Path, fates: dict[Fate, list[Submission]]) -> list[str]:
    """Return a sentence on jobs that the queue does not show, and one on those of other clusters, if there are any."""
    doubts = []
    if unknown := fates["unknown"]:
        ids = [job.job_id for job in unknown if job.job_id]
        words = f"; if it still has them, type: {shlex.join([*cancel_command(site), *ids])}" if ids else ""
        users = " or ".join(sorted({job.user for job in unknown if job.user})) or job_script.user_name()
        doubts.append(
            f"the queue does not list jobs {', '.join(map(str, unknown))} of this run, and may still hold them. "
            f"Look as user {users}: {shlex.join(job_script.queue(site))}{words}"
        )
    if elsewhere := fates["elsewhere"]:
        where = " and ".join(sorted({job.cluster_name or "another cluster" for job in elsewhere}))
        doubts.append(
            f"jobs {', '.join(map(str, elsewhere))} of this run were submitted to {where}, which is not asked here. "
            f"Type there: daskpipe cancel {shlex.quote(os.fspath(root))}"
        )
    return doubts


def cancel_command(site: sites.Site) -> list[str]:
    """Return the words before the ids of jobs that are to be cancelled."""
    return shlex.split(job_script.job_class(site).cancel_command)


# --- commands ---------------------------------------------------------------------------------------------


def ask(words: Sequence[str]) -> str:
    """Run a command of a queue, where nothing else has to go on; return what it prints.

    Raises
    ------
    ClusterError
        If it is not there, fails or does not answer.
    """
    done = _run(words)
    if done.returncode:
        raise ClusterError(f"{shlex.join(words)}: {done.stderr.strip()}. Try again when it answers")
    return done.stdout


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{shlex.join(words)}: {error}. Type this where the site's commands are") from error


async def output(words: Sequence[str]) -> str:
    """Run a command; return what it printed.

    Raises
    ------
    OSError, RuntimeError
        If there is no such command, or it fails or does not answer; with what it said.
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


def words_of(error: Exception) -> str:
    """Return what a command said, on one line; dask-jobqueue wraps it into words of its own."""
    return " ".join(str(error).rpartition("stderr:")[2].split()) or type(error).__name__
