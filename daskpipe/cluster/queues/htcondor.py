"""HTCondor, after its manual: not yet tried on a real queue.

A job is described by a submit file, not by a shell script, and has neither a partition nor a walltime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.queues.base import JobState, QueueSystem, State

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool

DISK = "2GB"
"""Disk that a job asks for: HTCondor wants a number. A pool's directive ``RequestDisk = ...`` replaces it."""

STATES: dict[str, State] = {"1": "pending", "2": "running", "4": "over", "6": "running", "7": "running"}
"""Values of ``JobStatus``; all others are ``other``."""


def write_header(pool: JobPool, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's ``HTCondorJob``; hosts cannot be left out."""
    lines = {
        "Output": f"{log}-$(ClusterId).$(ProcId).log",
        "Error": f"{log}-$(ClusterId).$(ProcId).err",
        "Log": f"{log}-$(ClusterId).$(ProcId).events",
        # Jobs end by being removed, and their output would be lost with them.
        "Stream_Output": "True",
        "Stream_Error": "True",
    }
    if pool.gpus:
        lines["request_gpus"] = str(pool.gpus)
    if pool.account is not None:
        lines["accounting_group"] = pool.account
    if pool.seconds is not None:
        lines["periodic_remove"] = f"JobStatus == 2 && time() - JobCurrentStartDate > {pool.seconds}"
    for directive in pool.directives:
        key, _, value = directive.partition("=")
        lines[key.strip()] = value.strip()
    skipped = [] if pool.bytes else ["RequestMemory"]
    return {"disk": DISK, "job_extra_directives": lines, "job_directives_skip": skipped}


def adapt_job(job: Any, prologue: Sequence[str], command: str) -> None:
    """Put the shell lines of a job on one line, which its submit file gives to bash."""
    job._command_template = "; ".join([*prologue, command])
    job.executable = "/bin/bash"


def check_pool(name: str, pool: JobPool) -> None:
    """Refuse a pool with a partition, or with a directive that is no line of a submit file."""
    if pool.partition is not None:
        raise ValueError(f"HTCondor has no partitions, received pools.{name}.partition={pool.partition!r}")
    if any("=" not in directive for directive in pool.directives):
        raise ValueError(f"HTCondor's directives read key = value, received {pool.directives}")


def list_command(user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    columns = ["ClusterId", "ProcId", "JobStatus", "RemoteHost", "HoldReason", "JobBatchName"]
    return ["condor_q", user, "-autoformat:t", *columns]


def parse_listing(text: str) -> Iterator[tuple[str, JobState]]:
    """Yield the jobs of a listing, one a line: cluster, process, state, host, reason and name between tabs."""
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) == 6 and fields[0].isdigit():
            cluster, process, state, slot, reason, name = fields
            host = None if slot == "undefined" else slot.partition("@")[2] or slot
            reason = "" if reason == "undefined" else reason
            yield f"{cluster}.{process}", JobState(STATES.get(state, "other"), host, reason, state == "5", name)


HTCONDOR = QueueSystem(
    name="HTCondor",
    title="HTCondor",
    submit_command="condor_submit",
    cancel_command="condor_rm",
    list_command=list_command,
    parse_listing=parse_listing,
    write_header=write_header,
    check_pool=check_pool,
    adapt_job=adapt_job,
    job_id_pattern=r"\d+ job\(s\) submitted to cluster (?P<id>\d+)\.",
    job_id_suffix=".0",
)
