"""`daskpipe.pick`: indices of the rows worth keeping, from a NumPy or Dask array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe import seeds
from daskpipe.select import SELECTORS
from daskpipe.select.blocks import Blocks

if TYPE_CHECKING:
    import dask.array as da


def pick(
    X: np.ndarray | da.Array,  # noqa: N803 (scikit-learn's name)
    n: int,
    method: str = "kmeans",
    seed: int = 0,
    **params: Any,
) -> np.ndarray:
    """Pick rows of a feature array.

    Parameters
    ----------
    X
        Features, shape (row, feature), NumPy or Dask.
    n
        Rows to pick.
    method
        Name of a selector: ``kmeans``, ``random``.
    seed
        Same seed, same picks, whatever the chunks.
    **params
        Parameters of the selector, e.g. ``n_clusters``.

    Returns
    -------
    numpy.ndarray
        Sorted row indices, shape (min(n, rows),), int64.

    Raises
    ------
    ValueError
        If `X` is not a 2-D array with rows and known chunks, if it is not finite and the method looks at it, if
        `n` is not positive, `seed` is negative, or a parameter is unknown or wrong.
    daskpipe.errors.ConfigError
        For an unknown method.
    """
    if X.ndim == 2 and np.isnan(X.shape[0]):
        raise ValueError("X must have known chunks, received a Dask array without; call X.compute_chunk_sizes() first")
    if X.ndim != 2 or X.shape[0] == 0:
        raise ValueError(f"X must have shape (row, feature) with at least one row, received {X.shape}")
    if n < 1:
        raise ValueError(f"n must be at least 1, received {n}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, received {seed}")
    selector = SELECTORS.get(method)(n=n, seed=seed, **SELECTORS.check_params(method, params))
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(X.shape[0])
    index: np.ndarray = selector.pick(Blocks(X, order)).index
    return index


def canonical_order(run_seed: int, structure_ids: np.ndarray) -> np.ndarray:
    """Order of frames that depends only on their ids and the run's seed, shape (frame,)."""
    return seeds.order_by_hash(run_seed, "select", structure_ids)
