"""Job queues: what a site is, and the scripts of its jobs.

A site is a file of ``jobqueue/``, of ``~/.config/daskpipe/jobqueue/``, or any path. Every string in it ends in a job
script, which a shell reads, so each is held to the characters that it needs. dask-jobqueue knows how each queue wants
its header and submits the script; the command in it is ours.
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from daskpipe.composition import check_yaml, package_folder
from daskpipe.config import SIZE, Cluster, explain, in_bytes
from daskpipe.errors import ConfigError, unknown
from daskpipe.placement import CPU, GPU
from daskpipe.queues import SUBMIT_COMMANDS, SUBMIT_OPTIONS, JobState, Kind, header, listing, read_listing

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "TORCH_NUM_THREADS")

# Dask would also set MALLOC_TRIM_THRESHOLD_, whereupon each tensor above 128 kB is mapped and unmapped anew: 30 % to
# 40 % of the time of molecular dynamics with MACE went into the kernel.
WORKER_ENVIRONMENT = dict.fromkeys(THREADS, "1")

WORKER_CONFIG = {
    # Set before the process starts, since malloc and OpenMP look only once.
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    "distributed.worker.daemon": True,
    # Workers keep nothing that could be spilled, and one that pauses is silent for ever; too much is ended.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # Nobody has to log in to a worker's web server, so it has no pages.
    "distributed.worker.http.routes": [],
}
"""Dask's settings of the nanny that starts workers, here or in a job."""

ON_HOST = "daskpipe: on host"
"""What a job prints first, before the name of its machine."""

UNASKED_MEMORY = "1GB"
"""What dask-jobqueue is given for the memory of a job that asks for none; it is in no script."""

DEATH_SECONDS = 60
"""A worker that finds no scheduler for so long ends, and its job with it."""


# --- what is written there ----------------------------------------------------------------------------


def _held_to(pattern: str, rule: str) -> AfterValidator:
    """Return a validator of a string that a shell will read: all of it must match."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"must be {rule}")
        return value

    return AfterValidator(check)


WALLTIME_RULE = '"HH:MM:SS" or "D-HH:MM:SS", in quotes, e.g. "04:00:00"'


def _refuse_number(value: object) -> object:
    """Refuse a number for a walltime: 60 is an hour to Slurm, a minute to others, and 12:00:00 to some YAML readers."""
    if isinstance(value, int | float):
        raise ValueError(f"must be {WALLTIME_RULE}")
    return value


NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
Word = Annotated[str, _held_to(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+/-]*", "a word of letters, digits and _ . , : @ + / -")]
Memory = Annotated[str, _held_to(SIZE, "a number with a unit, e.g. 32GB")]
Walltime = Annotated[
    str,
    BeforeValidator(_refuse_number),
    _held_to(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", WALLTIME_RULE),
]
Directive = Annotated[
    str,
    _held_to(
        r"[A-Za-z0-9\[\]=,:._/%+!^@ -]+", "one line of letters, digits, spaces and [ ] = , : . - _ / % + ! ^ @ only"
    ),
]
ShellLine = Annotated[
    str,
    _held_to(
        r"([A-Za-z0-9_ ./:=,+@%~^-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})+",
        "one simple command, e.g. module load cuda/12 or export A=$HOME/b: no ; & | ` < > ( ) quotes or \\, "
        "and $ as $NAME or ${NAME} only",
    ),
]
PLAIN_PATH = r"/?[A-Za-z0-9_.+@][A-Za-z0-9_./+@:,=-]*"
Executable = Annotated[str, _held_to(PLAIN_PATH, "a path of letters, digits and _ . / + @ : , = -")]
Scratch = Annotated[
    str,
    _held_to(
        r"(/|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})([A-Za-z0-9_./+@:,=-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})*",
        "an absolute path of letters, digits and _ . / + @ : , = -, or one with $NAME, e.g. $TMPDIR or /scratch/$USER",
    ),
]
Interface = Annotated[str, _held_to(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}", "a network interface, e.g. ib0")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pool(_Model):
    """Jobs that are alike: how many, and what each asks for."""

    jobs: PositiveInt = Field(default=4, description="Most jobs at once")
    keep: NonNegativeInt = Field(default=0, description="Jobs that are kept though nothing waits")
    idle: NonNegativeFloat = Field(default=600, description="Seconds after which a job without work is given back")
    cores: PositiveInt = Field(default=1, description="Cores of a job; a worker each, unless it has GPUs")
    memory: Memory | None = Field(default="4GB", description="Memory of a job; null asks for none, as some sites want")
    gpus: NonNegativeInt = Field(default=0, description="GPUs of a job; a worker each")
    walltime: Walltime | None = Field(default=None, description="HH:MM:SS or D-HH:MM:SS; by default the queue's")
    partition: Word | None = Field(default=None, description="Partition or queue")
    account: Word | None = Field(default=None, description="Account or project")
    directives: list[Directive] = Field(default_factory=list, description="More of what stands behind #SBATCH")
    environment: list[ShellLine] = Field(default_factory=list, description="Shell lines before the worker starts")

    @model_validator(mode="after")
    def _consistent(self) -> Pool:
        if self.keep > self.jobs:
            raise ValueError(f"keep={self.keep} is more than jobs={self.jobs}")
        if self.walltime is not None and not self.seconds:
            raise ValueError("walltime must be longer than 0 s")
        if self.bytes == 0:
            raise ValueError("memory must be more than 0 B")
        return self

    @property
    def n_processes(self) -> int:
        """Workers of a job, each of one thread: one a GPU, else one a core."""
        return self.gpus or self.cores

    @property
    def resource(self) -> str:
        """What each worker offers one of: `GPU` or `CPU`."""
        return GPU if self.gpus else CPU

    @property
    def seconds(self) -> int | None:
        """Walltime in s."""
        if self.walltime is None:
            return None
        days, _, clock = self.walltime.rpartition("-")
        hours, minutes, seconds = (int(part) for part in clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def bytes(self) -> int | None:
        """Memory of a job in bytes; None if the site decides."""
        return None if self.memory is None else in_bytes(self.memory)


def _default_driver(found: dict[str, Any]) -> Pool:
    """One core beside the workers without GPUs, if there are any: the partition and account work there."""
    pools = sorted(found.get("pools", {}).values(), key=lambda pool: pool.gpus > 0)
    if not pools:
        return Pool()
    memory = pools[0].memory and "4GB"  # a site that takes no memory for workers takes none here
    return pools[0].model_copy(update={"jobs": 1, "keep": 0, "cores": 1, "memory": memory, "gpus": 0})


def _without_cluster(value: object) -> object:
    return value.removesuffix("Cluster") if isinstance(value, str) else value


class Site(_Model):
    """A place with a job queue."""

    name: str = Field(pattern=f"^{NAME}$", description="The file's, without .yaml")
    kind: Annotated[Kind, BeforeValidator(_without_cluster)] = Field(
        alias="class", description="The queue, as dask-jobqueue calls it"
    )
    pools: dict[Annotated[str, _held_to(NAME, "a word")], Pool] = Field(min_length=1, description="Kinds of jobs")
    driver: Pool = Field(default_factory=dict, validate_default=True, description="The job that --detach submits")
    interface: Interface | None = Field(default=None, description="Network between machines, e.g. ib0")
    scratch: Scratch | None = Field(default=None, description="Workers' local directory")
    python: Executable | None = Field(default=None, description="Python of the jobs; by default the present one")

    @field_validator("driver", mode="before")
    @classmethod
    def _beside_the_workers(cls, driver: object, found: ValidationInfo) -> object:
        return driver or _default_driver(found.data)

    @model_validator(mode="after")
    def _as_the_queue_has_it(self) -> Site:
        for name, pool in self.pools.items():
            if self.kind == "HTCondor" and pool.partition is not None:
                raise ValueError(f"HTCondor has no partitions, received pools.{name}.partition={pool.partition!r}")
            if self.kind == "HTCondor" and any("=" not in directive for directive in pool.directives):
                raise ValueError(f"HTCondor's directives read key = value, received {pool.directives}")
            if self.kind == "SLURM" and any(re.match(r"-M|--clusters\b", line) for line in pool.directives):
                # squeue and scancel would ask the cluster of the login node.
                raise ValueError(
                    "jobs that a directive sends to another cluster are not listed in this one, received "
                    f"{pool.directives}. Leave it out, and type export SLURM_CLUSTERS=NAME before daskpipe"
                )
        return self

    @property
    def submit_command(self) -> str:
        """What submits its jobs."""
        return SUBMIT_COMMANDS[self.kind]


def user_folder() -> Path:
    """Return the folder of a user's own sites."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "daskpipe" / "jobqueue"


def known_sites() -> dict[str, Path]:
    """Return the files of all sites that have a name; a user's own come before those of the package."""
    folders = (package_folder("jobqueue"), user_folder())
    return {file.stem: file for folder in folders for file in sorted(folder.glob("[!.]*.yaml"))}


def read_site(name_or_path: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Site:
    """Read the description of a site.

    Parameters
    ----------
    name_or_path
        Path that ends in ``.yaml`` or ``.yml``, or the name of a file in ``~/.config/daskpipe/jobqueue/`` or
        ``jobqueue/``.
    overrides
        Values that replace those of its pools, by pool and key.

    Raises
    ------
    ConfigError
        If there is none, or something in it is wrong.
    """
    import yaml

    is_path = name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path).expanduser() if is_path else known_sites().get(name_or_path)
    if path is None or not path.is_file():
        raise ConfigError(unknown("cluster", name_or_path, ["local", *sorted(known_sites())]))
    check_yaml(path)
    try:
        content = yaml.load(path.read_text(), Loader=_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, received {type(content).__name__}")
    site = _validated({"name": path.stem, **content}, f"{path}: ")
    if not overrides:
        return site
    for name in overrides:
        if name not in site.pools:
            raise ConfigError(unknown(f"pool of cluster {site.name}:", name, sorted(site.pools)))
    pools = {name: {**pool, **overrides.get(name, {})} for name, pool in content["pools"].items()}
    return _validated({"name": path.stem, **content, "pools": pools}, "cluster.")


def _loader() -> Any:
    """Return a safe YAML loader that reads 12:00:00 as text; YAML 1.1 makes it the number of its seconds."""
    import yaml

    class Loader(yaml.SafeLoader):
        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            tag = super().resolve(kind, value, implicit)
            return "tag:yaml.org,2002:str" if tag == "tag:yaml.org,2002:int" and ":" in value else tag

    return Loader


def _validated(content: Mapping[str, Any], where: str) -> Site:
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}{line}" for line in explain(error, Site).splitlines())) from error


def site_of(settings: Cluster) -> Site:
    """Read the site that a config names, changed as it says; ``workers`` limits the jobs of each pool.

    Raises
    ------
    ConfigError
        As `read_site`.
    """
    overrides = {name: dict(values) for name, values in settings.pools.items()}
    if settings.workers is not None:
        for name in read_site(settings.name).pools:
            overrides[name] = {"jobs": settings.workers, **overrides.get(name, {})}
    return read_site(settings.name, overrides)


# --- jobs ---------------------------------------------------------------------------------------------


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
    """Return the job of dask-jobqueue that drives a run (`daskpipe.detach`); it is not submitted.

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
    words = ["exec", _python(site), "-m", "daskpipe.worker", shlex.quote(scheduler), "--name", name]
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
