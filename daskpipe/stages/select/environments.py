"""Selection of frames that cover all kinds of atomic environments, the rarest first.

The rule, pick by pick. Atoms fall into clusters by their features. Of the clusters that some frame not yet picked
still holds, take the one that the fewest picks hold so far; of these the rarest, held by the fewest frames of all;
of these the lowest number. Of the frames that hold it and are not picked, take the one that holds the most clusters
which as few picks hold so far; of these the first of the canonical order. When every cluster is held by one
pick, it goes on for a second time round, and so on until `n` frames are picked.
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from daskpipe.stages.select.blocks import Blocks, Picks
from daskpipe.stages.select.clusters import Centers, assign_rows, fit_centers

MOST_CLUSTERS = 1024
"""Most clusters of environments by default."""


class Environments:
    """Pick frames that cover the clusters of atomic environments, the rarest first.

    Rows of the features are atoms, and ``n_atoms`` says how many belong to each structure.

    Memory: 40 bytes an atom and the sample on which the clusters are fitted.

    Parameters
    ----------
    n
        Frames to pick.
    seed
        Decides the canonical order, in which the fit sees the atoms.
    n_clusters
        Clusters of atoms; by default four times `n`, at most 1024.
    passes
        Number of passes over the sample in the fit of the clusters.
    """

    def __init__(self, *, n: int, seed: int, n_clusters: PositiveInt | None = None, passes: PositiveInt = 1) -> None:
        self.n = n
        self.n_clusters = n_clusters or min(MOST_CLUSTERS, 4 * n)
        self.passes = passes
        self._centers = Centers(self.n_clusters)

    @property
    def centers(self) -> np.ndarray:
        """Centres of the clusters, shape (cluster, feature); available after the fit."""
        return self._centers.centers

    def fit_block(self, features: np.ndarray) -> None:
        """Move the centres by one block of atoms, shape (atom, feature)."""
        self._centers.fit_block(features)

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cluster of each atom (int32) and its distance to the centre."""
        return self._centers.find_nearest(features)

    def pick(self, blocks: Blocks) -> Picks:
        """Fit the centres, assign all atoms, and cover the clusters with frames.

        Raises
        ------
        ValueError
            If `blocks` has no ``n_atoms``.
        """
        if blocks.n_atoms is None:
            raise ValueError(
                "method 'environments' picks structures by their atoms, and received no n_atoms; "
                "pass n_atoms=..., the number of rows of each structure"
            )
        self._centers = fit_centers(blocks.read_sample(), self.n_clusters, self.passes)
        cluster, _ = assign_rows(blocks, self._centers)
        index, why = cover_clusters(cluster, blocks.n_atoms, blocks.order, len(self.centers), self.n)
        sort = np.argsort(index)
        return Picks(index=index[sort], cluster=why[sort], reason="environments")


def cover_clusters(
    cluster: np.ndarray, n_atoms: np.ndarray, order: np.ndarray, n_clusters: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return structures (int64), in the order in which they were picked, and the cluster of each pick (int32).

    Parameters
    ----------
    cluster
        Cluster of each atom, shape (atom,).
    n_atoms
        Atoms of each structure, shape (structure,).
    order
        Canonical order of the structures, shape (structure,).
    n_clusters, n
        Clusters; structures to pick.
    """
    from daskpipe.stages.select import environments_kernels

    n_structures = len(n_atoms)
    structure = np.repeat(np.arange(n_structures), n_atoms)
    pairs = np.unique(structure * n_clusters + cluster)
    structure, held = np.divmod(pairs, n_clusters)
    rank = np.empty(n_structures, dtype=np.int64)
    rank[order] = np.arange(n_structures)
    by_cluster = np.lexsort((rank[structure], held))
    picked = np.empty(min(n, n_structures), dtype=np.int64)
    why = np.empty(len(picked), dtype=np.int32)
    environments_kernels.cover_clusters(
        np.searchsorted(held[by_cluster], np.arange(n_clusters + 1)),
        structure[by_cluster],
        np.searchsorted(structure, np.arange(n_structures + 1)),
        held,
        order.astype(np.int64),
        picked,
        why,
    )
    return picked, why
