"""`daskpipe.pick`: pick rows of a NumPy or Dask array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core import seeds
from daskpipe.stages.select import SELECTORS
from daskpipe.stages.select.blocks import Blocks

if TYPE_CHECKING:
    import dask.array as da


def pick(
    X: np.ndarray | da.Array,  # noqa: N803 (scikit-learn's name)
    n: int,
    method: str = "kmeans",
    seed: int = 0,
    *,
    n_atoms: np.ndarray | None = None,
    **params: Any,
) -> np.ndarray:
    """Pick rows of a feature array.

    Parameters
    ----------
    X
        Features, shape (row, feature), NumPy or Dask; float32 stays float32. A Dask array is read chunk by chunk,
        in a few passes.
    n
        Rows to pick; structures, with `n_atoms`.
    method
        Name of a selector: ``kmeans``, ``direct``, ``fps``, ``environments``, ``random``, ``stride``.
    seed
        Same seed, same picks, whatever the chunks and the number of threads.
    n_atoms
        For ``environments``, whose rows are atoms: rows of each structure, in the order of the rows, shape
        (structure,), integers.
    **params
        Parameters of the selector, e.g. ``n_clusters``.

    Returns
    -------
    numpy.ndarray
        Sorted indices of rows (of structures, for ``environments``), shape (min(n, rows),), int64.

    Raises
    ------
    ValueError
        If `X` is not a 2-D array with rows and known chunks, if it is not finite or exceeds 1e15, where squared
        distances overflow, and the method looks at it, if `n` is not positive, `seed` is negative, a parameter is
        unknown or wrong, or `n_atoms` does not fit.
    daskpipe.core.errors.ConfigError
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
    if n_atoms is not None:
        n_atoms = _check_n_atoms(np.asarray(n_atoms), method, X.shape[0])
    selector = SELECTORS.get(method)(n=n, seed=seed, **SELECTORS.check_params(method, params))
    n_structures = X.shape[0] if n_atoms is None else len(n_atoms)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n_structures)
    index: np.ndarray = selector.pick(Blocks(X, order, n_atoms)).index
    return index


def _check_n_atoms(n_atoms: np.ndarray, method: str, n_rows: int) -> np.ndarray:
    """Return `n_atoms` as int64 if it fits the rows."""
    if method != "environments":
        raise ValueError(f"method {method!r} picks rows and takes no n_atoms; leave it out, or use 'environments'")
    if n_atoms.ndim != 1 or n_atoms.dtype.kind not in "iu" or (n_atoms < 1).any() or n_atoms.sum() != n_rows:
        raise ValueError(
            f"n_atoms must be positive integers, shape (structure,), that sum to the {n_rows} rows of X; received "
            f"shape {n_atoms.shape}, {n_atoms.dtype}, sum {n_atoms.sum()}"
        )
    return n_atoms.astype(np.int64)


def canonical_order(run_seed: int, structure_ids: np.ndarray) -> np.ndarray:
    """Return an order of frames that depends only on their ids and the run's seed, shape (frame,)."""
    return seeds.order_by_hash(run_seed, "select", structure_ids)
