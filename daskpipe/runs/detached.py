"""Submit a driver as a job of its own, and drive a run from such a job.

``detached.json`` in the run directory records which job will drive it, and with what settings. The job runs ``daskpipe
resume RUN --detached TOKEN``; the token in its lease shows that it has begun. Near its walltime, as its last action, it
submits the next job, so that no job waits for another.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.submitted_jobs import Submission, job_name_prefix
from daskpipe.core.errors import ClusterError, ConfigError, Interrupted
from daskpipe.core.files import write_atomically
from daskpipe.core.shared_disk import disk_time
from daskpipe.core.text import utc_timestamp
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import lease

if TYPE_CHECKING:
    from daskpipe.cluster.settings import Cluster
    from daskpipe.cluster.sites import Site
    from daskpipe.config.models import Config
    from daskpipe.core.events import Emit
    from daskpipe.runs.run import Result

TRIES = 6
"""Tries to submit the next driver to a queue that does not accept it."""

PAUSE_SECONDS = 10.0
"""Seconds between two tries."""

FRUITLESS_LIMIT = 3
"""Drivers in a row that reach neither a commit nor a checkpoint, after which no more are submitted."""


@dataclass(frozen=True, kw_only=True)
class DriverRecord:
    """Record of the job that will drive a run, or has driven it; ``detached.json``.

    Parameters
    ----------
    token
        Name of the driver in its lease.
    job_id
        Id of the job; None between its record and its submission.
    kind
        Its queue, as dask-jobqueue calls it.
    log
        File or folder of its output.
    at
        Time of the submission, UTC.
    cluster, overrides
        Settings with which it resumes the run.
    fruitless
        Drivers in a row, before this one, that made no progress.
    name, cluster_name, user, seen
        As of `daskpipe.cluster.submitted_jobs.Submission`; records of earlier versions hold only what follows from
        the run directory.
    """

    token: str
    job_id: str | None
    kind: str
    log: str
    at: str
    cluster: dict[str, Any]
    overrides: list[str]
    fruitless: int = 0
    name: str
    cluster_name: str | None = None
    user: str | None = None
    seen: bool = False

    @property
    def submission(self) -> Submission:
        """The job, as the functions that query a queue take it."""
        known = ("job_id", "name", "kind", "cluster_name", "user", "at", "seen")
        return Submission(**{field: getattr(self, field) for field in known})


def read_record(root: Path) -> DriverRecord | None:
    """Return the record of the last detached driver of a run; ``None`` if there is none."""
    try:
        return DriverRecord(**{"name": _job_name(root), **json.loads(_record_file(root).read_text())})
    except FileNotFoundError:
        return None


def find_waiting(root: Path) -> DriverRecord | None:
    """Return the record of a detached driver that has not begun, as far as files show; ``None`` if there is none."""
    record, last = read_record(root), lease.read_last_driver(root)
    return None if record is None or (last is not None and last.token == record.token) else record


def remove_record(root: Path) -> None:
    """Remove the record: no detached driver shall drive the run."""
    _record_file(root).unlink(missing_ok=True)


def is_queued(record: DriverRecord) -> bool | None:
    """Tell whether the job of a detached driver is in its queue; ``None`` if the queue does not show it."""
    if record.job_id is None:
        return None
    from daskpipe.cluster.job_commands import list_jobs

    try:
        fates = list_jobs(site_of_kind(record.kind)).sort_by_fate([record.submission])
    except ClusterError:
        return None
    return True if fates["queued"] else False if fates["gone"] else None


# --- submission ---------------------------------------------------------------------------------------


def submit_run(config: Config, run_dir: Path | str) -> DriverRecord:
    """Check a config, open its run directory, and submit a job that drives the run; parameters as of `runs.run`.

    Raises
    ------
    ConfigError
        As `runs.run`; or if the cluster is no site, or a driver works or waits already.
    ClusterError
        If the site accepts no job.
    """
    from daskpipe.runs.run import open_run

    check_detachable(config.cluster)
    directory = RunDirectory(Path(run_dir).absolute())
    with open_run(directory, config):
        return _submit_driver(directory, config)


def submit_resume(
    run_dir: Path | str, overrides: Sequence[str] = (), *, cluster: Cluster | None = None
) -> DriverRecord:
    """Submit a job that resumes a run; parameters as of `runs.resume`, errors as of `submit_run`."""
    from daskpipe.runs.run import load_stored_run, open_run

    directory, config = load_stored_run(run_dir, overrides, cluster=cluster)
    check_detachable(config.cluster)
    with open_run(directory, config):
        return _submit_driver(directory, config)


def _submit_driver(directory: RunDirectory, config: Config) -> DriverRecord:
    """Submit the driver of a run whose lease this process holds, unless one waits already."""
    if (record := find_waiting(directory.root)) is not None and is_queued(record) is not False:
        raise ConfigError(
            f"job {record.job_id} waits to drive {directory.root} since {record.at}. To watch it: daskpipe status "
            f"{_quote_path(directory.root)} --watch; to cancel it: daskpipe cancel {_quote_path(directory.root)}"
        )
    cluster = config.cluster
    if cluster.name.endswith((".yaml", ".yml")):  # the job may begin in another directory
        cluster = cluster.model_copy(update={"name": str(Path(cluster.name).expanduser().absolute())})
    budget = config.budget.model_dump(mode="json", include={"hours", "bytes"})
    overrides = [f"budget.{name}={'null' if value is None else value}" for name, value in budget.items()]
    return _submit_job(directory.root, cluster, overrides)


def check_detachable(cluster: Cluster) -> None:
    """Check that a cluster can have a detached driver.

    Raises
    ------
    ConfigError
        If it is no site with a queue.
    """
    if cluster.address or cluster.name == "local":
        raise ConfigError(
            f"--detach submits the driver as a job of a site, and cluster is {cluster.address or cluster.name}. "
            "Give --cluster slurm, or leave --detach out"
        )


def drive_detached(run_dir: Path | str, token: str, subscribers: Iterable[Emit] = ()) -> Result:
    """Drive a run from the job of a detached driver; near its end submit the next one.

    Parameters
    ----------
    run_dir, subscribers
        As of `runs.resume`.
    token
        Name of the driver in ``detached.json``.

    Raises
    ------
    ConfigError
        If another job has taken its place.
    Interrupted
        If the job ends soon and the next one goes on.
    """
    from daskpipe.cluster.settings import Cluster
    from daskpipe.runs.run import Detached, resume

    root = Path(run_dir).absolute()
    record = read_record(root)
    if record is None or record.token != token:
        raise ConfigError(
            f"this job may not drive {root} any more: it was cancelled, or another took its place. "
            f"See: daskpipe status {_quote_path(root)}"
        )
    cluster = Cluster(**record.cluster)

    started = disk_time(root)

    def hand_over() -> None:
        if lease.read_request(root):  # cancelled at this moment
            return
        fruitless = 0 if _made_progress(root, started) else record.fruitless + 1
        if fruitless >= FRUITLESS_LIMIT:
            raise ClusterError(
                f"{fruitless} drivers of {root} in a row reached neither a commit nor a checkpoint before the end of "
                "their jobs. Give section driver of the site's file a longer walltime, or leave --detach out"
            )
        following = _submit_patiently(root, cluster, record.overrides, fruitless)
        raise Interrupted(f"the job of this driver ends soon; job {following.job_id} goes on with {root}")

    # The driver before may have died on another machine: only a lease that is not renewed shows it.
    detached = Detached(token=token, patience=2 * lease.LEASE_SECONDS, hand_over=hand_over)
    return resume(root, record.overrides, cluster=cluster, subscribers=subscribers, detached=detached)


def _made_progress(root: Path, since: float) -> bool:
    """Tell whether a unit was committed, or left a checkpoint, after a time."""
    for pattern in ("*/manifest.json", ".*-work/*-checkpoint/state"):
        for file in root.glob(f"units/*/*/{pattern}"):
            with suppress(FileNotFoundError):  # a worker that is ending has removed it
                if file.stat().st_mtime > since:
                    return True
    return False


def _submit_patiently(root: Path, cluster: Cluster, overrides: Sequence[str], fruitless: int) -> DriverRecord:
    """Submit the next driver; try again if the queue does not accept it, except when it gave no job id."""
    from daskpipe.cluster.job_commands import NoJobIdError

    for _ in range(TRIES - 1):
        try:
            return _submit_job(root, cluster, overrides, fruitless)
        except NoJobIdError:  # the job was accepted: another try would submit it twice
            raise
        except ClusterError:  # the controller of the queue may be restarting
            time.sleep(PAUSE_SECONDS)
    return _submit_job(root, cluster, overrides, fruitless)


def _submit_job(root: Path, cluster: Cluster, overrides: Sequence[str], fruitless: int = 0) -> DriverRecord:
    """Record and submit a job that resumes a run; it may begin before this returns."""
    from daskpipe.cluster.job_commands import NoJobIdError, describe_error
    from daskpipe.cluster.job_script import build_driver_job
    from daskpipe.cluster.sites import load_site

    site = load_site(cluster)
    token = uuid.uuid4().hex[:12]
    name, folder = _job_name(root), root / "jobs"
    folder.mkdir(exist_ok=True)
    job = build_driver_job(site, root, name=name, token=token)
    record = DriverRecord(
        token=token,
        job_id=None,
        kind=site.kind,
        log=str(folder),
        at=utc_timestamp(),
        cluster=cluster.model_dump(mode="json"),
        overrides=list(overrides),
        fruitless=fruitless,
        name=name,
    )
    _write_record(root, record)
    try:
        submission = asyncio.run(_submit_and_list(site, job))
    except NoJobIdError:
        remove_record(root)  # should its job begin, it ends
        raise
    except (OSError, RuntimeError, ValueError) as error:
        remove_record(root)
        raise ClusterError(
            f"{site.name} accepts no job for the driver: {describe_error(error)}. Change section driver of its file; "
            f"to see what was submitted: daskpipe plan {_quote_path(root / 'config.yaml')} --show-script"
        ) from error
    job_id = str(submission.job_id)
    log_name = site.queue_system.log_name
    record = replace(
        record,
        job_id=job_id,
        log=str(folder / log_name.format(name=name, job_id=job_id) if log_name else folder),
        cluster_name=submission.cluster_name,
        user=submission.user,
        seen=submission.seen,
    )
    _write_record(root, record)
    return record


async def _submit_and_list(site: Site, job: Any) -> Submission:
    """Submit a job, and record whether the queue lists it: if it does not, the end of the job cannot be seen."""
    from daskpipe.cluster.job_commands import list_jobs_async, name_cluster, submit_job

    submission = await submit_job(site, job, pool="driver", cluster_name=await name_cluster(site))
    with suppress(OSError, RuntimeError):
        seen = (await list_jobs_async(site, submission.cluster_name)).find_id(submission) is not None
        submission = replace(submission, seen=seen)
    return submission


def _job_name(root: Path) -> str:
    return f"{job_name_prefix(root)}-driver"


# --- queues -------------------------------------------------------------------------------------------


def site_of_kind(kind: str) -> Site:
    """Return a site with one kind of queue, enough to query the queue and to cancel jobs."""
    from daskpipe.cluster.sites import Site

    return Site.model_validate({"name": "any", "class": kind, "pools": {"cpu": {}}})


# --- files --------------------------------------------------------------------------------------------


def _record_file(root: Path) -> Path:
    return root / "detached.json"


def _write_record(root: Path, record: DriverRecord) -> None:
    write_atomically(_record_file(root), json.dumps(asdict(record), indent=1))


def _quote_path(path: Path) -> str:
    return shlex.quote(os.fspath(path))
