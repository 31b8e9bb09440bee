"""Write a config as YAML, read it back, and compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daskpipe.config.models import Config
from daskpipe.config.validate import validate_config
from daskpipe.core.errors import ConfigError
from daskpipe.core.validation import check_yaml


def to_yaml(config: Config) -> str:
    """Write a config as YAML that `from_yaml` reads back."""
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
    return validate_config(content)


def build_schema() -> dict[str, Any]:
    """Build the JSON schema of a config file, for editors.

    No key is required: what a file leaves out comes from its ``defaults`` list.
    """
    schema = Config.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        model.pop("required", None)
    schema["properties"]["defaults"] = {"type": "array", "description": "Presets and groups that the file starts from"}
    return schema


def list_differences(ours: Config, theirs: Config) -> list[str]:
    """List the deciding keys in which two configs differ, as ``key: OURS here, THEIRS there``."""
    a, b = _flatten_config(ours.dump_deciding()), _flatten_config(theirs.dump_deciding())
    return [
        f"{key}: {a.get(key, 'not set')} here, {b.get(key, 'not set')} there"
        for key in sorted(a | b)
        if a.get(key) != b.get(key)
    ]


def _flatten_config(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted keys."""
    if not isinstance(content, dict):
        return {prefix: content}
    rows: dict[str, Any] = {}
    for key, value in content.items():
        rows |= _flatten_config(value, f"{prefix}.{key}" if prefix else str(key))
    return rows
