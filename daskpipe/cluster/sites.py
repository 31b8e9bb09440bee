"""Job queues: what a site is, and the scripts of its jobs.

A site is a file of ``jobqueue/``, of ``~/.config/daskpipe/jobqueue/``, or any path. Every string in it ends in a job
script, which a shell reads, so each is held to the characters that it needs. dask-jobqueue knows how each queue wants
its header and submits the script; the command in it is ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from daskpipe.cluster.queues import SUBMIT_COMMANDS, Kind
from daskpipe.cluster.settings import NAME, Cluster, Executable, Interface, Pool, PoolName, Scratch
from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.files import package_folder
from daskpipe.core.validation import FrozenModel, check_yaml, explain_errors

# --- what is written there ----------------------------------------------------------------------------


def _default_driver(found: dict[str, Any]) -> Pool:
    """One core beside the workers without GPUs, if there are any: the partition and account work there."""
    pools = sorted(found.get("pools", {}).values(), key=lambda pool: pool.gpus > 0)
    if not pools:
        return Pool()
    memory = pools[0].memory and "4GB"  # a site that takes no memory for workers takes none here
    return pools[0].model_copy(update={"jobs": 1, "keep": 0, "cores": 1, "memory": memory, "gpus": 0})


def _without_cluster(value: object) -> object:
    return value.removesuffix("Cluster") if isinstance(value, str) else value


class Site(FrozenModel):
    """A place with a job queue."""

    name: str = Field(pattern=f"^{NAME}$", description="The file's, without .yaml")
    kind: Annotated[Kind, BeforeValidator(_without_cluster)] = Field(
        alias="class", description="The queue, as dask-jobqueue calls it"
    )
    pools: dict[PoolName, Pool] = Field(min_length=1, description="Kinds of jobs")
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
        raise ConfigError(describe_unknown("cluster", name_or_path, ["local", *sorted(known_sites())]))
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
            raise ConfigError(describe_unknown(f"pool of cluster {site.name}:", name, sorted(site.pools)))
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
        raise ConfigError("\n".join(f"{where}{line}" for line in explain_errors(error, Site).splitlines())) from error


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
