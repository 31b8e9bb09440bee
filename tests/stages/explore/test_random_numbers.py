import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskpipe.core import seeds
from daskpipe.stages.explore.random_numbers import BLOCK, Purpose, RandomNumbers

KEY = seeds.stream_key(0, "explore", b"x" * 16, 3)


def draw(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.standard_normal((n, 5, 3))


@given(st.integers(0, 5 * BLOCK), st.integers(1, 3 * BLOCK))
def test_numbers_of_a_step_do_not_depend_on_how_they_are_asked_for(step, n_steps):
    at_once = RandomNumbers(KEY).draw_steps(Purpose.THERMOSTAT, step, n_steps, draw)
    noise = RandomNumbers(KEY)
    one_by_one = [noise.draw_steps(Purpose.THERMOSTAT, step + number, 1, draw)[0] for number in range(n_steps)]
    assert at_once.shape == (n_steps, 5, 3)
    np.testing.assert_array_equal(at_once, one_by_one)


@pytest.mark.parametrize("other", [RandomNumbers(KEY + 1), RandomNumbers(seeds.stream_key(0, "explore", b"x" * 16, 4))])
def test_other_keys_have_other_numbers(other):
    one = RandomNumbers(KEY).draw_steps(Purpose.THERMOSTAT, 0, 10, draw)
    assert not np.isin(other.draw_steps(Purpose.THERMOSTAT, 0, 10, draw), one).any()


def test_purposes_and_blocks_do_not_share_numbers():
    streams = [RandomNumbers(KEY).stream_at(purpose, block) for purpose in Purpose for block in (0, 1, 2**40)]
    numbers = np.concatenate([stream.integers(2**63, size=1000) for stream in streams])
    assert len(np.unique(numbers)) == len(numbers)


def test_all_numbers_together_are_normal():
    """1,000 trajectories x 64 steps: mean, variance, and no correlation between steps or neighbours in the key."""
    from scipy import stats

    numbers = np.stack([RandomNumbers(KEY + key).draw_steps(Purpose.THERMOSTAT, 0, 64, draw) for key in range(1000)])
    assert stats.kstest(numbers.ravel()[:100_000], "norm").pvalue > 1e-4
    width = 5 / np.sqrt(numbers[:-1].size)
    assert abs(np.mean(numbers[1:] * numbers[:-1])) < width
    assert abs(np.mean(numbers[:, 1:] * numbers[:, :-1])) < 5 / np.sqrt(numbers[:, 1:].size)
    assert np.mean(numbers) == pytest.approx(0, abs=width)
    assert np.var(numbers) == pytest.approx(1, abs=np.sqrt(2) * width)
