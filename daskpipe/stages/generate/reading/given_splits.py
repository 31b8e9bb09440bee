"""Read the splits that frames have in their key ``split`` or in the names of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Split that each word stands for, in lower case."""


def split_of_frame(info: Mapping[str, Any]) -> str:
    """Return the split in a frame's key ``split``, in upper or lower case; empty if there is no known one."""
    words = [str(value) for key, value in info.items() if str(key).lower() == "split"]
    return NAMES.get(words[0].strip().lower(), "") if words else ""


def splits_of_files(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the split of each file by its name: ``train.xyz``, ``Cu_valid.extxyz``, ``test-set.db``.

    Returns
    -------
    dict
        Empty unless every file names one split and the files name at least two: one file ``test.xyz`` has no split.
    """
    names_by_path = {
        path: {NAMES[word] for word in re.split(r"[^a-z]+", path.stem.lower()) if word in NAMES} for path in paths
    }
    if any(len(names) != 1 for names in names_by_path.values()) or len(set().union(*names_by_path.values())) < 2:
        return {}
    return {path: names.pop() for path, names in names_by_path.items()}
