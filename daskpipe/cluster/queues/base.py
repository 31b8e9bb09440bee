"""Describe a queue system: its commands, the headers of its job scripts, and what its answers mean."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

if TYPE_CHECKING:
    from daskpipe.cluster.settings import JobPool

State = Literal["pending", "running", "other", "over"]


@dataclass(frozen=True)
class JobState:
    """State of a job as its queue lists it.

    Parameters
    ----------
    state
        ``pending``, ``running``, ``over`` (some queues list a job for a while after its end), or ``other``: on hold,
        ending or failed.
    host
        First machine that the job runs on; None while it waits.
    reason
        Reason for which the job does not run, in the queue's words.
    never
        Whether the job will not run unless somebody changes something.
    name
        Name of the job as the queue shows it, perhaps cut; see `QueueSystem.matches_name`.
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


def accept_pool(name: str, pool: JobPool) -> None:
    """Accept every pool: the default of `QueueSystem.check_pool`."""


@dataclass(frozen=True, kw_only=True)
class QueueSystem:
    """Everything that daskpipe knows about one queue system.

    Parameters
    ----------
    name
        Value of ``class`` in a site's file. For a queue system of dask-jobqueue it is the name of its cluster class
        without ``Cluster``, e.g. ``SLURM``.
    title
        Name in the report of ``daskpipe doctor``.
    submit_command
        Program that submits a job script.
    submit_options
        Options of that program that make its answer easy to read.
    cancel_command
        Program that cancels the jobs whose ids follow, with its options.
    list_command
        Returns the words of the command that lists a user's jobs with their names and, if the queue can, those that
        have just ended.
    parse_listing
        Yields the id and the state of each job in the output of that command. Passes over lines that are no jobs.
    write_header
        Returns the keyword arguments of dask-jobqueue's job class that make the header of a script. Receives the pool,
        the path of the log without its ending, and the hosts to leave out (which a queue system may ignore).
    job_id_pattern
        Regular expression for the whole line of the submit command's output that has the id of the new job. Its group
        ``id`` is the id; a group ``cluster``, if there is one, the name of the cluster.
    job_id_suffix
        Text that the listing adds to that id.
    check_pool
        Raises ValueError for a pool that this queue system cannot serve. Receives its name and the pool.
    job_id_variable
        Environment variable that has the id of a job inside it.
    host_variable
        Environment variable that has the queue's own name of the machine inside a job.
    gpu_variables
        Environment variables that name the GPUs of a job inside it; the first one that is set counts.
    log_name
        File name of a job's log, with ``{name}`` and ``{job_id}``; None if the queue chooses the name.
    cluster_command, cluster_pattern
        Command that prints the name of the cluster, and the regular expression whose first group is the name; empty if
        the queue system has no such command.
    no_jobs_pattern
        Regular expression for the complaint with which the listing command fails when there is nothing to list.
    shown_name_lengths
        Numbers of characters to which listings cut a job's name (the last character may be a ``*``).
    probe_command
        Program by which ``daskpipe doctor`` recognises this queue system; by default `submit_command`.
    job_class
        Returns a subclass of ``dask_jobqueue.core.Job``. Needed only where dask-jobqueue has no cluster class of this
        `name`.
    adapt_job
        Changes a job of dask-jobqueue whose file is no shell script. Receives the job, the shell lines that come first,
        and the command.
    """

    name: str
    title: str
    submit_command: str
    submit_options: str = ""
    cancel_command: str
    list_command: Callable[[str], list[str]]
    parse_listing: Callable[[str], Iterable[tuple[str, JobState]]]
    write_header: Callable[[JobPool, str, Sequence[str]], dict[str, Any]]
    job_id_pattern: str
    job_id_suffix: str = ""
    check_pool: Callable[[str, JobPool], None] = accept_pool
    job_id_variable: str | None = None
    host_variable: str | None = None
    gpu_variables: tuple[str, ...] = ()
    log_name: str | None = "{name}-{job_id}.log"
    cluster_command: tuple[str, ...] = ()
    cluster_pattern: str = ""
    no_jobs_pattern: str | None = None
    shown_name_lengths: tuple[int, ...] = ()
    probe_command: str | None = None
    job_class: Callable[[], Any] | None = None
    adapt_job: Callable[[Any, Sequence[str], str], None] | None = None

    def read_job_id(self, answer: str) -> tuple[str, str | None]:
        """Read the id of a new job, and the name of its cluster if the answer has it.

        Only a line that matches as a whole counts: sites print greetings with other numbers around it.

        Parameters
        ----------
        answer
            Output of the submit command.

        Raises
        ------
        ValueError
            If no line has an id, or several lines have different ones; quotes the answer.
        """
        lines = [line.strip() for line in answer.splitlines()]
        matches = [match for line in lines if (match := re.fullmatch(self.job_id_pattern, line))]
        ids = {match["id"] for match in matches}
        if len(ids) != 1:
            problem = "no line with a job's id" if not ids else f"several ids ({', '.join(sorted(ids))})"
            quoted = " / ".join(filter(None, lines)) or "nothing"
            raise ValueError(f"{self.submit_command} printed {problem}: {quoted}")
        return matches[0]["id"] + self.job_id_suffix, matches[0].groupdict().get("cluster")

    def read_listing(self, text: str) -> dict[str, JobState]:
        """Return the state of each job in the output of the listing command, by job id."""
        return dict(self.parse_listing(text))

    def lists_nothing(self, complaint: str) -> bool:
        """Tell whether a listing command that failed only says that the user has no jobs."""
        return self.no_jobs_pattern is not None and re.search(self.no_jobs_pattern, complaint) is not None

    def matches_name(self, shown: str, name: str) -> bool:
        """Tell whether a listing shows a job's name, whole or cut.

        A cut name still tells the jobs of two run directories apart: it shows 24 bits of the hash of the path.
        """
        is_cut = len(shown) in self.shown_name_lengths
        return shown == name or (is_cut and name.startswith(shown.removesuffix("*")))

    def read_cluster_name(self, text: str) -> str | None:
        """Return the name of the cluster in the output of `cluster_command`; None if it is not there."""
        match = re.search(self.cluster_pattern, text, re.MULTILINE)
        return match[1] if match else None

    def load_job_class(self) -> Any:
        """Return the class of dask-jobqueue that writes and submits a job of this queue system."""
        return self.job_class() if self.job_class else getattr(import_jobqueue(), f"{self.name}Cluster").job_cls


def import_jobqueue() -> Any:
    """Import dask-jobqueue without the handler of SIGINT that it installs: that signal belongs to the command line."""
    with patch.object(signal, "signal"):
        import dask_jobqueue
    return dask_jobqueue


def make_header(
    pool: JobPool, directives: Sequence[str], *, account_key: str = "project", memory_line: str = "", **others: Any
) -> dict[str, Any]:
    """Return the keyword arguments that most job classes of dask-jobqueue take for the header of a script.

    Parameters
    ----------
    pool
        What a job asks for.
    directives
        Lines of the header that dask-jobqueue does not write; those of the pool follow.
    account_key
        The class's keyword for the account.
    memory_line
        Beginning of the line in which dask-jobqueue asks for memory, which it does in any case. The line is left out if
        the pool asks for none.
    others
        Further keyword arguments; they replace those made here.
    """
    return {
        "queue": pool.partition,
        "walltime": format_walltime(pool.seconds),
        account_key: pool.account,
        "job_extra_directives": [*directives, *pool.directives],
        "job_directives_skip": [memory_line] if memory_line and not pool.bytes else [],
        **others,
    }


def directive_if(condition: object, directive: str) -> list[str]:
    """Return a list of one directive, or an empty one if the condition is false."""
    return [directive] if condition else []


def format_walltime(seconds: int | None) -> str | None:
    """Return a walltime in s as ``HH:MM:SS``; None for None.

    Examples
    --------
    >>> format_walltime(93784)
    '26:03:04'
    """
    return None if seconds is None else f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
