"""The order of an epoch, and where its batches begin: functions of their arguments alone."""

from __future__ import annotations

import numpy as np

from daskpipe.core.errors import ConfigError
from daskpipe.core.seeds import random_stream
from daskpipe.load.mapped import RowRanges


def epoch_order(n: int, *, seed: int, epoch: int, block: int, buffer: int) -> np.ndarray:
    """Shuffle blocks, then what is in each window of blocks.

    Parameters
    ----------
    n
        Number of structures.
    seed, epoch
        What decides the order.
    block
        Structures in a block: neighbours that are read together.
    buffer
        Blocks in a window.

    Returns
    -------
    numpy.ndarray
        A permutation, shape (n,), dtype int64.
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
    """Cut `n` structures into batches of at most `batch_size`, as many for each of `world` ranks.

    Returns
    -------
    numpy.ndarray
        First structure of each batch, and the end, shape (batch + 1,), dtype int64. Sizes differ by at most one. Where
        there are too few structures for that (batches of one, and a rest), some batches have one more.

    Raises
    ------
    ConfigError
        If there are fewer structures than ranks.
    """
    n_batches = min(-(-n // (batch_size * world)), n // world) * world
    if not n_batches:
        raise ConfigError(_too_few(n, world))
    return np.arange(n_batches + 1) * n // n_batches


def atom_batches(n_atoms: np.ndarray, max_atoms: int, world: int) -> np.ndarray:
    """Cut structures into batches of at most `max_atoms`, greedily; then halve the largest until all ranks get as many.

    Parameters
    ----------
    n_atoms
        Of each structure, in the order of the epoch, shape (structure,), dtype int64.
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
    """
    n = len(n_atoms)
    if n < world or n == 0:
        raise ConfigError(_too_few(n, world))
    if n_atoms.max() > max_atoms:
        raise ConfigError(f"max_atoms={max_atoms} is less than the largest structure; give at least {n_atoms.max()}")
    ends = np.append(0, np.cumsum(n_atoms))
    found = [0]
    while found[-1] < n:
        found.append(int(np.searchsorted(ends, ends[found[-1]] + max_atoms, side="right")) - 1)
    bounds = np.array(found)
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
    """Return the number of this process and how many there are: as given, as torch.distributed says, or 0 of 1.

    Raises
    ------
    ConfigError
        If only one of them is given, or there is no such rank.
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


def _too_few(n: int, world: int) -> str:
    return f"{n} structures are too few for {world} ranks: each needs one at least; take another split or fewer ranks"
