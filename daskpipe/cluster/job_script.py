"""Write the scripts of jobs.

dask-jobqueue writes the header and submits the script; the command in it is daskpipe's own.
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daskpipe.cluster.dask_config import WORKER_ENVIRONMENT
from daskpipe.cluster.queues.base import QueueSystem, import_jobqueue
from daskpipe.cluster.settings import PLAIN_PATH, Cluster, JobPool
from daskpipe.cluster.sites import Site, load_site
from daskpipe.core.errors import ConfigError

ON_HOST = "daskpipe: on host"
"""First words that a job prints, before the name of its machine."""

UNASKED_MEMORY = "1GB"
"""Memory that dask-jobqueue receives for a job that asks for none; no script contains it."""

DEATH_SECONDS = 60
"""Seconds without a scheduler after which a worker ends, and its job with it."""


def build_job(
    site: Site,
    pool: JobPool,
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
        Where the job runs, and what it asks for.
    scheduler
        Address of the scheduler, ``tls://...`` or ``tcp://...``.
    name
        Name of the job and of its workers (with ``-0``, ``-1``, ... if there are several).
    keys
        Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``; None for ``tcp://``.
    log_directory
        Folder for the job's output; it must exist when the job starts.
    exclude
        Hosts to leave out; Slurm, LSF and SGE can.
    command
        Shell command in place of the one that starts workers.

    Raises
    ------
    ConfigError
        If a shell could read a value as more than a value.
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
    queue_system = site.queue_system
    prologue = _write_prologue(queue_system, pool)
    command = command or _write_worker_command(site, pool, scheduler=scheduler, name=name, keys=keys)
    # A user's own settings of dask-jobqueue were not checked, so they are left out.
    with dask.config.set({"jobqueue": _read_jobqueue_defaults()}):
        job = queue_system.load_job_class()(
            scheduler=scheduler,
            name=name,
            job_name=name,
            cores=pool.cores,
            processes=pool.n_processes,
            memory=pool.memory or UNASKED_MEMORY,
            job_script_prologue=prologue,
            **queue_system.write_header(pool, f"{log_directory}/{name}", sorted(set(exclude))),
        )
    # dask-jobqueue's own command would give a GPU's worker all cores for threads, and listen on all interfaces.
    job._command_template = command
    job.submit_command = f"{queue_system.submit_command} {queue_system.submit_options}".rstrip()
    if queue_system.adapt_job is not None:
        queue_system.adapt_job(job, prologue, command)
    return job


def build_driver_job(site: Site, root: Path, *, name: str, token: str) -> Any:
    """Return the job of dask-jobqueue that drives a run (`daskpipe.runs.detached`); it is not submitted.

    Raises
    ------
    ConfigError
        As `build_job`.
    """
    return build_job(
        site,
        site.driver,
        scheduler="tcp://127.0.0.1:0",  # not used: the driver starts its own
        name=name,
        keys=None,
        log_directory=root / "jobs",
        command=f"{_quote_python(site)} -m daskpipe resume {shlex.quote(str(root))} --detached {token}",
    )


def own_jobs_command(site: Site) -> list[str]:
    """Return the command that lists the jobs of the user who runs this process."""
    return site.queue_system.list_command(find_user_name())


def find_user_name() -> str:
    """Return the name of the user who runs this process, by its number as queues do, not by LOGNAME or USER."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container that does not know its users
        return getpass.getuser()


def render_scripts(settings: Cluster) -> dict[str, str]:
    """Return the job script of each pool of a site, and of its driver, by name.

    They are the scripts that a run would submit, but for the address of the scheduler and the folders of the run.

    Raises
    ------
    ConfigError
        As `read_site`.
    """
    site = load_site(settings)
    run = Path("/RUN")
    keys = None if settings.insecure else run / "keys"
    address = f"{'tcp' if settings.insecure else 'tls'}://SCHEDULER:PORT"
    jobs = {
        name: build_job(site, pool, scheduler=address, name=f"daskpipe-{name}", keys=keys, log_directory=run / "jobs")
        for name, pool in site.pools.items()
    }
    jobs["driver"] = build_driver_job(site, run, name="daskpipe-driver", token="TOKEN")
    return {name: job.job_script() for name, job in jobs.items()}


def _require(value: str, pattern: str, subject: str, rule: str) -> None:
    """Refuse a value that does not match a pattern as a whole."""
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ConfigError(f"{subject} must be {rule}; received {value!r}")


def _quote_python(site: Site) -> str:
    return shlex.quote(site.python or sys.executable)


def _write_prologue(queue_system: QueueSystem, pool: JobPool) -> list[str]:
    """Return the shell lines before the command: host and deadline, then the pool's, then the numbers of threads."""
    # Without a walltime the job would inherit the driver's deadline. No $(...): HTCondor has its own meaning for it.
    deadline = (
        f"export DASKPIPE_DEADLINE=`date -d +{pool.seconds}seconds +%s`" if pool.seconds else "unset DASKPIPE_DEADLINE"
    )
    threads = " ".join(f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items())
    host = f"${queue_system.host_variable} `hostname`" if queue_system.host_variable else "`hostname`"
    return [f"echo {ON_HOST} {host}", deadline, *pool.environment, f"export {threads}"]


def _write_worker_command(site: Site, pool: JobPool, *, scheduler: str, name: str, keys: Path | None) -> str:
    """Return the command that starts the workers of a job, quoted for a shell."""
    words = ["exec", _quote_python(site), "-m", "daskpipe.cluster.worker", shlex.quote(scheduler), "--name", name]
    words += ["--nworkers", str(pool.n_processes), "--nthreads", "1", "--nanny"]
    memory = "auto" if pool.bytes is None else f"{pool.bytes // pool.n_processes}B"
    words += ["--memory-limit", memory, "--resources", f"{pool.resource}=1"]
    words += ["--death-timeout", str(DEATH_SECONDS)]
    if site.interface is not None:
        words += ["--interface", site.interface]
    if site.scratch is not None:
        words += ["--local-directory", f'"{site.scratch}"']  # the job's shell fills in $NAME
    if keys is not None:
        for option, file in (("--tls-ca-file", "ca.pem"), ("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")):
            words += [option, shlex.quote(str(keys / file))]
    return " ".join(words)


def _read_jobqueue_defaults() -> dict[str, Any]:
    """Read dask-jobqueue's own settings without those of the user, and without its walltime of half an hour."""
    import yaml

    content = yaml.safe_load((Path(import_jobqueue().__file__).parent / "jobqueue.yaml").read_text())
    return {queue: {**settings, "walltime": None} for queue, settings in content["jobqueue"].items()}
