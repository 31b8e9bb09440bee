"""Validate what users write: models, sizes, YAML files, and messages about what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAliasType, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
)

from daskpipe.core.errors import ConfigError, unknown
from daskpipe.core.files import package_folder

LARGEST_YAML = 100_000
"""Most values that a file may stand for, with what its aliases repeat."""


def check_yaml(path: Path) -> None:
    """See that a file does not stand for more than can be held: a few lines of aliases may repeat without end.

    Raises
    ------
    ConfigError
        If it does, or nests too deep. Whoever reads the file raises its other faults.
    """
    import yaml

    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = LARGEST_YAML + 1  # what holds itself has no end
            inner = node.value if isinstance(node.value, list) else []
            parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(size(part) for part in parts)
        return sizes[id(node)]

    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
        n_values = 0 if node is None else size(node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    except RecursionError:
        raise ConfigError(f"{path} nests too deep to be a config") from None
    if n_values > LARGEST_YAML:
        raise ConfigError(f"{path} stands for more than {LARGEST_YAML:,} values; write out what its aliases repeat")


SIZE = r"(\d+(?:\.\d+)?) ?([kMGT]i?)?B"
"""A number of bytes with its unit."""


class FrozenModel(BaseModel):
    """Settings that cannot be changed once made, and that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FiniteModel(FrozenModel):
    """Settings that refuse NaN and infinity, too."""

    model_config = ConfigDict(allow_inf_nan=False)


def in_bytes(size: str) -> int:
    """Return the number of bytes that e.g. ``50GB`` or ``2 GiB`` stands for."""
    found = re.fullmatch(SIZE, size)
    assert found is not None  # the models see to it
    prefix, base = (found[2] or "").removesuffix("i"), 1024 if (found[2] or "").endswith("i") else 1000
    return int(float(found[1]) * base ** ("", "k", "M", "G", "T").index(prefix))


def explain(
    error: ValidationError,
    model: type[BaseModel],
    prefix: str = "",
    known_params: Callable[[Sequence[int | str]], list[str]] = lambda path: [],
) -> str:
    """Explain a validation error: a line for each problem, with key, rule and the value received.

    Parameters
    ----------
    error, model
        What pydantic raised, and the model that it raised it for.
    prefix
        Path of the model in the config, put before each key.
    known_params
        Returns the parameters that are known at a path beside the fields of the model there.
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
