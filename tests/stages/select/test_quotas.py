import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import strata

from daskpipe.stages.select.quotas import share_picks

sizes_and_n = st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 200))
allocations = st.sampled_from(["equal", "proportional", "sqrt"])


@given(sizes_and_n, allocations)
def test_shares_fill_n_within_the_strata(drawn, allocation):
    sizes, n = drawn
    shares = share_picks(np.array(sizes), n, allocation)
    assert shares.dtype == np.int64
    assert shares.sum() == min(n, sum(sizes))
    assert (shares >= 0).all()
    assert (shares <= sizes).all()


@given(sizes_and_n)
def test_shares_are_equal_within_one_where_sizes_allow(drawn):
    sizes, n = drawn
    shares = share_picks(np.array(sizes), n)
    exhausted = shares == sizes
    if (~exhausted).any():
        least = shares[~exhausted].min()
        assert shares.max() <= least + 1


@given(sizes_and_n, allocations)
def test_is_what_giving_out_one_by_one_gives(drawn, allocation):
    sizes, n = drawn
    assert share_picks(np.array(sizes), n, allocation).tolist() == strata.share_picks(sizes, n, allocation)


def test_the_rest_of_a_small_stratum_is_shared_equally_too():
    # Two rounds of "the rest to the largest" would give the second stratum 4 and the last 2.
    assert share_picks(np.array([1, 100, 90, 80]), 10).tolist() == [1, 3, 3, 3]


@pytest.mark.parametrize(("allocation", "power"), [("equal", 0), ("sqrt", 0.5), ("proportional", 1)])
def test_large_shares_follow_the_weights(allocation, power):
    sizes = np.array([100_000, 400_000, 900_000])
    shares = share_picks(sizes, 6_000, allocation)
    assert np.abs(shares - 6_000 * sizes**power / (sizes**power).sum()).max() <= 1


def test_every_stratum_gets_one_before_any_gets_two():
    assert share_picks(np.array([10_000, 1, 1]), 3, "proportional").tolist() == [1, 1, 1]
