"""Keep the record of the jobs that a run directory has submitted: ``jobs.jsonl`` in it.

Each line has the time ``at``, and is one of

- a submission: ``job_id``, ``name``, ``pool``, ``class``, and ``user`` and ``cluster_name``, because other users have
  other listings and other clusters have the same numbers. The id is null if the queue's answer had none;
- ``seen``, the name of a job that the queue has listed since;
- ``closed``: all jobs submitted before with its ``class`` and ``cluster_name`` are gone.
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

RECORD = "jobs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that was submitted.

    Parameters
    ----------
    job_id
        Id that the queue gave it; None if the queue's answer had none.
    name
        Name of the job; no other job of the run has it.
    kind, cluster_name, user
        Queue system, its cluster, and the user who submitted the job; None where that is not known.
    at
        Time of the submission, as `format_time_now` writes it.
    seen
        Whether the queue has listed it since.
    pool
        Name of its pool of the site.
    """

    job_id: str | None
    name: str
    kind: str
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


def append_line(root: Path, **line: str | None) -> None:
    """Append a line to the record, with the time."""
    file = root / RECORD
    is_torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as lines:
        lines.write("\n" * is_torn + json.dumps({**line, "at": format_time_now()}) + "\n")


def record_submission(root: Path, job: Submission) -> None:
    """Record that a job was submitted."""
    queue = {"class": job.kind, "cluster_name": job.cluster_name, "user": job.user}
    append_line(root, job_id=job.job_id, pool=job.pool, name=job.name, **queue)


def record_closed(root: Path, kind: str, cluster_name: str | None) -> None:
    """Record that all jobs that were submitted to a cluster are gone."""
    append_line(root, closed="yes", **{"class": kind, "cluster_name": cluster_name})


def read_submissions(root: Path) -> list[Submission]:
    """Read the jobs that may not be gone yet: those of a run directory, and of directories that it was copied from."""
    jobs: list[Submission] = []
    for line in read_lines(root):
        if "closed" in line:
            # Lines of earlier versions do not name the queue: the driver that wrote one had submitted the last job.
            kind = line.get("class") or (jobs[-1].kind if jobs else None)
            jobs = [job for job in jobs if job.kind != kind or names_differ(job.cluster_name, line.get("cluster_name"))]
        elif "seen" in line:
            jobs = [replace(job, seen=True) if job.name == line["seen"] else job for job in jobs]
        else:
            jobs.append(_parse_submission(line))
    return jobs


def _parse_submission(line: dict[str, Any]) -> Submission:
    return Submission(
        job_id=line["job_id"],
        name=line["name"],
        kind=line["class"],
        cluster_name=line.get("cluster_name"),
        user=line.get("user"),
        at=line["at"],
        pool=line["pool"],
    )


def read_lines(root: Path) -> list[dict[str, Any]]:
    """Read the lines of the record; leave out one that was torn by a kill."""
    file = root / RECORD
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def job_name_prefix(root: Path) -> str:
    """Return the beginning of the names of a run directory's jobs: a hash of its path with all links resolved."""
    return f"daskpipe-{hashlib.blake2b(os.fsencode(root.resolve()), digest_size=4).hexdigest()}"


def names_differ(one: str | None, other: str | None) -> bool:
    """Tell whether two names are known and not the same.

    Examples
    --------
    >>> names_differ("ada", "bob"), names_differ("ada", None)
    (True, False)
    """
    return None not in (one, other) and one != other


def format_time_now() -> str:
    """Return the time as lines of the record have it, e.g. ``2026-11-29T12:00:00+0000``."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
