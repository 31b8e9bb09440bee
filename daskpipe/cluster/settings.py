"""Describe clusters and pools of jobs, with strings that are safe in a shell.

Every string of a site may have only the characters that it needs, since a shell reads it in a job script.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from daskpipe.core.validation import SIZE, FrozenModel, in_bytes
from daskpipe.engine.dask_pool import CPU, GPU


def _require_match(pattern: str, rule: str) -> AfterValidator:
    """Return a validator that refuses a string which does not match a pattern as a whole."""
    compiled = re.compile(pattern, re.ASCII)

    def check_match(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"must be {rule}")
        return value

    return AfterValidator(check_match)


WALLTIME_RULE = '"HH:MM:SS" or "D-HH:MM:SS", in quotes, e.g. "04:00:00"'


def _refuse_number(value: object) -> object:
    """Refuse a number: Slurm reads 60 as minutes and others as seconds, and YAML reads 12:00:00 as 43200."""
    if isinstance(value, int | float):
        raise ValueError(f"must be {WALLTIME_RULE}")
    return value


NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
"""Pattern of the names of sites and pools."""

Word = Annotated[
    str, _require_match(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+/-]*", "a word of letters, digits and _ . , : @ + / -")
]

Memory = Annotated[str, _require_match(SIZE, "a number with a unit, e.g. 32GB")]

Walltime = Annotated[
    str,
    BeforeValidator(_refuse_number),
    _require_match(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", WALLTIME_RULE),
]

Directive = Annotated[
    str,
    _require_match(
        r"[A-Za-z0-9\[\]=,:._/%+!^@ -]+", "one line of letters, digits, spaces and [ ] = , : . - _ / % + ! ^ @ only"
    ),
]

ShellLine = Annotated[
    str,
    _require_match(
        r"([A-Za-z0-9_ ./:=,+@%~^-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})+",
        "one simple command, e.g. module load cuda/12 or export A=$HOME/b: no ; & | ` < > ( ) quotes or \\, "
        "and $ as $NAME or ${NAME} only",
    ),
]

PLAIN_PATH = r"/?[A-Za-z0-9_.+@][A-Za-z0-9_./+@:,=-]*"
"""Pattern of a path that needs no quotes in a shell."""

Executable = Annotated[str, _require_match(PLAIN_PATH, "a path of letters, digits and _ . / + @ : , = -")]

Scratch = Annotated[
    str,
    _require_match(
        r"(/|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})([A-Za-z0-9_./+@:,=-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})*",
        "an absolute path of letters, digits and _ . / + @ : , = -, or one with $NAME, e.g. $TMPDIR or /scratch/$USER",
    ),
]

PoolName = Annotated[str, _require_match(NAME, "a word")]
Interface = Annotated[str, _require_match(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}", "a network interface, e.g. ib0")]


class JobPool(FrozenModel):
    """Jobs of a site that are alike: how many there may be, and what each one asks for."""

    jobs: PositiveInt = Field(default=4, description="Most jobs at once")
    keep: NonNegativeInt = Field(default=0, description="Jobs to keep when no work waits")
    idle: NonNegativeFloat = Field(default=600, description="Seconds without work after which a job is cancelled")
    cores: PositiveInt = Field(default=1, description="Cores of a job; one worker per core, unless it has GPUs")
    memory: Memory | None = Field(default="4GB", description="Memory of a job; null asks for none, as some sites want")
    gpus: NonNegativeInt = Field(default=0, description="GPUs of a job; one worker per GPU")
    walltime: Walltime | None = Field(default=None, description="HH:MM:SS or D-HH:MM:SS; by default the queue's")
    partition: Word | None = Field(default=None, description="Partition or queue")
    account: Word | None = Field(default=None, description="Account or project")
    directives: list[Directive] = Field(
        default_factory=list, description="Further lines of the script's header, without #SBATCH"
    )
    environment: list[ShellLine] = Field(default_factory=list, description="Shell lines before the worker starts")

    @model_validator(mode="after")
    def _check_pool(self) -> JobPool:
        if self.keep > self.jobs:
            raise ValueError(f"keep={self.keep} is more than jobs={self.jobs}")
        if self.walltime is not None and not self.seconds:
            raise ValueError("walltime must be longer than 0 s")
        if self.bytes == 0:
            raise ValueError("memory must be more than 0 B")
        return self

    @property
    def n_processes(self) -> int:
        """Number of workers of a job, each of one thread: one per GPU, or one per core without GPUs."""
        return self.gpus or self.cores

    @property
    def resource(self) -> str:
        """Resource that each worker offers one of: `GPU` or `CPU`."""
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
        """Memory of a job in bytes; None if the site decides it."""
        return None if self.memory is None else in_bytes(self.memory)


class Cluster(FrozenModel):
    """Where the work runs; it never changes the results."""

    name: str = Field(default="local", description="local, or a site: its name, or the path of its file")
    address: str | None = Field(default=None, description="Scheduler to join instead, tcp://... or tls://...")
    tls: str | None = Field(
        default=None, description="Folder with ca.pem, cert.pem and key.pem, to join a scheduler at tls://..."
    )
    insecure: bool = Field(
        default=False, description="No TLS: whoever reaches the ports, other users too, can run code as you"
    )
    workers: PositiveInt | None = Field(
        default=None,
        description="Local workers, by default one per core, at most 8; or most jobs in each pool of a site",
    )
    pools: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Changes of a site's pools, e.g. cluster.pools.gpu.jobs=8"
    )
    gpus: int | None = Field(
        default=None, ge=0, description="Local workers that offer a GPU; by default as many as there are"
    )
    memory: str = Field(default="auto", description="Memory limit of a local worker, e.g. 4GB")
    dashboard: bool = Field(
        default=True, description="Serve the Dask dashboard, on loopback, at an address with a secret in it"
    )

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, memory: str) -> str:
        if not re.fullmatch(f"auto|{SIZE}", memory):
            raise ValueError("must be auto or a number with a unit, e.g. 4GB")
        return memory

    @model_validator(mode="after")
    def _check_keys(self) -> Cluster:
        if self.tls is not None and not (self.address or "").startswith("tls://"):
            raise ValueError(f"tls is for cluster.address=tls://host:port, received address {self.address}")
        return self
