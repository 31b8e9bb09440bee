"""The keeper of a site's jobs: as many in the queue as there is work for, none lost without another in its place.

It compares four things: what the driver wants, what was submitted, what the queue says, and which workers have
registered with the scheduler. It runs on the scheduler's event loop, so it looks at the scheduler without asking.
"""

from __future__ import annotations

import asyncio
import math
import queue
import re
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe import sites
from daskpipe.errors import ClusterError
from daskpipe.events import Emit, Notice
from daskpipe.submissions import cancel_command, lines_of, output, record, recorded, tag, words_of

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

HOST_LIMIT = 2
"""Jobs in a row that end so on one host, after which it is left out."""

FAILURE_LIMIT = 8
"""Jobs of a pool in a row that end, or are refused, before a worker registers, after which the run stops."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds without a submission after such a job; each doubles them."""

BURST = 20
"""Jobs that are submitted between two looks."""

CLOSE_SECONDS = 30.0
"""Time that the end of a run waits for its jobs to leave the queue."""

LOG_LINES = 15
"""Last lines of a job's log that an error shows."""


@dataclass(eq=False)
class _Job:
    """A job that was submitted and is not known to be over."""

    handle: Any
    pool: str
    name: str
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

    @property
    def job_id(self) -> str:
        return str(self.handle.job_id)


class Keeper:
    """Has as many jobs of a site's pools in the queue as the driver wants; a `daskpipe.placement.Supply`.

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
        self.jobs: list[_Job] = []
        self.wanted: dict[str, int] = {}
        """Units that wait or are under way, by resource."""
        self.failure: Exception | None = None
        """Why there will be no workers; raised by `want`."""
        self.excluded: set[str] = set()
        self._strikes: dict[str, int] = {}
        self._failures = dict.fromkeys(site.pools, 0)
        self._not_before = dict.fromkeys(site.pools, 0.0)
        self._accepted: set[str] = set()
        """Pools of which a job was ever taken."""
        self._worked: set[str] = set()
        """Pools of which a worker ever registered."""
        self._cancelled: set[str] = set()
        """Jobs that the queue may still name though they were given up."""
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

    def want(self, resource: str, n_units: int) -> None:
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

    def __enter__(self) -> Keeper:
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
        wanted = self._jobs_wanted()
        for pool, n in wanted.items():
            await self._give_back(pool, n)
            await self._submit_up_to(pool, n)

    async def _close(self) -> None:
        """Cancel all jobs, and see that they leave the queue."""
        self._over.set()
        await self._task  # not cancelled: a job that was just submitted must be known
        deadline = time.monotonic() + CLOSE_SECONDS
        await self._cancel(self.jobs)
        while self._cancelled:
            await self._look_at_queue()
            if not self._cancelled or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        if self._cancelled:
            words = shlex.join([*cancel_command(self.site), *sorted(self._cancelled)])
            self._say(f"the queue does not answer, and may still hold jobs of this run. Type: {words}")
        elif recorded(self.root):
            record(self.root, closed="yes")

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
                self._strikes.pop(job.host or "", None)

    async def _look_at_queue(self) -> bool:
        """Take note of what the queue says of our jobs; return whether it answers. If not, all stays as it was."""
        asked = time.monotonic()
        self._next_look = asked + QUEUE_SECONDS
        try:
            states = sites.parse(self.site, await output(sites.queue(self.site)))
        except (OSError, RuntimeError) as error:
            if not self._silent:
                self._say(f"the queue of {self.site.name} does not answer: {words_of(error)}. Asking again")
            self._silent = True
            return False
        self._silent = False
        now = time.monotonic()
        for job in [job for job in self.jobs if job.submitted < asked]:
            state = states.get(job.job_id)
            if state is not None:
                job.host = state.host or job.host
                if state.never:
                    await self._give_up(job, state.reason)
                    continue
            if state is None:
                # A job that was just submitted may not be listed yet; one whose workers are there is not over.
                if not job.workers and (job.listed or asked - job.submitted > QUEUE_SECONDS):
                    # One that is put back into Slurm's queue is for a moment in no list.
                    job.missed += 1
                    if job.missed > 1:
                        self._ended(job, now)
                continue
            job.listed, job.missed = True, 0
            if state.state == "other":  # it ends, and may go back into the queue
                job.ending_since = job.ending_since or now
                if not job.workers and now - job.ending_since > ENDING_SECONDS:
                    self._ended(job, now)
                continue
            job.ending_since = None
            if state.state == "pending":
                job.pending, job.running_since = True, None
                continue
            job.pending = False
            job.running_since = job.running_since or now
            if now - max(job.running_since, job.seen or 0.0) > START_SECONDS:
                self._say(f"job {job.job_id} of pool {job.pool} has run for {START_SECONDS:.0f} s without a worker")
                self._ended(job, now)
                await self._cancel([job])
        alive = {job_id for job_id, state in states.items() if state.state in ("pending", "running")}
        self._cancelled &= alive
        if self._cancelled:
            await self._call_cancel(sorted(self._cancelled))
        return True

    async def _give_up(self, job: _Job, reason: str) -> None:
        """Cancel a job that the queue will never start; where none of its pool ever did, none will."""
        await self._cancel([job])
        if job.pool in self._worked:
            self._fail(job.pool, f"job {job.job_id} would never start: {reason}")
            return
        self.failure = self.failure or ClusterError(
            f"job {job.job_id} of pool {job.pool} of {self.site.name} would never start: {reason}. Change its file, or "
            f"e.g. cluster.pools.{job.pool}.walltime=01:00:00. {self._what_to_type()}"
        )

    def _ended(self, job: _Job, now: float) -> None:
        """Take note of a job that is over without having been cancelled."""
        self.jobs.remove(job)
        job.host = job.host or self._host_in_log(job)
        lived = 0.0 if job.running_since is None else now - job.running_since
        if job.host and (job.seen is None or lived < SHORT_SECONDS):
            self._strikes[job.host] = self._strikes.get(job.host, 0) + 1
            if self._strikes[job.host] >= HOST_LIMIT and job.host not in self.excluded:
                self.excluded.add(job.host)
                self._say(f"{HOST_LIMIT} jobs in a row ended early on {job.host}; it is left out from now on")
        if job.seen is not None:
            self._say(f"job {job.job_id} of pool {job.pool} is over{f' on {job.host}' if job.host else ''}")
            return
        self._fail(job.pool, f"job {job.job_id} ended before a worker of it registered:\n{self._log_of(job)}")

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

    def _host_in_log(self, job: _Job) -> str | None:
        """Return the host of a job that was over before the queue was asked; its script prints it first."""
        for file in self.folder.glob(f"{job.name}[-.]*"):
            if found := re.search(rf"^{sites.ON_HOST} (\S+)", file.read_text(errors="replace"), re.MULTILINE):
                return found[1]
        return None

    def _log_of(self, job: _Job) -> str:
        """Return the last lines of what a job printed."""
        for file in sorted(self.folder.glob(f"{job.name}[-.]*")):
            lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:]
            return "\n".join(["", *lines, f"({file})"]).lstrip("\n")
        return f"(it left no log in {self.folder})"

    def _what_to_type(self) -> str:
        return f"See what was submitted: daskpipe plan {self.root / 'config.yaml'} --show-script"

    # --- what there should be ---------------------------------------------------------------------

    def _jobs_wanted(self) -> dict[str, int]:
        """Return how many jobs of each pool the work needs; pools of one resource are filled in their order."""
        left = dict(self.wanted)
        wanted = {}
        for name, pool in self.site.pools.items():
            units = left.get(pool.resource, 0)
            wanted[name] = max(pool.keep, min(pool.jobs, math.ceil(units / pool.n_processes)))
            left[pool.resource] = max(0, units - wanted[name] * pool.n_processes)
        return wanted

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
        await self._cancel(long)

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
        job = sites.job(
            self.site,
            self.site.pools[pool],
            scheduler=self.cluster.scheduler_address,
            name=name,
            keys=self.keys,
            log_directory=self.folder,
            exclude=sorted(self.excluded),
        )
        submitted = time.monotonic()
        try:
            await job.start()
        except (OSError, RuntimeError, ValueError) as error:
            await self._refused(pool, words_of(error))
            return
        self._accepted.add(pool)
        self.jobs.append(_Job(job, pool, name, submitted))
        line = {"job_id": str(job.job_id), "pool": pool, "name": name, "class": self.site.kind}
        record(self.root, **line)

    async def _refused(self, pool: str, words: str) -> None:
        """Wait if the queue does not answer at all; try without what was left out; else count it as a failure."""
        if not await self._look_at_queue():
            self._not_before[pool] = time.monotonic() + QUEUE_SECONDS
            if not self._accepted:
                self.failure = ClusterError(
                    f"{self.site.name} takes no jobs, and its queue does not answer: {words}. Try again when it does, "
                    "or give --cluster local"
                )
        elif self.excluded:
            self._say(f"{self.site.name} refuses jobs without {', '.join(sorted(self.excluded))}; nothing is left out")
            self.excluded.clear()
            self._strikes.clear()
        elif pool not in self._accepted:
            self.failure = ClusterError(
                f"{self.site.name} takes no jobs of pool {pool}: {words}. Change its file, or e.g. "
                f"cluster.pools.{pool}.partition=NAME. {self._what_to_type()}"
            )
        else:
            self._fail(pool, f"job was refused: {words}")

    # --- the end of jobs --------------------------------------------------------------------------

    async def _cancel(self, jobs: Iterable[_Job]) -> None:
        """Give jobs up, also those that wait; the queue is asked later whether they are gone."""
        jobs = list(jobs)
        if not jobs:
            return
        self.jobs = [job for job in self.jobs if job not in jobs]
        ids = [job.job_id for job in jobs]
        self._cancelled.update(ids)
        await self._call_cancel(ids)

    async def _call_cancel(self, ids: list[str]) -> None:
        try:
            await output([*cancel_command(self.site), *ids])
        except (OSError, RuntimeError) as error:
            # Those that are over by now are refused, too: whether any is left, the next look at the queue tells.
            self._say(f"cancelling {', '.join(ids)}: {words_of(error)}")

    def _say(self, message: str) -> None:
        self._news.put(message)
