"""Projection of rows on axes; the result of a row does not depend on its place."""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel


@kernel
def project_rows(rows: np.ndarray, mean: np.ndarray, axes: np.ndarray, out: np.ndarray) -> None:
    """Compute ``(rows - mean) @ axes``, summed in float64 and in the order of the features."""
    sums = np.empty(axes.shape[1], np.float64)
    for r in range(len(rows)):
        sums[:] = 0
        for f in range(len(mean)):
            x = rows[r, f] - mean[f]
            axis = axes[f]
            for m in range(len(sums)):
                sums[m] += x * axis[m]
        out[r] = sums
