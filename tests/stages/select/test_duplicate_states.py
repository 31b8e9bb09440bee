"""Near-duplicates are looked for among structures of one electronic state."""

from __future__ import annotations

import numpy as np

from daskpipe.core.structures import electronic_states
from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.duplicates import find_near_duplicates, find_near_duplicates_by_state

FEATURES = np.repeat(np.random.default_rng(0).normal(size=(20, 4)), 3, axis=0)


def test_equal_features_of_other_states_are_kept() -> None:
    order = np.random.default_rng(1).permutation(60)
    states = np.tile([0, 1, 0], 20)
    blocks = Blocks(FEATURES, order)
    assert find_near_duplicates(blocks, 0.01).mask.sum() == 40
    found = find_near_duplicates_by_state(blocks, states, 0.01)
    assert found.mask.sum() == found.n_against_pool == 20
    assert not found.mask[states == 1].any()
    assert found.mask.reshape(20, 3)[:, [0, 2]].sum(axis=1).tolist() == [1] * 20
    # The earlier one in the canonical order stays.
    rank = np.argsort(order)
    for first, last in np.arange(60).reshape(20, 3)[:, [0, 2]]:
        assert found.mask[first] == (rank[first] > rank[last])


def test_one_state_is_as_before() -> None:
    blocks = Blocks(FEATURES, np.arange(60))
    expected, found = (
        find_near_duplicates(blocks, 0.01),
        find_near_duplicates_by_state(blocks, np.zeros(60, dtype=int), 0.01),
    )
    assert np.array_equal(found.mask, expected.mask)
    assert (found.n_against_pool, found.scale) == (expected.n_against_pool, expected.scale)


def test_rows_of_a_dataset_count_for_all_states() -> None:
    found = find_near_duplicates_by_state(Blocks(FEATURES, np.arange(60)), np.tile([0, 1, 2], 20), 0.01, FEATURES[:3])
    assert found.mask.tolist() == [True] * 3 + [False] * 57
    assert (found.n_against_dataset, found.n_against_pool) == (3, 0)


def test_states_are_told_by_charge_spin_and_moments() -> None:
    states = electronic_states(
        {
            "n_atoms": np.array([2, 2, 2, 1, 1]),
            "charge": np.array([0, 0, 0, 0, 1]),
            "initial_magmoms": np.array([2.2, 2.2, 2.2, -2.2, np.nan, np.nan, 0, np.nan], dtype="f4"),
        }
    )
    assert len(set(states)) == 4
    assert states[2] == states[3]  # no moments, or zero
