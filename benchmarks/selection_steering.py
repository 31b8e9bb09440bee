"""Picks against an existing dataset: how many lie where it has no structures.

Run: ``python benchmarks/selection_steering.py``. 2,000 frames lie about a region where a dataset has structures, 200 in
another; of all of them 100 are picked, without the dataset and against it. Features are 16 normal variables of falling
width, as principal axes have.
"""

from __future__ import annotations

import numpy as np

from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.pick import pick
from daskpipe.stages.select.steering import find_covered_frames

N_COVERED, N_NEW, N_PICKS, DIMS = 2_000, 200, 100, 16


def main() -> None:
    widths = np.exp(-np.arange(DIMS) / 3)
    print("picks of 100 in the new region, of 2,000 frames near the dataset and 200 in the new one")
    print("dataset  new region  radius  covered  method    without  against")
    for n_known, width in ((20, 1.0), (100, 1.0), (500, 1.0), (2_000, 1.0), (500, 0.3)):
        rng = np.random.default_rng(0)
        pool = rng.standard_normal((N_COVERED + N_NEW, DIMS)) * widths
        pool[N_COVERED:] = 6 * np.eye(DIMS)[0] + width * pool[N_COVERED:]
        pool = pool.astype(np.float32)
        known = (rng.standard_normal((n_known, DIMS)) * widths).astype(np.float32)
        near, radius = find_covered_frames(Blocks(pool, rng.permutation(len(pool))), known, N_PICKS)
        rows = np.flatnonzero(~near)
        for method in ("kmeans", "fps", "direct"):
            without = np.count_nonzero(pick(pool, N_PICKS, method) >= N_COVERED)
            against = np.count_nonzero(rows[pick(pool[rows], N_PICKS, method)] >= N_COVERED)
            facts = f"{n_known:>7}  {width:>8.1f} x  {radius:>6.2f}  {near.sum():>7,}"
            print(f"{facts}  {method:<8}  {without:>7}  {against:>7}")


if __name__ == "__main__":
    main()
