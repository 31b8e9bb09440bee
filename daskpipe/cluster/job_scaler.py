"""The scaler of a site's jobs: as many in the queue as there is work for, none lost without another in its place.

It compares four things: what the driver wants, what was submitted, what the queue says, and which workers have
registered with the scheduler. It runs on the scheduler's event loop, so it looks at the scheduler without asking.
"""

from __future__ import annotations

import asyncio
import queue
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.cluster import job_script, sites
from daskpipe.cluster.job_commands import (
    NoJobIdError,
    cancel_command,
    describe_left,
    list_jobs_async,
    name_cluster,
    output,
    submit,
    words_of,
)
from daskpipe.cluster.listings import SETTLED_SECONDS, Listing
from daskpipe.cluster.submitted_jobs import lines_of, record, record_closed, record_submission, recorded, tag
from daskpipe.cluster.worker_jobs import HOST_LIMIT, HostStrikes, WorkerJob, jobs_wanted
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Emit, Notice

if TYPE_CHECKING:
    from distributed import SpecCluster

TICK_SECONDS = 1.0
"""Time between two looks at the scheduler."""

QUEUE_SECONDS = 10.0
"""Time between two looks at the queue: it serves all users of the site."""

START_SECONDS = 300.0
"""Time that a job which runs has for its first worker to register, or to come back."""

ENDING_SECONDS = 60.0
"""Time that a job may take to end; one that is put back into the queue does so, too."""

SHORT_SECONDS = 60.0
"""A job that lives for less says that something is wrong with its host."""

FAILURE_LIMIT = 8
"""Jobs of a pool in a row that end, or are refused, before a worker registers, after which the run stops."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds without a submission after such a job; each doubles them."""

BURST = 20
"""Jobs that are submitted between two looks."""

CLOSE_SECONDS = 30.0
"""Time that the end of a run waits for its jobs to leave the queue."""


class JobScaler:
    """Has as many jobs of a site's pools in the queue as the driver wants; a `daskpipe.engine.dask_pool.WorkerSupply`.

    As a context manager: jobs are kept within it, and none is left after it.

    Parameters
    ----------
    cluster
        The scheduler, in this process.
    site
        Its pools.
    root
        Run directory: has the list of jobs, and their logs in ``jobs/``.
    keys
        Folder with the keys that workers show; None without TLS.
    emit
        Called with a `Notice` when jobs fail, on the thread that calls `want`.
    """

    def __init__(self, cluster: SpecCluster, site: sites.Site, root: Path, keys: Path | None, emit: Emit) -> None:
        self.cluster, self.site, self.root, self.keys, self.emit = cluster, site, root, keys, emit
        self.folder = root / "jobs"
        self.jobs: list[WorkerJob] = []
        self.wanted: dict[str, int] = {}
        """Units that wait or are under way, by resource."""
        self.failure: Exception | None = None
        """Why there will be no workers; raised by `want`."""
        self._hosts = HostStrikes()
        self._failures = dict.fromkeys(site.pools, 0)
        self._not_before = dict.fromkeys(site.pools, 0.0)
        self._accepted: set[str] = set()
        """Pools of which a job was ever taken."""
        self._worked: set[str] = set()
        """Pools of which a worker ever registered."""
        self._cancelled: list[WorkerJob] = []
        """Jobs that were given up, and may still be in the queue."""
        self._cluster_name: str | None = None
        self._shows_ours = False
        """Whether the queue has ever listed a job of this run: if not, an empty list proves nothing."""
        self._warned_unseen = False
        self._next_look = 0.0
        self._silent = False
        """Whether the queue does not answer."""
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._number = len(lines_of(root))

    # --- what the driver sees ---------------------------------------------------------------------

    @property
    def resources(self) -> frozenset[str]:
        """What workers of its pools offer."""
        return frozenset(pool.resource for pool in self.site.pools.values())

    def request_workers(self, resource: str, n_units: int) -> None:
        """Tell how many units that need a resource wait or are under way; return at once.

        Raises
        ------
        ClusterError
            If the queue takes no jobs, or jobs end before a worker of them registers, again and again.
        """
        self._tell()
        if self.failure is not None:
            raise self.failure
        self.wanted[resource] = n_units

    def __enter__(self) -> JobScaler:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.cluster.sync(self._start)
        return self

    def __exit__(self, *exception: object) -> None:
        self.cluster.sync(self._close)
        self._tell()

    def _tell(self) -> None:
        while not self._news.empty():
            self.emit(Notice(message=self._news.get()))

    # --- the loop ---------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._over = asyncio.Event()
        self._cluster_name = await name_cluster(self.site)
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        try:
            while not self._over.is_set():
                await self._tick()
                try:
                    await asyncio.wait_for(self._over.wait(), TICK_SECONDS)
                except TimeoutError:
                    continue
        except Exception as error:  # whatever it is, the driver must hear of it
            self.failure = error

    async def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_look and (self.jobs or self._cancelled):
            await self._look_at_queue()
        self._look_at_workers(time.monotonic())
        for pool, n in jobs_wanted(self.site, self.wanted).items():
            await self._give_back(pool, n)
            await self._submit_up_to(pool, n)

    async def _close(self) -> None:
        """Cancel all jobs, and see that they leave the queue."""
        self._over.set()
        await self._task  # not cancelled: a job that was just submitted must be known
        deadline = time.monotonic() + CLOSE_SECONDS
        self._give_up(self.jobs)
        listing = None
        while self._cancelled:
            listing = await self._look_at_queue()
            if not self._cancelled or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        if self._cancelled:
            self._say(describe_left(self.site, self.root, [job.submission for job in self._cancelled], listing))
        else:
            await self._close_record()

    async def _close_record(self) -> None:
        """Note that all jobs are gone, those of earlier drivers included, if the queue's list proves it.

        One that is listed as ending was cancelled before, so it will not be back.
        """
        try:
            listing = await list_jobs_async(self.site, self._cluster_name)
        except (OSError, RuntimeError):
            return
        ours = [job for job in recorded(self.root) if job.name.startswith(f"{tag(self.root)}-")]
        fates = listing.fates(job for job in ours if not listing.is_elsewhere(job))
        states = [listing.state_of(job) for job in fates["queued"]]
        ends = all(state is not None and state.ends_by_itself for state in states)
        if (fates["gone"] or states) and ends and not fates["unknown"]:
            record_closed(self.root, self.site.kind, self._cluster_name)

    # --- what there is ----------------------------------------------------------------------------

    def _look_at_workers(self, now: float) -> None:
        """Take note of which workers are registered and busy; a job's workers bear its name."""
        workers: dict[str, list[Any]] = {}
        for worker in self.cluster.scheduler.workers.values():
            name = str(worker.name)
            workers.setdefault(name, []).append(worker)
            workers.setdefault(name.rpartition("-")[0], []).append(worker)
        for job in self.jobs:
            found = workers.get(job.name, [])
            job.workers = found
            if found:
                job.seen = now
                job.pending = False
                self._failures[job.pool] = 0
                self._worked.add(job.pool)
            if any(worker.processing for worker in found):
                job.idle_since = None
            if job.running_since is not None and found and now - job.running_since > SHORT_SECONDS:
                self._hosts.remove(job.host)

    async def _look_at_queue(self) -> Listing | None:
        """Take note of what the queue lists, and cancel what was given up; return None if it does not answer."""
        asked = time.monotonic()
        self._next_look = asked + QUEUE_SECONDS
        try:
            listing = await list_jobs_async(self.site, self._cluster_name)
        except (OSError, RuntimeError) as error:
            if not self._silent:
                self._say(f"the queue of {self.site.name} does not answer: {words_of(error)}. Asking again")
            self._silent = True
            return None
        self._silent = False
        self._note_listed(listing)
        now = time.monotonic()
        for job in [job for job in self.jobs if job.submitted < asked]:
            state = job.state_in(listing)
            if state is None:
                self._note_missing(job, asked, now)
                continue
            job.missed = 0
            job.host = state.host or job.host
            if state.never:
                self._will_never_start(job, state.reason)
                continue
            if state.state == "other":  # it ends, and may go back into the queue
                job.ending_since = job.ending_since or now
                if not job.workers and now - job.ending_since > ENDING_SECONDS:
                    self._ended(job, now)
                continue
            job.ending_since = None
            if state.state == "pending":
                job.pending, job.running_since = True, None
                continue
            self._note_running(job, now)
        await self._cancel_given_up(listing, asked)
        return listing

    def _note_listed(self, listing: Listing) -> None:
        """Record, once for each job, that the queue has named it: only then does its absence tell something."""
        for job in [*self.jobs, *self._cancelled]:
            if not job.listed and listing.state_of(job.submission) is not None:
                job.listed = self._shows_ours = True
                record(self.root, seen=job.name)

    def _note_missing(self, job: WorkerJob, asked: float, now: float) -> None:
        """Take note of a job that is not listed, or listed as over; one whose workers are there is not."""
        if job.workers:
            return
        if self._is_absence_proof(job, asked):
            # One that is put back into Slurm's queue is for a moment in no list.
            job.missed += 1
            if job.missed > 1:
                self._ended(job, now)
        elif job.host_in_log(self.folder):
            self._note_running(job, now)
        elif asked - job.submitted > SETTLED_SECONDS and not self._warned_unseen:
            self._warned_unseen = True
            self._say(
                f"job {job.job_id} was submitted {SETTLED_SECONDS:.0f} s ago, and the queue of {self.site.name} does "
                f"not list it: it may wait or be over. Look: {shlex.join(job_script.queue(self.site))}"
            )

    def _is_absence_proof(self, job: WorkerJob, asked: float) -> bool:
        """Tell whether a list without a job shows that it is gone: the list may hide all jobs, or come too early."""
        return job.listed or (self._shows_ours and asked - job.submitted > SETTLED_SECONDS)

    def _note_running(self, job: WorkerJob, now: float) -> None:
        """Take note of a job that runs; one that has done so for long without a worker is given up."""
        job.pending = False
        job.running_since = job.running_since or now
        if now - max(job.running_since, job.seen or 0.0) > START_SECONDS:
            self._say(f"job {job.job_id} of pool {job.pool} has run for {START_SECONDS:.0f} s without a worker")
            self._ended(job, now)
            self._cancelled.append(job)

    def _will_never_start(self, job: WorkerJob, reason: str) -> None:
        """Give up a job that the queue will never start; where none of its pool ever did, none will."""
        self._give_up([job])
        if job.pool in self._worked:
            self._fail(job.pool, f"job {job.job_id} would never start: {reason}")
            return
        self.failure = self.failure or ClusterError(
            f"job {job.job_id} of pool {job.pool} of {self.site.name} would never start: {reason}. Change its file, or "
            f"e.g. cluster.pools.{job.pool}.walltime=01:00:00. {self._what_to_type()}"
        )

    def _ended(self, job: WorkerJob, now: float) -> None:
        """Take note of a job that is over without having been cancelled."""
        self.jobs.remove(job)
        job.host = job.host or job.host_in_log(self.folder)
        lived = 0.0 if job.running_since is None else now - job.running_since
        if job.host and (job.seen is None or lived < SHORT_SECONDS) and self._hosts.add(job.host):
            self._say(f"{HOST_LIMIT} jobs in a row ended early on {job.host}; it is left out from now on")
        if job.seen is not None:
            self._say(f"job {job.job_id} of pool {job.pool} is over{f' on {job.host}' if job.host else ''}")
            return
        self._fail(job.pool, f"job {job.job_id} ended before a worker of it registered:\n{job.end_of_log(self.folder)}")

    def _fail(self, pool: str, words: str) -> None:
        """Count a job that came to nothing: wait for longer each time, and at last give up."""
        self._failures[pool] += 1
        pause = self._pause(pool)
        running = any(job.pool == pool and not job.pending for job in self.jobs)
        if self._failures[pool] >= FAILURE_LIMIT and not running:
            self.failure = ClusterError(
                f"{self._failures[pool]} jobs in a row of pool {pool} of {self.site.name} came to nothing; the last "
                f"{words}\n{self._what_to_type()}"
            )
        else:
            self._say(f"pool {pool}: {words}\nthe next one in {pause:.0f} s")

    def _pause(self, pool: str) -> float:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._failures[pool] - 1))
        self._not_before[pool] = time.monotonic() + pause
        return pause

    def _what_to_type(self) -> str:
        return f"See what was submitted: daskpipe plan {shlex.quote(str(self.root / 'config.yaml'))} --show-script"

    # --- what there should be ---------------------------------------------------------------------

    async def _give_back(self, pool: str, n: int) -> None:
        """Cancel jobs that have had nothing to do for a while, as far as there are more than `n`."""
        held = [job for job in self.jobs if job.pool == pool]
        now = time.monotonic()
        surplus = len(held) - n
        if surplus <= 0:
            for job in held:
                job.idle_since = None
            return
        idle = [job for job in held if not any(worker.processing for worker in job.workers)]
        for job in idle:
            job.idle_since = job.idle_since or now
        # Those that have not begun first: the last submitted would begin last.
        idle.sort(key=lambda job: (len(job.workers), not job.pending, -job.submitted))
        long = [job for job in idle if now - (job.idle_since or now) >= self.site.pools[pool].idle][:surplus]
        if addresses := [worker.address for job in long for worker in job.workers]:
            # Not given a unit in the time that the queue takes to end the job.
            await self.cluster.scheduler.retire_workers(workers=addresses, close_workers=False, remove=False)
        if long:
            self._give_up(long)
            await self._look_at_queue()

    async def _submit_up_to(self, pool: str, n: int) -> None:
        missing = n - sum(job.pool == pool for job in self.jobs)
        for _ in range(min(missing, BURST)):
            if self.failure is not None or self._over.is_set() or time.monotonic() < self._not_before[pool]:
                return
            await self._submit(pool)
            if self._failures[pool]:  # one at a time until a worker of one registers
                self._pause(pool)

    async def _submit(self, pool: str) -> None:
        self._number += 1
        name = f"{tag(self.root)}-{pool}.{self._number}"
        job = job_script.job(
            self.site,
            self.site.pools[pool],
            scheduler=self.cluster.scheduler_address,
            name=name,
            keys=self.keys,
            log_directory=self.folder,
            exclude=sorted(self._hosts.excluded),
        )
        submitted = time.monotonic()
        try:
            submission = await submit(self.site, job, pool=pool, cluster_name=self._cluster_name)
        except NoJobIdError as error:
            self.failure = error  # each further job would be lost as well
            self._cancelled.append(WorkerJob(error.submission, submitted))
            record_submission(self.root, error.submission)
            return
        except (OSError, RuntimeError, ValueError) as error:
            await self._refused(pool, words_of(error))
            return
        self._accepted.add(pool)
        self.jobs.append(WorkerJob(submission, submitted))
        record_submission(self.root, submission)
        # Before it can be over: a job that no list has shown is never known to be gone.
        self._next_look = 0.0

    async def _refused(self, pool: str, words: str) -> None:
        """Wait if the queue does not answer at all; try without what was left out; else count it as a failure."""
        if await self._look_at_queue() is None:
            self._not_before[pool] = time.monotonic() + QUEUE_SECONDS
            if not self._accepted:
                self.failure = ClusterError(
                    f"{self.site.name} takes no jobs, and its queue does not answer: {words}. Try again when it does, "
                    "or give --cluster local"
                )
        elif excluded := sorted(self._hosts.excluded):
            self._say(f"{self.site.name} refuses jobs without {', '.join(excluded)}; nothing is left out")
            self._hosts.clear()
        elif pool not in self._accepted:
            self.failure = ClusterError(
                f"{self.site.name} takes no jobs of pool {pool}: {words}. Change its file, or e.g. "
                f"cluster.pools.{pool}.partition=NAME. {self._what_to_type()}"
            )
        else:
            self._fail(pool, f"job was refused: {words}")

    # --- the end of jobs --------------------------------------------------------------------------

    def _give_up(self, jobs: Iterable[WorkerJob]) -> None:
        """Take jobs, also those that wait, for over; the next look at the queue cancels them."""
        jobs = list(jobs)
        self.jobs = [job for job in self.jobs if job not in jobs]
        self._cancelled += jobs

    async def _cancel_given_up(self, listing: Listing, asked: float) -> None:
        """Cancel jobs that were given up; forget those that are gone.

        A job that no list has shown is cancelled once, by its number alone: this process has it from the queue itself.
        """
        ids = []
        for job in list(self._cancelled):
            state, job_id = job.state_in(listing), listing.id_of(job.submission)
            if state is not None and not state.ends_by_itself:
                ids.append(job_id or "")
            elif state is not None or self._is_absence_proof(job, asked):
                self._cancelled.remove(job)
            elif job.submission.job_id and not job.cancelled_unseen and not listing.has_other(job.submission):
                job.cancelled_unseen = True
                ids.append(job.submission.job_id)
        if not ids:
            return
        try:
            await output([*cancel_command(self.site), *sorted(ids)])
        except (OSError, RuntimeError) as error:
            # Those that are over by now are refused, too: whether any is left, the next look at the queue tells.
            self._say(f"cancelling {', '.join(sorted(ids))}: {words_of(error)}")

    def _say(self, message: str) -> None:
        self._news.put(message)
