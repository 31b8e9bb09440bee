"""LSF, after its manual: not yet tried on a real queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.queues.base import JobState, QueueSystem, State, directive_if, format_walltime, make_header

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool

STATES: dict[str, State] = {
    **dict.fromkeys(("PEND", "WAIT", "PROV"), "pending"),
    **dict.fromkeys(("RUN", "USUSP", "SSUSP"), "running"),
    **dict.fromkeys(("DONE", "EXIT"), "over"),
}
"""States of ``bjobs``; all others are ``other``."""


def write_header(pool: JobPool, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's ``LSFJob``."""
    other_hosts = " && ".join(f"hname!='{host}'" for host in exclude)
    directives = [
        f"-o {log}-%J.log",
        *directive_if(pool.gpus, f"-gpu num={pool.gpus}"),
        *directive_if(exclude, f'-R "select[{other_hosts}]"'),
    ]
    clock = format_walltime(pool.seconds)  # LSF takes HH:MM
    return make_header(pool, directives, memory_line="#BSUB -M ", walltime=clock and clock[:-3])


def list_command(user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    columns = "jobid stat exec_host pend_reason job_name delimiter='|'"
    return ["bjobs", "-a", "-u", user, "-noheader", "-o", columns]


def parse_listing(text: str) -> Iterator[tuple[str, JobState]]:
    """Yield the jobs of a listing, one a line: id, state, hosts, reason and name between bars."""
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5 and fields[0].strip().isdigit():
            job_id, state, hosts, reason, name = (field.strip() for field in fields)
            # 8*n012:n013 are eight slots on n012 and one on n013.
            host = hosts.split(":")[0].split("*")[-1]
            first = None if host in ("", "-") else host
            yield job_id, JobState(STATES.get(state, "other"), first, reason.strip("-"), state == "PSUSP", name)


LSF = QueueSystem(
    name="LSF",
    title="LSF",
    submit_command="bsub",
    cancel_command="bkill",
    list_command=list_command,
    parse_listing=parse_listing,
    write_header=write_header,
    job_id_pattern=r"Job <(?P<id>\d+)> is submitted to .+",
    job_id_variable="LSB_JOBID",
    cluster_command=("lsid",),
    cluster_pattern=r"^My cluster name is (\S+)",
    no_jobs_pattern=r"No (unfinished |matching )?job found",
)
