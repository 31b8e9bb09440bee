"""Jobs that a run directory has submitted: ``jobs.jsonl`` in it.

Each line has the time ``at``, and is one of

- a submission: ``job_id``, ``name``, ``pool``, ``class``, and ``user`` and ``cluster_name``, because other users have
  other lists and other clusters have the same numbers. The id is null if the queue's answer had none;
- ``seen``, the name of a job that the queue has listed since;
- ``closed``, when all jobs submitted before with its ``class`` and ``cluster_name`` were gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daskpipe.cluster.queues import Kind

RECORD = "jobs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that was submitted.

    Parameters
    ----------
    job_id
        None if the queue's answer had no id.
    name
        Of the job; no other one of the run has it.
    kind, cluster_name, user
        The queue, its cluster, and whose job it is; None where that is not known.
    at
        Time of the submission.
    seen
        Whether the queue has listed it since.
    pool
        Of the site.
    """

    job_id: str | None
    name: str
    kind: Kind
    cluster_name: str | None = None
    user: str | None = None
    at: str
    seen: bool = False
    pool: str = ""

    @property
    def age(self) -> float:
        """Seconds since the submission."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds()

    def __str__(self) -> str:
        return self.job_id or f"without a number, named {self.name}"


def record(root: Path, **line: str | None) -> None:
    """Add a line to the list of jobs, with the time."""
    file = root / RECORD
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as lines:
        lines.write("\n" * torn + json.dumps({**line, "at": time_now()}) + "\n")


def record_submission(root: Path, job: Submission) -> None:
    """Add a job to the list of jobs."""
    queue = {"class": job.kind, "cluster_name": job.cluster_name, "user": job.user}
    record(root, job_id=job.job_id, pool=job.pool, name=job.name, **queue)


def record_closed(root: Path, kind: Kind, cluster_name: str | None) -> None:
    """Note that all jobs that were submitted to a cluster are gone."""
    record(root, closed="yes", **{"class": kind, "cluster_name": cluster_name})


def recorded(root: Path) -> list[Submission]:
    """Return the jobs of a run directory, and of those that it was copied from, which may not be gone yet."""
    jobs: list[Submission] = []
    for line in lines_of(root):
        if "closed" in line:
            # Lines of earlier versions do not name the queue: the driver that wrote one had submitted the last job.
            kind = line.get("class") or (jobs[-1].kind if jobs else None)
            jobs = [job for job in jobs if job.kind != kind or differ(job.cluster_name, line.get("cluster_name"))]
        elif "seen" in line:
            jobs = [replace(job, seen=True) if job.name == line["seen"] else job for job in jobs]
        else:
            jobs.append(_submission_of(line))
    return jobs


def _submission_of(line: dict[str, Any]) -> Submission:
    return Submission(
        job_id=line["job_id"],
        name=line["name"],
        kind=line["class"],
        cluster_name=line.get("cluster_name"),
        user=line.get("user"),
        at=line["at"],
        pool=line["pool"],
    )


def lines_of(root: Path) -> list[dict[str, Any]]:
    """Return the lines of the list of jobs; one that was torn by a kill is none."""
    file = root / RECORD
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def tag(root: Path) -> str:
    """Return what the names of a run directory's jobs begin with, by whatever links the directory is reached."""
    return f"daskpipe-{hashlib.blake2b(os.fsencode(root.resolve()), digest_size=4).hexdigest()}"


def differ(one: str | None, other: str | None) -> bool:
    """Tell whether two names are known and not the same."""
    return None not in (one, other) and one != other


def time_now() -> str:
    """Return the time as lines of the record have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
