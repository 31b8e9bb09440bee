"""How a run is stopped, wherever its driver and its jobs are."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe import lease
from daskpipe.detach import Record, forget, read, site_of_kind, waiting
from daskpipe.errors import ClusterError, DaskpipeError
from daskpipe.work import Tree

if TYPE_CHECKING:
    from daskpipe.sites import Site

HONOUR_SECONDS = 150.0
"""Time that a driver has to honour a request to cancel: to see it (on a network file system late), and to close."""

GONE_SECONDS = 60.0
"""Time that cancelled jobs have to leave the queue."""


def cancel(run_dir: Path | str) -> dict[str, Any]:
    """Stop whatever works on a run, on any machine, and take back its jobs; return when nothing is left.

    Parameters
    ----------
    run_dir
        A run directory.

    Returns
    -------
    dict
        ``driver``, in words, that was asked to stop (or None), and ids of the ``jobs`` that were cancelled.

    Raises
    ------
    ConfigError
        If it is no run directory.
    ClusterError
        If a queue does not answer.
    DaskpipeError
        If the driver does not stop, and is no job that could be cancelled.
    """
    from daskpipe.submissions import recorded

    root = Tree.of(run_dir).root
    asked = lease.holder(root)
    still = _stop_driver(root)
    record, jobs = read(root), []
    if record is not None and (_is_job(still, record) if still is not None else waiting(root) is not None):
        jobs += _cancel_job(record)
        if still is None:
            forget(root)  # one that never began
        still = None
    for kind in sorted({line["class"] for line in recorded(root)}):
        jobs += _cancel_workers(root, kind)
    if still is not None:  # it may see the request yet
        raise DaskpipeError(
            f"the driver ({still}) has not stopped in {HONOUR_SECONDS:.0f} s; its jobs are cancelled. "
            f"End it there: ssh {shlex.quote(still.host)} kill {still.pid}"
        )
    lease.withdraw(root)
    return {"run_dir": str(run_dir), "driver": None if asked is None else str(asked), "jobs": jobs}


def _stop_driver(root: Path) -> lease.Driver | None:
    """Ask the driver to stop, and wait for it; return one that does not."""
    lease.request(root)
    until = time.monotonic() + HONOUR_SECONDS
    while (driver := lease.holder(root)) is not None and time.monotonic() < until:
        if lease.requested(root) is None:  # a driver that has just begun took it for an old one
            lease.request(root)
        time.sleep(0.5)
    return driver


def _is_job(driver: lease.Driver, record: Record) -> bool:
    """Whether a driver is the job of a record; in its own environment PBS adds the server's name to the number."""
    if driver.job_id is None or record.job_id is None:
        return False
    return driver.job_id.partition(".")[0] == record.job_id.partition(".")[0]


def _cancel_workers(root: Path, kind: str) -> list[str]:
    from daskpipe.sites import queue
    from daskpipe.submissions import cancel_left

    site, last = site_of_kind(kind), lease.last(root)
    if shutil.which(queue(site)[0]) is None and last is not None and last.ended is not None:
        return []  # the driver closed in order, and took its jobs with it
    ids = cancel_left(site, root)
    _wait_until_gone(site, ids)
    return ids


def _cancel_job(record: Record) -> list[str]:
    from daskpipe.submissions import ask, cancel_command, listed_in

    site = site_of_kind(record.kind)
    left = [record.job_id] if record.job_id in listed_in(site) else []
    if left:
        ask([*cancel_command(site), *left])
        _wait_until_gone(site, left)
    return left


def _wait_until_gone(site: Site, ids: list[str]) -> None:
    from daskpipe.submissions import listed_in

    until = time.monotonic() + GONE_SECONDS
    while left := [job_id for job_id in ids if job_id in listed_in(site)]:
        if time.monotonic() > until:
            raise ClusterError(f"jobs {', '.join(left)} are cancelled and do not leave the queue. Try again later")
        time.sleep(1.0)
