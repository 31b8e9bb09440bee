"""Cover clusters of atoms with structures, one pick at a time and everything counted anew."""


def cover_clusters(held: list[set[int]], rank: list[int], n: int) -> list[tuple[int, int]]:
    """(structure, cluster that it was picked for) of each pick; `held` are the clusters of each structure."""
    picks: list[tuple[int, int]] = []
    while len(picks) < min(n, len(held)):
        picked = {structure for structure, _ in picks}
        left = [structure for structure in range(len(held)) if structure not in picked]
        covered = {cluster: sum(cluster in held[one] for one in picked) for cluster in set().union(*held)}
        rarity = {cluster: sum(cluster in clusters for clusters in held) for cluster in covered}
        open_ = {cluster for structure in left for cluster in held[structure]}
        target = min(open_, key=lambda cluster: (covered[cluster], rarity[cluster], cluster))
        least = {cluster for cluster in covered if covered[cluster] == covered[target]}
        holders = [structure for structure in left if target in held[structure]]
        picks.append((min(holders, key=lambda one: (-len(held[one] & least), rank[one])), target))
    return picks
