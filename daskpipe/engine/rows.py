"""Read structures of committed units as datasets in memory, and turn datasets into arrays for a payload and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.engine.run_directory import RunDirectory

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """Name rows of one committed unit, which another unit reads.

    Parameters
    ----------
    stage, key
        The unit.
    rows
        Positions on its ``structure`` axis.
    """

    stage: str
    key: str
    rows: tuple[int, ...]


def read_rows(root: Path, pieces: Sequence[UnitRows]) -> xr.Dataset:
    """Return the structures that `pieces` name, in their order, as one dataset in memory."""
    from daskpipe.core.structures import concat, take

    parts = []
    # Successive pieces of one unit are read together: each read checks the digest of the whole unit.
    for (stage, key), group in groupby(pieces, key=lambda piece: (piece.stage, piece.key)):
        parts.append(take(read_unit(root, stage, key), [row for piece in group for row in piece.rows]))
    return concat(parts)


def read_unit(root: Path, stage: str, key: str) -> xr.Dataset:
    """Return the structures of one committed unit as a dataset in memory."""
    return arrays_to_dataset(RunDirectory(root).load_arrays(stage, key))


def arrays_to_dataset(arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Return a dataset in memory of plain arrays, named as in `daskpipe.core.variables`."""
    import xarray as xr

    from daskpipe.core.variables import VARIABLES

    return xr.Dataset({name: (VARIABLES[name].dims, array) for name, array in arrays.items()})


def dataset_to_arrays(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the variables of a dataset in memory as plain arrays, sorted by name."""
    return {str(name): array.values for name, array in sorted(ds.data_vars.items())}
