"""Compose a config as plain containers: Hydra's defaults lists and override grammar, and a merge of our own.

Hydra lists the files of a config, in order. They are merged here, because a value that names another choice (another
potential, other elements) must not inherit what belonged to the choice before it: see `CHOICES` and `SETS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from daskpipe.config.overrides import Override, parse_overrides, quote_value
from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.files import package_folder
from daskpipe.core.validation import check_yaml


class Choice(NamedTuple):
    """A key that names a choice, and the keys that belong to the choice.

    Parameters
    ----------
    key
        Key that names the choice; it stands beside the keys that belong to the choice.
    parts
        Keys that are dropped when another choice is named; all of them if ``None``.
    default
        Choice if no file names one.
    """

    key: str
    parts: tuple[str, ...] | None = None
    default: str | None = None


CHOICES = {
    "explore.potential": Choice("name"),
    "label.potential": Choice("name"),
    "generate.sources.*": Choice("generator"),
    "describe": Choice("descriptor", ("params",), "soap"),
    "describe.params.*": Choice("function"),
    "select": Choice("method", ("params",), "kmeans"),
    "cluster": Choice("name", ("address", "tls", "pools"), "local"),
}
"""Sections in which one key names a choice; ``*`` is any name."""

SOURCES = "generate.sources"
SETS = (
    SOURCES,
    "generate.sources.*.elements",
    "explore.dynamics.ensembles",
    "explore.dynamics.temperatures_by_type",
    "explore.monte_carlo.oxidation_states",
    "store.split",
)
"""Mappings that replace an earlier one as a whole, and do not add to its keys.

A key that is typed by itself (``generate.sources.alloys.elements.Ni=[0,1]``) changes that key alone.
"""


class _Typed(dict[str, Any]):
    """Mapping made from the keys of ``key.path=value``: it was not given as a whole."""


# --- from names to containers -------------------------------------------------------------------------


def list_presets() -> list[str]:
    """Return the names of the presets that come with daskpipe."""
    return sorted(file.stem for file in package_folder("configs").glob("*.yaml"))


def compose(target: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose a config from a preset or a file, and overrides.

    Parameters
    ----------
    target
        Name of a preset, or path of a YAML file.
    overrides
        ``group=choice`` or ``key.path=value``, in Hydra's grammar.

    Returns
    -------
    dict
        Plain containers, interpolations resolved, not validated.

    Raises
    ------
    ConfigError
        For a file, a choice or an override that does not exist or cannot be read.
    """
    folder, name = _locate_file(target)
    if (file := folder / f"{name}.yaml").is_file():
        check_yaml(file)
    parsed = parse_overrides(overrides)
    groups = {item.key: item.text for item in parsed if item.chooses_file}
    with _explain_errors(target):
        layers = _read_layers(folder, name, groups)
        content: dict[str, Any] = reduce(merge, [layer for _, layer in layers], {})
        for path, layer in layers:
            if path.rpartition("/")[0] in groups:
                content = _prefer_group(content, layer)
    config = apply_overrides(content, [item for item in parsed if not item.chooses_file], target)
    config.setdefault("name", Path(name).name)
    return config


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[Override], target: str = "") -> dict[str, Any]:
    """Change plain containers by overrides.

    Parameters
    ----------
    content
        A config, or a part of one.
    overrides
        ``key.path=value`` and ``~key.path``, parsed.
    target
        What the content is, for messages; by default the overrides.

    Returns
    -------
    dict
        With interpolations resolved.

    Raises
    ------
    ConfigError
        If a value looks something up outside of the config, or a key to delete is not there.
    """
    from omegaconf import OmegaConf

    with _explain_errors(target or " ".join(item.text for item in overrides)):
        kept, typed = dict(content), _Typed()
        for override in overrides:
            if override.deletes:
                kept, typed = _delete_key((kept, typed), override)
            else:
                typed = merge(typed, _nest_value(override.key, override.value, _Typed))
        # What was typed is merged first: params stay that are typed before the name of their choice.
        merged = _make_plain(merge(kept, typed))
        _refuse_resolvers(merged)
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)  # a mapping was given
    return {str(key): value for key, value in resolved.items()}


# --- the merge ----------------------------------------------------------------------------------------


def merge(before: Any, after: Any, path: str = "") -> Any:
    """Merge a later layer into an earlier one.

    Parameters
    ----------
    before, after
        Values at the same place in both layers. Mappings are merged key by key, except where `CHOICES` and `SETS` say
        that earlier keys are dropped; any other value replaces the earlier one.
    path
        Their place: keys joined by dots.

    Examples
    --------
    >>> merge({"select": {"n": 64, "seed": 0}}, {"select": {"n": 8}})
    {'select': {'n': 8, 'seed': 0}}
    """
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    kept = _drop_keys(before, _list_replaced(before, after, path))
    changed = {key: merge(kept.get(key), value, _join_path(path, key)) for key, value in after.items()}
    return type(before)({**kept, **changed})


def _list_replaced(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> set[str]:
    """Return the keys of `before` to drop because `after` names another choice, or replaces the mapping as a whole."""
    if (choice := CHOICES.get(_match_pattern(path, CHOICES))) is not None and choice.key in after:
        stood = before.get(choice.key, None if isinstance(before, _Typed) else choice.default)
        if stood is not None and stood != after[choice.key]:
            return set(before if choice.parts is None else choice.parts)
    if _match_pattern(path, SETS) and not isinstance(after, _Typed) and not _changes_sources(after, path):
        return before.keys() - after.keys()
    return set()


def _changes_sources(after: Mapping[str, Any], path: str) -> bool:
    """Tell whether sources are given only to change those of the same names: none of them names its generator."""
    return path == SOURCES and bool(after) and not any("generator" in (source or {}) for source in after.values())


def _prefer_group(content: Any, chosen: Any, path: str = "") -> Any:
    """Prefer a group that was typed on the command line to a file that names another choice."""
    if not (isinstance(content, dict) and isinstance(chosen, dict)):
        return content
    if path == SOURCES and content.keys() != chosen.keys():
        return chosen
    choice = CHOICES.get(_match_pattern(path, CHOICES))
    if choice and choice.key in chosen and content.get(choice.key, choice.default) != chosen[choice.key]:
        parts = set(content if choice.parts is None else choice.parts)
        of_choice = {key: value for key, value in chosen.items() if key in {choice.key, *(choice.parts or chosen)}}
        return {**_drop_keys(content, parts), **of_choice}
    return {
        key: _prefer_group(value, chosen[key], _join_path(path, key)) if key in chosen else value
        for key, value in content.items()
    }


def _match_pattern(path: str, patterns: Mapping[str, Choice] | Sequence[str]) -> str:
    """Return the pattern that fits a path, or an empty text."""
    keys = path.split(".")
    for pattern in patterns:
        parts = pattern.split(".")
        if len(parts) == len(keys) and all(part in ("*", key) for part, key in zip(parts, keys, strict=True)):
            return pattern
    return ""


def _join_path(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _drop_keys(content: Mapping[str, Any], keys: Any) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _nest_value(path: str, value: Any, kind: type[dict[str, Any]]) -> Any:
    """Nest a value below the keys of a dotted path; return the value itself if the path is empty."""
    return reduce(lambda content, key: kind({key: content}), reversed(path.split(".") if path else []), value)


def _delete_key(layers: Sequence[dict[str, Any]], override: Override) -> list[Any]:
    """Return layers without the key of ``~key.path``.

    Raises
    ------
    ConfigError
        If none of them has it.
    """

    def drop_path(content: Any, path: str) -> Any:
        key, _, below = path.partition(".")
        if not isinstance(content, dict) or key not in content:
            return content
        return type(content)({**content, key: drop_path(content[key], below)} if below else _drop_keys(content, (key,)))

    remaining = [drop_path(layer, override.key) for layer in layers]
    if remaining == list(layers):
        raise ConfigError(f"override {override.text!r} deletes a key that no file sets; leave it out")
    return remaining


def _make_plain(content: Any) -> Any:
    """Return a tree of plain dicts, which OmegaConf requires."""
    return {key: _make_plain(value) for key, value in content.items()} if isinstance(content, dict) else content


# --- files --------------------------------------------------------------------------------------------


def _locate_file(target: str) -> tuple[Path, str]:
    """Return the folder and the name of a preset or a file.

    Raises
    ------
    ConfigError
        If there is no such preset or file.
    """
    if target in list_presets():
        return package_folder("configs").absolute(), target
    path = Path(target).expanduser()
    if path.suffix == ".yaml":
        if not path.is_file():
            raise ConfigError(f"config file {target} does not exist")
        return path.parent.absolute(), path.stem
    raise ConfigError(describe_unknown("preset", target, list_presets()) + " A config file must end in .yaml.")


_Layers = list[tuple[str, Any]]

_kept_layers: dict[tuple[Any, ...], tuple[dict[Path, tuple[int, int] | None], _Layers]] = {}
"""Layers that were read, and the states of their files, by folder, name and groups."""


def _read_layers(folder: Path, name: str, groups: Mapping[str, str]) -> _Layers:
    """Read the files of a config in the order in which they are merged; once, until one of them changes.

    Parameters
    ----------
    folder, name
        Of the config's file.
    groups
        Overrides that choose a file of a group, by group.

    Returns
    -------
    list of tuple
        Path of each file below its folder, without suffix, and its content below the keys of its group.
    """
    key = (folder, name, *groups.items())
    states, layers = _kept_layers.get(key, ({}, []))
    if not states or any(_read_state(file) != state for file, state in states.items()):
        listed = _list_files(folder, name, groups)
        states = {file: _read_state(file) for item in listed for file in _list_places(folder, item)}
        layers = [(item.config_path, _read_layer(folder, item)) for item in listed]
        _kept_layers[key] = states, layers
    return layers


def _read_state(file: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written: its modification time and size; ``None`` without the file."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _list_places(folder: Path, item: Any) -> tuple[Path, Path]:
    """Return where a file of a config may be; the first that exists is read."""
    path = f"{item.config_path}.yaml"
    return folder / path, package_folder("configs") / path


def _list_files(folder: Path, name: str, groups: Mapping[str, str]) -> list[Any]:
    """List the files of a config with Hydra, in the order in which they are merged; parameters as in `_read_layers`."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    search_path = f"hydra.searchpath=[{quote_value(f'file://{package_folder("configs")}')}]"
    # The caller may run within a Hydra application of its own: its state is restored afterwards.
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3", job_name="daskpipe"):
            loader = GlobalHydra.instance().config_loader()

            def list_files(name: str | None, overrides: Sequence[str]) -> list[Any]:
                defaults = loader.compute_defaults_list(name, [search_path, *overrides], RunMode.RUN).defaults
                return [item for item in defaults if item.config_path and not item.config_path.startswith("hydra/")]

            if not groups:
                return list_files(name, [])
            listed = {item.config_path.rpartition("/")[0] for item in list_files(name, [])}
            # A group that is in no defaults list comes before the file, as in a list that ends in _self_.
            ahead = [f"+{override.lstrip('+')}" for group, override in groups.items() if group not in listed]
            chosen = [override.lstrip("+") for group, override in groups.items() if group in listed]
            return [*(list_files(None, ahead) if ahead else []), *list_files(name, chosen)]
    finally:
        GlobalHydra.instance().hydra = theirs


def _read_layer(folder: Path, default: Any) -> Any:
    """Read one of the files of a config, and nest its content below the keys of its group."""
    from omegaconf import OmegaConf

    file = next(file for file in _list_places(folder, default) if file.is_file())
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold keys and values, received {type(content).__name__}")
    return _nest_value(default.package or "", _drop_keys(content, ("defaults", "hydra")), dict)


# --- messages -----------------------------------------------------------------------------------------


@contextmanager
def _explain_errors(target: str) -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf and YAML into a `ConfigError` that says what to type."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(_explain_error(error, target)) from error


def _explain_error(error: Exception, target: str) -> str:
    """Return the message for an error; for a choice that does not exist it lists the known ones."""
    text = str(error).strip()
    if missing := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, choice = missing[1].rpartition("/")
        known = sorted(file.stem for file in (package_folder("configs") / group).glob("*.yaml"))
        return describe_unknown(f"choice of {group}" if group else "config", choice, known)
    return f"{target}: {' '.join(text.split())}"


def _refuse_resolvers(content: Any) -> None:
    """Refuse ``${name:...}``, which may look up a secret of the environment: a run publishes its config."""
    if isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            _refuse_resolvers(item)
    elif isinstance(content, str) and (lookup := re.search(r"\$\{[^${}]*:", content)):
        raise ValueError(
            f"{content!r} looks {lookup[0]}...}} up; only keys of the config may be, as ${{key.path}}: type the value"
        )
