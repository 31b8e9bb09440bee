"""Read class and heads of a pickled MACE model without running the pickle, which is a program."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

HARMLESS = {("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set, ("builtins", "slice"): slice}
"""Classes that a pickle may create; `_Shell` stands in for all others."""


class _Shell:
    """Stand-in for an object of any class, which accepts all that a pickle gives it and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Shell:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return HARMLESS.get((module, name)) or type(name, (_Shell,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        return None


def read_class_and_heads(path: Path) -> tuple[str, list[str]] | None:
    """Read the class and the heads of a pickled model.

    Parameters
    ----------
    path
        File that ``torch.save`` has written.

    Returns
    -------
    tuple or None
        Name of the class, and names of the heads (``["Default"]`` if it names none). ``None`` if the file is not in
        the format that torch writes since version 1.6: only loading it would tell.
    """
    stat = path.stat()
    return _read_cached(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_cached(path: Path, size: int, mtime_ns: int) -> tuple[str, list[str]] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            with archive.open(name) as file:
                model = _Reader(file).load()
    # The bytes may be anything; the code that loads the model explains what is wrong with them.
    except Exception:
        return None
    state = getattr(model, "state", None) or {}
    listed = state.get("heads")
    heads = [head for head in listed if isinstance(head, str)] if isinstance(listed, list) else []
    return type(model).__name__, heads or ["Default"]
