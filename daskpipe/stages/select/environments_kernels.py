"""Greedy cover of clusters by the structures that hold them."""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel


@kernel
def cover_clusters(
    cluster_ptr: np.ndarray,
    holders: np.ndarray,
    structure_ptr: np.ndarray,
    held: np.ndarray,
    order: np.ndarray,
    out_structure: np.ndarray,
    out_cluster: np.ndarray,
) -> None:
    """Fill `out_structure` with picks and `out_cluster` with the cluster that each was picked for.

    ``holders[cluster_ptr[c] : cluster_ptr[c + 1]]`` are the structures that hold a cluster, in canonical order;
    ``held[structure_ptr[s] : structure_ptr[s + 1]]`` the clusters that a structure holds; `order` is the canonical
    order of all structures.
    """
    n_clusters = len(cluster_ptr) - 1
    covered = np.zeros(n_clusters, np.int64)
    # Holders that were not picked yet.
    left = np.diff(cluster_ptr)
    picked = np.zeros(len(structure_ptr) - 1, np.bool_)
    at = 0
    for step in range(len(out_structure)):
        target = -1
        for cluster in range(n_clusters):
            if left[cluster] == 0:
                continue
            if target < 0 or covered[cluster] < covered[target]:
                target = cluster
            elif covered[cluster] == covered[target]:
                rarity = cluster_ptr[cluster + 1] - cluster_ptr[cluster]
                if rarity < cluster_ptr[target + 1] - cluster_ptr[target]:
                    target = cluster
        if target < 0:
            # The remaining structures hold no cluster.
            while picked[order[at]]:
                at += 1
            best = order[at]
        else:
            best, most = -1, -1
            for place in range(cluster_ptr[target], cluster_ptr[target + 1]):
                structure = holders[place]
                if picked[structure]:
                    continue
                score = 0
                for item in range(structure_ptr[structure], structure_ptr[structure + 1]):
                    score += covered[held[item]] == covered[target]
                if score > most:
                    best, most = structure, score
        picked[best] = True
        out_structure[step] = best
        out_cluster[step] = target
        for item in range(structure_ptr[best], structure_ptr[best + 1]):
            covered[held[item]] += 1
            left[held[item]] -= 1
