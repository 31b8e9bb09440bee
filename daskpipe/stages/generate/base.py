"""Draw the structures that other structures are made from: the crystal of a surface, of a defect, of a strain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import BeforeValidator

from daskpipe.core.errors import InputError, Rejection, describe_unknown
from daskpipe.core.shared_disk import raise_if_transient
from daskpipe.core.structures import copy_arrays
from daskpipe.stages.generate import GENERATORS, INFO_KEYS, call_generator, is_enumerated

OF = "of"
"""Name of the parameter that says what a generator starts from."""

POTENTIAL = "potential"
"""Name of the parameter that names a potential."""

EXAMPLES = 3
"""Structures that are drawn from a random base to see what it gives."""


def check_base(value: Any) -> dict[str, Any]:
    """Return the generator of a base and its checked parameters.

    Parameters
    ----------
    value
        A mapping as that of a source in a config, without ``n``: ``generator`` and its parameters. A word is short
        for a file, if it names one, or for a chemical formula: its most likely crystal.

    Raises
    ------
    ValueError
        For an unknown generator, or what its parameters do not allow.
    """
    if isinstance(value, str):
        path = Path(value).expanduser()
        is_path = path.exists() or path.suffix or "/" in value
        ideal = {"generator": "formula", "formula": value, "first": 1, "strain": 0, "rattle": 0}
        value = {"generator": "files", "paths": [value]} if is_path else ideal
    if not isinstance(value, Mapping) or "generator" not in value:
        raise ValueError(
            f"expected a formula, a file or {{generator: NAME, ...}}, received {value!r}; "
            "e.g. of: MgO, of: my.cif or of: {generator: alloys, elements: {Cu: 1}, n_atoms: 32}"
        )
    params = dict(value)
    name = params.pop("generator")
    if name not in GENERATORS.known_names():
        raise ValueError(describe_unknown("generator", name, GENERATORS.known_names()))
    checked = GENERATORS.check_params(name, params)
    if name == "files":
        try:
            items = _expand(name, checked)
        except InputError as error:
            raise ValueError(str(error)) from error
        folder = items[0][0]["base_dir"]
        checked = {"paths": [path for item, _ in items for path in item["paths"]], "base_dir": folder}
    return {"generator": name, **checked}


Base = Annotated[dict[str, Any], BeforeValidator(check_base)]
"""What a generator starts from: a generator with its parameters, a file, or a formula."""


def hash_base(params: Mapping[str, Any]) -> str:
    """Return a checksum of the files and potentials that the parameters of a generator name; empty if none does."""
    digests = []
    for key, base in params.items():
        if key == POTENTIAL and base is not None:
            from daskpipe.stages.generate.normal_modes import hash_potential

            digests.append(hash_potential(base))
        elif isinstance(base, Mapping) and "generator" in base:
            name, inner = _split(base)
            listed = is_enumerated(name)
            digests += [digest for _, digest in _expand(name, inner)] if listed else [hash_base(inner)]
    return "".join(digests)


def probe_base(of: Mapping[str, Any]) -> list[Atoms]:
    """Return examples of what a base gives, so that a generator can refuse one that does not suit it.

    Parameters
    ----------
    of
        A base, as `check_base` returns it.

    Returns
    -------
    list of ase.Atoms
        All structures of a list; a few from a stream of their own if the base is random. They must not be changed.

    Raises
    ------
    ValueError
        If the generator of the base refuses its parameters, or the base has no structure that can be used.
    """
    return _probe(json.dumps(dict(of), sort_keys=True), _stamp_files(of))


def count_base(of: Mapping[str, Any]) -> int:
    """Return how many structures `draw_base` goes through in turn; 1 for a random base."""
    return len(probe_base(of)) if is_enumerated(of["generator"]) else 1


def copy_base(atoms: Atoms) -> Atoms:
    """Return a copy of a structure with what is known of its atoms, without constraints and notes."""
    # What is made from reference data is none itself.
    info = {key: atoms.info[key] for key in INFO_KEYS if key in atoms.info and key != "reference"}
    copied = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc, info=info)
    copy_arrays(atoms, copied)
    return copied


def draw_base(of: Mapping[str, Any], *, rng: np.random.Generator, index: int) -> Atoms:
    """Draw one structure to start from.

    Parameters
    ----------
    of
        A base, as `check_base` returns it.
    rng
        Stream of the structure that is made from it.
    index
        Number of the request. A base that is a list, such as frames of files, is gone through in turn.

    Returns
    -------
    ase.Atoms
        A structure of its own, without calculator.

    Raises
    ------
    ValueError
        If the base has no structure that can be used.
    """
    name, params = _split(of)
    if is_enumerated(name):
        structures = _list_structures(name, json.dumps(params, sort_keys=True), _stamp_files(of))
        return structures[index % len(structures)].copy()
    for item in islice(_call(name, params, rng, index), 20):
        if not isinstance(item, Rejection):
            return item
    raise ValueError(f"of: generator {name!r} made no structure in 20 tries")


def _stamp_files(of: Mapping[str, Any]) -> str:
    """Return size and time of change of the files of a base, which a structure is drawn from too often to hash them."""
    name, params = _split(of)
    if not is_enumerated(name):
        return "".join(
            _stamp_files(base) for base in params.values() if isinstance(base, Mapping) and "generator" in base
        )
    stamps = []
    for item, _ in _list_items(name, json.dumps(params, sort_keys=True)):
        for path in item.get("paths") or ():
            file = Path(item["base_dir"]) / path
            try:
                stat = file.stat()
            except OSError as error:
                raise_if_transient(error)
                raise InputError(f"of: {file} cannot be read: {error.strerror}; put it back") from error
            stamps.append(f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return "\n".join(stamps)


@lru_cache(maxsize=64)
def _list_items(name: str, params: str) -> list[tuple[dict[str, Any], str]]:
    """Return the requests of a base that is a list; its files are looked for once."""
    return _expand(name, json.loads(params))


def _split(base: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return base["generator"], {key: value for key, value in base.items() if key != "generator"}


def _expand(name: str, params: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    items: list[tuple[dict[str, Any], str]] = GENERATORS.find_companion(name, "expand_requests")(
        params, None, Path.cwd()
    )
    return items


def _call(name: str, params: Mapping[str, Any], rng: np.random.Generator, index: int) -> Iterator[Atoms | Rejection]:
    return call_generator(GENERATORS.get(name), params, rng=rng, index=index)


@lru_cache(maxsize=64)
def _probe(base: str, stamp: str) -> list[Atoms]:
    """Return examples of a base; `stamp` makes files that have changed count as others."""
    of = json.loads(base)
    name, params = _split(of)
    if is_enumerated(name):
        return _list_structures(name, json.dumps(params, sort_keys=True), stamp)
    try:
        rng = np.random.default_rng(0)
        return [draw_base(of, rng=rng, index=index) for index in range(EXAMPLES)]
    except ValueError as error:
        raise ValueError(f"of: {str(error).removeprefix('of: ')}") from error


@lru_cache(maxsize=8)
def _list_structures(name: str, params: str, stamp: str) -> list[Atoms]:
    """Return the structures of a base that is a list; `stamp` makes files that have changed count as others."""
    rejected: list[Rejection] = []
    structures: list[Atoms] = []
    for item, _ in _expand(name, json.loads(params)):
        for made in _call(name, item, np.random.default_rng(0), 0):
            if isinstance(made, Rejection):
                rejected.append(made)
            else:
                structures.append(made)
    if not structures:
        first = f": {rejected[0].structure}: {rejected[0].evidence}" if rejected else ""
        raise ValueError(f"of: {name} has no structure that can be used{first}")
    return structures
