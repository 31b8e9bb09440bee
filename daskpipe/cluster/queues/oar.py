"""OAR, after its manual: not yet tried on a real queue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.queues.base import JobState, QueueSystem, State, make_header

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool

STATES: dict[str, State] = {
    **dict.fromkeys(("Waiting", "toLaunch", "Launching", "toAckReservation"), "pending"),
    **dict.fromkeys(("Running", "Suspended", "Resuming"), "running"),
    **dict.fromkeys(("Terminated", "Error"), "over"),
}
"""States of ``oarstat``; all others are ``other``."""


def write_header(pool: JobPool, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's ``OARJob``; hosts cannot be left out."""
    directives = [f"-O {log}-%jobid%.log", f"-E {log}-%jobid%.log"]
    cores = f"gpu={pool.gpus}/core={max(1, pool.cores // pool.gpus)}" if pool.gpus else f"core={pool.cores}"
    # Memory is a property that each site names as it likes, so it is asked for by a directive only.
    no_memory = "not_applicable"
    return make_header(pool, directives, resource_spec=f"/nodes=1/{cores}", memory_per_core_property_name=no_memory)


def list_command(user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    return ["oarstat", "-u", user, "-f", "-J"]


def parse_listing(text: str) -> Iterator[tuple[str, JobState]]:
    """Yield the jobs of a listing, a JSON object of jobs by id."""
    for job_id, job in (json.loads(text) if text.strip() else {}).items():
        host = (job.get("assigned_network_address") or [None])[0]
        state, reason, name = (str(job.get(key) or "") for key in ("state", "message", "name"))
        yield str(job_id), JobState(STATES.get(state, "other"), host, reason, state == "Hold", name)


OAR = QueueSystem(
    name="OAR",
    title="OAR",
    submit_command="oarsub",
    cancel_command="oardel",
    list_command=list_command,
    parse_listing=parse_listing,
    write_header=write_header,
    job_id_pattern=r"OAR_JOB_ID=(?P<id>\d+)",
    job_id_variable="OAR_JOB_ID",
)
