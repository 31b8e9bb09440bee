"""Validate what users write: settings, sizes and YAML files, with messages that say what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAliasType, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.files import package_folder

LARGEST_YAML = 100_000
"""Most values that a YAML file may hold, with what its aliases repeat."""


def check_yaml(path: Path) -> None:
    """Check that a YAML file is not too large once its aliases are written out: a few lines may repeat without end.

    Raises
    ------
    ConfigError
        If it is too large, or nests too deep. Other faults are left to the reader of the file.
    """
    import yaml

    sizes: dict[int, int] = {}

    def count_values(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = LARGEST_YAML + 1  # an alias inside its own anchor
            inner = node.value if isinstance(node.value, list) else []
            parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(count_values(part) for part in parts)
        return sizes[id(node)]

    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
        n_values = 0 if node is None else count_values(node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    except RecursionError:
        raise ConfigError(f"{path} nests too deep to be a config") from None
    if n_values > LARGEST_YAML:
        raise ConfigError(f"{path} stands for more than {LARGEST_YAML:,} values; write out what its aliases repeat")


SIZE = r"(\d+(?:\.\d+)?) ?([kMGT]i?)?B"
"""Pattern of a number of bytes with its unit, such as ``50GB`` or ``2 GiB``."""


class FrozenModel(BaseModel):
    """Settings that cannot be changed once made, and that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FiniteModel(FrozenModel):
    """Settings that refuse NaN and infinity as well."""

    model_config = ConfigDict(allow_inf_nan=False)


def in_bytes(size: str) -> int:
    """Return the number of bytes of a size that matches `SIZE`.

    Examples
    --------
    >>> in_bytes("50GB"), in_bytes("2 GiB")
    (50000000000, 2147483648)
    """
    match = re.fullmatch(SIZE, size)
    assert match is not None  # the models have checked the pattern
    prefix, base = (match[2] or "").removesuffix("i"), 1024 if (match[2] or "").endswith("i") else 1000
    return int(float(match[1]) * base ** ("", "k", "M", "G", "T").index(prefix))


def explain_errors(
    error: ValidationError,
    model: type[BaseModel],
    prefix: str = "",
    known_params: Callable[[Sequence[int | str]], list[str]] = lambda path: [],
) -> str:
    """Return the explanation of a validation error: one line a problem, with key, rule and the value received.

    Parameters
    ----------
    error, model
        The error that pydantic raised, and the model that it was raised for.
    prefix
        Path of the model in the config, put before each key.
    known_params
        Returns the parameters that are known at a path, beside the fields of the model there.
    """
    return "\n".join(_explain_problem(item, model, prefix, known_params) for item in error.errors())


def _explain_problem(
    item: Any, model: type[BaseModel], prefix: str, known_params: Callable[[Sequence[int | str]], list[str]]
) -> str:
    path = [prefix, *(str(part) for part in item["loc"])]
    where = ".".join(part for part in path if part and not part.startswith("[")) or "config"
    if item["type"] == "extra_forbidden":
        owner = where.rpartition(".")[0]
        known = _known_keys(model, item["loc"][:-1]) + known_params(item["loc"][:-1])
        return describe_unknown(f"key in {owner}:" if owner else "key", path[-1], known)
    if item["type"] == "missing":
        choices = sorted(file.stem for file in (package_folder("configs") / where).glob("*.yaml"))
        return f"{where} is missing; type {where}={'|'.join(choices) or 'VALUE'}"
    message = str(item["msg"]).removeprefix("Value error, ")
    received = item.get("input")
    shown = f" (received {received!r})" if isinstance(received, str | int | float | bool | None) else ""
    return f"{where}: {message}{shown}"


def _known_keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the keys of the model at `path` below `model`, sorted."""
    for part in path:
        field = model.model_fields.get(str(part))
        # In a dict or list of models (generate.sources.NAME) the model of the value follows the name.
        model = next(_models_in(field.annotation), model) if field else model
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a type annotation, at any depth."""
    if isinstance(annotation, TypeAliasType):
        annotation = annotation.__value__
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
