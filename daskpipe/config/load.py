"""Load a config: composed, changed by overrides, and validated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import (
    ValidationError,
)

from daskpipe.cluster.settings import Cluster
from daskpipe.config.compose import apply_overrides, compose, is_group, list_sections
from daskpipe.config.models import Config
from daskpipe.config.saved import from_yaml
from daskpipe.config.validate import validate_config
from daskpipe.core.errors import ConfigError
from daskpipe.core.validation import explain_errors
from daskpipe.store.quality.settings import Quality


def load_config(target: str, overrides: Sequence[str] = ()) -> Config:
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
    return validate_config(compose(target, overrides))


def load_cluster(overrides: Sequence[str]) -> Cluster:
    """Compose and validate the ``cluster`` section alone, from overrides such as ``cluster=slurm``."""
    return load_config("emt_alloy", overrides).cluster


def change_config(config: Config, overrides: Sequence[str]) -> Config:
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
    return validate_config(
        apply_overrides(config.model_dump(mode="json"), [word for word in overrides if word not in groups])
    )


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
    content = apply_overrides({"quality": before.model_dump(mode="json")}, overrides)
    try:
        return Quality(**content["quality"])
    except ValidationError as error:
        raise ConfigError(explain_errors(error, Quality, "quality")) from error


def _refuse_others(overrides: Sequence[str], sections: Sequence[str], advice: str) -> None:
    """Raise ConfigError for the first override of another section than those that may be changed."""
    for override in overrides:
        if not re.match("[^=]+=|~", override) or list_sections([override])[0] not in sections:
            raise ConfigError(f"{override!r} {advice}")
