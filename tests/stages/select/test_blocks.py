import os
import threading

import dask.array as da
import numpy as np
import pytest
from chunking import chunked, row_chunks
from clouds import clouds
from dask import delayed
from hypothesis import given, settings

from daskpipe.stages.select import blocks as module
from daskpipe.stages.select.blocks import Blocks, count_threads

BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SIZE", BLOCK)


@settings(max_examples=30, deadline=None)
@given(rows=row_chunks(60))
def test_blocks_are_the_same_for_all_chunks(rows):
    X, _ = clouds(60)
    found = list(Blocks(chunked(X, rows), np.arange(60)))
    assert [len(features) for _, features in found] == [8] * 7 + [4]
    for block, features in found:
        np.testing.assert_array_equal(features, X[block])
    assert [block.start for block, _ in found] == list(range(0, 60, 8))


@pytest.mark.parametrize(
    ("given_dtype", "dtype"), [("float32", "float32"), ("float64", "float64"), ("float16", "float64"), ("i4", "f8")]
)
def test_float32_stays_and_all_else_becomes_float64(given_dtype, dtype):
    X = np.arange(30, dtype=given_dtype).reshape(15, 2)
    for _, features in Blocks(X, np.arange(15)):
        assert features.dtype == dtype


def test_a_pass_computes_each_chunk_once():
    X, _ = clouds(40)
    counts = [0] * 4

    def load(number):
        counts[number] += 1
        return X[10 * number : 10 * number + 10]

    lazy = da.concatenate([da.from_delayed(delayed(load)(i), (10, 3), np.float32) for i in range(4)])
    table = Blocks(lazy, np.random.default_rng(0).permutation(40))
    assert sum(counts) == 0
    np.testing.assert_array_equal(table.read_sample(), X[table.order])
    assert counts == [1, 1, 1, 1]
    np.testing.assert_array_equal(table.gather_rows(np.array([3, 30])), X[[3, 30]])
    assert counts == [2, 2, 2, 2]


def test_chunks_along_the_features_are_put_together():
    X, _ = clouds(20, 5)
    table = Blocks(da.from_array(X, chunks=(7, 2)), np.arange(20))
    np.testing.assert_array_equal(np.concatenate([features for _, features in table]), X)


def test_rows_that_do_not_take_part_are_passed_over():
    X, _ = clouds(50)
    keep = np.random.default_rng(0).random(50) < 0.5
    kept = X[keep]
    order = np.random.default_rng(1).permutation(len(kept))
    table = Blocks(chunked(X, (20, 30)), order, keep=keep)
    assert table.n_rows == len(kept) < 50
    np.testing.assert_array_equal(np.concatenate([features for _, features in table]), kept)
    np.testing.assert_array_equal(table.read_sample(), kept[order])


def test_the_sample_is_the_start_of_the_canonical_order(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_SIZE", 12)
    X, _ = clouds(50)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(Blocks(X, order).read_sample(), X[order[:12]])


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_the_sample_of_atoms_takes_structures_in_canonical_order(monkeypatch, size):
    monkeypatch.setattr(module, "SAMPLE_SIZE", size)
    X, _ = clouds(20)
    n_atoms = np.array([3, 1, 6, 10])
    order = np.array([2, 0, 3, 1])
    rows = [*range(4, 10), *range(3), *range(10, 20), 3]
    np.testing.assert_array_equal(Blocks(X, order, n_atoms).read_sample(), X[rows[:size]])


def test_rank_inverts_the_order():
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_array_equal(Blocks(np.zeros((9, 1)), order).rank[order], np.arange(9))


@pytest.mark.parametrize("keep", [None, np.arange(30) != 3])
def test_the_first_row_that_is_not_finite_is_named_as_stored(keep):
    X, _ = clouds(30)
    X[[17, 25], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="features must be finite, and row 17 is not; drop such rows first"):
        list(Blocks(chunked_with_nan(X), np.arange(30), keep=keep))


def chunked_with_nan(X):
    return da.from_array(X, chunks=(11, 3))


@pytest.mark.parametrize("asked", ["1", "3"])
def test_each_keeps_the_order_and_uses_the_threads_asked_for(monkeypatch, asked):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    X, _ = clouds(200)
    meet = threading.Barrier(int(asked))
    names = set()

    def function(features):
        if len(features) == BLOCK and len(names) < int(asked):
            meet.wait(timeout=10)
        names.add(threading.current_thread().name)
        return features.sum(axis=1)

    found = list(Blocks(X[: 8 * int(asked)], np.arange(8 * int(asked))).map_blocks(function))
    assert len(names) == int(asked)
    np.testing.assert_array_equal(np.concatenate([sums for _, sums in found]), X[: 8 * int(asked)].sum(axis=1))


def test_an_error_in_a_thread_comes_out():
    def fail(features):
        raise ZeroDivisionError("in a thread")

    with pytest.raises(ZeroDivisionError, match="in a thread"):
        list(Blocks(np.zeros((20, 1)), np.arange(20)).map_blocks(fail))


@pytest.mark.parametrize("asked", ["", "0", "many"])
def test_threads_are_one_a_core_unless_the_environment_says_how_many(monkeypatch, asked):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert count_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert count_threads() == 1
