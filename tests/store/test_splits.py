import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.errors import ConfigError
from daskpipe.seeds import order_by_hash
from daskpipe.store import arrange
from daskpipe.store.splits import assign_splits, group_numbers
from daskpipe.structures import as_void, take
from daskpipe.variables import SPLITS

N_SHARED = 3  # splits that can have a share
ids = st.binary(min_size=16, max_size=16)
groups = st.dictionaries(ids, st.integers(1, 30), min_size=1, max_size=40)


@st.composite
def fractions(draw):
    weights = draw(st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
    return {name: weight / sum(weights) for name, weight in zip(SPLITS, weights, strict=True) if weight}


@given(sizes=groups, fractions=fractions(), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_shares_are_met_as_well_as_groups_allow(sizes, fractions, seed):
    counts = np.array(list(sizes.values()))
    codes = assign_splits(counts, as_void(sizes), seed=seed, fractions=fractions)
    got = np.bincount(codes, weights=counts, minlength=N_SHARED)
    wanted = np.array([fractions.get(name, 0.0) for name in SPLITS]) * counts.sum()
    assert np.all(np.abs(got - wanted) <= (N_SHARED - 1) * counts.max() + 1e-9)
    assert not got[wanted == 0].any()
    if len(sizes) >= len(fractions):
        assert got[wanted > 0].all()


@given(sizes=groups, fractions=fractions(), seed=st.integers(0, 2**32), order=st.randoms())
@settings(deadline=None, max_examples=60)
def test_a_group_gets_the_same_split_whatever_the_order_of_groups(sizes, fractions, seed, order):
    def splits_of(items):
        codes = assign_splits(
            np.array([n for _, n in items]), as_void(key for key, _ in items), seed=seed, fractions=fractions
        )
        return {key: code for (key, _), code in zip(items, codes.tolist(), strict=True)}

    items = list(sizes.items())
    shuffled = items.copy()
    order.shuffle(shuffled)
    assert splits_of(items) == splits_of(shuffled)


def test_single_structures_meet_the_shares_exactly():
    sizes = np.ones(100, dtype=int)
    codes = assign_splits(
        sizes, np.arange(200).view("V16"), seed=0, fractions={"train": 0.8, "val": 0.15, "test": 0.05}
    )
    assert np.bincount(codes).tolist() == [80, 15, 5]


@settings(deadline=None)
@given(st.lists(st.tuples(ids, ids | st.just(bytes(16))), min_size=1, max_size=30))
def test_groups_are_numbered_by_sorted_seed(rows):
    group, group_ids = group_numbers(as_void(row[0] for row in rows), as_void(row[1] for row in rows))
    seeds = [own if parent == bytes(16) else parent for own, parent in rows]
    expected = {seed: number for number, seed in enumerate(sorted(set(seeds)))}  # the slow way
    assert group.tolist() == [expected[seed] for seed in seeds]
    assert [item.tobytes() for item in group_ids] == sorted(set(seeds))
    assert group.dtype == np.int32


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 24), frames=st.integers(1, 5), seed=st.integers(0, 9), order=st.randoms())
def test_arrange_is_a_permutation_that_tears_no_group_and_ignores_the_input_order(make_dataset, n, frames, seed, order):
    ds = make_dataset(n, frames_per_seed=frames)
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    rows = list(range(n))
    order.shuffle(rows)
    arranged = arrange(ds, seed=seed, fractions=shares)
    assert arranged.identical(arrange(take(ds, rows), seed=seed, fractions=shares))

    back = np.argsort(order_by_hash(seed, "shuffle", ds["structure_id"].values))
    assert take(arranged, back).drop_vars(["group", "split"]).identical(ds)

    pairs = set(zip(arranged["group"].values.tolist(), arranged["split"].values.tolist(), strict=True))
    assert len(pairs) == len({group for group, _ in pairs}) == -(-n // frames)
    if -(-n // frames) >= N_SHARED:
        assert {split for _, split in pairs} == set(SPLITS)


def test_the_seed_decides_the_order(make_dataset):
    ds = make_dataset(24)
    first, second = (arrange(ds, seed=seed, fractions={"train": 1.0}) for seed in (0, 1))
    steps = [first["step"].values.tolist(), second["step"].values.tolist(), ds["step"].values.tolist()]
    assert steps[0] != steps[1]
    assert steps[0] != steps[2]
    assert np.array_equal(np.sort(first["group"]), np.sort(second["group"]))  # numbers of groups do not depend on it


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.8, "valid": 0.2}, r"unknown split 'valid'. Did you mean 'val'\? Known: train, val, test."),
        ({"train": 1.2, "val": -0.2}, "split train=1.2 is no share; give a number from 0 to 1"),
        ({"train": 0.8, "val": 0.1}, r"must sum to 1; received train=0.8, val=0.1 \(sum 0.9\), try train=0.8"),
        ({"train": float("nan")}, "split train=nan is no share"),
        ({}, r"must sum to 1; received nothing \(sum 0\)"),
    ],
)
def test_fractions_that_are_none(make_dataset, fractions, message):
    with pytest.raises(ConfigError, match=message):
        arrange(make_dataset(3), seed=0, fractions=fractions)
