"""Kernels of the reduction: lengths of descriptors, and their projection on a few axes.

Each row is summed by itself, in an order that the number of features fixes: its result depends neither on its block nor
on its place in it. Of fastmath only "contract" is on: a product and its sum are rounded once.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 16
"""Partial sums of a length: enough for the widest vector registers."""

ROWS = 16
"""Rows that share a piece of the axes while it is in the nearest cache."""

STEP = 8
"""Columns whose products go into a partial sum between its load and its store."""

CHUNK = 16 * STEP
"""Columns summed in the precision of the rows before they go into the float64 sum."""


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def write_lengths(rows: np.ndarray, out: np.ndarray) -> None:
    """Write the Euclidean length of each row.

    Parameters
    ----------
    rows
        Shape (row, column), float32 or float64, C order.
    out
        Shape (row,), float64.
    """
    n_rows, n_columns = rows.shape
    whole = n_columns - n_columns % LANES
    sums = np.zeros(LANES)
    for row in range(n_rows):
        sums[:] = 0.0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                value = np.float64(rows[row, start + lane])
                sums[lane] += value * value
        total = 0.0
        for lane in range(LANES):
            total += sums[lane]
        for column in range(whole, n_columns):
            value = np.float64(rows[row, column])
            total += value * value
        out[row] = np.sqrt(total)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def project_rows(rows: np.ndarray, factors: np.ndarray, mean: np.ndarray, axes: np.ndarray, out: np.ndarray) -> None:
    """Write ``(factors * rows - mean) @ axes``.

    Parameters
    ----------
    rows
        Shape (row, column), float32 or float64, C order.
    factors
        Shape (row,), dtype of `rows`.
    mean
        Shape (column,), dtype of `rows`.
    axes
        Shape (columns rounded up to a multiple of `STEP`, feature), dtype of `rows`, C order: the features of one
        column lie side by side. Rows beyond the columns are zeros.
    out
        Shape (row, feature), float32.
    """
    n_rows, n_columns = rows.shape
    n_features = axes.shape[1]
    centred = np.zeros((ROWS, CHUNK), rows.dtype)
    partial = np.zeros((ROWS, n_features), rows.dtype)
    sums = np.zeros((ROWS, n_features))
    for first in range(0, n_rows, ROWS):
        n_block = min(ROWS, n_rows - first)
        sums[:] = 0.0
        for start in range(0, n_columns, CHUNK):
            width = min(CHUNK, n_columns - start)
            if width < CHUNK:
                centred[:] = 0.0  # the last step may reach beyond the columns
            chunk_mean = mean[start : start + width]
            for row in range(n_block):
                factor = factors[first + row]
                source = rows[first + row, start : start + width]
                target = centred[row]
                for column in range(width):
                    target[column] = factor * source[column] - chunk_mean[column]
            partial[:] = 0.0
            for step in range(0, width, STEP):
                piece = axes[start + step : start + step + STEP]
                a0, a1, a2, a3, a4, a5, a6, a7 = (
                    piece[0], piece[1], piece[2], piece[3], piece[4], piece[5], piece[6], piece[7]
                )  # fmt: skip
                for row in range(n_block):
                    x = centred[row, step : step + STEP]
                    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
                    total = partial[row]
                    for feature in range(n_features):
                        total[feature] = (
                            total[feature]
                            + x0 * a0[feature]
                            + x1 * a1[feature]
                            + x2 * a2[feature]
                            + x3 * a3[feature]
                            + x4 * a4[feature]
                            + x5 * a5[feature]
                            + x6 * a6[feature]
                            + x7 * a7[feature]
                        )
            for row in range(n_block):
                for feature in range(n_features):
                    sums[row, feature] += partial[row, feature]
        for row in range(n_block):
            for feature in range(n_features):
                out[first + row, feature] = sums[row, feature]
