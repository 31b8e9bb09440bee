import numpy as np
import pytest
from clouds import clouds, on_a_lattice
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.farthest import pick_farthest, squared_distances
from scipy.spatial import cKDTree

from daskpipe.stages.select.balls import Balls

POINTS = {
    "clouds": lambda seed: clouds(300, 5, seed=seed)[0],
    "lattice": lambda seed: on_a_lattice(300, seed=seed),
    "float64": lambda seed: np.random.default_rng(seed).random((300, 7)),
    # So many that a ball is given up half-way.
    "wide": lambda seed: np.random.default_rng(seed).standard_normal((300, 70)).astype(np.float32),
    "wide clouds": lambda seed: clouds(300, 37, seed=seed)[0],
    "one feature": lambda seed: np.random.default_rng(seed).random((300, 1)).astype(np.float32),
    "all equal": lambda seed: np.full((300, 4), 0.1 * seed, dtype=np.float32),
    "far from zero": lambda seed: (1e4 + np.random.default_rng(seed).random((300, 3))).astype(np.float32),
}
points = st.builds(lambda name, seed: POINTS[name](seed), st.sampled_from(sorted(POINTS)), st.integers(0, 99))


@settings(max_examples=40, deadline=None)
@given(points=points, ball_size=st.integers(1, 400))
def test_balls_hold_every_point_once_and_within_the_radius(points, ball_size):
    balls = Balls.from_points(points, ball_size)
    assert sorted(balls.number.tolist()) == list(range(len(points)))
    centers = balls.centers.reshape(points.shape[1], -1).T
    for ball, (lo, hi) in enumerate(zip(balls.ptr[:-1], balls.ptr[1:], strict=True)):
        assert 0 < hi - lo <= ball_size
        members = points[balls.number[lo:hi]]
        np.testing.assert_array_equal(
            balls.points[lo * points.shape[1] : hi * points.shape[1]].reshape(points.shape[1], -1).T, members
        )
        far = np.linalg.norm(members.astype(float) - centers[ball].astype(float), axis=1)
        assert far.max() <= balls.radii[ball] * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(points=points, ball_size=st.integers(1, 400), seed=st.integers(0, 99))
def test_nearest_is_that_of_looking_at_all_and_ties_go_to_the_lower_number(points, ball_size, seed):
    rng = np.random.default_rng(seed)
    rows = np.concatenate([points[:20], points[20:40] + rng.standard_normal(points[20:40].shape).astype(points.dtype)])
    number, distance = Balls.from_points(points, ball_size).find_nearest(rows)
    squared = np.stack([squared_distances(points, row) for row in rows])
    np.testing.assert_array_equal(number, squared.argmin(axis=1))
    np.testing.assert_array_equal(distance, np.sqrt(squared.min(axis=1)))


def test_nearest_is_that_of_a_foreign_tree():
    rng = np.random.default_rng(0)
    points, rows = rng.random((5000, 6)), rng.random((500, 6))
    expected, number = cKDTree(points).query(rows)
    found, distance = Balls.from_points(points).find_nearest(rows)
    np.testing.assert_array_equal(found, number)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(points=points, ball_size=st.integers(1, 400), n=st.integers(1, 300), seed=st.integers(0, 99))
def test_farthest_points_are_those_of_the_plain_algorithm(points, ball_size, n, seed):
    rank = np.random.default_rng(seed).permutation(len(points))
    start = int(rank.argmin())
    found = Balls.from_points(points, ball_size).pick_farthest(n, start, rank)
    assert found.tolist() == pick_farthest(points, n, start, rank)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_has_the_same_distance_wherever_it_stands(dtype):
    points = np.random.default_rng(0).random((1000, 13)).astype(dtype)
    balls = Balls.from_points(points[:200])
    number, distance = balls.find_nearest(points)
    for start in (1, 3, 500, 999):
        again = balls.find_nearest(points[start:])
        np.testing.assert_array_equal(again[0], number[start:])
        np.testing.assert_array_equal(again[1], distance[start:])


def test_far_balls_are_passed_over():
    """What makes it fast: of the distances from 2,000 rows to 2,000 points most are never computed."""
    from daskpipe.stages.select import balls_kernels

    points, _ = clouds(2000, n_clouds=8)
    balls = Balls.from_points(points, 32)
    centers = balls.centers.reshape(3, -1).T.astype(float)
    looked_at = 0
    for row in points[::20].astype(float):
        best = np.sort(np.linalg.norm(points - row, axis=1))[1] ** 2
        to_center = np.linalg.norm(centers - row, axis=1)
        looked_at += sum(
            balls_kernels.may_hold_nearer(far, radius, best) for far, radius in zip(to_center, balls.radii, strict=True)
        )
    assert looked_at < 0.25 * len(points[::20]) * len(centers)
