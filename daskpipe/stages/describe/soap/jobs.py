"""Work on several structures in threads, and results of one shape or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


def count_threads(n_jobs: int, only_physical_cores: bool) -> int:
    """Return the number of threads; a negative `n_jobs` is added to the number of cores.

    Raises
    ------
    ValueError
        If no thread is left.
    """
    if n_jobs < 0:
        import psutil

        n_jobs += psutil.cpu_count(logical=not only_physical_cores) or 1
    if n_jobs <= 0:
        raise ValueError(f"n_jobs must leave at least one thread, received {n_jobs} after adding the cores")
    return n_jobs


def pair_arguments(system: Atoms | Sequence[Atoms], **arguments: Any) -> tuple[list[Atoms], list[list[Any]]]:
    """Return structures as a list, and of each argument a list of the same length.

    Parameters
    ----------
    system
        A structure, whose arguments are as they are, or several.
    **arguments
        For several structures: a list with an item for each, or ``None``.

    Raises
    ------
    ValueError
        If there is no structure, or if the lengths differ.
    """
    from ase import Atoms

    if isinstance(system, Atoms):
        return [system], [[argument] for argument in arguments.values()]
    systems = list(system)
    if not systems:
        raise ValueError("system must hold at least one structure, received none")
    lists = []
    for name, argument in arguments.items():
        items = [None] * len(systems) if argument is None else list(argument)
        if len(items) != len(systems):
            raise ValueError(f"{name} must have an item for each of {len(systems)} structures, received {len(items)}")
        lists.append(items)
    return systems, lists


def hold_for_all(system: Atoms | Sequence[Atoms], indices: Any) -> Any:
    """Return indices as an argument of `pair_arguments`: repeated if they are one list for several structures."""
    from ase import Atoms

    if isinstance(system, Atoms) or indices is None:
        return indices
    one = all(isinstance(index, int | np.integer) for index in indices)
    return [indices] * len(system) if one else indices


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], n_jobs: int, only_physical_cores: bool, verbose: bool
) -> list[Any]:
    """Call a function with the arguments of each job, in threads; return the results in the order of the jobs.

    Parameters
    ----------
    function
        Called with the items of a job; most of its time should be spent without the GIL.
    jobs
        Arguments.
    n_jobs, only_physical_cores
        As in `count_threads`; they do not count for a single job.
    verbose
        Whether to print the progress.
    """
    if len(jobs) == 1:
        return [function(*jobs[0])]
    with ThreadPoolExecutor(count_threads(n_jobs, only_physical_cores)) as pool:
        results = []
        for number, result in enumerate(pool.map(lambda job: function(*job), jobs), start=1):
            results.append(result)
            if verbose:
                print(f"{number} of {len(jobs)} structures, {number / len(jobs):.1%}")
        return results


def stack_results(results: list[Any]) -> Any:
    """Return arrays of one shape as one array with a new first dimension, others as a list; dense or sparse."""
    if len({result.shape for result in results}) > 1:
        return results
    if isinstance(results[0], np.ndarray):
        return np.stack(results)
    import sparse

    return sparse.stack(results)
