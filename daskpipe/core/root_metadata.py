"""Read the root metadata of a dataset on disk, and refuse what is none."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Any

from daskpipe.core.errors import InputError
from daskpipe.core.variables import SCHEMA


def read_root(path: Path) -> dict[str, Any]:
    """Return the root metadata (``zarr.json``) of a dataset on disk.

    Raises
    ------
    InputError
        If `path` is missing, no Zarr store, no daskpipe dataset, or written in another schema; the message says what to
        type instead.
    """
    file = path / "zarr.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; give the path of a dataset, e.g. runs/NAME/dataset.zarr")
    if not file.is_file():
        if (path / "dataset.zarr").is_dir():
            raise InputError(f"{path} is a run and not a dataset; type {quote(str(path / 'dataset.zarr'))}")
        raise InputError(f"{path} is not a Zarr store (it holds no zarr.json); give the path of a dataset.zarr")
    try:
        root = json.loads(file.read_text())
        attributes = root.get("attributes", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); copy the dataset again or make it anew") from error
    schema = attributes.get("daskpipe_schema")
    if schema is None:
        raise InputError(
            f"{path} is a Zarr store but no daskpipe dataset (it has no attribute daskpipe_schema); "
            "open it with xarray.open_zarr"
        )
    if schema != SCHEMA:
        raise InputError(
            f"{path} is written in schema {schema!r} and this daskpipe reads {SCHEMA!r}; "
            "type: pip install --upgrade daskpipe"
        )
    return dict(root)
