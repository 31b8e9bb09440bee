import numpy as np
import pytest
from chunking import chunked, row_chunks
from clouds import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import duplicates as reference

from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.duplicates import KEPT_FEATURES, find_near_duplicates


def walk(n_rows: int, n_features: int, seed: int) -> np.ndarray:
    """A trajectory that comes back to where it was: neighbours at all distances, some rows equal."""
    rng = np.random.default_rng(seed)
    rows = np.cumsum(rng.standard_normal((n_rows, n_features)) * rng.choice([0.0, 0.05, 1.0], (n_rows, 1)), axis=0)
    return rows.astype(np.float32)


def scale_of(X: np.ndarray) -> float:
    return float(np.sqrt(((X - X.mean(axis=0, dtype=float)) ** 2).sum(axis=1).mean()))


@settings(max_examples=60, deadline=None)
@given(
    n_features=st.sampled_from([1, 2, 3, 5, KEPT_FEATURES + 4]),
    threshold=st.sampled_from([0.0, 1e-3, 0.03, 0.2, 3.0]),
    n_given=st.sampled_from([0, 1, 20]),
    seed=st.integers(0, 99),
)
def test_they_are_those_of_looking_at_all_pairs(n_features, threshold, n_given, seed):
    rows = walk(140, n_features, seed)
    rng = np.random.default_rng(seed)
    X, against = rows[:120], rows[120 : 120 + n_given] + rng.choice([0, 0.01], (n_given, 1)).astype(np.float32)
    against = np.concatenate([against, X[::40] if n_given else X[:0]])
    order = rng.permutation(120)
    found = find_near_duplicates(Blocks(X, order), threshold, against)
    assert found.scale == pytest.approx(scale_of(X), rel=1e-6)
    of_dataset, of_pool = reference.find_near_duplicates(X, order, threshold * found.scale, against)
    np.testing.assert_array_equal(found.mask, np.logical_or(of_dataset, of_pool))
    assert found.n_against_pool + found.n_against_dataset == found.mask.sum()
    # A row that is near both was found near the one or the other.
    assert found.n_against_dataset <= sum(of_dataset)
    assert found.n_against_pool <= sum(of_pool)


@settings(max_examples=15, deadline=None)
@given(rows=row_chunks(150))
def test_chunks_do_not_matter(rows):
    X = walk(150, 3, 0)
    order = np.random.default_rng(0).permutation(150)
    expected = find_near_duplicates(Blocks(X, order), 0.05).mask
    assert 0 < expected.sum() < 150
    np.testing.assert_array_equal(find_near_duplicates(Blocks(chunked(X, rows), order), 0.05).mask, expected)


def test_no_two_rows_that_stay_are_near_and_each_that_goes_is_near_one_that_stays():
    X, _ = clouds(400)
    found = find_near_duplicates(Blocks(X, np.arange(400)), 0.05)
    distances = np.linalg.norm(X[:, None].astype(float) - X[None].astype(float), axis=-1)
    limit = 0.05 * found.scale
    assert 0 < found.mask.sum() < 400
    stay = distances[np.ix_(~found.mask, ~found.mask)]
    assert stay[~np.eye(len(stay), dtype=bool)].min() > limit
    assert distances[np.ix_(found.mask, ~found.mask)].min(axis=1).max() <= limit


def test_many_equal_rows_leave_the_first_of_the_canonical_order():
    X = np.repeat(np.eye(3, dtype=np.float32), 20_000, axis=0)
    order = np.random.default_rng(0).permutation(len(X))
    stay = np.flatnonzero(~find_near_duplicates(Blocks(X, order), 1e-3).mask)
    assert stay.tolist() == [next(row for row in order if row // 20_000 == kind) for kind in range(3)]


def test_rows_that_are_all_equal_leave_one():
    assert (
        find_near_duplicates(Blocks(np.full((30, 2), 0.1), np.arange(30)), 1e-3).mask.tolist() == [False] + [True] * 29
    )


def test_rows_of_the_dataset_take_out_their_like():
    X, _ = clouds(50)
    found = find_near_duplicates(Blocks(X, np.arange(50)), 1e-6, X[[3, 30]])
    assert np.flatnonzero(found.mask).tolist() == [3, 30]
    assert (found.n_against_dataset, found.n_against_pool, found.threshold) == (2, 0, 1e-6)


def test_a_negative_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold must not be negative, received -1; 0 removes identical rows only"):
        find_near_duplicates(Blocks(np.eye(3), np.arange(3)), -1)


def test_a_dataset_in_another_space_is_refused():
    message = r"shape \(structure, 3\) like the pool, received \(5, 4\); describe the dataset with .* this run"
    with pytest.raises(ValueError, match=message):
        find_near_duplicates(Blocks(np.eye(3), np.arange(3)), 0.1, np.zeros((5, 4)))
