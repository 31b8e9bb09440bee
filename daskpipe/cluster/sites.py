"""Read the description of a site: its queue system, and the pools of jobs that it offers.

A site is a file in ``jobqueue/`` or ``~/.config/daskpipe/jobqueue/``, or any path. Every string in it ends in a job
script, which a shell reads, so each one may have only the characters that it needs (`daskpipe.cluster.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from platformdirs import user_config_path
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from daskpipe.cluster.queues import QueueSystem, get_queue_system
from daskpipe.cluster.settings import NAME, Cluster, Executable, Interface, JobPool, PoolName, Scratch
from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.files import package_folder
from daskpipe.core.validation import FrozenModel, check_yaml, explain_errors


def _make_default_driver(pools: Mapping[str, JobPool]) -> JobPool:
    """Return a job of one core in a pool without GPUs, if there is one: its partition and account work there."""
    without_gpus_first = sorted(pools.values(), key=lambda pool: pool.gpus > 0)
    if not without_gpus_first:
        return JobPool()
    model = without_gpus_first[0]
    memory = model.memory and "4GB"  # a site that takes no memory for workers takes none here
    return model.model_copy(update={"jobs": 1, "keep": 0, "cores": 1, "memory": memory, "gpus": 0})


def _strip_cluster(value: object) -> object:
    return value.removesuffix("Cluster") if isinstance(value, str) else value


def _check_queue_name(name: str) -> str:
    try:
        get_queue_system(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return name


class Site(FrozenModel):
    """A place with a job queue."""

    name: str = Field(pattern=f"^{NAME}$", description="Name of the file without .yaml")
    kind: Annotated[str, BeforeValidator(_strip_cluster), AfterValidator(_check_queue_name)] = Field(
        alias="class", description="Queue system, as dask-jobqueue calls it"
    )
    pools: dict[PoolName, JobPool] = Field(min_length=1, description="Pools of jobs that are alike")
    driver: JobPool = Field(default_factory=dict, validate_default=True, description="The job that --detach submits")
    interface: Interface | None = Field(default=None, description="Network between machines, e.g. ib0")
    scratch: Scratch | None = Field(default=None, description="Workers' local directory")
    python: Executable | None = Field(default=None, description="Python of the jobs; by default the present one")

    @field_validator("driver", mode="before")
    @classmethod
    def _fill_in_driver(cls, driver: object, info: ValidationInfo) -> object:
        return driver or _make_default_driver(info.data.get("pools", {}))

    @model_validator(mode="after")
    def _check_pools(self) -> Site:
        for name, pool in self.pools.items():
            self.queue_system.check_pool(name, pool)
        return self

    @property
    def queue_system(self) -> QueueSystem:
        """The queue system of the site."""
        return get_queue_system(self.kind)


def user_sites_folder() -> Path:
    """Return the folder of a user's own sites, on Linux ``~/.config/daskpipe/jobqueue``."""
    return user_config_path("daskpipe") / "jobqueue"


def known_sites() -> dict[str, Path]:
    """Return the files of all sites by name; a user's own replace those of the package."""
    folders = (package_folder("jobqueue"), user_sites_folder())
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

    Examples
    --------
    >>> site = read_site("slurm", {"gpu": {"jobs": 8}})
    >>> site.pools["gpu"].jobs, site.queue_system.submit_command
    (8, 'sbatch')
    """
    import yaml

    is_path = name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path).expanduser() if is_path else known_sites().get(name_or_path)
    if path is None or not path.is_file():
        raise ConfigError(describe_unknown("cluster", name_or_path, ["local", *sorted(known_sites())]))
    check_yaml(path)
    try:
        content = yaml.load(path.read_text(), Loader=_make_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, received {type(content).__name__}")
    site = _validate_site({"name": path.stem, **content}, f"{path}: ")
    if not overrides:
        return site
    for name in overrides:
        if name not in site.pools:
            raise ConfigError(describe_unknown(f"pool of cluster {site.name}:", name, sorted(site.pools)))
    pools = {name: {**pool, **overrides.get(name, {})} for name, pool in content["pools"].items()}
    return _validate_site({"name": path.stem, **content, "pools": pools}, "cluster.")


def _make_loader() -> Any:
    """Return a safe YAML loader that reads 12:00:00 as text, which YAML 1.1 reads as a number of seconds."""
    import yaml

    class Loader(yaml.SafeLoader):
        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            tag = super().resolve(kind, value, implicit)
            return "tag:yaml.org,2002:str" if tag == "tag:yaml.org,2002:int" and ":" in value else tag

    return Loader


def _validate_site(content: Mapping[str, Any], prefix: str) -> Site:
    """Return the site that a file describes; begin each line of an error with a prefix."""
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{prefix}{line}" for line in explain_errors(error, Site).splitlines())) from error


def load_site(settings: Cluster) -> Site:
    """Read the site that a config names, with the changes of the config; ``workers`` limits the jobs of each pool.

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
