"""Features in blocks of a canonical order: what selectors see, whatever the chunks on disk are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import dask.array as da

BLOCK_SIZE = 4096
"""Rows a block, unless a selector needs more. Fixed, so that no choice of chunks changes what is picked."""


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

    def __call__(self, size: int = BLOCK_SIZE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (rows, features of these rows, float64) in blocks of `size` rows; only one is in memory.

        Raises
        ------
        ValueError
            If features are not finite; names the first row.
        """
        for start in range(0, len(self.order), size):
            rows = self.order[start : start + size]
            # Dask wants sorted rows to touch each chunk once; the canonical order is restored after.
            sort = np.argsort(rows)
            block: Any = self.features[rows[sort]]
            values = np.asarray(block.compute(scheduler="synchronous") if hasattr(block, "dask") else block)
            if not np.isfinite(values).all():
                first = rows[sort][~np.isfinite(values).all(axis=1)][0]
                raise ValueError(f"features must be finite, and row {first} is not; drop such rows first")
            yield rows, values[np.argsort(sort)].astype(np.float64)
