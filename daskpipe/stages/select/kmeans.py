"""Mini-batch k-means strata: clusters of feature space, a quota for each, picks spread within it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveInt

from daskpipe.stages.select.blocks import Blocks, Picks
from daskpipe.stages.select.clusters import Centers, assign_rows, fit_centers
from daskpipe.stages.select.quotas import Allocation, share_picks
from daskpipe.stages.select.strata import Strata

MOST_CLUSTERS = 2048
"""Most strata by default."""


class KMeansStrata:
    """Pick from strata of feature space.

    Memory: 28 bytes a row, the sample on which the centres are fitted, and with ``within="spread"`` 256 MB.

    Parameters
    ----------
    n
        Frames to pick.
    seed
        Decides the canonical order, in which the fit sees the rows, and with it where the centres start.
    n_clusters
        Strata; by default a quarter of `n`, at least one and at most 2048.
    allocation
        Picks of a stratum: ``equal``, or weighted by its members (``proportional``) or by their square root
        (``sqrt``). benchmarks/selection_coverage.py compares them.
    within
        Which members: ``spread`` takes the one nearest to the centre and then farthest points, ``nearest`` the
        nearest ones.
    passes
        Number of passes over the sample in the fit of the centres.
    """

    def __init__(
        self,
        *,
        n: int,
        seed: int,
        n_clusters: PositiveInt | None = None,
        allocation: Allocation = "sqrt",
        within: Literal["spread", "nearest"] = "spread",
        passes: PositiveInt = 1,
    ) -> None:
        self.n = n
        self.n_clusters = n_clusters or min(MOST_CLUSTERS, max(1, n // 4))
        self.allocation: Allocation = allocation
        self.within = within
        self.passes = passes
        self._centers = Centers(self.n_clusters)

    @property
    def centers(self) -> np.ndarray:
        """Centres of the strata, shape (stratum, feature); available after the fit."""
        return self._centers.centers

    def fit_block(self, features: np.ndarray) -> None:
        """Move the centres by one block, shape (row, feature)."""
        self._centers.fit_block(features)

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the stratum of each row (int32) and its distance to the centre."""
        return self._centers.find_nearest(features)

    def pick(self, blocks: Blocks) -> Picks:
        """Fit the centres, assign all rows, and pick from each stratum up to its quota."""
        self._centers = fit_centers(blocks.read_sample(), self.n_clusters, self.passes)
        cluster, distance = assign_rows(blocks, self._centers)
        strata = Strata.from_clusters(cluster, distance, blocks.rank, len(self.centers))
        share = share_picks(strata.sizes, self.n, self.allocation)
        index = strata.pick_nearest(share) if self.within == "nearest" else strata.pick_spread(share, blocks)
        return Picks(index=index, cluster=cluster[index], reason=f"kmeans_{self.within}")
