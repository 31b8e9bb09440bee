"""The config: composed by Hydra from ``configs/`` and the user's file, then validated by pydantic.

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

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

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

    name: str = Field(default="local", description="local, or a site of jobqueue/ (a file in it, or a path to one)")
    address: str | None = Field(default=None, description="Scheduler to join instead, tcp://... or tls://...")
    workers: PositiveInt | None = Field(default=None, description="Local workers; by default one a core, at most 8")
    gpus: int | None = Field(
        default=None, ge=0, description="Local workers that offer a GPU; by default as many as there are"
    )
    memory: str = Field(default="auto", description="Memory limit of a local worker, e.g. 4GB")
    dashboard: bool = Field(default=True, description="Serve the Dask dashboard, on loopback")

    @field_validator("memory")
    @classmethod
    def _bytes(cls, memory: str) -> str:
        if not re.fullmatch(r"auto|\d+(\.\d+)? ?([kMGT]i?)?B", memory):
            raise ValueError("must be auto or a number with a unit, e.g. 4GB")
        return memory


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

    def deciding(self) -> dict[str, Any]:
        """Return the part of the config that decides what the dataset holds, as JSON types: not where it is made."""
        return self.model_dump(
            mode="json",
            exclude={
                "cluster": True,
                "name": True,
                "quality": True,
                "explore": {"device", "checkpoint"},
                "describe": {"device"},
                "label": {"device"},
            },
        )


# --- composition ------------------------------------------------------------------------------------


def package_folder(name: str) -> Path:
    """Return ``configs/`` or ``jobqueue/``: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[1] / name


def presets() -> list[str]:
    """Names of the presets that come with daskpipe."""
    return sorted(file.stem for file in package_folder("configs").glob("*.yaml"))


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


def load_quality(run_dir: Path, overrides: Sequence[str]) -> Quality:
    """Return the thresholds of a run's config, or the defaults where there is none, changed by ``quality.KEY=VALUE``.

    Raises
    ------
    ConfigError
        If an override is no threshold.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = run_dir / "config.yaml"
    before = from_yaml(file).quality if file.is_file() else Quality()
    if strangers := [word for word in overrides if not re.match(r"quality\.\w.*=", word)]:
        raise ConfigError(f"{strangers[0]!r} is no threshold; type e.g. quality.forces=15 or quality.diversity=null")
    try:
        changed = OmegaConf.merge({"quality": before.model_dump()}, OmegaConf.from_dotlist(list(overrides)))
        content: Any = OmegaConf.to_container(changed, resolve=True)
        return Quality(**content["quality"])
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    except ValidationError as error:
        raise ConfigError(explain(error, Quality, "quality")) from error


def compose(target: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose a config with Hydra; return plain containers."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    folder, name = _locate(target)
    search_path = f"hydra.searchpath=[{quoted(f'file://{package_folder("configs")}')}]"
    translated = [_translate(override) for override in overrides]
    # Whoever calls from within a Hydra application of their own finds it again afterwards.
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3", job_name="daskpipe"):
            try:
                composed = hydra_compose(name, overrides=[search_path, *translated])
            except HydraException as error:
                # A file without a defaults list takes group=choice too.
                if "+" not in str(error) or "No match in the defaults list" not in str(error):
                    raise
                groups = [f"+{item}" for item in translated if _is_group(item)]
                values = [item for item in translated if not _is_group(item)]
                # What the file says wins over the groups, as it does after a defaults list that ends in _self_.
                chosen = hydra_compose(None, overrides=[search_path, *groups])
                OmegaConf.set_struct(chosen, False)
                composed = OmegaConf.merge(chosen, hydra_compose(name, overrides=[search_path, *values]))
        content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(_explain(error, target)) from error
    finally:
        GlobalHydra.instance().hydra = theirs
    if not isinstance(content, dict):
        raise ConfigError(f"{target} must hold keys and values, received {type(content).__name__}")
    config: dict[str, Any] = {str(key): value for key, value in content.items()}
    config.setdefault("name", Path(name).name)
    return config


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
    return sorted(model.model_fields)


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


def _locate(target: str) -> tuple[Path, str]:
    """Return folder and name of a preset or a file."""
    if target in presets():
        return package_folder("configs").absolute(), target
    path = Path(target).expanduser()
    if path.suffix == ".yaml":
        if not path.is_file():
            raise ConfigError(f"config file {target} does not exist")
        return path.parent.absolute(), path.stem
    raise ConfigError(unknown("preset", target, presets()) + " A config file must end in .yaml.")


def _is_group(override: str) -> bool:
    """Whether ``key=value`` chooses a file of a group rather than setting a value."""
    key, _, value = override.partition("=")
    return bool(key) and (package_folder("configs") / key).is_dir() and not value.startswith(("{", "["))


def _translate(override: str) -> str:
    """Let ``key.path=value`` set keys that the YAML files leave at their default."""
    key, equals, _ = override.partition("=")
    if not key or not (equals or override.startswith("~")):
        raise ConfigError(f"override {override!r} must read key.path=value or group=choice, e.g. select.n=64")
    if override.startswith(("+", "~")) or _is_group(override):
        return override
    return f"++{override}"


def quoted(text: str) -> str:
    """Write a value so that Hydra's grammar takes every character of it for what it is."""
    return "'" + text.replace("'", "\\'") + "'"


def _explain(error: Exception, target: str) -> str:
    """Turn Hydra's messages into one that says what to type."""
    text = str(error).strip()
    if missing := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, choice = missing[1].rpartition("/")
        known = sorted(file.stem for file in (package_folder("configs") / group).glob("*.yaml"))
        return unknown(f"choice of {group}" if group else "config", choice, known)
    return f"{target}: {' '.join(text.split())}"
