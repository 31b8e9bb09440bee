"""Write the scripts of jobs, by way of dask-jobqueue."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from daskpipe.cluster.dask_config import WORKER_ENVIRONMENT
from daskpipe.cluster.queues import SUBMIT_OPTIONS, JobState, header, listing, read_listing
from daskpipe.cluster.settings import PLAIN_PATH, Cluster, Pool
from daskpipe.cluster.sites import Site, site_of
from daskpipe.core.errors import ConfigError

ON_HOST = "daskpipe: on host"
"""What a job prints first, before the name of its machine."""


UNASKED_MEMORY = "1GB"
"""What dask-jobqueue is given for the memory of a job that asks for none; it is in no script."""


DEATH_SECONDS = 60
"""A worker that finds no scheduler for so long ends, and its job with it."""


def job(
    site: Site,
    pool: Pool,
    *,
    scheduler: str,
    name: str,
    keys: Path | None,
    log_directory: Path,
    exclude: Sequence[str] = (),
    command: str | None = None,
) -> Any:
    """Return a job of dask-jobqueue that starts a pool's workers; it is not submitted.

    Parameters
    ----------
    site, pool
        Where, and what it asks for.
    scheduler
        Address of the scheduler, ``tls://...`` or ``tcp://...``.
    name
        Of the job, and of its workers (with ``-0``, ``-1``, ... if there are several).
    keys
        Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``; None for ``tcp://``.
    log_directory
        Where the queue writes what the job prints; it must exist when the job starts.
    exclude
        Hosts that are not to be used; for Slurm, LSF and SGE.
    command
        Shell command in place of the one that starts workers.

    Raises
    ------
    ConfigError
        If a value could be read as more than a value.
    """
    import dask

    _require(name, r"[A-Za-z][A-Za-z0-9_.-]{0,62}", "name of a job", "a letter, then letters, digits and _ . -")
    _require(scheduler, r"(tcp|tls)://[A-Za-z0-9_.:\[\]-]+", "address of a scheduler", "tls://host:port")
    for host in exclude:
        _require(host, r"[A-Za-z0-9][A-Za-z0-9_.-]*", "host", "letters, digits and _ . -")
    _require(str(log_directory), PLAIN_PATH, "folder of the jobs' logs", "letters, digits and _ . / + @ : , = -, since "
             "job queues read no other path in a script; choose another with --run-dir")  # fmt: skip
    if keys is not None:
        _require(str(keys), r"[^\x00-\x1f\x7f]+", "folder of keys", "a path without control characters")
    lines = _prologue(pool)
    command = command or _worker_command(site, pool, scheduler=scheduler, name=name, keys=keys)
    # What a user has set for dask-jobqueue elsewhere was not checked here, and stays out.
    with dask.config.set({"jobqueue": _jobqueue_defaults()}):
        made = job_class(site)(
            scheduler=scheduler,
            name=name,
            job_name=name,
            cores=pool.cores,
            processes=pool.n_processes,
            memory=pool.memory or UNASKED_MEMORY,
            job_script_prologue=lines,
            **header(site.kind, pool, log=f"{log_directory}/{name}", exclude=sorted(set(exclude))),
        )
    # dask-jobqueue would give a GPU's worker all cores for threads, and would listen on all interfaces.
    made._command_template = command
    made.submit_command = f"{made.submit_command} {SUBMIT_OPTIONS.get(site.kind, '')}".rstrip()
    if site.kind == "HTCondor":  # its file is no shell script, but holds a line of one
        made._command_template = "; ".join([*lines, command])
        made.executable = "/bin/bash"
    return made


def driver_job(site: Site, root: Path, *, name: str, token: str) -> Any:
    """Return the job of dask-jobqueue that drives a run (`daskpipe.runs.detached`); it is not submitted.

    Raises
    ------
    ConfigError
        As `job`.
    """
    return job(
        site,
        site.driver,
        scheduler="tcp://127.0.0.1:0",  # it has its own
        name=name,
        keys=None,
        log_directory=root / "jobs",
        command=f"{_python(site)} -m daskpipe resume {shlex.quote(str(root))} --detached {token}",
    )


def queue(site: Site) -> list[str]:
    """Return the command that lists the jobs of whoever runs this."""
    return listing(site.kind, user_name())


def user_name() -> str:
    """Return the name of the user who runs this, whatever LOGNAME and USER say: the queue goes by the user's number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container that does not know its users
        return getpass.getuser()


def parse(site: Site, text: str) -> dict[str, JobState]:
    """Return the jobs that the answer to `queue` lists, by the ids that `job` gets when it is submitted."""
    return read_listing(site.kind, text)


def scripts(settings: Cluster) -> dict[str, str]:
    """Return the job script of each pool of a site, and of its driver, by name.

    They are those that would be submitted, but for the address of the scheduler and the folders of the run.

    Raises
    ------
    ConfigError
        As `read_site`.
    """
    site = site_of(settings)
    run = Path("/RUN")
    keys = None if settings.insecure else run / "keys"
    address = f"{'tcp' if settings.insecure else 'tls'}://SCHEDULER:PORT"
    found = {
        name: job(site, pool, scheduler=address, name=f"daskpipe-{name}", keys=keys, log_directory=run / "jobs")
        for name, pool in site.pools.items()
    }
    found["driver"] = driver_job(site, run, name="daskpipe-driver", token="TOKEN")
    return {name: made.job_script() for name, made in found.items()}


def _require(value: str, pattern: str, what: str, rule: str) -> None:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ConfigError(f"{what} must be {rule}; received {value!r}")


def _python(site: Site) -> str:
    return shlex.quote(site.python or sys.executable)


def _prologue(pool: Pool) -> list[str]:
    """Shell lines before the command; our own settings come last, but for the time, which has begun to run."""
    # The driver's own deadline would come along with its environment. No $(...): HTCondor has its own meaning for it.
    ends = (
        f"export DASKPIPE_DEADLINE=`date -d +{pool.seconds}seconds +%s`" if pool.seconds else "unset DASKPIPE_DEADLINE"
    )
    threads = " ".join(f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items())
    # The queue's own name of the machine where it gives one.
    host = f"echo {ON_HOST} $SLURMD_NODENAME `hostname`"
    return [host, ends, *pool.environment, f"export {threads}"]


def _worker_command(site: Site, pool: Pool, *, scheduler: str, name: str, keys: Path | None) -> str:
    """Return the command that starts the workers of a job, quoted for a shell."""
    words = ["exec", _python(site), "-m", "daskpipe.cluster.worker", shlex.quote(scheduler), "--name", name]
    words += ["--nworkers", str(pool.n_processes), "--nthreads", "1", "--nanny"]
    memory = "auto" if pool.bytes is None else f"{pool.bytes // pool.n_processes}B"
    words += ["--memory-limit", memory, "--resources", f"{pool.resource}=1"]
    words += ["--death-timeout", str(DEATH_SECONDS)]
    if site.interface is not None:
        words += ["--interface", site.interface]
    if site.scratch is not None:
        words += ["--local-directory", f'"{site.scratch}"']  # $NAME is the job's
    if keys is not None:
        for option, file in (("--tls-ca-file", "ca.pem"), ("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")):
            words += [option, shlex.quote(str(keys / file))]
    return " ".join(words)


def job_class(site: Site) -> Any:
    """Return dask-jobqueue's class of a site's jobs, which knows how they are submitted and cancelled."""
    return getattr(_jobqueue(), f"{site.kind}Cluster").job_cls


def _jobqueue() -> Any:
    """Import dask-jobqueue, without the handler of SIGINT that it installs: that signal is the command line's."""
    with patch.object(signal, "signal"):
        import dask_jobqueue
    return dask_jobqueue


def _jobqueue_defaults() -> dict[str, Any]:
    """Return dask-jobqueue's own settings, those of the user left out, and without its walltime of half an hour."""
    import yaml

    found: dict[str, Any] = yaml.safe_load((Path(_jobqueue().__file__).parent / "jobqueue.yaml").read_text())
    return {queue: {**settings, "walltime": None} for queue, settings in found["jobqueue"].items()}
