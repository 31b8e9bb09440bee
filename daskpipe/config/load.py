"""Load a config: compose it, change it by overrides, and validate it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import (
    ValidationError,
)

from daskpipe.cluster.settings import Cluster
from daskpipe.config.compose import apply_overrides, compose
from daskpipe.config.models import Config
from daskpipe.config.overrides import Override, is_override, parse_overrides
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
    """Change the config of a run that has begun, where that changes nothing of what the run makes.

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
    parsed = _parse_sections(
        overrides,
        ("cluster", "budget"),
        "cannot be changed in a run that has begun: only "
        "cluster.KEY=VALUE and budget.KEY=VALUE can; for another config type daskpipe run with another --run-dir",
    )
    if groups := [item.text for item in parsed if item.chooses_file]:
        config = config.model_copy(update={"cluster": load_cluster(groups)})
    values = [item for item in parsed if not item.chooses_file]
    return validate_config(apply_overrides(config.model_dump(mode="json"), values))


def load_quality(run_dir: Path, overrides: Sequence[str]) -> Quality:
    """Load the thresholds of a run's config, or the defaults where there is none, changed by overrides.

    Parameters
    ----------
    run_dir
        Folder that holds ``config.yaml``, if there is one.
    overrides
        ``quality.KEY=VALUE``.

    Raises
    ------
    ConfigError
        If an override is no threshold.
    """
    file = run_dir / "config.yaml"
    before = from_yaml(file).quality if file.is_file() else Quality()
    advice = "is no threshold; type e.g. quality.forces=15 or quality.diversity=null"
    content = apply_overrides(
        {"quality": before.model_dump(mode="json")}, _parse_sections(overrides, ("quality",), advice)
    )
    try:
        return Quality(**content["quality"])
    except ValidationError as error:
        raise ConfigError(explain_errors(error, Quality, "quality")) from error


def _parse_sections(overrides: Sequence[str], sections: Sequence[str], advice: str) -> list[Override]:
    """Parse overrides of some sections.

    Raises
    ------
    ConfigError
        For the first one that is no override, or is of another section, with the advice.
    """
    for text in overrides:
        if not is_override(text) or parse_overrides([text])[0].section not in sections:
            raise ConfigError(f"{text!r} {advice}")
    return parse_overrides(overrides)
