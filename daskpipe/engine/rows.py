"""Read structures of committed units as datasets in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.engine.run_directory import RunDirectory

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one committed unit: what a downstream unit reads."""

    stage: str
    key: str
    rows: tuple[int, ...]


def read_rows(root: Path, pieces: Sequence[Rows]) -> xr.Dataset:
    """Return the structures that `pieces` name, in their order, as one dataset in memory."""
    from daskpipe.core.structures import concat, take

    parts = []
    # Neighbours of one unit are read together: reading means checking its whole digest.
    for (stage, key), group in groupby(pieces, key=lambda piece: (piece.stage, piece.key)):
        parts.append(take(read_unit(root, stage, key), [row for piece in group for row in piece.rows]))
    return concat(parts)


def read_unit(root: Path, stage: str, key: str) -> xr.Dataset:
    """Return the structures of one committed unit as a dataset in memory."""
    import xarray as xr

    from daskpipe.core.variables import VARIABLES

    arrays = RunDirectory(root).load(stage, key)
    return xr.Dataset({name: (VARIABLES[name].dims, array) for name, array in arrays.items()})


def arrays_of(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the variables of a dataset in memory as plain arrays, for a payload."""
    return {str(name): array.values for name, array in sorted(ds.data_vars.items())}
