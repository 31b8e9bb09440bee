"""Parse overrides, ``group=choice`` and ``key.path=value``, with Hydra's grammar: the one parser of all commands."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daskpipe.core.errors import ConfigError
from daskpipe.core.files import package_folder


@dataclass(frozen=True, kw_only=True)
class Override:
    """An override, parsed.

    Parameters
    ----------
    text
        As it was typed.
    key
        Keys joined by dots, or the name of a group; without the ``+`` or ``~`` before it.
    value
        Plain value; None for an override that deletes.
    deletes
        Whether it is ``~key.path``, which removes a key.
    """

    text: str
    key: str
    value: Any = None
    deletes: bool = False

    @property
    def section(self) -> str:
        """Section of the config that it changes: ``cluster`` for ``++cluster.workers=2``."""
        return self.key.partition(".")[0]

    @property
    def chooses_file(self) -> bool:
        """Whether it chooses a file of a group, as ``describe=soap`` does, rather than setting a value."""
        is_folder = bool(self.key) and (package_folder("configs") / self.key).is_dir()
        return is_folder and not self.deletes and not isinstance(self.value, dict | list)


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Parameters
    ----------
    texts
        ``group=choice``, ``key.path=value``, ``+key=value``, ``++key=value`` or ``~key``.

    Raises
    ------
    ConfigError
        If one is no override, gives several values for a sweep, or breaks the grammar.

    Examples
    --------
    >>> [(item.key, item.value) for item in parse_overrides(["select.n=64", "describe=soap"])]
    [('select.n', 64), ('describe', 'soap')]
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for text in texts:
        if not is_override(text):
            raise ConfigError(f"override {text!r} must read key.path=value or group=choice, e.g. select.n=64")
    try:
        parsed = OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise ConfigError(" ".join(f"{' '.join(texts)}: {error}".split())) from error
    for item in parsed:
        if item.is_sweep_override():
            raise ConfigError(
                f"override {item.input_line!r} gives several values; type one, a list as [1,2], or quote it"
            )
        if item.package is not None:
            raise ConfigError(f"override {item.input_line!r} has an @; type key.path=value or group=choice")
    return [
        Override(
            text=item.input_line,
            key=item.key_or_group,
            value=None if item.is_delete() else item.value(),
            deletes=item.is_delete(),
        )
        for item in parsed
    ]


def is_override(text: str) -> bool:
    """Tell whether a word has the form of an override, ``key=value`` or ``~key``."""
    return re.match(r"[^=]+=|~", text) is not None


def separate_paths(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate words of the command line into paths and overrides.

    A word with ``=`` that names no file, no folder and no glob of any is an override.

    Examples
    --------
    >>> separate_paths(["md.extxyz", "select.n=64"])
    (['md.extxyz'], ['select.n=64'])
    """
    overrides = [word for word in words if "=" in word and not os.path.exists(word) and not glob.glob(word)]
    return [word for word in words if word not in overrides], overrides


def quote_value(text: str) -> str:
    """Quote a text so that Hydra's grammar takes every character of it literally.

    Examples
    --------
    >>> quote_value("a b")
    "'a b'"
    """
    if re.fullmatch(r"/[A-Za-z0-9_./-]+", text, re.ASCII):  # a path that needs no quotes
        return text
    return "'" + text.replace("'", "\\'") + "'"
