"""Find the groups of structures that must stay in one split, and define the rule of the splits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.validation import FiniteModel
from daskpipe.core.variables import SPLITS

BLOCK = 4096
"""Structures whose neighbours in feature space are searched for at once."""

By = Literal["seed", "trajectory", "composition", "cluster", "structure"]


class Split(FiniteModel):
    """Rule of the splits: structures that resemble a training structure are not in val or test."""

    split: dict[str, float] = Field(
        default={"train": 0.8, "val": 0.1, "test": 0.1}, description="Shares of the data; a group is never torn"
    )
    split_by: By = Field(
        default="seed",
        description="What stays together: all frames of a seed, or of a trajectory; for harder tests, all structures "
        "of a composition, or of a region (cluster) of feature space; structure keeps nothing together: a random split",
    )
    near_duplicates: NonNegativeFloat = Field(
        default=0.01,
        description="Structures whose features are closer than this share of the spread of the data stay together, too",
    )
    clusters: PositiveInt = Field(default=20, description="Regions of feature space, for split_by=cluster")
    gap: float = Field(
        default=0.02,
        ge=0,
        le=0.2,
        description="Share of a trajectory that is left out between two blocks of time; trajectories are cut into such "
        "blocks where there are fewer seeds than splits",
    )
    keep_splits: bool = Field(
        default=True,
        description="Whether imported frames stay in the split that their key `split` or the name of their file gives",
    )

    @field_validator("split")
    @classmethod
    def _check_shares(cls, split: dict[str, float]) -> dict[str, float]:
        try:
            check_fractions(split)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return split


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Check that `fractions` are shares of known splits that sum to 1.

    Raises
    ------
    ConfigError
        If a split is unknown, a share is not from 0 to 1, or the shares do not sum to 1.

    Examples
    --------
    >>> check_fractions({"train": 0.8, "val": 0.2})
    """
    for name, share in fractions.items():
        if name not in SPLITS:
            raise ConfigError(describe_unknown("split", name, list(SPLITS)))
        if not 0 <= share <= 1:
            raise ConfigError(f"split {name}={share} is no share; give a number from 0 to 1")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:  # room for 0.7 + 0.2 + 0.1 and for thirds typed with six digits
        given = ", ".join(f"{name}={share:g}" for name, share in fractions.items()) or "nothing"
        raise ConfigError(f"the splits must sum to 1; received {given} (sum {total:g}), try train=0.8 val=0.1 test=0.1")


def find_groups(columns: Mapping[str, np.ndarray], rule: Split, *, seed: int) -> np.ndarray:
    """Find the groups of structures that must stay in one split.

    Parameters
    ----------
    columns
        Those of `LINEAGE` that the data has, one row per structure; and ``component``, where frames without lineage
        were connected (`daskpipe.store.connectivity.connect_frames`).
    rule
        Rule of what stays together.
    seed
        Seed of the clustering.

    Returns
    -------
    numpy.ndarray
        Number of the group of each structure, shape (structure,), dtype int32. Groups are numbered in the order of the
        smallest id in each, so that the numbers do not depend on the order of the rows.

    Raises
    ------
    ConfigError
        If the rule is ``split_by=cluster`` and the data has no features.
    """
    ids, spaced = columns["structure_id"], features_of(columns)
    if rule.split_by == "structure":
        return _renumber_groups(np.arange(len(ids)), ids)
    if rule.split_by == "composition":
        basic = _number_values(columns["composition"])
    else:
        basic = _number_values(seed_ids_of(columns)) if rule.split_by == "seed" else number_trajectories(columns)
    if "component" in columns:
        basic = _join_groups(basic, linked_pairs(columns["component"]))
    if rule.split_by == "cluster":
        basic = _gather_regions(columns, basic, rule.clusters, seed)
    if spaced is not None and rule.near_duplicates:
        for pairs in _iter_near_pairs(*spaced, rule.near_duplicates):
            basic = _join_groups(basic, pairs)
    return _renumber_groups(basic, ids)


LINEAGE = (
    "structure_id", "parent_id", "composition", "temperature", "pressure", "replica", "ensemble", "step", "time",
    "features",
)  # fmt: skip
"""Variables that decide groups and leakage, one row per structure."""


def number_families(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Assign each structure the number of its family: its seed, or its component of connected frames."""
    basic = _number_values(seed_ids_of(columns))
    return _join_groups(basic, linked_pairs(columns["component"])) if "component" in columns else basic


def linked_pairs(component: np.ndarray) -> np.ndarray:
    """Return pairs that link each row of a component to its first row, shape (pair, 2); -1 is no component."""
    rows = np.flatnonzero(component >= 0)
    _, first, number = np.unique(component[rows], return_index=True, return_inverse=True)
    return np.stack([rows, rows[first[number.reshape(-1)]]], axis=1)


def seed_ids_of(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the id of the seed of each structure, its own if it is a seed; shape (structure,), dtype V16."""
    own, parent = columns["structure_id"], columns["parent_id"]
    return np.where(parent == np.zeros((), dtype=parent.dtype), own, parent)


def number_trajectories(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Assign each structure the number of its trajectory: those of one seed differ in conditions or replica."""
    keys = [_number_values(seed_ids_of(columns))]
    # A seed that was labelled itself belongs to no trajectory of its own: it has no conditions.
    keys += [
        _number_values(columns[name]) for name in ("temperature", "pressure", "replica", "ensemble") if name in columns
    ]
    return _number_values(np.stack(keys, axis=1))


def features_of(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Return the features of the structures that have any, and their spread.

    Returns
    -------
    features : numpy.ndarray
        Shape (described, feature), float64.
    rows : numpy.ndarray
        Structures with features, shape (described,).
    spread : float
        Root mean square distance from their mean. None is returned instead if fewer than two structures have features,
        or all features are equal.
    """
    if "features" not in columns:
        return None
    rows = np.flatnonzero(np.isfinite(columns["features"]).all(axis=1))
    features = columns["features"][rows].astype(np.float64)
    if len(rows) < 2 or not (spread := float(np.sqrt(features.var(axis=0).sum()))):
        return None
    return features, rows, spread


def _number_values(values: np.ndarray) -> np.ndarray:
    """Assign each row the number of its value among the distinct ones, shape (row,), int64; NaN equals NaN."""
    axis = 0 if values.ndim > 1 else None  # NaN equals NaN only without an axis
    return np.unique(values, axis=axis, return_inverse=True)[1].reshape(-1)


def _renumber_groups(basic: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Sort the numbers of groups by the smallest id in each."""
    _, rank = np.unique(ids, return_inverse=True)
    smallest = np.full(int(basic.max(initial=-1)) + 1, len(ids), dtype=np.int64)
    np.minimum.at(smallest, basic, rank.reshape(-1))
    return np.unique(smallest[basic], return_inverse=True)[1].astype(np.int32)


def _iter_near_pairs(features: np.ndarray, rows: np.ndarray, spread: float, near: float) -> Iterator[np.ndarray]:
    """Yield pairs of near-duplicate structures, shape (pair, 2), for one block of structures at a time."""
    from scipy.spatial import cKDTree

    # Equal features would give all their pairs, so each row is linked to the first with its features, and that row to
    # its neighbours.
    distinct, first, inverse = np.unique(features, axis=0, return_index=True, return_inverse=True)
    yield np.stack([rows, rows[first[inverse.reshape(-1)]]], axis=1)
    tree = cKDTree(distinct)
    for start in range(0, len(distinct), BLOCK):
        neighbours = tree.query_ball_point(distinct[start : start + BLOCK], near * spread)
        own = np.repeat(np.arange(start, start + len(neighbours)), [len(others) for others in neighbours])
        yield rows[first[np.stack([own, np.concatenate(neighbours).astype(np.int64)], axis=1)]]


def _join_groups(basic: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Join groups that pairs of structures connect, directly or through a chain."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = int(basic.max(initial=-1)) + 1
    one, other = basic[pairs[:, 0]], basic[pairs[:, 1]]
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (one, other)), shape=(n, n))
    return connected_components(graph, directed=False)[1][basic].astype(np.int64)


def _gather_regions(columns: Mapping[str, np.ndarray], basic: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Gather groups whose mean features lie in one region, by k-means of the groups, so that none is torn."""
    from sklearn.cluster import KMeans

    spaced = features_of(columns)
    if spaced is None:
        raise ConfigError("store.split_by=cluster needs features, and the data has none; type store.split_by=seed")
    features, rows, _ = spaced
    described, own = np.unique(basic[rows], return_inverse=True)
    means = np.zeros((len(described), features.shape[1]))
    np.add.at(means, own, features)
    means /= np.bincount(own)[:, None]
    # The result of k-means depends on the order of the points, which must not be that of the rows.
    order = np.lexsort(means.T)
    n_clusters = min(n_clusters, len(np.unique(means, axis=0)))
    cluster = np.empty(len(described), dtype=np.int64)
    cluster[order] = KMeans(n_clusters, random_state=seed % 2**32, n_init=4).fit_predict(means[order])
    # A group without features is a region of its own.
    region = np.arange(int(basic.max()) + 1) + n_clusters
    region[described] = cluster
    return _number_values(region[basic])
