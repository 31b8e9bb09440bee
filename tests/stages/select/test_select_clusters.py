import numpy as np
import pytest
from clouds import clouds
from reference.farthest import pick_farthest
from scipy.cluster.vq import vq

from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.clusters import Centers, assign_rows, fit_centers


def test_centres_start_at_farthest_points():
    X, _ = clouds(100)
    centers = Centers(7)
    centers.place_centers(X)
    np.testing.assert_array_equal(centers.centers, X[pick_farthest(X, 7, 0, np.arange(100))])


def test_nearest_centres_are_those_that_scipy_finds():
    X = clouds(600, 4)[0].astype(np.float64)
    centers = fit_centers(X, 12, passes=2)
    cluster, distance = centers.find_nearest(X)
    expected_cluster, expected_distance = vq(X, centers.centers)
    np.testing.assert_array_equal(cluster, expected_cluster)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-6)


def test_one_block_is_one_step_of_plain_k_means():
    X, _ = clouds(200)
    centers = Centers(5)
    centers.place_centers(X)
    cluster, _ = centers.find_nearest(X)
    centers.fit_block(X)
    expected = [X[cluster == number].mean(axis=0, dtype=float) for number in range(5)]
    np.testing.assert_allclose(centers.centers, expected, rtol=1e-6)


def test_a_first_block_starts_the_centres():
    X, _ = clouds(100)
    centers = Centers(4)
    with pytest.raises(ValueError, match="not fitted yet; call fit_block first"):
        _ = centers.centers
    centers.fit_block(X)
    started = Centers(4)
    started.place_centers(X)
    started.fit_block(X)
    np.testing.assert_array_equal(centers.centers, started.centers)


def test_fewer_rows_than_clusters_make_fewer_centres():
    X, _ = clouds(9)
    assert fit_centers(X, 40, passes=2).centers.shape == (9, 3)


def test_more_passes_bring_the_centres_nearer_to_the_rows():
    X, _ = clouds(3000, n_clouds=8)
    inertia = [float((fit_centers(X, 12, passes).find_nearest(X)[1] ** 2).sum()) for passes in (1, 10)]
    assert inertia[1] < inertia[0]


def test_rows_are_assigned_in_the_projected_space():
    X, _ = clouds(500)
    centers = fit_centers(X[:, :1].copy(), 6, passes=1)
    cluster, distance = assign_rows(Blocks(X, np.arange(500)), centers, lambda features: features[:, :1].copy())
    assert (cluster.dtype, distance.dtype) == (np.int32, np.float32)
    gaps = np.abs(X[:, :1] - centers.centers[:, 0])
    np.testing.assert_array_equal(cluster, gaps.argmin(axis=1))
    np.testing.assert_allclose(distance, gaps.min(axis=1), rtol=1e-6, atol=1e-6)
