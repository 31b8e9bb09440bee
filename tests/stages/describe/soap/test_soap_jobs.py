import numpy as np
import psutil
import pytest

from daskpipe.stages.describe.soap.jobs import count_threads, run_jobs, stack_results


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert run_jobs(pow, [(2, 3), (3, 2), (5, 1)], 2, False, False) == [8, 9, 5]


def test_a_negative_number_is_counted_from_the_cores() -> None:
    assert count_threads(3, only_physical_cores=False) == 3
    cores = psutil.cpu_count()
    if cores > 1:
        assert count_threads(-1, only_physical_cores=False) == cores - 1
    with pytest.raises(ValueError, match="n_jobs must leave at least one thread, received 0 after adding the cores"):
        count_threads(-cores, only_physical_cores=False)


def test_arrays_of_one_shape_are_stacked() -> None:
    assert stack_results([np.zeros(3), np.ones(3)]).shape == (2, 3)
    assert isinstance(stack_results([np.zeros(3), np.ones(2)]), list)
