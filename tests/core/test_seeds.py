import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskpipe.core.seeds
from daskpipe.core import seeds
from daskpipe.core.seeds import order_by_hash, random_stream

ids = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=30, unique=True)
names = st.lists(st.one_of(st.integers(), st.text(max_size=4), st.binary(max_size=4)), max_size=3)


def draw(*arguments) -> tuple[int, ...]:
    return tuple(random_stream(*arguments).integers(0, 2**63, 4).tolist())


@settings(max_examples=30, deadline=None)
@given(run_seed=st.integers(), stage=st.text(max_size=5), names=names)
def test_equal_arguments_give_equal_numbers(run_seed, stage, names):
    assert draw(run_seed, stage, *names) == draw(run_seed, stage, *names)


@settings(max_examples=60, deadline=None)
@given(first=names, second=names)
def test_different_names_give_different_numbers(first, second):
    same = [(type(item), item) for item in first] == [(type(item), item) for item in second]
    assert (draw(0, "explore", *first) == draw(0, "explore", *second)) == same


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "explore"), (1, "explore")),
        ((0, "explore"), (0, "select")),
        ((0, "explore", b"x", 0), (0, "explore", b"x", 1)),
        ((0, "explore", "ab", "c"), (0, "explore", "a", "bc")),
        ((0, "explore", 1), (0, "explore", "1")),
        ((0, "explore", "a"), (0, "explore", b"a")),
    ],
)
def test_streams_that_must_differ(first, second):
    assert draw(*first) != draw(*second)


def test_numbers_are_the_same_in_every_version_and_on_every_machine():
    assert random_stream(1, "explore", b"x" * 16, 0).integers(0, 2**32, 3).tolist() == [
        2039275336,
        2662895116,
        2791260056,
    ]
    assert order_by_hash(5, "shuffle", np.arange(16, dtype="<i8").view("V16")).tolist() == [5, 2, 4, 6, 3, 1, 0, 7]


def test_hash_randomisation_does_not_reach_them():
    code = "from daskpipe.core.seeds import random_stream; print(random_stream(1, 'explore', 'a').integers(0, 2**32))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{random_stream(1, 'explore', 'a').integers(0, 2**32)}\n"}


@settings(max_examples=30, deadline=None)
@given(ids=ids, seed=st.integers(0, 2**64), order=st.randoms())
def test_the_shuffled_order_does_not_depend_on_the_input_order(ids, seed, order):
    shuffled = ids.copy()
    order.shuffle(shuffled)
    first = [ids[index] for index in order_by_hash(seed, "shuffle", np.frombuffer(b"".join(ids), "V16"))]
    second = [shuffled[index] for index in order_by_hash(seed, "shuffle", np.frombuffer(b"".join(shuffled), "V16"))]
    assert first == second
    assert sorted(first) == sorted(ids)


def test_seed_and_purpose_decide_the_shuffled_order():
    many = np.arange(200, dtype="<i8").view("V16")
    orders = [order_by_hash(seed, purpose, many) for seed in (0, 1) for purpose in ("shuffle", "split")]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    for order in orders:
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(100))
        # Uncorrelated with the input order: 5 standard deviations of 1/sqrt(n).
        assert abs(np.corrcoef(order, np.arange(100))[0, 1]) < 0.5


def test_equal_ids_keep_their_order_and_stand_together():
    ids = np.frombuffer(b"".join(bytes([value]) * 16 for value in (3, 1, 3, 2, 1, 3)), "V16")
    order = order_by_hash(0, "shuffle", ids).tolist()
    for same in ([0, 2, 5], [1, 4]):
        places = [order.index(row) for row in same]
        assert places == list(range(places[0], places[0] + len(same)))


def test_where_the_ranks_collide_the_whole_id_decides(monkeypatch):
    monkeypatch.setattr(daskpipe.core.seeds, "_mix_words", lambda words: np.zeros(words.shape, dtype=np.uint64))
    ids = np.random.default_rng(0).integers(0, 2**64, (50, 2), dtype=np.uint64).view("V16").ravel()
    ordered = ids[order_by_hash(0, "shuffle", ids)]
    shuffled = ids[np.random.default_rng(1).permutation(50)]
    assert (shuffled[order_by_hash(0, "shuffle", shuffled)] == ordered).all()


def test_every_bit_of_an_id_reaches_its_rank():
    words = np.zeros((129, 2), dtype="<u8")
    for bit in range(128):
        words[bit + 1, bit // 64] = np.uint64(1) << np.uint64(bit % 64)
    places = np.argsort(order_by_hash(0, "shuffle", words.view("V16").ravel()))
    assert len(set(places.tolist())) == 129
    # Uncorrelated with the bit's number: 5 standard deviations of 1/sqrt(n).
    assert abs(np.corrcoef(places, np.arange(129))[0, 1]) < 5 / np.sqrt(129)


def test_millions_are_shuffled_in_seconds():
    n_ids, most_seconds = 1_000_000, 2.0  # 0.2 s where it was written; a hash each in Python takes longer
    ids = np.random.default_rng(0).integers(0, 2**64, (n_ids, 2), dtype=np.uint64).view("V16").ravel()
    started = time.perf_counter()
    order_by_hash(0, "shuffle", ids)
    assert time.perf_counter() - started < most_seconds


def test_streams_start_at_places_of_their_own():
    key = seeds.stream_key(0, "explore", b"x" * 16, 3)
    again = seeds.stream_at(key, 2, 5).standard_normal(8)
    np.testing.assert_array_equal(seeds.stream_at(key, 2, 5).standard_normal(8), again)
    others = [
        seeds.stream_at(key, 2, 6),
        seeds.stream_at(key, 3, 5),
        seeds.stream_at(key, 5, 2),
        seeds.stream_at(key + 1, 2, 5),
    ]
    assert not any(np.isin(other.standard_normal(8), again).any() for other in others)
    # The first place is where the stream of the same key starts.
    np.testing.assert_array_equal(
        seeds.stream_at(key, 0, 0).standard_normal(8),
        seeds.random_stream(0, "explore", b"x" * 16, 3).standard_normal(8),
    )
