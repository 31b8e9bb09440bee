"""The config: the models that validate it, its paths, and the messages about it; `daskpipe.composition` composes it.

The models here are the schema, its defaults and its documentation. A wrong key or value is a `ConfigError`
that names the key, the rule, the value received and what to type instead.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAliasType, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from daskpipe.composition import change, check_yaml, compose, is_group, package_folder, sections_of
from daskpipe.describe.settings import Describe
from daskpipe.errors import ConfigError, unknown
from daskpipe.explore.settings import Exploration
from daskpipe.generate import GENERATORS
from daskpipe.generate.checks import Limits
from daskpipe.generate.sources import Source
from daskpipe.label.settings import LabelChecks
from daskpipe.select.settings import Select
from daskpipe.store.settings import Quality
from daskpipe.store.splits import Split

Device = Literal["auto", "cpu", "cuda"]

SIZE = r"(\d+(?:\.\d+)?) ?([kMGT]i?)?B"
"""A number of bytes with its unit."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PotentialChoice(_Model):
    """A potential by name and its parameters."""

    name: str = Field(description="emt, lj, mace, chgnet, xtb, or a plugin's name")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters, e.g. model for mace")


class Generate(_Model):
    """Seed structures."""

    sources: dict[str, Source] = Field(default_factory=dict, description="Generators by a name of your choice")
    paths: list[str] = Field(default_factory=list, description="Your own files, folders and globs of them")
    partition_size: PositiveInt = Field(default=16, description="Structures, or files, a unit")
    limits: Limits = Field(default_factory=Limits, description="What a seed must satisfy")

    @property
    def base_dir(self) -> Path:
        """Folder that all `paths` lie below; their structures are named by the path from there."""
        # A glob lies where its first * or ? stands.
        plain = [path if Path(path).exists() else re.split(r"[*?\[]", path, maxsplit=1)[0] + "x" for path in self.paths]
        return Path(os.path.commonpath([Path(path).parent for path in plain])) if plain else Path.cwd()

    @field_validator("sources")
    @classmethod
    def _words(cls, sources: dict[str, Source]) -> dict[str, Source]:
        for name in sources:
            if not name.isidentifier():
                raise ValueError(f"source name {name!r} must be a word of letters, digits and _")
        return sources

    @model_validator(mode="after")
    def _something(self) -> Generate:
        if not self.sources and not self.paths:
            raise ValueError("nothing to generate from: give generate.sources or generate.paths=[FILE,FOLDER,...]")
        return self


class Explore(Exploration):
    """Molecular dynamics, and Monte Carlo, around the seeds."""

    potential: PotentialChoice = Field(description="What moves the atoms")
    device: Device = Field(default="auto", description="auto takes workers that offer a GPU where there are any")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="Precision of the potential")
    batch_size: PositiveInt = Field(default=16, description="Trajectories a unit")


class Label(_Model):
    """Labels from a teacher."""

    potential: PotentialChoice = Field(description="The teacher")
    device: Device = Field(default="cpu", description="cpu takes any worker; cuda and auto as in explore")
    dtype: Literal["float32", "float64"] = Field(default="float64", description="Precision of the teacher")
    checks: LabelChecks = Field(default_factory=LabelChecks, description="What a label must satisfy")
    batch_size: PositiveInt = Field(default=16, description="Frames a unit")


class Cluster(_Model):
    """Where the work runs; it never changes what comes out."""

    name: str = Field(default="local", description="local, or a site: its name, or the path of its file")
    address: str | None = Field(default=None, description="Scheduler to join instead, tcp://... or tls://...")
    tls: str | None = Field(
        default=None, description="Folder with ca.pem, cert.pem and key.pem, to join a scheduler at tls://..."
    )
    insecure: bool = Field(
        default=False, description="No TLS: whoever reaches the ports, other users too, can run code as you"
    )
    workers: PositiveInt | None = Field(
        default=None, description="Local workers, by default one a core, at most 8; or most jobs of each pool of a site"
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
    def _bytes(cls, memory: str) -> str:
        if not re.fullmatch(f"auto|{SIZE}", memory):
            raise ValueError("must be auto or a number with a unit, e.g. 4GB")
        return memory

    @model_validator(mode="after")
    def _keys(self) -> Cluster:
        if self.tls is not None and not (self.address or "").startswith("tls://"):
            raise ValueError(f"tls is for cluster.address=tls://host:port, received address {self.address}")
        return self


class Budget(_Model):
    """What a run may take; of a shard, its share of it."""

    hours: PositiveFloat | None = Field(default=None, description="Hours of workers at work, over all driver starts")
    bytes: str | None = Field(default=None, description="Size of the units in the run directory, e.g. 50GB")
    labels: PositiveInt | None = Field(default=None, description="Frames that are labelled at most: cuts select.n")

    @field_validator("bytes")
    @classmethod
    def _size(cls, size: str | None) -> str | None:
        if size is not None and not (re.fullmatch(SIZE, size) and in_bytes(size)):
            raise ValueError("must be a number with a unit, e.g. 50GB")
        return size


class Faults(_Model):
    """How much a run puts up with; it never changes what comes out of structures that harm nothing."""

    attempts: int = Field(
        default=3,
        ge=2,
        description="Tries of a unit under which the process dies, hangs or runs out of memory; in the last one each "
        "of its structures has a process of its own, and those that kill it are quarantined",
    )
    hang: PositiveFloat = Field(
        default=3600.0, description="Seconds without a checkpoint, or a labelled structure, after which a unit hangs"
    )
    disk_reserve: str = Field(default="500MB", description="Free space below which a run stops, e.g. 5GB")

    @field_validator("disk_reserve")
    @classmethod
    def _size(cls, size: str) -> str:
        if not re.fullmatch(SIZE, size):
            raise ValueError("must be a number with a unit, e.g. 5GB")
        return size

    @property
    def disk_bytes(self) -> int:
        """`disk_reserve` in bytes."""
        return in_bytes(self.disk_reserve)


class Config(_Model):
    """A run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names the run directory")
    seed: int = Field(default=0, ge=0, description="Same seed, same structures")
    generate: Generate
    explore: Explore
    describe: Describe = Field(default_factory=Describe)
    select: Select
    label: Label
    store: Split = Field(default_factory=Split)
    quality: Quality = Field(default_factory=Quality)
    cluster: Cluster = Field(default_factory=Cluster)
    budget: Budget = Field(default_factory=Budget)
    faults: Faults = Field(default_factory=Faults)
    shard: str | None = Field(default=None, description="Part of a campaign, e.g. 2/8: its seeds, a share of picks")

    @field_validator("shard")
    @classmethod
    def _part(cls, shard: str | None) -> str | None:
        if shard is not None:
            number, n = part_of(shard) if re.fullmatch(r"[1-9]\d*/[1-9]\d*", shard, re.ASCII) else (1, 0)
            if number > n:
                raise ValueError("must be i/n with i from 1 to n, e.g. 2/8")
        return shard

    @model_validator(mode="after")
    def _picks(self) -> Config:
        if self.shard is not None and not _share(self._n_labels, self.shard):
            raise ValueError(
                f"select.n={self._n_labels} leaves shard={self.shard} nothing to pick; give fewer shards or a larger n"
            )
        return self

    @property
    def _n_labels(self) -> int:
        """Frames to pick, of all shards together."""
        return min(self.select.n, self.budget.labels or self.select.n)

    @property
    def selection(self) -> Select:
        """What is picked: ``select``, `n` cut to the budget's labels and to the shard's share."""
        n = self._n_labels
        return self.select.model_copy(update={"n": n if self.shard is None else _share(n, self.shard)})

    @property
    def run_name(self) -> str:
        """Name of the run directory, if no other is given."""
        return self.name if self.shard is None else f"{self.name}-{self.shard.replace('/', 'of')}"

    def holds(self, structure: str) -> bool:
        """Whether a seed, by its id in hex, belongs to the shard.

        The ids are cut into n equal stretches: shards are disjoint, and together complete, for any n.
        """
        if self.shard is None:
            return True
        number, n = part_of(self.shard)
        return int(structure[:16], 16) * n >> 64 == number - 1

    def deciding(self) -> dict[str, Any]:
        """Return the part of the config that decides what the dataset holds, as JSON types: not where it is made.

        ``select.n`` is the number that is really picked: cut to the budget's labels and to the shard's share.
        """
        return self.model_copy(update={"select": self.selection}).model_dump(
            mode="json",
            exclude={
                "cluster": True,
                "budget": True,
                "name": True,
                "quality": True,
                "faults": True,
                "explore": {"device", "checkpoint"},
                "describe": {"device"},
                "label": {"device"},
            },
        )


def part_of(shard: str) -> tuple[int, int]:
    """Return number, from 1, and count of a shard ``i/n``."""
    number, _, n = shard.partition("/")
    return int(number), int(n)


def _share(total: int, shard: str) -> int:
    """Return a shard's share of a count; those of all shards add up to it."""
    number, n = part_of(shard)
    return total * number // n - total * (number - 1) // n


def in_bytes(size: str) -> int:
    """Return the number of bytes that e.g. ``50GB`` or ``2 GiB`` stands for."""
    found = re.fullmatch(SIZE, size)
    assert found is not None  # the models see to it
    prefix, base = (found[2] or "").removesuffix("i"), 1024 if (found[2] or "").endswith("i") else 1000
    return int(float(found[1]) * base ** ("", "k", "M", "G", "T").index(prefix))


# --- composition ------------------------------------------------------------------------------------


def load(target: str, overrides: Sequence[str] = ()) -> Config:
    """Compose and validate a config.

    Parameters
    ----------
    target
        Name of a preset, or path of a YAML file.
    overrides
        ``group=choice`` or ``key.path=value``, in Hydra's grammar.

    Returns
    -------
    Config
        Paths in it are absolute.

    Raises
    ------
    ConfigError
        For anything that is wrong with it.
    """
    return validate(compose(target, overrides))


def load_cluster(overrides: Sequence[str]) -> Cluster:
    """Compose and validate the ``cluster`` section alone, from overrides such as ``cluster=slurm``."""
    return load("emt_alloy", overrides).cluster


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """Return the config of a run that has begun, changed where that changes nothing of what comes out.

    Parameters
    ----------
    config
        Of the run.
    overrides
        ``cluster=NAME``, ``cluster.KEY=VALUE`` and ``budget.KEY=VALUE``.

    Raises
    ------
    ConfigError
        For an override of anything else, or a wrong value.
    """
    groups = [word for word in overrides if is_group(word)]
    _refuse_others(
        overrides,
        ("cluster", "budget"),
        "cannot be changed in a run that has begun: only "
        "cluster.KEY=VALUE and budget.KEY=VALUE can; for another config type daskpipe run with another --run-dir",
    )
    if groups:
        config = config.model_copy(update={"cluster": load_cluster(groups)})
    return validate(change(config.model_dump(mode="json"), [word for word in overrides if word not in groups]))


def load_quality(run_dir: Path, overrides: Sequence[str]) -> Quality:
    """Return the thresholds of a run's config, or the defaults where there is none, changed by ``quality.KEY=VALUE``.

    Raises
    ------
    ConfigError
        If an override is no threshold.
    """
    file = run_dir / "config.yaml"
    before = from_yaml(file).quality if file.is_file() else Quality()
    _refuse_others(overrides, ("quality",), "is no threshold; type e.g. quality.forces=15 or quality.diversity=null")
    content = change({"quality": before.model_dump(mode="json")}, overrides)
    try:
        return Quality(**content["quality"])
    except ValidationError as error:
        raise ConfigError(explain(error, Quality, "quality")) from error


def _refuse_others(overrides: Sequence[str], sections: Sequence[str], advice: str) -> None:
    """Raise ConfigError for the first override of another section than those that may be changed."""
    for override in overrides:
        if not re.match("[^=]+=|~", override) or sections_of([override])[0] not in sections:
            raise ConfigError(f"{override!r} {advice}")


def validate(content: Mapping[str, Any]) -> Config:
    """Validate plain containers, the parameters of generators, potentials and the like included.

    Raises
    ------
    ConfigError
        A line for each thing that is wrong.
    """
    from daskpipe.describe import DESCRIPTORS, check_descriptor
    from daskpipe.potentials import POTENTIALS
    from daskpipe.select import SELECTORS

    try:
        config = Config(**content)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(item, Config, "", content) for item in error.errors())) from error
    problems = []
    for where, registry, name, params in (
        ("explore.potential.params", POTENTIALS, config.explore.potential.name, config.explore.potential.params),
        ("describe.params", DESCRIPTORS, config.describe.descriptor, config.describe.params),
        ("select.params", SELECTORS, config.select.method, config.select.params),
        ("label.potential.params", POTENTIALS, config.label.potential.name, config.label.potential.params),
    ):  # fmt: skip
        try:
            registry.check_params(name, params)
        except ValidationError as error:
            problems.append(explain(error, registry.params_model(name), where))
        except ConfigError as error:  # a member of a committee
            problems.append(f"{where}: {error}")
    guards, potential = config.explore.guards, config.explore.potential.name
    if guards.max_disagreement is not None and potential in POTENTIALS.table and potential != "committee":
        problems.append(
            f"explore.guards.max_disagreement needs a committee, received explore.potential.name={potential}; type "
            "explore.potential.name=committee and explore.potential.params.members=[{name: ...}, {name: ...}]"
        )
    if config.select.method == "environments" and config.describe.level != "atom":
        problems.append("select.method=environments needs the environments of atoms; type describe.level=atom")
    if problems:
        raise ConfigError("\n".join(problems))
    check_descriptor(config.describe)
    return _absolute(config)


def _absolute(config: Config) -> Config:
    """Make paths independent of the directory that the run was started in."""
    content = config.model_dump(mode="python")
    content["generate"]["paths"] = [_absolute_glob(path) for path in config.generate.paths]
    for source in content["generate"]["sources"].values():
        if source["generator"] == "files":
            source["base_dir"] = _absolute_path(source["base_dir"])
    if content["select"]["against"] is not None:
        content["select"]["against"] = _absolute_path(content["select"]["against"])
    if content["cluster"]["name"].endswith((".yaml", ".yml")):
        content["cluster"]["name"] = _absolute_path(content["cluster"]["name"])
    if content["cluster"]["tls"] is not None:
        content["cluster"]["tls"] = _absolute_path(content["cluster"]["tls"])
    explore, describe, label = content["explore"]["potential"], content["describe"], content["label"]["potential"]
    for name, params in (
        (explore["name"], explore["params"]),
        (describe["descriptor"], describe["params"]),
        (label["name"], label["params"]),
    ):
        _make_models_absolute(name, params)
    return Config(**content)


def _make_models_absolute(name: str, params: dict[str, Any]) -> None:
    model = params.get("model")
    if name == "mace" and isinstance(model, str) and Path(model).expanduser().is_file():
        params["model"] = _absolute_path(model)
    for member in params.get("members", []) if name == "committee" else []:
        _make_models_absolute(member["name"], member.get("params", {}))


def _absolute_path(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())


def _absolute_glob(path: str) -> str:
    expanded = Path(path).expanduser()
    if glob.has_magic(path) and not expanded.exists():
        # In the name of the present directory a bracket is a bracket.
        return os.path.join(glob.escape(os.getcwd()), expanded)
    return _absolute_path(path)


def to_yaml(config: Config) -> str:
    """Return a config as YAML that `from_yaml` reads back."""
    import yaml

    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def from_yaml(path: Path) -> Config:
    """Read the config that a run directory holds.

    Raises
    ------
    ConfigError
        If it is not there or is no config.
    """
    import yaml

    try:
        check_yaml(path)
        content = yaml.safe_load(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path.parent} is no run directory (it has no {path.name}); see: ls runs") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values")
    return validate(content)


def schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors: what a file leaves out comes from its ``defaults`` list."""
    found = Config.model_json_schema()
    for model in (found, *found["$defs"].values()):
        model.pop("required", None)
    found["properties"]["defaults"] = {"type": "array", "description": "Presets and groups that the file starts from"}
    return found


def differences(ours: Config, theirs: Config) -> list[str]:
    """Return ``key: ours, theirs`` for each deciding key in which two configs differ."""
    a, b = _flat(ours.deciding()), _flat(theirs.deciding())
    return [
        f"{key}: {a.get(key, 'not set')} here, {b.get(key, 'not set')} there"
        for key in sorted(a | b)
        if a.get(key) != b.get(key)
    ]


# --- messages ---------------------------------------------------------------------------------------


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return a line for each problem that pydantic found: key, rule, value received."""
    return "\n".join(_line(item, model, prefix, {}) for item in error.errors())


def _line(item: Any, model: type[BaseModel], prefix: str, content: Mapping[str, Any]) -> str:
    path = [prefix, *(str(part) for part in item["loc"])]
    where = ".".join(part for part in path if part and not part.startswith("[")) or "config"
    if item["type"] == "extra_forbidden":
        owner = where.rpartition(".")[0]
        known = _known_keys(model, item["loc"][:-1]) + _known_params(item["loc"][:-1], content)
        return unknown(f"key in {owner}:" if owner else "key", path[-1], known)
    if item["type"] == "missing":
        choices = sorted(file.stem for file in (package_folder("configs") / where).glob("*.yaml"))
        return f"{where} is missing; type {where}={'|'.join(choices) or 'VALUE'}"
    message = str(item["msg"]).removeprefix("Value error, ")
    received = item.get("input")
    shown = f" (received {received!r})" if isinstance(received, str | int | float | bool | None) else ""
    return f"{where}: {message}{shown}"


def _known_keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Keys of the model that lies `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        # Below a dict or list of models (generate.sources.NAME) the value's model follows the name.
        model = next(_models_in(field.annotation), model) if field else model
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type holds, however deep."""
    if isinstance(annotation, TypeAliasType):
        annotation = annotation.__value__
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _known_params(path: Sequence[int | str], content: Mapping[str, Any]) -> list[str]:
    """Parameters of the generator of the source that lies at `path`."""
    match path:
        case ("generate", "sources", name):
            return sorted(GENERATORS.params_model(content["generate"]["sources"][name]["generator"]).model_fields)
    return []


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    rows: dict[str, Any] = {}
    for key, value in content.items():
        rows |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return rows
