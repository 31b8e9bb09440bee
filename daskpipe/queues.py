"""What differs between job queues: the header of a script, and the list of jobs.

Only Slurm's has met a real queue; the others follow their manuals.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from daskpipe.sites import Pool

Kind = Literal["SLURM", "PBS", "LSF", "SGE", "HTCondor", "OAR"]
"""Queues, as dask-jobqueue calls them."""

SUBMIT_COMMANDS: dict[Kind, str] = {
    "SLURM": "sbatch",
    "PBS": "qsub",
    "LSF": "bsub",
    "SGE": "qsub",
    "HTCondor": "condor_submit",
    "OAR": "oarsub",
}
"""What jobs are submitted with."""

CONDOR_DISK = "2GB"
"""Disk asked for in HTCondor, which wants a number; ``RequestDisk = ...`` of a pool's directives replaces it."""


# --- headers ------------------------------------------------------------------------------------------


def header(kind: Kind, pool: Pool, *, log: str, exclude: Sequence[str]) -> dict[str, Any]:
    """Return what dask-jobqueue's job class of a queue needs for the header of a script.

    Parameters
    ----------
    kind, pool
        The queue, and what a job asks for.
    log
        Path of the job's output, but for its number and suffix; PBS and SGE choose the name in that folder.
    exclude
        Hosts that are not to be used; for Slurm, LSF and SGE.
    """
    folder = log.rpartition("/")[0]
    clock = _clock(pool.seconds)
    gpus = pool.gpus
    known: dict[str, Any] = {"queue": pool.partition, "walltime": clock}
    account = "account" if kind in ("SLURM", "PBS") else "project"
    known[account] = pool.account
    own: list[str]
    match kind:
        case "SLURM":
            own = [
                f"-o {log}-%j.log",
                *_if(gpus, f"--gres=gpu:{gpus}"),
                *_if(exclude, f"--exclude={','.join(exclude)}"),
            ]
        case "PBS":
            # PBS takes the login shell, not the one of the first line.
            own = ["-S /bin/bash", "-j oe", f"-o {folder}/"]
            memory = f"{math.ceil(pool.bytes / 2**20)}mb"
            known["resource_spec"] = f"select=1:ncpus={pool.cores}:mem={memory}" + (f":ngpus={gpus}" if gpus else "")
        case "LSF":
            others = " && ".join(f"hname!='{host}'" for host in exclude)
            own = [f"-o {log}-%J.log", *_if(gpus, f"-gpu num={gpus}"), *_if(exclude, f'-R "select[{others}]"')]
            known["walltime"] = clock and clock[:-3]
        case "SGE":
            # SGE takes the queue's shell, often csh. Parallel environments have the names that each site gave them.
            own = ["-S /bin/bash", f"-o {folder}/", *_if(exclude, f"-l h=!({'|'.join(exclude)})")]
            if pool.cores > 1 and not any(directive.startswith("-pe ") for directive in pool.directives):
                own.append(f"-pe smp {pool.cores}")
            known["resource_spec"] = f"gpu={gpus}" if gpus else None
        case "HTCondor":
            return {"disk": CONDOR_DISK, "job_extra_directives": _condor(pool, log)}
        case "OAR":
            own = [f"-O {log}-%jobid%.log", f"-E {log}-%jobid%.log"]
            cores = f"gpu={gpus}/core={max(1, pool.cores // gpus)}" if gpus else f"core={pool.cores}"
            # Memory is a property that each site calls as it likes.
            known |= {"resource_spec": f"/nodes=1/{cores}", "memory_per_core_property_name": "not_applicable"}
    return {**known, "job_extra_directives": [*own, *pool.directives]}


def _condor(pool: Pool, log: str) -> dict[str, str]:
    """Return lines of an HTCondor submit file."""
    lines = {
        "Output": f"{log}-$(ClusterId).$(ProcId).log",
        "Error": f"{log}-$(ClusterId).$(ProcId).err",
        "Log": f"{log}-$(ClusterId).$(ProcId).events",
        # The jobs end by being removed, and what they have said would go with them.
        "Stream_Output": "True",
        "Stream_Error": "True",
    }
    if pool.gpus:
        lines["request_gpus"] = str(pool.gpus)
    if pool.account is not None:
        lines["accounting_group"] = pool.account
    if pool.seconds is not None:
        # HTCondor has no walltime.
        lines["periodic_remove"] = f"JobStatus == 2 && time() - JobCurrentStartDate > {pool.seconds}"
    for directive in pool.directives:
        key, _, value = directive.partition("=")
        lines[key.strip()] = value.strip()
    return lines


def _if(condition: object, directive: str) -> list[str]:
    return [directive] if condition else []


def _clock(seconds: int | None) -> str | None:
    return None if seconds is None else f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


# --- lists of jobs ------------------------------------------------------------------------------------

State = Literal["pending", "running", "other"]


@dataclass(frozen=True)
class JobState:
    """A job as its queue lists it.

    Parameters
    ----------
    state
        ``pending``, ``running``, or ``other``: held, ending, failed.
    host
        The first machine that it runs on.
    reason
        Why it does not run, in the queue's words.
    never
        Whether it will not run unless somebody changes something.
    """

    state: State
    host: str | None = None
    reason: str = ""
    never: bool = False


def listing(kind: Kind, user: str) -> list[str]:
    """Return the command that lists a user's jobs."""
    return {
        "SLURM": ["squeue", "--noheader", "--all", f"--user={user}", "--format=%i|%T|%N|%r"],
        "PBS": ["qstat", "-u", user, "-n", "-1", "-w"],
        "LSF": ["bjobs", "-u", user, "-noheader", "-o", "jobid stat exec_host pend_reason delimiter='|'"],
        "SGE": ["qstat", "-u", user],
        "HTCondor": ["condor_q", user, "-autoformat:t", "ClusterId", "ProcId", "JobStatus", "RemoteHost", "HoldReason"],
        "OAR": ["oarstat", "-u", user, "-f", "-J"],
    }[kind]


def read_listing(kind: Kind, text: str) -> dict[str, JobState]:
    """Return the jobs that the answer to `listing` holds, by id; lines that are no jobs are passed over."""
    readers: dict[Kind, Callable[[str], Iterator[tuple[str, JobState]]]] = {
        "SLURM": _slurm,
        "PBS": _pbs,
        "LSF": _lsf,
        "SGE": _sge,
        "HTCondor": _condor_q,
        "OAR": _oar,
    }
    return dict(readers[kind](text))


NEVER = re.compile(
    r"DependencyNeverSatisfied|PartitionTimeLimit|PartitionNodeLimit|BadConstraints|InvalidAccount|InvalidQOS"
    r"|AccountNotAllowed|QOSNotAllowed|ReservationDeleted|JobHeld\w*|JobLaunchFailure"
    r"|(Assoc|QOS)Max\w*PerJob\w*|.*requeued held.*"
)
"""Reasons of Slurm for which no waiting helps, after the table in squeue's manual."""


def _slurm(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {
        **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED"), "pending"),
        **dict.fromkeys(("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"), "running"),
    }
    for line in text.splitlines():
        fields = line.strip().split("|", 3)
        if len(fields) == 4 and fields[0][:1].isdigit():
            number, state, host, reason = fields
            reason = "" if reason in ("None", "(null)") else reason
            never = NEVER.fullmatch(reason.strip("()")) is not None
            yield number, JobState(states.get(state, "other"), _first(host), reason, never)


def _first(nodes: str) -> str | None:
    """First node of a list such as ``gpu[03-04,7]``."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else None


def _pbs(text: str) -> Iterator[tuple[str, JobState]]:
    """Rows of ``qstat -u USER -n -1 -w``: id, user, queue, name, session, four numbers, state, time, hosts."""
    states: dict[str, State] = {"Q": "pending", "W": "pending", "T": "pending", "R": "running", "S": "running"}
    for line in text.splitlines():
        fields = line.split()
        # Only the number of 1234.server is what qsub's answer is read for.
        if len(fields) >= 11 and (number := re.match(r"\d+(\[\d*\])?", fields[0])):
            host = fields[11].split("/")[0] if len(fields) > 11 and fields[11] != "--" else None
            reason = "held" if fields[9] == "H" else ""
            yield number[0], JobState(states.get(fields[9], "other"), host, reason, bool(reason))


def _lsf(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {
        **dict.fromkeys(("PEND", "WAIT", "PROV"), "pending"),
        **dict.fromkeys(("RUN", "USUSP", "SSUSP"), "running"),
    }
    for line in text.splitlines():
        fields = line.split("|", 3)
        if len(fields) == 4 and fields[0].strip().isdigit():
            number, state, hosts, reason = (field.strip() for field in fields)
            # 8*n012:n013 are eight slots there, and one.
            host = hosts.split(":")[0].split("*")[-1]
            held = state == "PSUSP"
            yield (
                number,
                JobState(states.get(state, "other"), None if host in ("", "-") else host, reason.strip("-"), held),
            )


def _sge(text: str) -> Iterator[tuple[str, JobState]]:
    """Rows of ``qstat -u USER``: id, priority, name, user, state, date, time, queue@host unless it waits, slots."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].isdigit():
            state, where = fields[4], fields[7]
            failed = "E" in state or "h" in state
            kind: State = "other" if failed or "d" in state else "pending" if "q" in state else "running"
            host = where.partition("@")[2] or None
            yield fields[0], JobState(kind, host, state if failed else "", failed)


def _condor_q(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {"1": "pending", "2": "running", "6": "running", "7": "running"}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) == 5 and fields[0].isdigit():
            cluster, process, state, slot, reason = fields
            host = None if slot == "undefined" else slot.partition("@")[2] or slot
            yield (
                f"{cluster}.{process}",
                JobState(states.get(state, "other"), host, "" if reason == "undefined" else reason, state == "5"),
            )


def _oar(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {
        **dict.fromkeys(("Waiting", "toLaunch", "Launching", "toAckReservation"), "pending"),
        **dict.fromkeys(("Running", "Suspended", "Resuming"), "running"),
    }
    for number, found in (json.loads(text) if text.strip() else {}).items():
        hosts = found.get("assigned_network_address") or [None]
        state = str(found.get("state", ""))
        yield (
            str(number),
            JobState(states.get(state, "other"), hosts[0], str(found.get("message") or ""), state == "Hold"),
        )
