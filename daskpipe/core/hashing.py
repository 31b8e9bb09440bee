"""Hash files, JSON and the root of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32c_file(path: Path) -> str:
    """Return the CRC-32C (Castagnoli, RFC 3720) of a file's bytes, 8 hex digits."""
    import google_crc32c

    value = 0
    with open(path, "rb") as stream:
        while block := stream.read(2**22):
            value = google_crc32c.extend(value, block)
    return f"{value:08x}"


def crc32c_root(root: Mapping[str, Any]) -> str:
    """Return the CRC-32C of the root metadata of a dataset without its own checksum, 8 hex digits."""
    import google_crc32c

    attributes = dict(root["attributes"])
    attributes["checksums"] = {key: value for key, value in attributes["checksums"].items() if key != "root"}
    return f"{google_crc32c.value(canonical_json({**root, 'attributes': attributes}).encode()):08x}"


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values give equal text.

    Examples
    --------
    >>> canonical_json({"b": 1.5, "a": [1, 2]})
    '{"a":[1,2],"b":1.5}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
