import math

import dask.array as da
import numpy as np
import pytest
from chunking import chunked, row_chunks
from clouds import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import daskpipe.stages.select.blocks
import daskpipe.stages.select.strata
from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import as_void
from daskpipe.stages.select import SELECTORS
from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.pick import canonical_order, pick
from daskpipe.stages.select.random import Random

METHODS = ("direct", "environments", "fps", "kmeans", "random", "stride")
SEEDED = tuple(method for method in METHODS if method != "stride")


def picked(X, n, method, seed=0, **params):
    """Rows that are picked; for a method that sees atoms every structure has one."""
    if method == "environments":
        params["n_atoms"] = np.ones(X.shape[0], dtype=np.int32)
    return pick(X, n, method, seed, **params)


def test_every_method_is_tested():
    assert sorted(METHODS) == sorted(SELECTORS.table)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 7, 50, 199])
def test_picks_are_sorted_unique_and_deterministic(method, n):
    X, _ = clouds(200)
    index = picked(X, n, method, seed=3)
    assert index.dtype == np.int64
    assert index.shape == (n,)
    assert (np.diff(index) > 0).all()
    assert (index >= 0).all()
    assert (index < len(X)).all()
    np.testing.assert_array_equal(picked(X.copy(), n, method, seed=3), index)


@pytest.mark.parametrize("method", SEEDED)
def test_another_seed_picks_others(method):
    X, _ = clouds(200)
    assert not np.array_equal(picked(X, 20, method, seed=0), picked(X, 20, method, seed=1))


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_may_have_more_than_32_bits(method):
    X, _ = clouds(50)
    assert picked(X, 5, method, seed=2**32 + 1).shape == (5,)


@settings(max_examples=40, deadline=None)
@given(rows=row_chunks(300), seed=st.integers(0, 1000), method=st.sampled_from(METHODS))
def test_chunks_do_not_matter(rows, seed, method):
    X, _ = clouds(300, seed=seed)
    np.testing.assert_array_equal(picked(chunked(X, rows), 24, method, seed), picked(X, 24, method, seed))


@settings(max_examples=10, deadline=None)
@given(rows=row_chunks(300, most=4), method=st.sampled_from(METHODS), threads=st.sampled_from("123"))
def test_blocks_threads_and_memory_do_not_matter(rows, method, threads):
    X, _ = clouds(300)
    # So few strata that all have members left to choose from.
    params = {"kmeans": {"n_clusters": 5}, "direct": {"n_clusters": 5}}.get(method, {})
    expected = picked(X, 40, method, **params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daskpipe.stages.select.blocks, "BLOCK_SIZE", 16)
        patch.setattr(daskpipe.stages.select.strata, "SPREAD_BYTES", 4000)
        patch.setenv("OMP_NUM_THREADS", threads)
        np.testing.assert_array_equal(picked(chunked(X, rows), 40, method, **params), expected)


@settings(max_examples=10, deadline=None)
@given(rows=row_chunks(300, most=4), method=st.sampled_from(METHODS))
def test_chunks_do_not_matter_where_the_fit_sees_a_sample(rows, method):
    X, _ = clouds(300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daskpipe.stages.select.blocks, "SAMPLE_SIZE", 64)
        np.testing.assert_array_equal(picked(chunked(X, rows), 40, method), picked(X, 40, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_other_dtypes_are_picked_from(method, dtype):
    X = (10 * clouds(100)[0]).astype(dtype)
    assert len(picked(X, 10, method)) == 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [5, 6, 500])
def test_fewer_rows_than_picks_are_all_picked(method, n):
    X, _ = clouds(5, n_clouds=2)
    assert picked(X, n, method).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", METHODS)
def test_one_row_is_picked(method):
    assert picked(np.zeros((1, 3)), 10, method).tolist() == [0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_rows_without_variance_are_picked(method, value):
    assert len(picked(np.full((30, 2), value), 8, method)) == 8


@pytest.mark.parametrize("method", METHODS)
def test_one_feature_is_enough(method):
    X, _ = clouds(60, 1)
    assert len(picked(X, 13, method)) == 13


@pytest.mark.parametrize("method", ["direct", "kmeans", "environments"])
def test_fewer_distinct_rows_than_clusters(method):
    X = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    index = picked(X, 9, method, n_clusters=30)
    assert len(index) == 9
    assert set(index // 20) == {0, 1, 2}


@pytest.mark.parametrize("method", ["kmeans", "direct", "fps", "environments"])
def test_clouds_are_covered_that_random_misses(method):
    n, n_clouds = 40, 8
    hits: dict[str, list[int]] = {method: [], "random": []}
    for seed in range(5):
        X, cloud = clouds(600, n_clouds=n_clouds, seed=seed)
        for name, found in hits.items():
            found.append(len(set(cloud[picked(X, n, name, seed=seed)])))
    assert min(hits[method]) == n_clouds
    # 40 random rows miss a cloud with 1.4 % of the rows in half of the draws.
    assert np.mean(hits["random"]) < n_clouds - 2


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


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 500), n=st.integers(1, 600))
def test_stride_steps_evenly_from_the_first_row(n_rows, n):
    index = pick(np.zeros((n_rows, 1)), n, "stride")
    n = min(n, n_rows)
    assert index.tolist() == [math.floor(step * n_rows / n + 1e-9) for step in range(n)]
    assert index[0] == 0
    assert n == 1 or np.ptp(np.diff(index)) <= 1


@pytest.mark.parametrize(
    ("X", "n", "seed", "message"),
    [
        (np.zeros((0, 3)), 5, 0, r"at least one row, received \(0, 3\)"),
        (np.zeros(7), 5, 0, r"shape \(row, feature\) .* received \(7,\)"),
        (np.zeros((7, 2)), 0, 0, "n must be at least 1, received 0"),
        (np.zeros((7, 2)), 5, -1, "seed must not be negative, received -1"),
    ],
    ids=["no rows", "one dim", "n", "seed"],
)
def test_wrong_input_is_refused(X, n, seed, message):
    with pytest.raises(ValueError, match=message):
        pick(X, n, seed=seed)


@pytest.mark.parametrize("method", ["direct", "environments", "fps", "kmeans"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(method, bad):
    X, _ = clouds(30)
    X[21, 1] = bad
    for features in (X, da.from_array(X, chunks=(9, 3))):
        with pytest.raises(ValueError, match="features must be finite, and row 21 is not; drop such rows first"):
            picked(features, 5, method)


def test_unknown_chunks_are_refused_with_the_call_that_helps():
    X = da.from_array(np.random.default_rng(0).random((9, 2)), chunks=(3, 2))
    unknown = X[X[:, 0] > 0.1]
    with pytest.raises(ValueError, match=r"call X.compute_chunk_sizes\(\) first"):
        pick(unknown, 2)
    assert len(pick(unknown.compute_chunk_sizes(), 2)) == 2


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown selector 'kmean'. Did you mean 'kmeans'\? Known: direct, env.*, "):
        pick(np.eye(3), 2, "kmean")


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("kmeans", {"clusters": 3}, "clusters\n.*not permitted"),
        ("kmeans", {"n_clusters": 0}, "greater than 0"),
        ("kmeans", {"passes": -1}, "passes"),
        ("kmeans", {"allocation": "even"}, "'equal', 'proportional' or 'sqrt'"),
        ("kmeans", {"within": "far"}, "'spread' or 'nearest'"),
        ("direct", {"n_clusters": 0}, "greater than 0"),
        ("direct", {"weighted": "perhaps"}, "weighted"),
        ("fps", {"n_clusters": 3}, "not permitted"),
        ("stride", {"step": 3}, "not permitted"),
    ],
)
def test_wrong_parameters_are_refused(method, params, message):
    with pytest.raises(ValidationError, match=message):
        pick(np.eye(3), 2, method, **params)


def test_canonical_order_follows_the_ids_and_not_their_places():
    rng = np.random.default_rng(0)
    ids = as_void(rng.bytes(16) for _ in range(30))
    order = canonical_order(1, ids)
    shuffle = np.random.default_rng(1).permutation(30)
    np.testing.assert_array_equal(ids[shuffle][canonical_order(1, ids[shuffle])], ids[order])
    assert sorted(order.tolist()) == list(range(30))
    assert not np.array_equal(canonical_order(2, ids), order)


@pytest.mark.parametrize("method", ["kmeans", "direct", "fps"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e20), ("float32", -1e16), ("float64", 1e20)])
def test_features_whose_squares_overflow_are_refused(method, dtype, size):
    X = np.random.default_rng(0).normal(size=(50, 3)).astype(dtype)
    X[7, 1] = size
    with pytest.raises(ValueError, match=r"must not exceed 1e\+15.*scale them first, e.g. X / abs"):
        pick(X, 5, method=method)


@pytest.mark.parametrize("method", ["kmeans", "direct", "fps"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 9e14), ("float64", 9e14)])
def test_large_features_are_picked_as_small_ones(method, dtype, size):
    X = np.random.default_rng(0).normal(size=(400, 3)).astype(dtype)
    X /= np.abs(X).max()
    scale = dtype_power_of_two(size)
    assert pick(X * scale, 20, method=method).tolist() == pick(X, 20, method=method).tolist()


def dtype_power_of_two(size: float) -> np.float32:
    """Largest power of two up to `size`, by which floats scale exactly."""
    return np.float32(2.0 ** np.floor(np.log2(size)))
