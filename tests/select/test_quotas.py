import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reference import strata

from daskpipe.select.kmeans import quotas

sizes_and_n = st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 200))


@given(sizes_and_n)
def test_shares_fill_n_within_the_strata(drawn):
    sizes, n = drawn
    shares = quotas(np.array(sizes), n)
    assert shares.sum() == min(n, sum(sizes))
    assert (shares >= 0).all()
    assert (shares <= sizes).all()


@given(sizes_and_n)
def test_shares_are_equal_within_one_where_sizes_allow(drawn):
    sizes, n = drawn
    shares = quotas(np.array(sizes), n)
    exhausted = shares == sizes
    if (~exhausted).any():
        least = shares[~exhausted].min()
        assert shares.max() <= least + 1


@given(sizes_and_n)
def test_is_what_giving_out_one_by_one_gives(drawn):
    sizes, n = drawn
    assert quotas(np.array(sizes), n).tolist() == strata.quotas(sizes, n)


def test_the_rest_of_a_small_stratum_is_shared_equally_too():
    # Two rounds of "the rest to the largest" would give the second stratum 4 and the last 2.
    assert quotas(np.array([1, 100, 90, 80]), 10).tolist() == [1, 3, 3, 3]
