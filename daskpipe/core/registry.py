"""Register the functions of an extension point: a literal table, and the entry points of other packages."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, create_model

from daskpipe.core.errors import ConfigError, describe_unknown

FILE = "names a file, if there is one"
FOLDER = "names a folder"

FileName = Annotated[str, FILE]
"""Type of a parameter that may name a file: in a config the path of one that exists becomes absolute."""

FolderName = Annotated[str, FOLDER]
"""Type of a parameter that names a folder: in a config its path becomes absolute."""


def find_entry_points(group: str) -> EntryPoints:
    """Return the entry points of a group that installed packages declare."""
    return _read_entry_points(tuple(sys.path)).select(group=group)


@cache
def _read_entry_points(path: tuple[str, ...]) -> EntryPoints:
    """Read the entry points of all packages on a path: some 250 files, so once a process and path."""
    return entry_points()


class Registry:
    """Names of one extension point and the functions behind them, imported on first use.

    Parameters
    ----------
    kind
        What the names are called in messages, in the singular: ``"potential"``.
    table
        ``{"name": "module:attribute"}``.
    group
        Entry point group through which other packages add names, e.g. ``"daskpipe.potentials"``.
    given
        Keyword arguments that daskpipe passes itself; all others are the user's parameters.

    Examples
    --------
    >>> shapes = Registry("shape", {"comb": "math:comb"}, group="daskpipe.no_such_group", given=())
    >>> shapes.known_names()
    ['comb']
    >>> shapes.get("comb")(4, 2)
    6
    """

    def __init__(self, kind: str, table: Mapping[str, str], *, group: str, given: tuple[str, ...]) -> None:
        self.kind = kind
        self.table = dict(table)
        self.group = group
        self.given = given

    def known_names(self) -> list[str]:
        """Return the known names, sorted; a name of daskpipe's own hides the same name of a plugin."""
        plugins = {point.name for point in find_entry_points(self.group)}
        return sorted(plugins | set(self.table))

    def get(self, name: str) -> Callable[..., Any]:
        """Return the function registered under `name`.

        Raises
        ------
        ConfigError
            If no function of that name is registered; the message lists the known names.
        """
        if name in self.table:
            module, _, attribute = self.table[name].partition(":")
            function: Callable[..., Any] = getattr(import_module(module), attribute)
            return function
        for point in find_entry_points(self.group).select(name=name):
            plugin: Callable[..., Any] = point.load()
            return plugin
        raise ConfigError(describe_unknown(self.kind, name, self.known_names()))

    def check_params(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters checked against the signature of `name`, with defaults filled in, as JSON types.

        Raises
        ------
        pydantic.ValidationError
            For an unknown or missing parameter or a value of the wrong kind.
        """
        return self.params_model(name)(**params).model_dump(mode="json")

    def find_companion(self, name: str, attribute: str) -> Any:
        """Return what a registered function has under `attribute`, or else its module; ``None`` if neither has it.

        Raises
        ------
        ConfigError
            As `get`.
        """
        function = self.get(name)
        return getattr(function, attribute, getattr(sys.modules[function.__module__], attribute, None))

    def make_paths_absolute(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return `params` with absolute paths in place of relative ones, where a parameter names a file or folder.

        Parameters
        ----------
        name
            A registered name.
        params
            Valid parameters of it. Those of the types `FileName` and `FolderName` change; ``~`` is the home folder.
        """
        absolute = dict(params)
        for key, field in self.params_model(name).model_fields.items():
            value = params.get(key)
            if isinstance(value, str) and (
                FOLDER in field.metadata or (FILE in field.metadata and Path(value).expanduser().is_file())
            ):
                absolute[key] = os.path.abspath(Path(value).expanduser())
        return absolute

    def params_model(self, name: str) -> type[BaseModel]:
        """Return a pydantic model of the parameters that a user may give to `name`."""
        return signature_model(self.get(name), self.given)


@cache
def signature_model(function: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """Return a pydantic model of the keyword parameters of a function, without those in `given`."""
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.name in given:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    return create_model(function.__name__, __config__=ConfigDict(extra="forbid", validate_default=True), **fields)
