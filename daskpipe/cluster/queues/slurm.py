"""Slurm: the one queue system that was tried on a real queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.queues.base import JobState, QueueSystem, State, directive_if, make_header

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool

STATES: dict[str, State] = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED"), "pending"),
    **dict.fromkeys(("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"), "running"),
    **dict.fromkeys(("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"), "over"),
    **dict.fromkeys(("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"), "over"),
}
"""States of ``squeue``; all others are ``other``."""

NEVER = re.compile(
    r"DependencyNeverSatisfied|PartitionTimeLimit|PartitionNodeLimit|BadConstraints|InvalidAccount|InvalidQOS"
    r"|AccountNotAllowed|QOSNotAllowed|ReservationDeleted|JobHeld\w*|JobLaunchFailure"
    r"|(Assoc|QOS)Max\w*PerJob\w*|.*requeued held.*"
)
"""Reasons for which no waiting helps, from the table in squeue's manual."""


def write_header(pool: JobPool, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's ``SLURMJob``."""
    directives = [
        f"-o {log}-%j.log",
        *directive_if(pool.gpus, f"--gres=gpu:{pool.gpus}"),
        *directive_if(exclude, f"--exclude={','.join(exclude)}"),
    ]
    return make_header(pool, directives, account_key="account", memory_line="#SBATCH --mem=")


def check_pool(name: str, pool: JobPool) -> None:
    """Refuse a pool whose jobs go to another cluster: squeue and scancel would ask the one of the login node."""
    if any(re.match(r"-M|--clusters\b", line) for line in pool.directives):
        raise ValueError(
            "jobs that a directive sends to another cluster are not listed in this one, received "
            f"{pool.directives}. Leave it out, and type export SLURM_CLUSTERS=NAME before daskpipe"
        )


def list_command(user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    return ["squeue", "--noheader", "--all", "--states=all", f"--user={user}", "--format=%i|%T|%N|%r|%j"]


def parse_listing(text: str) -> Iterator[tuple[str, JobState]]:
    """Yield the jobs of a listing, one a line: id, state, hosts, reason and name between bars."""
    for line in text.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) == 5 and fields[0][:1].isdigit():
            job_id, word, hosts, reason, name = fields
            state = STATES.get(word, "other")
            reason = "" if reason in ("None", "(null)") else reason
            never = state != "over" and NEVER.fullmatch(reason.strip("()")) is not None
            yield job_id, JobState(state, first_host(hosts), reason, never, name)


def first_host(hosts: str) -> str | None:
    """Return the first host of Slurm's short form of a list; None if it is empty.

    Examples
    --------
    >>> first_host("gpu[03-04,7]")
    'gpu03'
    """
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", hosts)
    return "".join(part or "" for part in match.groups()) if match else None


SLURM = QueueSystem(
    name="SLURM",
    title="Slurm",
    submit_command="sbatch",
    submit_options="--parsable",
    cancel_command="scancel",
    list_command=list_command,
    parse_listing=parse_listing,
    write_header=write_header,
    check_pool=check_pool,
    job_id_pattern=r"(?:Submitted batch job )?(?P<id>\d+)(?:(?:;| on cluster )(?P<cluster>[\w.-]+))?",
    job_id_variable="SLURM_JOB_ID",
    host_variable="SLURMD_NODENAME",
    gpu_variables=("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL"),
    cluster_command=("scontrol", "show", "config"),
    cluster_pattern=r"^ClusterName\s*=\s*(\S+)",
)
