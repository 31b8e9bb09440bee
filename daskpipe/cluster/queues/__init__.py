"""Queue systems, one file each: commands, script headers, listings and variables.

To add one, write a file like ``slurm.py`` and add a line to the table below; another package adds the entry point
``NAME = "package.module:OBJECT"`` in the group ``daskpipe.queues``. A file in ``jobqueue/`` or
``~/.config/daskpipe/jobqueue/`` then describes a site that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping

from daskpipe.cluster.queues.base import JobState, QueueSystem
from daskpipe.core.errors import ConfigError
from daskpipe.core.registry import Registry

__all__ = [
    "JobState",
    "QueueSystem",
    "all_queue_systems",
    "find_job_id",
    "get_queue_system",
    "list_gpu_variables",
    "list_job_id_variables",
]

REGISTRY = Registry(
    "queue system",
    {
        "SLURM": "daskpipe.cluster.queues.slurm:SLURM",
        "PBS": "daskpipe.cluster.queues.pbs:PBS",
        "LSF": "daskpipe.cluster.queues.lsf:LSF",
        "SGE": "daskpipe.cluster.queues.sge:SGE",
        "HTCondor": "daskpipe.cluster.queues.htcondor:HTCONDOR",
        "OAR": "daskpipe.cluster.queues.oar:OAR",
    },
    group="daskpipe.queues",
    given=(),
)


def get_queue_system(name: str) -> QueueSystem:
    """Return the queue system of a name, e.g. ``SLURM``.

    Raises
    ------
    ConfigError
        If there is none (lists the known names), or an entry point gives something else under this name.

    Examples
    --------
    >>> get_queue_system("SLURM").submit_command
    'sbatch'
    """
    queue_system: object = REGISTRY.get(name)
    if not isinstance(queue_system, QueueSystem):
        raise ConfigError(f"entry point {name} of {REGISTRY.group} must be a QueueSystem, received {queue_system!r}")
    return queue_system


def all_queue_systems() -> list[QueueSystem]:
    """Return all queue systems: those of daskpipe in the order of its table, then those of other packages."""
    plugins = [name for name in REGISTRY.known_names() if name not in REGISTRY.table]
    return [get_queue_system(name) for name in [*REGISTRY.table, *plugins]]


def list_job_id_variables() -> list[str]:
    """Return the environment variables in which queue systems give a job its id."""
    return [queue.job_id_variable for queue in all_queue_systems() if queue.job_id_variable is not None]


def find_job_id(environment: Mapping[str, str]) -> str | None:
    """Return the id of the job in which a process runs, given its environment; None if it runs in no job."""
    return next((environment[name] for name in list_job_id_variables() if environment.get(name)), None)


def list_gpu_variables() -> list[str]:
    """Return the environment variables in which queue systems name the GPUs of a job."""
    return [name for queue in all_queue_systems() for name in queue.gpu_variables]
