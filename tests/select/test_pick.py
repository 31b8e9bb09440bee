import math

import dask.array as da
import numpy as np
import pytest
from chunking import chunked, row_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference.strata import nearest_picks

import daskpipe.select.kmeans
from daskpipe.errors import ConfigError
from daskpipe.select.blocks import BLOCK_SIZE, Blocks
from daskpipe.select.kmeans import KMeansStrata
from daskpipe.select.pick import canonical_order, pick
from daskpipe.select.random import Random
from daskpipe.structures import as_void

METHODS = ("kmeans", "random")


def clouds(n_rows: int, n_features: int = 3, *, n_clouds: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around far centres, nine in ten of them around the first; and the cloud of each row."""
    rng = np.random.default_rng(seed)
    shares = [0.9, *[0.1 / (n_clouds - 1)] * (n_clouds - 1)]
    cloud = np.concatenate([np.arange(n_clouds), rng.choice(n_clouds, size=n_rows - n_clouds, p=shares)])
    centers = 20 * np.eye(n_clouds, n_features) + 10 * np.arange(n_clouds)[:, None]
    return (centers[cloud] + rng.standard_normal((n_rows, n_features))).astype(np.float32), cloud


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_picks_are_sorted_unique_and_deterministic(method, n):
    X, _ = clouds(200)
    index = pick(X, n, method, seed=3)
    assert index.dtype == np.int64
    assert index.shape == (n,)
    assert (np.diff(index) > 0).all()
    assert (index >= 0).all()
    assert (index < len(X)).all()
    np.testing.assert_array_equal(pick(X.copy(), n, method, seed=3), index)


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_picks_others(method):
    X, _ = clouds(200)
    assert not np.array_equal(pick(X, 20, method, seed=0), pick(X, 20, method, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_may_have_more_bits_than_scikit_learn_takes(method):
    X, _ = clouds(50)
    assert pick(X, 5, method, seed=2**32 + 1).shape == (5,)


@settings(max_examples=20, deadline=None)
@given(rows=row_chunks(300), seed=st.integers(0, 1000), method=st.sampled_from(METHODS))
def test_chunks_do_not_matter(rows, seed, method):
    X, _ = clouds(300, seed=seed)
    np.testing.assert_array_equal(pick(chunked(X, rows), 24, method, seed=seed), pick(X, 24, method, seed=seed))


@settings(max_examples=4, deadline=None)
@given(rows=row_chunks(BLOCK_SIZE + 500, most=4))
def test_chunks_do_not_matter_where_there_are_several_blocks(rows):
    X, _ = clouds(BLOCK_SIZE + 500)
    np.testing.assert_array_equal(pick(chunked(X, rows), 40, passes=1), pick(X, 40, passes=1))


def test_blocks_cover_all_rows_once_in_the_order_given():
    X, _ = clouds(25)
    order = np.random.default_rng(0).permutation(25)
    found = list(Blocks(chunked(X, (10, 15)), order)(8))
    assert [len(rows) for rows, _ in found] == [8, 8, 8, 1]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), order)
    for rows, features in found:
        assert features.dtype == np.float64
        np.testing.assert_array_equal(features, X[rows])


def selected(X: np.ndarray, n: int, **params) -> tuple[KMeansStrata, np.ndarray, np.ndarray]:
    selector = KMeansStrata(n=n, seed=0, **params)
    picks = selector.pick(Blocks(X, np.random.default_rng(0).permutation(len(X))))
    assert picks.reason == "kmeans_nearest"
    return selector, picks.index, picks.cluster


@pytest.mark.parametrize(("n", "n_clusters"), [(24, None), (24, 3), (10, 20), (150, 5)])
def test_nearest_to_the_centre_come_first(n, n_clusters):
    X, _ = clouds(200)
    selector, index, _ = selected(X, n, n_clusters=n_clusters)
    assert len(selector.centers) == (n_clusters or n // 4)
    assert index.tolist() == nearest_picks(X.astype(float), selector.centers, n)


def test_strata_of_the_picks_are_those_of_their_nearest_centre():
    X, _ = clouds(200)
    selector, index, cluster = selected(X, 24)
    assert cluster.dtype == np.int32
    expected = [int(np.argmin([math.dist(X[row], center) for center in selector.centers])) for row in index]
    assert cluster.tolist() == expected


def test_equal_rows_are_picked_in_canonical_order():
    X = np.repeat([[0.0, 0.0], [9.0, 9.0]], 10, axis=0)
    order = np.random.default_rng(1).permutation(20)
    picks = KMeansStrata(n=6, seed=0, n_clusters=2).pick(Blocks(X, order))
    first_of_each = [[row for row in order if (row < 10) == half][:3] for half in (True, False)]
    assert picks.index.tolist() == sorted(first_of_each[0] + first_of_each[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [5, 6, 500])
def test_fewer_rows_than_picks_are_all_picked(method, n):
    X, _ = clouds(5, n_clouds=2)
    assert pick(X, n, method).tolist() == [0, 1, 2, 3, 4]


def test_one_row_is_picked():
    assert pick(np.zeros((1, 3)), 10).tolist() == [0]


def test_rows_without_variance_are_picked():
    assert len(pick(np.ones((30, 2)), 8)) == 8


def test_more_strata_than_rows():
    X, _ = clouds(12)
    selector, index, _ = selected(X, 4, n_clusters=40)
    assert len(selector.centers) == len(X)
    assert len(index) == 4


def test_more_strata_than_rows_of_a_block(monkeypatch):
    small_block, n_clusters = 16, 20
    monkeypatch.setattr(daskpipe.select.kmeans, "BLOCK_SIZE", small_block)
    X, _ = clouds(50)
    selector, index, _ = selected(X, 30, n_clusters=n_clusters)
    assert len(selector.centers) == n_clusters
    assert len(index) == 30


def test_kmeans_covers_clouds_that_random_misses():
    n, n_clouds = 40, 8  # ten strata
    hits: dict[str, list[int]] = {method: [] for method in METHODS}
    for seed in range(5):
        X, cloud = clouds(600, n_clouds=n_clouds, seed=seed)
        for method in METHODS:
            hits[method].append(len(set(cloud[pick(X, n, method, seed=seed)])))
    assert min(hits["kmeans"]) >= n_clouds - 1
    # 40 random rows miss a cloud with 1.4 % of the rows in half of the draws.
    assert np.mean(hits["random"]) < n_clouds - 2
    assert np.mean(hits["kmeans"]) > np.mean(hits["random"]) + 1


def test_random_draws_all_rows_equally_often():
    n_rows, n, n_draws = 20, 5, 2000
    counts = np.zeros(n_rows)
    X = np.arange(n_rows)[:, None]
    for seed in range(n_draws):
        counts[pick(X, n, "random", seed=seed)] += 1
    share = n / n_rows
    spread = np.sqrt(n_draws * share * (1 - share))
    assert np.abs(counts - n_draws * share).max() < 5 * spread
    picks = Random(n=n, seed=0).pick(Blocks(X, np.arange(n_rows)))
    assert (picks.reason, picks.cluster.tolist()) == ("random", [-1] * n)


@pytest.mark.parametrize(
    ("X", "n", "seed", "message"),
    [
        (np.zeros((0, 3)), 5, 0, r"at least one row, received \(0, 3\)"),
        (np.zeros(7), 5, 0, r"shape \(row, feature\) .* received \(7,\)"),
        (np.zeros((7, 2)), 0, 0, "n must be at least 1, received 0"),
        (np.zeros((7, 2)), 5, -1, "seed must not be negative, received -1"),
        (np.array([[0.0], [1.0], [np.nan], [2.0]]), 2, 0, "features must be finite, and row 2 is not"),
        (da.from_array(np.array([[0.0], [np.inf], [2.0]]), chunks=(2, 1)), 2, 0, "features must be finite, and row 1"),
        (da.from_array(np.eye(6), chunks=(3, 6))[np.arange(6) > 2][:, :2], 2, 0, None),
    ],
    ids=["no rows", "one dim", "n", "seed", "nan", "inf", "known chunks"],
)
def test_wrong_input_is_refused(X, n, seed, message):
    if message is None:
        assert pick(X, n, seed=seed).shape == (n,)
        return
    with pytest.raises(ValueError, match=message):
        pick(X, n, seed=seed)


def test_unknown_chunks_are_refused_with_the_call_that_helps():
    X = da.from_array(np.random.default_rng(0).random((9, 2)), chunks=(3, 2))
    unknown = X[X[:, 0] > 0.1]
    with pytest.raises(ValueError, match=r"call X.compute_chunk_sizes\(\) first"):
        pick(unknown, 2)
    assert len(pick(unknown.compute_chunk_sizes(), 2)) == 2


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown selector 'kmean'. Did you mean 'kmeans'\? Known: kmeans, random"):
        pick(np.eye(3), 2, "kmean")


@pytest.mark.parametrize(
    ("params", "message"),
    [({"clusters": 3}, "clusters\n.*not permitted"), ({"n_clusters": 0}, "greater than 0"), ({"passes": -1}, "passes")],
)
def test_wrong_parameters_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        pick(np.eye(3), 2, **params)


def test_canonical_order_follows_the_ids_and_not_their_places():
    rng = np.random.default_rng(0)
    ids = as_void(rng.bytes(16) for _ in range(30))
    order = canonical_order(1, ids)
    shuffle = np.random.default_rng(1).permutation(30)
    np.testing.assert_array_equal(ids[shuffle][canonical_order(1, ids[shuffle])], ids[order])
    assert sorted(order.tolist()) == list(range(30))
    assert not np.array_equal(canonical_order(2, ids), order)
