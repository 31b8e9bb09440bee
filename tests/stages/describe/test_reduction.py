import tracemalloc

import numpy as np
import pytest
from chunking import row_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from daskpipe.stages.describe.reduction import PrincipalAxes, Reduction, fit_axes, mean_over_atoms, unit_length


def sample(n_rows: int = 60, n_columns: int = 40, *, rank: int | None = None, seed: int = 0) -> np.ndarray:
    """Rows that vary along `rank` directions with falling variance, far from the origin, float32 like descriptors."""
    rng = np.random.default_rng(seed)
    rank = rank or n_columns
    scale = 0.8 ** np.arange(rank)
    rows = (rng.standard_normal((n_rows, rank)) * scale) @ rng.standard_normal((rank, n_columns)) + 5.0
    return rows.astype(np.float32)


@pytest.mark.parametrize("dims", [1, 4, 16])
def test_is_the_pca_of_scikit_learn(dims):
    rows = sample()
    reduction = fit_axes(rows, dims)
    pca = PCA(n_components=dims, svd_solver="full").fit(rows.astype(float))
    np.testing.assert_allclose(reduction.mean, pca.mean_, rtol=1e-12)
    np.testing.assert_allclose(reduction.axes, pca.components_, atol=1e-9)
    np.testing.assert_allclose(reduction.explained, pca.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(reduction(rows), pca.transform(rows.astype(float)), rtol=1e-5, atol=1e-5)


def test_axes_are_orthonormal_and_ordered():
    reduction = fit_axes(sample(), 16)
    np.testing.assert_allclose(reduction.axes @ reduction.axes.T, np.eye(16), atol=1e-12)
    assert (np.diff(reduction.explained) < 0).all()
    assert 0 < reduction.explained.sum() <= 1


@pytest.mark.parametrize(
    ("rows", "rank"),
    [
        (sample(10, 40), 9),  # rows about their mean: one less
        (sample(30, 3), 3),
        (np.repeat(sample(3, 20), 5, axis=0), 2),
        (sample(1, 20), 0),
        (np.repeat(sample(1, 20), 7, axis=0), 0),
    ],
    ids=["few rows", "few columns", "repeated rows", "one row", "one row repeated"],
)
def test_axes_beyond_the_rank_are_zero(rows, rank):
    dims = 12
    reduction = fit_axes(rows, dims)
    assert reduction.axes.shape == (dims, rows.shape[1])
    np.testing.assert_allclose(np.linalg.norm(reduction.axes, axis=1), [1.0] * rank + [0.0] * (dims - rank), atol=1e-12)
    assert (reduction.explained[rank:] == 0).all()
    assert reduction.explained.sum() == pytest.approx(1.0 if rank else 0.0)
    features = reduction(rows)
    assert (features.dtype, features.shape) == (np.float32, (len(rows), dims))
    assert (features[:, rank:] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_features_of_a_row_do_not_depend_on_its_block(seed, size):
    rows = sample(seed=seed)
    reduction = fit_axes(rows, 8)
    blocks = [reduction(rows[start : start + size]) for start in range(0, len(rows), size)]
    np.testing.assert_array_equal(np.concatenate(blocks), reduction(rows))


def test_no_rows_give_no_features():
    assert fit_axes(sample(), 8)(sample()[:0]).shape == (0, 8)


def test_no_rows_have_no_axes():
    with pytest.raises(ValueError, match=r"axes need at least one row, received none; add rows first"):
        PrincipalAxes(3).make_reduction()


MANY = 1500
"""Rows that fill several batches of a fit, and one more in part."""


@settings(max_examples=10, deadline=None)
@given(rows=row_chunks(MANY), dims=st.sampled_from([3, 16]))
def test_axes_do_not_depend_on_how_the_rows_come(rows, dims):
    everything = sample(MANY, 80)
    at_once = fit_axes(everything, dims)
    little_by_little = PrincipalAxes(dims)
    for piece in np.split(everything, np.cumsum(rows)[:-1]):
        little_by_little.add_rows(piece)
    found = little_by_little.make_reduction()
    for name in ("mean", "axes", "explained"):
        np.testing.assert_array_equal(getattr(found, name), getattr(at_once, name))


def test_axes_of_many_batches_are_the_principal_ones():
    """What the batches drop is small: fewer directions matter than a fit keeps between batches."""
    dims = 8
    rows = sample(MANY, 200)
    found = fit_axes(rows, dims)
    exact = PCA(n_components=dims, svd_solver="full").fit(rows.astype(float))
    np.testing.assert_allclose(found.mean, exact.mean_, rtol=1e-10)
    np.testing.assert_allclose(found.axes, exact.components_, atol=1e-5)
    np.testing.assert_allclose(found.explained, exact.explained_variance_ratio_, rtol=1e-6)


def test_memory_of_a_fit_is_that_of_a_batch():
    n_columns, n_rows = 500, 4000
    whole = n_rows * n_columns * 8

    def peak_of(n_rows: int) -> int:
        axes = PrincipalAxes(16)
        tracemalloc.start()
        for _ in range(n_rows // 100):
            axes.add_rows(np.random.default_rng(0).random((100, n_columns), dtype=np.float32))
        axes.make_reduction()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_of(100)  # what the first call imports
    assert peak_of(n_rows) < 1.1 * peak_of(n_rows // 4)
    assert peak_of(n_rows) < whole / 2


# --- the kernels --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(1, 40),
    n_columns=st.integers(1, 300),
    dims=st.integers(1, 20),
    dtype=st.sampled_from(["float32", "float64"]),
    normalise=st.booleans(),
)
def test_projection_is_the_product_of_matrices(n_rows, n_columns, dims, dtype, normalise):
    rng = np.random.default_rng(n_rows * n_columns)
    rows = rng.random((n_rows, n_columns)).astype(dtype)
    axes = np.linalg.qr(rng.standard_normal((max(n_columns, dims), dims)))[0][:n_columns].T
    reduction = Reduction(mean=rng.random(n_columns), axes=axes, explained=np.zeros(dims))
    prepared = rows.astype(float)
    if normalise:
        prepared = prepared / np.linalg.norm(prepared, axis=1, keepdims=True)
    expected = (prepared - reduction.mean) @ axes.T
    np.testing.assert_allclose(reduction(rows, normalise=normalise), expected, atol=1e-5)


@pytest.mark.parametrize("n_columns", [1, 15, 16, 17, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_length_is_that_of_numpy(n_columns, dtype):
    rows = np.random.default_rng(1).standard_normal((7, n_columns)).astype(dtype)
    rows[3] = 0
    found = unit_length(rows)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.arange(7) != 3, rtol=1e-6)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found, rows / np.where(length > 0, length, 1), rtol=1e-5)


def test_rows_that_are_not_contiguous_are_read_all_the_same():
    rows = sample()
    reduction = fit_axes(rows, 4)
    twice = np.repeat(rows, 2, axis=1)[:, ::2]
    assert not twice.flags.c_contiguous
    np.testing.assert_array_equal(reduction(twice, normalise=True), reduction(rows, normalise=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_means_over_atoms_are_those_of_each_structure(n_atoms):
    rows = np.random.default_rng(2).random((sum(n_atoms), 5)).astype(np.float32)
    found = mean_over_atoms(rows, n_atoms)
    pieces = np.split(rows, np.cumsum(n_atoms)[:-1])
    np.testing.assert_allclose(found, [piece.mean(axis=0, dtype=float) for piece in pieces], rtol=1e-6)
    assert found.dtype == np.float32
