import numpy as np
import pytest
from chunking import chunked
from clouds import clouds, on_a_lattice
from reference.farthest import pick_farthest

from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.fps import FarthestPoints


@pytest.mark.parametrize("n", [1, 2, 40, 399, 400])
@pytest.mark.parametrize("make", [lambda: clouds(400, 5)[0], lambda: on_a_lattice(400, 3)], ids=["clouds", "lattice"])
def test_picks_are_those_of_the_plain_algorithm(n, make):
    X = make()
    order = np.random.default_rng(2).permutation(400)
    picks = FarthestPoints(n=n, seed=0).pick(Blocks(chunked(X, (150, 250)), order))
    rank = np.argsort(order)
    assert picks.index.tolist() == sorted(pick_farthest(X, n, int(order[0]), rank))
    assert picks.reason == "fps"
    assert set(picks.cluster.tolist()) == {-1}


def test_each_pick_halves_nothing_that_is_nearer():
    """The distance to the nearest pick never grows from pick to pick, and ends at the covering radius."""
    X, _ = clouds(300, 3)
    order = np.arange(300)
    radius = []
    for n in (5, 20, 80):
        index = FarthestPoints(n=n, seed=0).pick(Blocks(X, order)).index
        radius.append(max(np.linalg.norm(X[index] - row, axis=1).min() for row in X))
    assert radius == sorted(radius, reverse=True)
