"""CRC-32C (Castagnoli, RFC 3720) of files, and of the root of a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def crc32c_file(file: Path) -> str:
    """CRC-32C (Castagnoli, RFC 3720) of a file, 8 hex digits."""
    import google_crc32c

    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(2**22):
            value = google_crc32c.extend(value, block)
    return f"{value:08x}"


def crc32c_root(root: Mapping[str, Any]) -> str:
    """CRC-32C of the root metadata's content, its own checksum left out, 8 hex digits."""
    import google_crc32c

    attributes = dict(root["attributes"])
    attributes["checksums"] = {key: value for key, value in attributes["checksums"].items() if key != "root"}
    return f"{google_crc32c.value(canonical_json({**root, 'attributes': attributes}).encode()):08x}"


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
