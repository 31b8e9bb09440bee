"""Validate a config, the parameters of generators, potentials and the like included."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from daskpipe.config.models import Config
from daskpipe.core.errors import ConfigError
from daskpipe.core.validation import explain_errors
from daskpipe.stages.generate import GENERATORS


def validate_config(content: Mapping[str, Any]) -> Config:
    """Validate plain containers, the parameters of generators, potentials and the like included.

    Raises
    ------
    ConfigError
        A line for each thing that is wrong.
    """
    from daskpipe.potentials import POTENTIALS, traits_of
    from daskpipe.stages.describe import DESCRIPTORS, check_descriptor_settings
    from daskpipe.stages.select import SELECTORS

    try:
        config = Config(**content)
    except ValidationError as error:
        known_params = partial(_known_params, content)
        raise ConfigError(explain_errors(error, Config, known_params=known_params)) from error
    problems = []
    for where, registry, name, params in (
        ("explore.potential.params", POTENTIALS, config.explore.potential.name, config.explore.potential.params),
        ("describe.params", DESCRIPTORS, config.describe.descriptor, config.describe.params),
        ("select.params", SELECTORS, config.select.method, config.select.params),
        ("label.potential.params", POTENTIALS, config.label.potential.name, config.label.potential.params),
        *(
            [("label.second.params", POTENTIALS, config.label.second.name, config.label.second.params)]
            if config.label.second is not None
            else []
        ),
    ):  # fmt: skip
        try:
            registry.check_params(name, params)
        except ValidationError as error:
            problems.append(explain_errors(error, registry.params_model(name), where))
        except ConfigError as error:  # a member of a committee
            problems.append(f"{where}: {error}")
    guards, potential = config.explore.guards, config.explore.potential.name
    plain = potential in POTENTIALS.table and not traits_of(potential).measures_disagreement
    if guards.max_disagreement is not None and plain:
        problems.append(
            f"explore.guards.max_disagreement needs a committee, received explore.potential.name={potential}; type "
            "explore.potential.name=committee and explore.potential.params.members=[{name: ...}, {name: ...}]"
        )
    if config.select.method == "environments" and config.describe.level != "atom":
        problems.append("select.method=environments needs the environments of atoms; type describe.level=atom")
    if problems:
        raise ConfigError("\n".join(problems))
    check_descriptor_settings(config.describe)
    return _make_paths_absolute(config)


def _make_paths_absolute(config: Config) -> Config:
    """Make paths independent of the directory that the run was started in."""
    from daskpipe.potentials.catalogue import make_paths_absolute
    from daskpipe.stages.describe import DESCRIPTORS

    content = config.model_dump(mode="python")
    content["generate"]["paths"] = [_absolute_glob(path) for path in config.generate.paths]
    for source in content["generate"]["sources"].values():
        source |= GENERATORS.make_paths_absolute(source["generator"], source)
    if content["select"]["against"] is not None:
        content["select"]["against"] = _absolute_path(content["select"]["against"])
    if content["cluster"]["name"].endswith((".yaml", ".yml")):
        content["cluster"]["name"] = _absolute_path(content["cluster"]["name"])
    if content["cluster"]["tls"] is not None:
        content["cluster"]["tls"] = _absolute_path(content["cluster"]["tls"])
    choices = [content["explore"]["potential"], content["label"]["potential"]]
    if content["label"]["second"] is not None:
        choices.append(content["label"]["second"])
    if content["label"]["cache_dir"] is not None:
        content["label"]["cache_dir"] = _absolute_path(content["label"]["cache_dir"])
    for potential in choices:
        potential["params"] = make_paths_absolute(potential["name"], potential["params"])
    describe = content["describe"]
    describe["params"] = DESCRIPTORS.make_paths_absolute(describe["descriptor"], describe["params"])
    return Config(**content)


def _absolute_path(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())


def _absolute_glob(path: str) -> str:
    expanded = Path(path).expanduser()
    if glob.has_magic(path) and not expanded.exists():
        # In the name of the present directory a bracket is a bracket.
        return os.path.join(glob.escape(os.getcwd()), expanded)
    return _absolute_path(path)


def _known_params(content: Mapping[str, Any], path: Sequence[int | str]) -> list[str]:
    """Return the parameters of the generator of the source at a path of a config."""
    match path:
        case ("generate", "sources", name):
            return sorted(GENERATORS.params_model(content["generate"]["sources"][name]["generator"]).model_fields)
    return []
