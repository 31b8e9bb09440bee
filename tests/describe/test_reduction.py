import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from daskpipe.describe.reduction import fit


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
    reduction = fit(rows, dims)
    pca = PCA(n_components=dims, svd_solver="full").fit(rows.astype(float))
    np.testing.assert_allclose(reduction.mean, pca.mean_, rtol=1e-12)
    np.testing.assert_allclose(reduction.axes, pca.components_, atol=1e-9)
    np.testing.assert_allclose(reduction.explained, pca.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(reduction(rows), pca.transform(rows.astype(float)), rtol=1e-5, atol=1e-5)


def test_axes_are_orthonormal_and_ordered():
    reduction = fit(sample(), 16)
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
    reduction = fit(rows, dims)
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
    reduction = fit(rows, 8)
    blocks = [reduction(rows[start : start + size]) for start in range(0, len(rows), size)]
    np.testing.assert_array_equal(np.concatenate(blocks), reduction(rows))


def test_no_rows_give_no_features():
    assert fit(sample(), 8)(sample()[:0]).shape == (0, 8)
