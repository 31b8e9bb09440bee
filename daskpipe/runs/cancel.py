"""Stop a run, wherever its driver and its jobs are."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.submitted_jobs import Submission, read_submissions, record_submission
from daskpipe.core.errors import ClusterError, DaskpipeError
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import lease
from daskpipe.runs.detached import DriverRecord, find_waiting, read_record, remove_record, site_of_kind

if TYPE_CHECKING:
    from daskpipe.cluster.job_commands import CancelReport

HONOUR_SECONDS = 150.0
"""Seconds that a driver has to see a request to cancel (late on a network file system) and to close."""

GONE_SECONDS = 60.0
"""Seconds that cancelled jobs have to leave the queue."""


def cancel_run(run_dir: Path | str) -> dict[str, Any]:
    """Stop the driver of a run, on any machine, and cancel its jobs; return when nothing is left.

    Parameters
    ----------
    run_dir
        A run directory.

    Returns
    -------
    dict
        ``driver`` that was asked to stop, in words, or None; ids of the cancelled ``jobs``; ``notes`` on jobs that
        were not cancelled because they belong to another run directory.

    Raises
    ------
    ConfigError
        If it is no run directory.
    ClusterError
        If a queue does not answer, or it is not known whether jobs are left.
    DaskpipeError
        If the driver does not stop, and is no job that could be cancelled.
    """
    root = RunDirectory.open_existing(run_dir).root
    asked = lease.find_driver(root)
    still = _stop_driver(root)
    record, submitted = read_record(root), read_submissions(root)
    is_job = record is not None and (_is_job(still, record) if still is not None else find_waiting(root) is not None)
    if record is not None and is_job:
        submitted.append(record.submission)
    cancelled = [_cancel_of_kind(root, kind, submitted) for kind in sorted({job.kind for job in submitted})]
    jobs = [job_id for each in cancelled for job_id in each.jobs]
    doubts = [sentence for each in cancelled for sentence in each.doubts]
    notes = [sentence for each in cancelled for sentence in each.notes]
    if record is not None and is_job:
        if still is None:  # it never began
            if doubts and record.job_id:
                record_submission(root, record.submission)
            remove_record(root)
        still = None
    if still is not None:  # it may see the request yet
        raise DaskpipeError(
            f"the driver ({still}) has not stopped in {HONOUR_SECONDS:.0f} s; its jobs are cancelled. "
            f"End it there: ssh {shlex.quote(still.host)} kill {still.pid}"
        )
    lease.withdraw_request(root)
    if doubts:
        done = f"jobs {', '.join(jobs)} are cancelled. But " if jobs else ""
        raise ClusterError(done + " ".join([*doubts, *notes]))
    return {"run_dir": str(run_dir), "driver": None if asked is None else str(asked), "jobs": jobs, "notes": notes}


def _stop_driver(root: Path) -> lease.LeaseHolder | None:
    """Ask the driver to stop, and wait for it; return it if it does not."""
    lease.request_stop(root)
    until = time.monotonic() + HONOUR_SECONDS
    while (driver := lease.find_driver(root)) is not None and time.monotonic() < until:
        if lease.read_request(root) is None:  # a driver that has just begun removed it as an old one
            lease.request_stop(root)
        time.sleep(0.5)
    return driver


def _is_job(driver: lease.LeaseHolder, record: DriverRecord) -> bool:
    """Tell whether a driver is the job of a record; inside a job PBS adds the server's name to the number."""
    if driver.job_id is None or record.job_id is None:
        return False
    return driver.job_id.partition(".")[0] == record.job_id.partition(".")[0]


def _cancel_of_kind(root: Path, kind: str, submitted: list[Submission]) -> CancelReport:
    """Cancel the jobs of a run in one kind of queue, and wait until they have left it."""
    from daskpipe.cluster.job_commands import cancel_jobs, list_jobs

    site = site_of_kind(kind)
    jobs = [job for job in submitted if job.kind == kind]
    done = cancel_jobs(site, root, jobs)
    cancelled = [job for job in jobs if job.job_id in done.jobs]
    until = time.monotonic() + GONE_SECONDS
    while done.jobs and (left := list_jobs(site).sort_by_fate(cancelled)["queued"]):
        if time.monotonic() > until:
            ids = ", ".join(map(str, left))
            raise ClusterError(f"jobs {ids} are cancelled and do not leave the queue. Try again later")
        time.sleep(1.0)
    return done
