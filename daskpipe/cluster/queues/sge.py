"""Grid Engine, after its manual: not yet tried on a real queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.queues.base import JobState, QueueSystem, State, directive_if, make_header

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool


def write_header(pool: JobPool, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's ``SGEJob``."""
    # Grid Engine takes the queue's shell, often csh. It chooses the name of the log in this folder.
    directives = ["-S /bin/bash", f"-o {log.rpartition('/')[0]}/"]
    directives += directive_if(exclude, f"-l h=!({'|'.join(exclude)})")
    # Each site names its parallel environments as it likes; a directive of the pool may give another one.
    has_environment = any(directive.startswith("-pe ") for directive in pool.directives)
    directives += directive_if(pool.cores > 1 and not has_environment, f"-pe smp {pool.cores}")
    return make_header(pool, directives, resource_spec=f"gpu={pool.gpus}" if pool.gpus else None)


def list_command(user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    return ["qstat", "-u", user, "-r"]


def parse_listing(text: str) -> Iterator[tuple[str, JobState]]:
    """Yield the jobs of a listing.

    A job has a row: id, priority, name, user, state, date, time, queue@host unless it waits, slots. The row has ten
    characters of the name; the whole name stands below the row, behind ``Full jobname:``.
    """
    jobs: dict[str, JobState] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].isdigit():
            letters, place = fields[4], fields[7]
            has_failed = "E" in letters or "h" in letters
            state: State = "other" if has_failed or "d" in letters else "pending" if "q" in letters else "running"
            host = place.partition("@")[2] or None
            jobs[fields[0]] = JobState(state, host, letters if has_failed else "", has_failed, fields[2])
        elif fields[:2] == ["Full", "jobname:"] and len(fields) == 3 and jobs:
            last = next(reversed(jobs))
            jobs[last] = replace(jobs[last], name=fields[2])
    yield from jobs.items()


SGE = QueueSystem(
    name="SGE",
    title="SGE",
    submit_command="qsub",
    cancel_command="qdel",
    list_command=list_command,
    parse_listing=parse_listing,
    write_header=write_header,
    job_id_pattern=r'Your job (?P<id>\d+) \(".*"\) has been submitted',
    job_id_variable="JOB_ID",
    log_name=None,
    # PBS, too, submits with qsub.
    probe_command="qconf",
)
