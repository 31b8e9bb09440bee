"""Features in blocks of a canonical order: what selectors see, whatever the chunks on disk are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import dask.array as da

BLOCK_SIZE = 4096
"""Rows a block. Fixed, so that no choice of chunks changes what is picked."""


@dataclass(frozen=True)
class Picks:
    """What a selector picked.

    Parameters
    ----------
    index
        Sorted rows of the features, shape (pick,), int64.
    cluster
        Stratum of each pick, shape (pick,), int32; -1 where the selector makes none.
    reason
        One word for all picks.
    """

    index: np.ndarray
    cluster: np.ndarray
    reason: str


@dataclass(frozen=True)
class Blocks:
    """Rows of features in a canonical, shuffled order.

    Parameters
    ----------
    features
        NumPy or Dask array, shape (frame, feature).
    order
        A permutation of the rows, shape (frame,), int64.
    """

    features: np.ndarray | da.Array
    order: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (rows, features of these rows, float64), block by block; only one block is in memory."""
        for start in range(0, len(self.order), BLOCK_SIZE):
            rows = self.order[start : start + BLOCK_SIZE]
            # Dask wants sorted rows to touch each chunk once; the canonical order is restored after.
            sort = np.argsort(rows)
            block: Any = self.features[rows[sort]]
            values = np.asarray(block.compute(scheduler="synchronous") if hasattr(block, "dask") else block)
            yield rows, values[np.argsort(sort)].astype(np.float64)
