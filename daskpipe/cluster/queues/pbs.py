"""PBS Pro and OpenPBS, after their manuals: not yet tried on a real queue."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.queues.base import JobState, QueueSystem, State, make_header

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool

STATES: dict[str, State] = {
    **dict.fromkeys("QWT", "pending"),
    **dict.fromkeys("RS", "running"),
    **dict.fromkeys("CFX", "over"),
}
"""States of ``qstat``; all others are ``other``."""


def write_header(pool: JobPool, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's ``PBSJob``; hosts cannot be left out."""
    memory = f":mem={math.ceil(pool.bytes / 2**20)}mb" if pool.bytes else ""
    gpus = f":ngpus={pool.gpus}" if pool.gpus else ""
    # PBS takes the login shell, not the one of the first line. It chooses the name of the log in this folder.
    directives = ["-S /bin/bash", "-j oe", f"-o {log.rpartition('/')[0]}/"]
    resources = f"select=1:ncpus={pool.cores}{memory}{gpus}"
    return make_header(pool, directives, account_key="account", resource_spec=resources)


def list_command(user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    return ["qstat", "-u", user, "-n", "-1", "-w"]


def parse_listing(text: str) -> Iterator[tuple[str, JobState]]:
    """Yield the jobs of a listing, one a row: id, user, queue, name, session, four numbers, state, time, hosts."""
    for line in text.splitlines():
        fields = line.split()
        # The listing has 1234.server; the id that is read from qsub's answer is 1234.
        if len(fields) >= 11 and (job_id := re.match(r"\d+(\[\d*\])?", fields[0])):
            host = fields[11].split("/")[0] if len(fields) > 11 and fields[11] != "--" else None
            reason = "held" if fields[9] == "H" else ""
            yield job_id[0], JobState(STATES.get(fields[9], "other"), host, reason, bool(reason), fields[3])


PBS = QueueSystem(
    name="PBS",
    title="PBS",
    submit_command="qsub",
    cancel_command="qdel",
    list_command=list_command,
    parse_listing=parse_listing,
    write_header=write_header,
    # The server's name has a letter: 3.2 is a version in somebody's greeting.
    job_id_pattern=r"(?P<id>\d+(?:\[\])?)\.[\w.-]*[A-Za-z][\w.-]*",
    job_id_variable="PBS_JOBID",
    log_name=None,
    cluster_command=("qstat", "-B", "-f"),
    cluster_pattern=r"^Server: (\S+)",
    shown_name_lengths=(15, 16),
    # SGE, too, submits with qsub.
    probe_command="pbsnodes",
)
