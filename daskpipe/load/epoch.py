"""Compute the order of an epoch and the bounds of its batches, from the arguments alone."""

from __future__ import annotations

import numpy as np

from daskpipe.core.errors import ConfigError
from daskpipe.core.seeds import random_stream
from daskpipe.load.mapped import RowRanges


def epoch_order(n: int, *, seed: int, epoch: int, block: int, buffer: int) -> np.ndarray:
    """Shuffle blocks of structures, then the structures within each window of blocks.

    Parameters
    ----------
    n
        Number of structures.
    seed, epoch
        Seed, and number of the epoch; together they decide the order.
    block
        Structures in a block, which are neighbours in the store and read together.
    buffer
        Blocks in a window.

    Returns
    -------
    numpy.ndarray
        A permutation, shape (n,), dtype int64.

    Examples
    --------
    >>> order = epoch_order(6, seed=0, epoch=0, block=2, buffer=3)
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4, 5]
    """
    rng = random_stream(seed, "load", epoch)
    start = rng.permutation(-(-n // block)) * block
    blocks = RowRanges(start, np.minimum(start + block, n))
    order = blocks.rows
    ends = np.append(0, np.cumsum(blocks.stop - blocks.start))
    for first in range(0, len(start), buffer):
        rng.shuffle(order[ends[first] : ends[min(first + buffer, len(start))]])
    return order


def even_batches(n: int, batch_size: int, world: int) -> np.ndarray:
    """Cut `n` structures into batches of at most `batch_size`, the same number for each of `world` ranks.

    Returns
    -------
    numpy.ndarray
        First structure of each batch, and the end, shape (batch + 1,), dtype int64. Sizes differ by at most one. Where
        there are too few structures for that (batches of one, and a rest), some batches have one more.

    Raises
    ------
    ConfigError
        If there are fewer structures than ranks.

    Examples
    --------
    >>> even_batches(10, 4, 1).tolist()
    [0, 3, 6, 10]
    """
    n_batches = min(-(-n // (batch_size * world)), n // world) * world
    if not n_batches:
        raise ConfigError(_say_too_few(n, world))
    return np.arange(n_batches + 1) * n // n_batches


def atom_batches(n_atoms: np.ndarray, max_atoms: int, world: int) -> np.ndarray:
    """Cut structures into batches of at most `max_atoms`, and halve the largest until all ranks get the same number.

    Parameters
    ----------
    n_atoms
        Number of atoms of each structure, in the order of the epoch, shape (structure,), dtype int64.
    max_atoms, world
        Most atoms in a batch; number of ranks.

    Returns
    -------
    numpy.ndarray
        First structure of each batch, and the end, shape (batch + 1,), dtype int64.

    Raises
    ------
    ConfigError
        If a structure is larger than `max_atoms`, or the batches cannot be shared evenly.

    Examples
    --------
    >>> atom_batches(np.array([3, 3, 3, 3]), max_atoms=9, world=1).tolist()
    [0, 3, 4]
    >>> atom_batches(np.array([3, 3, 3, 3]), max_atoms=9, world=3).tolist()
    [0, 2, 3, 4]
    """
    n = len(n_atoms)
    if n < world or n == 0:
        raise ConfigError(_say_too_few(n, world))
    if n_atoms.max() > max_atoms:
        raise ConfigError(f"max_atoms={max_atoms} is less than the largest structure; give at least {n_atoms.max()}")
    ends = np.append(0, np.cumsum(n_atoms))
    starts = [0]
    while starts[-1] < n:
        starts.append(int(np.searchsorted(ends, ends[starts[-1]] + max_atoms, side="right")) - 1)
    bounds = np.array(starts)
    while (len(bounds) - 1) % world:
        if len(bounds) > n:
            raise ConfigError(
                f"max_atoms={max_atoms} leaves one structure a batch, and {n} batches cannot be shared by {world} "
                "ranks; give a larger max_atoms"
            )
        largest = int(np.argmax(np.where(np.diff(bounds) > 1, np.diff(ends[bounds]), 0)))
        first, stop = bounds[largest : largest + 2]
        middle = np.searchsorted(ends, (ends[first] + ends[stop]) / 2)
        bounds = np.insert(bounds, largest + 1, np.clip(middle, first + 1, stop - 1))
    return bounds


def rank_and_world(rank: int | None, world: int | None) -> tuple[int, int]:
    """Return the rank of this process and the number of ranks: as given, from torch.distributed, or 0 of 1.

    Raises
    ------
    ConfigError
        If only one of them is given, or the rank is not below the number of ranks.
    """
    import torch.distributed

    if (rank is None) != (world is None):
        raise ConfigError(f"rank={rank}, world={world}: give both, or neither to take torch.distributed's")
    if rank is None or world is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank} of world={world}: give a rank from 0 to {world - 1}")
    return rank, world


def _say_too_few(n: int, world: int) -> str:
    """Return the message of a dataset with fewer structures than ranks."""
    return f"{n} structures are too few for {world} ranks: each needs one at least; take another split or fewer ranks"
