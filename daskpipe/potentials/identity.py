"""Identify potentials: a name for people, and a hash of what decides the numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from daskpipe.core.hashing import sha256_file


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which potential it is: what people call it, and a hash of what decides its numbers.

    Parameters
    ----------
    name
        For people, such as ``"CHGNet 0.3.0"``.
    hash
        SHA-256 in hex: of the weights' bytes, or of package, name and parameters where there are no weights.
    elements
        Symbols of the elements that it knows; ``None`` if any, or if only loading the model would tell.
    packages
        Packages that hold its formulas, where there are no weights, and their versions here: where its numbers came
        from, and no part of `hash`. An upgrade does not make another potential of it.
    """

    name: str
    hash: str
    elements: frozenset[str] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


def identity_of_package(name: str, distribution: str, params: Mapping[str, Any], **rest: Any) -> Identity:
    """Return the identity of a potential whose formulas a package holds: package, name and parameters."""
    facts = json.dumps([name, distribution, dict(params)], sort_keys=True)
    packages = {distribution: version(distribution)}
    return Identity(name=name, hash=hashlib.sha256(facts.encode()).hexdigest(), packages=packages, **rest)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes in hex; hashed again only if its size or time of change differs."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)
