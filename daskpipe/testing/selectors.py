"""Check what a selector promises."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from daskpipe.stages.select.blocks import BLOCK_SIZE, Blocks, Picks

MOST_ATOMS = 6
"""Atoms of the largest structure, where rows are atoms."""


def check_selector(
    factory: Callable[..., Any],
    *,
    n: int = 25,
    n_structures: int = BLOCK_SIZE + 200,
    n_features: int = 4,
    rows_are_atoms: bool = False,
    follows_storage: bool = False,
    seed: int = 0,
) -> None:
    """Check that a selector keeps what daskpipe promises about selectors.

    Exactly `n` picks, or all structures if there are fewer; indices sorted, unique, in range, int64, with a stratum
    each (int32) and a reason. The same picks for the same seed, for any chunks of the features, for rows that are
    masked out or absent, for rows stored in another order, and whatever the global random generators hold, which are
    left alone. Features are read only; float32 and float64 are both taken; a NaN is refused by row, or changes no
    pick. What is fitted block by block assigns a stratum and a distance to each row.

    Parameters
    ----------
    factory
        Called with ``n`` and ``seed``; `functools.partial` gives it parameters of its own.
    n
        Structures to pick.
    n_structures
        Structures to pick from; more than `n`, and by default more than fit into one block.
    n_features
        Features of a row.
    rows_are_atoms
        Whether a row describes an atom, as for the method ``environments``, or a structure.
    follows_storage
        Whether picks may depend on the order in which structures are stored, as those of the method ``stride`` do.
    seed
        Draws the features, and is the seed of the selector.

    Raises
    ------
    AssertionError
        Naming the promise that was not kept.
    ValueError
        If `n` is not smaller than `n_structures`.

    Examples
    --------
    >>> from daskpipe.stages.select.random import Random
    >>> check_selector(Random)
    """
    import dask.array as da

    if not 0 < n < n_structures:
        raise ValueError(f"n must be at least 1 and less than n_structures={n_structures}, received {n}")
    rng = np.random.default_rng(seed)
    pool = draw_pool(rng, n_structures, n_features, rows_are_atoms=rows_are_atoms)
    expected = pick_from(factory, pool, n, seed)
    _check_globals(lambda: pick_from(factory, pool, n, seed), expected)
    for sizes in _draw_chunks(rng, len(pool.features)):
        chunked = Blocks(da.from_array(np.asarray(pool.features), chunks=(sizes, -1)), pool.order, pool.n_atoms)
        _check_same(pick_from(factory, chunked, n, seed), expected, f"chunks of {sizes[:3]}... rows change the picks")
    _check_mask(factory, rng, pool, n, seed)
    if not follows_storage:
        _check_storage(factory, rng, pool, n, seed, expected)
    _check_features(factory, pool, n, seed, expected)
    for few, wanted in ((1, n), (n, n), (n - 1, n), (n_structures, 1)):
        pick_from(factory, draw_pool(rng, few, n_features, rows_are_atoms=rows_are_atoms), wanted, seed)
    same = np.ones((len(pool.features), n_features), dtype=np.float32)
    pick_from(factory, Blocks(same, pool.order, pool.n_atoms), n, seed)
    _check_blocks(factory(n=n, seed=seed), pool)


def draw_pool(rng: np.random.Generator, n_structures: int, n_features: int, *, rows_are_atoms: bool) -> Blocks:
    """Draw features in some clusters of unequal size, float32, and a canonical order; no row may be written."""
    n_atoms = rng.integers(1, MOST_ATOMS + 1, n_structures) if rows_are_atoms else None
    n_rows = n_structures if n_atoms is None else int(n_atoms.sum())
    centers = rng.normal(scale=5.0, size=(8, n_features))
    cluster = np.minimum(rng.geometric(0.4, n_rows) - 1, len(centers) - 1)
    features = (centers[cluster] + rng.normal(size=(n_rows, n_features))).astype(np.float32)
    features.flags.writeable = False
    return Blocks(features, rng.permutation(n_structures), n_atoms)


def pick_from(factory: Callable[..., Any], blocks: Blocks, n: int, seed: int) -> Picks:
    """Pick with a new selector, and check the form of the picks."""
    picks: Picks = factory(n=n, seed=seed).pick(blocks)
    index, n_structures = picks.index, len(blocks.order)
    wanted = min(n, n_structures)
    assert isinstance(index, np.ndarray), f"index is a {type(index).__name__}, not a NumPy array"
    assert index.dtype == np.int64, f"index has dtype {index.dtype}, not int64"
    assert index.shape == (wanted,), f"{n} of {n_structures} structures asked for, index has shape {index.shape}"
    assert (index >= 0).all(), "a pick lies before the first structure"
    assert (index < n_structures).all(), "a pick lies beyond the last structure"
    assert (np.diff(index) >= 0).all(), "the picks are not sorted"
    assert (np.diff(index) > 0).all(), "a structure is picked twice"
    assert picks.cluster.dtype == np.int32, f"cluster has dtype {picks.cluster.dtype}, not int32"
    assert picks.cluster.shape == index.shape, f"cluster has shape {picks.cluster.shape}, not {index.shape}"
    assert (picks.cluster >= -1).all(), "a stratum has a number below -1"
    assert isinstance(picks.reason, str), f"reason is a {type(picks.reason).__name__}, not a word"
    assert picks.reason, "reason is empty"
    return picks


def _check_same(picks: Picks, expected: Picks, message: str) -> None:
    """Check that two selections picked the same structures, from the same strata, for the same reason."""
    assert np.array_equal(picks.index, expected.index), message
    assert np.array_equal(picks.cluster, expected.cluster), f"{message}: strata of the same picks differ"
    assert picks.reason == expected.reason, f"{message}: reasons differ"


def _check_globals(pick: Callable[[], Picks], expected: Picks) -> None:
    """Check that the global random generators do not decide the picks, and are not used."""
    with _keep_globals():
        for state in (1, 2):
            np.random.seed(state)  # noqa: NPY002 (what a plugin may use by mistake)
            random.seed(state)
            before = np.random.get_state()[1].copy(), np.random.get_state()[2], random.getstate()  # noqa: NPY002
            _check_same(pick(), expected, "the same seed picks otherwise a second time")
            after = np.random.get_state()[1], np.random.get_state()[2], random.getstate()  # noqa: NPY002
            assert np.array_equal(before[0], after[0]), "the global generator of NumPy was used"
            assert before[1] == after[1], "the global generator of NumPy was used"
            assert before[2] == after[2], "the global generator of Python was used"


@contextmanager
def _keep_globals() -> Iterator[None]:
    """Restore the states of the global random generators afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _draw_chunks(rng: np.random.Generator, n_rows: int) -> Iterator[tuple[int, ...]]:
    """Yield sizes of chunks: even ones that divide no block, and uneven ones."""
    size = max(1, n_rows // 7 - 1)
    yield (*[size] * (n_rows // size), *([n_rows % size] if n_rows % size else []))
    cuts = np.sort(rng.choice(np.arange(1, n_rows), min(4, n_rows - 1), replace=False))
    yield tuple(np.diff([0, *cuts.tolist(), n_rows]).tolist())


def _check_mask(factory: Callable[..., Any], rng: np.random.Generator, pool: Blocks, n: int, seed: int) -> None:
    """Check that masked structures count as absent."""
    kept = rng.random(len(pool.order)) < 0.6
    n_atoms = None if pool.n_atoms is None else pool.n_atoms[kept]
    rows = kept if pool.n_atoms is None else np.repeat(kept, pool.n_atoms)
    order = rng.permutation(int(kept.sum()))
    masked = pick_from(factory, Blocks(pool.features, order, n_atoms, rows), n, seed)
    absent = pick_from(factory, Blocks(pool.features[rows], order, n_atoms), n, seed)
    _check_same(masked, absent, "rows that are masked out change the picks")


def _check_storage(
    factory: Callable[..., Any], rng: np.random.Generator, pool: Blocks, n: int, seed: int, expected: Picks
) -> None:
    """Check that the picks are the same structures when these are stored in another order."""
    new = rng.permutation(len(pool.order))  # structure new[i] is stored at place i
    place = np.argsort(new)
    if pool.n_atoms is None:
        stored = Blocks(pool.features[new], place[pool.order])
    else:
        starts = np.cumsum(pool.n_atoms) - pool.n_atoms
        rows = np.concatenate([np.arange(starts[at], starts[at] + pool.n_atoms[at]) for at in new])
        stored = Blocks(pool.features[rows], place[pool.order], pool.n_atoms[new])
    picks = pick_from(factory, stored, n, seed)
    assert np.array_equal(np.sort(new[picks.index]), expected.index), (
        "structures stored in another order are picked otherwise; follow blocks.order, or pass follows_storage=True"
    )


def _check_features(factory: Callable[..., Any], pool: Blocks, n: int, seed: int, expected: Picks) -> None:
    """Check that both precisions are accepted, and that a NaN is refused by row or not looked at."""
    pick_from(factory, Blocks(np.asarray(pool.features, dtype=np.float64), pool.order, pool.n_atoms), n, seed)
    broken = np.array(pool.features)
    row = len(broken) // 2
    broken[row, -1] = np.nan
    try:
        picks = pick_from(factory, Blocks(broken, pool.order, pool.n_atoms), n, seed)
    except ValueError as error:
        refusal = str(error)
    else:
        _check_same(picks, expected, "a NaN is not refused and changes the picks")
        return
    assert str(row) in refusal, f"the refusal of a NaN does not name its row, {row}: {refusal}"


def _check_blocks(selector: Any, pool: Blocks) -> None:
    """Check that a selector has both `fit_block` and `assign` or neither, and that each row gets a stratum."""
    fits, assigns = hasattr(selector, "fit_block"), hasattr(selector, "assign")
    assert fits == assigns, "fit_block and assign come together; a selector that fits nothing has neither"
    if not fits:
        return
    for _, features in pool:
        selector.fit_block(features)
    for _, features in pool:
        cluster, distance = selector.assign(features)
        assert cluster.dtype == np.int32, f"assign gives strata of dtype {cluster.dtype}, not int32"
        assert cluster.shape == distance.shape == (len(features),), "assign gives no stratum and distance for each row"
        assert (cluster >= 0).all(), "assign leaves a row without a stratum"
        assert np.isfinite(distance).all(), "assign gives a distance that is not finite"
        assert (distance >= 0).all(), "assign gives a distance below 0"
