"""Scale a site's jobs: keep as many in the queue as there is work for, and replace those that are lost.

The job scaler compares four things: the units that wait, the jobs that were submitted, the queue's listing, and the
workers that have registered with the scheduler. It runs on the scheduler's event loop, so it reads the scheduler's
state directly.
"""

from __future__ import annotations

import asyncio
import queue
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.failures import HOST_LIMIT, HostFailures, PoolFailures
from daskpipe.cluster.job_commands import (
    NoJobIdError,
    cancel_command,
    describe_error,
    describe_leftover_jobs,
    list_jobs_async,
    name_cluster,
    run_command_async,
    submit_job,
)
from daskpipe.cluster.job_script import build_job, own_jobs_command
from daskpipe.cluster.listings import SETTLED_SECONDS, Listing, record_end_of_jobs
from daskpipe.cluster.sites import Site
from daskpipe.cluster.submitted_jobs import append_line, job_name_prefix, read_lines, record_submission
from daskpipe.cluster.worker_jobs import WorkerJob, count_wanted_jobs
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Emit, Notice

if TYPE_CHECKING:
    from distributed import SpecCluster

TICK_SECONDS = 1.0
"""Seconds between two looks at the scheduler."""

QUEUE_SECONDS = 10.0
"""Seconds between two listings of the queue, which serves all users of the site."""

START_SECONDS = 300.0
"""Seconds that a running job has for its first worker to register, or for a lost one to come back."""

ENDING_SECONDS = 60.0
"""Seconds that a job may take to end; a job that goes back into the queue is listed as ending, too."""

SHORT_SECONDS = 60.0
"""Seconds of life below which a job speaks against its host."""

BURST = 20
"""Most jobs of a pool that are submitted between two looks at the scheduler."""

CLOSE_SECONDS = 30.0
"""Seconds that the end of a run waits for its jobs to leave the queue."""


class JobScaler:
    """Keep as many jobs of a site's pools in the queue as the driver wants; a `daskpipe.engine.dask_pool.WorkerSupply`.

    As a context manager it keeps jobs within its block, and leaves none after it.

    Parameters
    ----------
    cluster
        The scheduler, in this process.
    site
        The site, with its pools.
    root
        Run directory: has the record of jobs, and their logs in ``jobs/``.
    keys
        Folder with the keys that workers show; None without TLS.
    emit
        Called with a `Notice` when jobs fail, on the thread that calls `want`.
    """

    def __init__(self, cluster: SpecCluster, site: Site, root: Path, keys: Path | None, emit: Emit) -> None:
        self.cluster, self.site, self.root, self.keys, self.emit = cluster, site, root, keys, emit
        self.folder = root / "jobs"
        self.jobs: list[WorkerJob] = []
        self.wanted: dict[str, int] = {}
        """Units that wait or are under way, by resource."""
        self.failure: Exception | None = None
        """Reason for which there will be no workers; raised by `want`."""
        self._hosts = HostFailures()
        self._pools = PoolFailures(site.pools)
        self._accepted: set[str] = set()
        """Pools of which the queue has ever taken a job."""
        self._worked: set[str] = set()
        """Pools of which a worker has ever registered."""
        self._cancelled: list[WorkerJob] = []
        """Jobs that were given up, and may still be in the queue."""
        self._cluster_name: str | None = None
        self._shows_ours = False
        """Whether the queue has ever listed a job of this run: if not, an empty listing proves nothing."""
        self._warned_unseen = False
        self._next_listing = 0.0
        self._is_silent = False
        """Whether the queue does not answer."""
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._number = len(read_lines(root))

    # --- for the driver ---------------------------------------------------------------------------

    @property
    def resources(self) -> frozenset[str]:
        """Resources that workers of its pools offer."""
        return frozenset(pool.resource for pool in self.site.pools.values())

    def request_workers(self, resource: str, n_units: int) -> None:
        """Take note of how many units that need a resource wait or are under way; return at once.

        Raises
        ------
        ClusterError
            If the queue takes no jobs, or jobs end before a worker of them registers, again and again.
        """
        self._emit_news()
        if self.failure is not None:
            raise self.failure
        self.wanted[resource] = n_units

    def __enter__(self) -> JobScaler:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.cluster.sync(self._start_loop)
        return self

    def __exit__(self, *exception: object) -> None:
        self.cluster.sync(self._end_loop)
        self._emit_news()

    def _emit_news(self) -> None:
        while not self._news.empty():
            self.emit(Notice(message=self._news.get()))

    def _add_news(self, message: str) -> None:
        self._news.put(message)

    # --- the loop ---------------------------------------------------------------------------------

    async def _start_loop(self) -> None:
        self._over = asyncio.Event()
        self._cluster_name = await name_cluster(self.site)
        self._task = asyncio.create_task(self._run_loop())

    async def _run_loop(self) -> None:
        try:
            while not self._over.is_set():
                await self._adjust_jobs()
                try:
                    await asyncio.wait_for(self._over.wait(), TICK_SECONDS)
                except TimeoutError:
                    continue
        except Exception as error:  # the driver must hear of any error, and raises it
            self.failure = error

    async def _adjust_jobs(self) -> None:
        """Take note of what has changed, cancel jobs that are too many, and submit those that are missing."""
        now = time.monotonic()
        if now >= self._next_listing and (self.jobs or self._cancelled):
            await self._read_queue()
        self._read_workers(time.monotonic())
        for pool, n_jobs in count_wanted_jobs(self.site, self.wanted).items():
            await self._cancel_idle_jobs(pool, n_jobs)
            await self._submit_missing_jobs(pool, n_jobs)

    async def _end_loop(self) -> None:
        """Cancel all jobs, and wait until they have left the queue."""
        self._over.set()
        await self._task  # not cancelled: a job that was just submitted must be known
        deadline = time.monotonic() + CLOSE_SECONDS
        self._give_up_jobs(self.jobs)
        listing = None
        while self._cancelled:
            listing = await self._read_queue()
            if not self._cancelled or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        if self._cancelled:
            left = [job.submission for job in self._cancelled]
            self._add_news(describe_leftover_jobs(self.site, self.root, left, listing))
        else:
            await self._close_record()

    async def _close_record(self) -> None:
        """Record that all jobs are gone, if the queue answers and its listing proves it."""
        try:
            listing = await list_jobs_async(self.site, self._cluster_name)
        except (OSError, RuntimeError):
            return
        record_end_of_jobs(self.root, listing)

    # --- the state of jobs ------------------------------------------------------------------------

    def _read_workers(self, now: float) -> None:
        """Take note of which workers are registered and busy; a job's workers bear its name."""
        workers: dict[str, list[Any]] = {}
        for worker in self.cluster.scheduler.workers.values():
            name = str(worker.name)
            workers.setdefault(name, []).append(worker)
            workers.setdefault(name.rpartition("-")[0], []).append(worker)
        for job in self.jobs:
            job.workers = workers.get(job.name, [])
            if job.workers:
                job.seen = now
                job.pending = False
                self._pools.forget_pool(job.pool)
                self._worked.add(job.pool)
            if any(worker.processing for worker in job.workers):
                job.idle_since = None
            if job.running_since is not None and job.workers and now - job.running_since > SHORT_SECONDS:
                self._hosts.forget_host(job.host)

    async def _read_queue(self) -> Listing | None:
        """Take note of what the queue lists, and cancel jobs that were given up; return None if it does not answer."""
        asked = time.monotonic()
        self._next_listing = asked + QUEUE_SECONDS
        try:
            listing = await list_jobs_async(self.site, self._cluster_name)
        except (OSError, RuntimeError) as error:
            if not self._is_silent:
                self._add_news(f"the queue of {self.site.name} does not answer: {describe_error(error)}. Asking again")
            self._is_silent = True
            return None
        self._is_silent = False
        self._note_listed_jobs(listing)
        now = time.monotonic()
        for job in [job for job in self.jobs if job.submitted < asked]:
            self._note_state(job, listing, asked, now)
        await self._cancel_given_up_jobs(listing, asked)
        return listing

    def _note_listed_jobs(self, listing: Listing) -> None:
        """Record, once for each job, that the queue has listed it: only then does its absence prove something."""
        for job in [*self.jobs, *self._cancelled]:
            if not job.listed and listing.find_state(job.submission) is not None:
                job.listed = self._shows_ours = True
                append_line(self.root, seen=job.name)

    def _note_state(self, job: WorkerJob, listing: Listing, asked: float, now: float) -> None:
        """Take note of the state of a job in a listing that was asked for at a time."""
        state = job.find_state(listing)
        if state is None:
            self._note_missing_job(job, asked, now)
            return
        job.missed = 0
        job.host = state.host or job.host
        if state.never:
            self._give_up_hopeless_job(job, state.reason)
            return
        if state.state == "other":  # it ends, and may go back into the queue
            job.ending_since = job.ending_since or now
            if not job.workers and now - job.ending_since > ENDING_SECONDS:
                self._note_lost_job(job, now)
            return
        job.ending_since = None
        if state.state == "pending":
            job.pending, job.running_since = True, None
            return
        self._note_running_job(job, now)

    def _note_missing_job(self, job: WorkerJob, asked: float, now: float) -> None:
        """Take note of a job that is not listed, or listed as over; it lives as long as its workers do."""
        if job.workers:
            return
        if self._is_absence_proof(job, asked):
            # A job that goes back into Slurm's queue is for a moment in no listing.
            job.missed += 1
            if job.missed > 1:
                self._note_lost_job(job, now)
        elif job.read_host(self.folder):
            self._note_running_job(job, now)
        elif asked - job.submitted > SETTLED_SECONDS and not self._warned_unseen:
            self._warned_unseen = True
            self._add_news(
                f"job {job.job_id} was submitted {SETTLED_SECONDS:.0f} s ago, and the queue of {self.site.name} does "
                f"not list it: it may wait or be over. Look: {shlex.join(own_jobs_command(self.site))}"
            )

    def _is_absence_proof(self, job: WorkerJob, asked: float) -> bool:
        """Tell whether a listing without a job proves its end: it may hide all jobs, or come too early."""
        return job.listed or (self._shows_ours and asked - job.submitted > SETTLED_SECONDS)

    def _note_running_job(self, job: WorkerJob, now: float) -> None:
        """Take note of a job that runs; give up one that has run for long without a worker."""
        job.pending = False
        job.running_since = job.running_since or now
        if now - max(job.running_since, job.seen or 0.0) > START_SECONDS:
            self._add_news(f"job {job.job_id} of pool {job.pool} has run for {START_SECONDS:.0f} s without a worker")
            self._note_lost_job(job, now)
            self._cancelled.append(job)

    def _note_lost_job(self, job: WorkerJob, now: float) -> None:
        """Take note of a job that is over without having been cancelled."""
        self.jobs.remove(job)
        job.host = job.host or job.read_host(self.folder)
        lived = 0.0 if job.running_since is None else now - job.running_since
        if job.host and (job.seen is None or lived < SHORT_SECONDS) and self._hosts.count_failure(job.host):
            self._add_news(f"{HOST_LIMIT} jobs in a row ended early on {job.host}; it is left out from now on")
        if job.seen is not None:
            self._add_news(f"job {job.job_id} of pool {job.pool} is over{f' on {job.host}' if job.host else ''}")
            return
        log = job.read_end_of_log(self.folder)
        self._count_failure(job.pool, f"job {job.job_id} ended before a worker of it registered:\n{log}")

    def _count_failure(self, pool: str, reason: str) -> None:
        """Count a job that came to nothing: pause longer each time, and fail at last."""
        pause = self._pools.count_failure(pool)
        has_running = any(job.pool == pool and not job.pending for job in self.jobs)
        if self._pools.has_reached_limit(pool) and not has_running:
            self.failure = ClusterError(
                f"{self._pools.counts[pool]} jobs in a row of pool {pool} of {self.site.name} came to nothing; the "
                f"last {reason}\n{self._advise_script()}"
            )
        else:
            self._add_news(f"pool {pool}: {reason}\nthe next one in {pause:.0f} s")

    def _advise_script(self) -> str:
        return f"See what was submitted: daskpipe plan {shlex.quote(str(self.root / 'config.yaml'))} --show-script"

    # --- submission -------------------------------------------------------------------------------

    async def _submit_missing_jobs(self, pool: str, n_jobs: int) -> None:
        missing = n_jobs - sum(job.pool == pool for job in self.jobs)
        for _ in range(min(missing, BURST)):
            if self.failure is not None or self._over.is_set() or self._pools.is_pausing(pool):
                return
            await self._submit_next_job(pool)
            if self._pools.counts[pool]:  # one at a time until a worker of one registers
                self._pools.start_pause(pool)

    async def _submit_next_job(self, pool: str) -> None:
        self._number += 1
        job = build_job(
            self.site,
            self.site.pools[pool],
            scheduler=self.cluster.scheduler_address,
            name=f"{job_name_prefix(self.root)}-{pool}.{self._number}",
            keys=self.keys,
            log_directory=self.folder,
            exclude=sorted(self._hosts.excluded),
        )
        submitted = time.monotonic()
        try:
            submission = await submit_job(self.site, job, pool=pool, cluster_name=self._cluster_name)
        except NoJobIdError as error:
            self.failure = error  # each further job would be lost as well
            self._cancelled.append(WorkerJob(error.submission, submitted))
            record_submission(self.root, error.submission)
            return
        except (OSError, RuntimeError, ValueError) as error:
            await self._handle_refusal(pool, describe_error(error))
            return
        self._accepted.add(pool)
        self.jobs.append(WorkerJob(submission, submitted))
        record_submission(self.root, submission)
        # List before the job can be over: a job that no listing has shown is never known to be gone.
        self._next_listing = 0.0

    async def _handle_refusal(self, pool: str, complaint: str) -> None:
        """Wait if the queue does not answer at all; else leave out no host any more; else count a failure."""
        if await self._read_queue() is None:
            self._pools.start_pause(pool, QUEUE_SECONDS)
            if not self._accepted:
                self.failure = ClusterError(
                    f"{self.site.name} takes no jobs, and its queue does not answer: {complaint}. Try again when it "
                    "does, or give --cluster local"
                )
        elif excluded := sorted(self._hosts.excluded):
            self._add_news(f"{self.site.name} refuses jobs without {', '.join(excluded)}; nothing is left out")
            self._hosts.forget_all()
        elif pool not in self._accepted:
            self.failure = ClusterError(
                f"{self.site.name} takes no jobs of pool {pool}: {complaint}. Change its file, or e.g. "
                f"cluster.pools.{pool}.partition=NAME. {self._advise_script()}"
            )
        else:
            self._count_failure(pool, f"job was refused: {complaint}")

    # --- cancelling -------------------------------------------------------------------------------

    async def _cancel_idle_jobs(self, pool: str, n_jobs: int) -> None:
        """Cancel jobs of a pool that have had nothing to do for a while, as far as there are more than `n_jobs`."""
        jobs = [job for job in self.jobs if job.pool == pool]
        now = time.monotonic()
        surplus = len(jobs) - n_jobs
        if surplus <= 0:
            for job in jobs:
                job.idle_since = None
            return
        idle = [job for job in jobs if not any(worker.processing for worker in job.workers)]
        for job in idle:
            job.idle_since = job.idle_since or now
        # Jobs that have not begun come first, the last submitted before the others: it would begin last.
        idle.sort(key=lambda job: (len(job.workers), not job.pending, -job.submitted))
        too_long = [job for job in idle if now - (job.idle_since or now) >= self.site.pools[pool].idle][:surplus]
        if addresses := [worker.address for job in too_long for worker in job.workers]:
            # Retired workers receive no unit in the time that the queue takes to end their job.
            await self.cluster.scheduler.retire_workers(workers=addresses, close_workers=False, remove=False)
        if too_long:
            self._give_up_jobs(too_long)
            await self._read_queue()

    def _give_up_jobs(self, jobs: Iterable[WorkerJob]) -> None:
        """Take jobs, also those that wait, for over; the next listing of the queue cancels them."""
        jobs = list(jobs)
        self.jobs = [job for job in self.jobs if job not in jobs]
        self._cancelled += jobs

    def _give_up_hopeless_job(self, job: WorkerJob, reason: str) -> None:
        """Give up a job that the queue will never start; fail if no job of its pool has ever worked."""
        self._give_up_jobs([job])
        if job.pool in self._worked:
            self._count_failure(job.pool, f"job {job.job_id} would never start: {reason}")
            return
        self.failure = self.failure or ClusterError(
            f"job {job.job_id} of pool {job.pool} of {self.site.name} would never start: {reason}. Change its file, or "
            f"e.g. cluster.pools.{job.pool}.walltime=01:00:00. {self._advise_script()}"
        )

    async def _cancel_given_up_jobs(self, listing: Listing, asked: float) -> None:
        """Cancel jobs that were given up; forget those that are gone.

        A job that no listing has shown is cancelled once by its id alone: this process has it from the queue itself.
        """
        ids = []
        for job in list(self._cancelled):
            state, job_id = job.find_state(listing), listing.find_id(job.submission)
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
            await run_command_async(cancel_command(self.site, sorted(ids)))
        except (OSError, RuntimeError) as error:
            # The queue also refuses to cancel jobs that are over by now; the next listing shows whether any is left.
            self._add_news(f"cancelling {', '.join(sorted(ids))}: {describe_error(error)}")
