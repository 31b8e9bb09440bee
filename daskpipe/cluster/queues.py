"""Describe the differences between job queues: headers of scripts, answers to submissions, and lists of jobs.

Only Slurm's has met a real queue; the others follow their manuals.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from daskpipe.cluster.settings import Pool

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

SUBMIT_OPTIONS: dict[Kind, str] = {"SLURM": "--parsable"}
"""Options of these commands that make their answer plain."""

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
            memory = f":mem={math.ceil(pool.bytes / 2**20)}mb" if pool.bytes else ""
            known["resource_spec"] = f"select=1:ncpus={pool.cores}{memory}" + (f":ngpus={gpus}" if gpus else "")
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
            skip = [] if pool.bytes else ["RequestMemory"]
            return {"disk": CONDOR_DISK, "job_extra_directives": _condor(pool, log), "job_directives_skip": skip}
        case "OAR":
            own = [f"-O {log}-%jobid%.log", f"-E {log}-%jobid%.log"]
            cores = f"gpu={gpus}/core={max(1, pool.cores // gpus)}" if gpus else f"core={pool.cores}"
            # Memory is a property that each site calls as it likes.
            known |= {"resource_spec": f"/nodes=1/{cores}", "memory_per_core_property_name": "not_applicable"}
    # dask-jobqueue asks for memory in any case; these are the lines that do, of Slurm and LSF.
    skip = [] if pool.bytes else ["#SBATCH --mem=", "#BSUB -M "]
    return {**known, "job_extra_directives": [*own, *pool.directives], "job_directives_skip": skip}


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


# --- answers to a submission --------------------------------------------------------------------------

JOB_ID: dict[Kind, str] = {
    "SLURM": r"(?:Submitted batch job )?(?P<id>\d+)(?:(?:;| on cluster )(?P<cluster>[\w.-]+))?",
    # The server's name has a letter: 3.2 is a version in somebody's greeting.
    "PBS": r"(?P<id>\d+(?:\[\])?)\.[\w.-]*[A-Za-z][\w.-]*",
    "LSF": r"Job <(?P<id>\d+)> is submitted to .+",
    "SGE": r'Your job (?P<id>\d+) \(".*"\) has been submitted',
    "HTCondor": r"\d+ job\(s\) submitted to cluster (?P<id>\d+)\.",
    "OAR": r"OAR_JOB_ID=(?P<id>\d+)",
}
"""The line, alone, in which a queue tells the id of a new job: sites print greetings with other numbers around it."""


def read_job_id(kind: Kind, answer: str) -> tuple[str, str | None]:
    """Return the id of a new job, and the name of its cluster if the answer has it.

    Parameters
    ----------
    kind, answer
        The queue, and what its submit command printed.

    Raises
    ------
    ValueError
        If no line tells an id, or several lines tell different ones; quotes the answer.
    """
    lines = [line.strip() for line in answer.splitlines()]
    matches = [match for line in lines if (match := re.fullmatch(JOB_ID[kind], line))]
    ids = {match["id"] for match in matches}
    if len(ids) != 1:
        what = "no line with a job's id" if not ids else f"several ids ({', '.join(sorted(ids))})"
        raise ValueError(f"{SUBMIT_COMMANDS[kind]} printed {what}: {' / '.join(filter(None, lines)) or 'nothing'}")
    job_id, cluster = matches[0]["id"], matches[0].groupdict().get("cluster")
    return (f"{job_id}.0" if kind == "HTCondor" else job_id), cluster


CLUSTER_NAME: dict[Kind, tuple[list[str], str]] = {
    "SLURM": (["scontrol", "show", "config"], r"^ClusterName\s*=\s*(\S+)"),
    "PBS": (["qstat", "-B", "-f"], r"^Server: (\S+)"),
    "LSF": (["lsid"], r"^My cluster name is (\S+)"),
}
"""Commands that print the name of the cluster, and where in their answers it stands; the other queues have none."""


# --- lists of jobs ------------------------------------------------------------------------------------

State = Literal["pending", "running", "other", "over"]


@dataclass(frozen=True)
class JobState:
    """A job as its queue lists it.

    Parameters
    ----------
    state
        ``pending``, ``running``, ``other``: held, ending, failed; or ``over``, which some queues show for a while.
    host
        The first machine that it runs on.
    reason
        Why it does not run, in the queue's words.
    never
        Whether it will not run unless somebody changes something.
    name
        As the queue shows it; see `is_named`.
    """

    state: State
    host: str | None = None
    reason: str = ""
    never: bool = False
    name: str = ""

    @property
    def ends_by_itself(self) -> bool:
        """Whether the job is over, or will be without being cancelled."""
        return self.state in ("other", "over") and not self.never


def listing(kind: Kind, user: str) -> list[str]:
    """Return the command that lists a user's jobs: with their names, and with those that have just ended if it can."""
    condor = ["ClusterId", "ProcId", "JobStatus", "RemoteHost", "HoldReason", "JobBatchName"]
    lsf = "jobid stat exec_host pend_reason job_name delimiter='|'"
    return {
        "SLURM": ["squeue", "--noheader", "--all", "--states=all", f"--user={user}", "--format=%i|%T|%N|%r|%j"],
        "PBS": ["qstat", "-u", user, "-n", "-1", "-w"],
        "LSF": ["bjobs", "-a", "-u", user, "-noheader", "-o", lsf],
        "SGE": ["qstat", "-u", user, "-r"],
        "HTCondor": ["condor_q", user, "-autoformat:t", *condor],
        "OAR": ["oarstat", "-u", user, "-f", "-J"],
    }[kind]


NO_JOBS: dict[Kind, str] = {"LSF": r"No (unfinished |matching )?job found"}
"""Complaints with which a listing command fails though it only has nothing to list."""


def lists_nothing(kind: Kind, complaint: str) -> bool:
    """Tell whether a listing command that failed says that the user has no jobs."""
    return kind in NO_JOBS and re.search(NO_JOBS[kind], complaint) is not None


SHOWN_OF_NAME = (15, 16)
"""Characters of a job's name that kinds of PBS show, the last one may be a ``*``; the other queues show all of it."""


def is_named(kind: Kind, shown: str, name: str) -> bool:
    """Tell whether a queue shows a job under a name, which it may have cut.

    Where it is cut, one can still tell a job of another run directory, since 24 bits of the path's hash are shown.
    """
    is_cut = kind == "PBS" and len(shown) in SHOWN_OF_NAME
    return shown == name or (is_cut and name.startswith(shown.removesuffix("*")))


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
        **dict.fromkeys(("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"), "over"),
        **dict.fromkeys(("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"), "over"),
    }
    for line in text.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) == 5 and fields[0][:1].isdigit():
            number, word, host, reason, name = fields
            state = states.get(word, "other")
            reason = "" if reason in ("None", "(null)") else reason
            never = state != "over" and NEVER.fullmatch(reason.strip("()")) is not None
            yield number, JobState(state, _first(host), reason, never, name)


def _first(nodes: str) -> str | None:
    """First node of a list such as ``gpu[03-04,7]``."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else None


def _pbs(text: str) -> Iterator[tuple[str, JobState]]:
    """Rows of ``qstat -u USER -n -1 -w``: id, user, queue, name, session, four numbers, state, time, hosts."""
    states: dict[str, State] = {
        **dict.fromkeys("QWT", "pending"),
        **dict.fromkeys("RS", "running"),
        **dict.fromkeys("CFX", "over"),
    }
    for line in text.splitlines():
        fields = line.split()
        # Only the number of 1234.server is what qsub's answer is read for.
        if len(fields) >= 11 and (number := re.match(r"\d+(\[\d*\])?", fields[0])):
            host = fields[11].split("/")[0] if len(fields) > 11 and fields[11] != "--" else None
            reason = "held" if fields[9] == "H" else ""
            yield number[0], JobState(states.get(fields[9], "other"), host, reason, bool(reason), fields[3])


def _lsf(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {
        **dict.fromkeys(("PEND", "WAIT", "PROV"), "pending"),
        **dict.fromkeys(("RUN", "USUSP", "SSUSP"), "running"),
        **dict.fromkeys(("DONE", "EXIT"), "over"),
    }
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5 and fields[0].strip().isdigit():
            number, state, hosts, reason, name = (field.strip() for field in fields)
            # 8*n012:n013 are eight slots there, and one.
            host = hosts.split(":")[0].split("*")[-1]
            first = None if host in ("", "-") else host
            yield number, JobState(states.get(state, "other"), first, reason.strip("-"), state == "PSUSP", name)


def _sge(text: str) -> Iterator[tuple[str, JobState]]:
    """Rows of ``qstat -u USER -r``: id, priority, name, user, state, date, time, queue@host unless it waits, slots.

    The name in a row is cut to ten characters; all of it stands below the row, behind ``Full jobname:``.
    """
    jobs: dict[str, JobState] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].isdigit():
            state, where = fields[4], fields[7]
            failed = "E" in state or "h" in state
            kind: State = "other" if failed or "d" in state else "pending" if "q" in state else "running"
            host = where.partition("@")[2] or None
            jobs[fields[0]] = JobState(kind, host, state if failed else "", failed, fields[2])
        elif fields[:2] == ["Full", "jobname:"] and len(fields) == 3 and jobs:
            last = next(reversed(jobs))
            jobs[last] = replace(jobs[last], name=fields[2])
    yield from jobs.items()


def _condor_q(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {"1": "pending", "2": "running", "4": "over", "6": "running", "7": "running"}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) == 6 and fields[0].isdigit():
            cluster, process, state, slot, reason, name = fields
            host = None if slot == "undefined" else slot.partition("@")[2] or slot
            reason = "" if reason == "undefined" else reason
            yield f"{cluster}.{process}", JobState(states.get(state, "other"), host, reason, state == "5", name)


def _oar(text: str) -> Iterator[tuple[str, JobState]]:
    states: dict[str, State] = {
        **dict.fromkeys(("Waiting", "toLaunch", "Launching", "toAckReservation"), "pending"),
        **dict.fromkeys(("Running", "Suspended", "Resuming"), "running"),
        **dict.fromkeys(("Terminated", "Error"), "over"),
    }
    for number, job in (json.loads(text) if text.strip() else {}).items():
        host = (job.get("assigned_network_address") or [None])[0]
        state, reason, name = (str(job.get(key) or "") for key in ("state", "message", "name"))
        yield str(number), JobState(states.get(state, "other"), host, reason, state == "Hold", name)
