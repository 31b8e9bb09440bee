"""Identify potentials: a name for people, and a hash of all that decides the numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from daskpipe.core.hashing import sha256_file
from daskpipe.core.versions import read_version


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Name of a potential, and a hash of all that decides its numbers.

    Parameters
    ----------
    name
        For people, such as ``"CHGNet 0.3.0"``.
    hash
        SHA-256 in hex: of the weights' bytes, or of package, name and parameters where there are no weights.
    elements
        Symbols of the elements that it knows; ``None`` if it knows any, or if only the loaded model would tell.
    packages
        Installed versions of the packages that hold its formulas, where there are no weights. They are provenance and
        no part of `hash`: after an upgrade it is still the same potential.
    current
        Hash as this version makes it, where `hash` is the one that an earlier version recorded; empty otherwise.
    """

    name: str
    hash: str
    elements: frozenset[str] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    current: str = ""


def identity_of_package(name: str, distribution: str, params: Mapping[str, Any], **rest: Any) -> Identity:
    """Identify a potential whose formulas a package holds, by package, name and parameters.

    Parameters
    ----------
    name
        Name for people.
    distribution
        Name of the package on PyPI.
    params
        All parameters, JSON types.
    **rest
        Further fields of `Identity`.

    Examples
    --------
    >>> identity_of_package("EMT", "ase", {}).name
    'EMT'
    """
    packages = {distribution: read_version(distribution)}
    return Identity(name=name, hash=hash_facts(name, distribution, dict(params)), packages=packages, **rest)


def hash_facts(*facts: Any) -> str:
    """Return the SHA-256, in hex, of facts that are JSON types."""
    return hashlib.sha256(json.dumps(list(facts), sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hex; the file is read again only if its size or modification time changed."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)
