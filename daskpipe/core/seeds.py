"""Make random streams that belong to structures, never to a worker, a batch or a partition."""

from __future__ import annotations

import hashlib

import numpy as np


def random_stream(run_seed: int, stage: str, *names: str | bytes | int) -> np.random.Generator:
    """Return the random stream of one structure, or one source, in one stage of a run.

    Parameters
    ----------
    run_seed
        The seed in the config.
    stage
        The stage that draws.
    *names
        What the stream belongs to: a structure id (16 bytes) and a replica, or the name and number of a source.

    Returns
    -------
    numpy.random.Generator
        Philox keyed by a hash of all arguments: the same arguments give the same numbers on any machine.

    Examples
    --------
    >>> random_stream(0, "generate", "alloys", 3).integers(100, size=4).tolist()
    [80, 30, 38, 75]
    """
    return np.random.Generator(np.random.Philox(key=stream_key(run_seed, stage, *names)))


def stream_key(run_seed: int, stage: str, *names: str | bytes | int) -> int:
    """Return the 128-bit key of the stream that `random_stream` gives; `stream_at` takes it."""
    digest = hashlib.blake2b(digest_size=16, person=b"daskpipe-seeds")
    for part in (run_seed, stage, *names):
        data = part if isinstance(part, bytes) else str(part).encode()
        # Length and kind keep ("ab", "c") and ("a", "bc"), or 1 and "1", apart.
        digest.update(f"{type(part).__name__}{len(data)}:".encode() + data)
    return int.from_bytes(digest.digest(), "little")


def stream_at(key: int, purpose: int, number: int) -> np.random.Generator:
    """Return a stream that starts at a position of its own, without drawing the numbers before it.

    Parameters
    ----------
    key
        From `stream_key`.
    purpose, number
        Which purpose the numbers serve, and for which step or block of steps; both below 2**64.

    Returns
    -------
    numpy.random.Generator
        Philox (DOI 10.1145/2063384.2063405) with `purpose` and `number` in the upper half of its 256-bit counter. Two
        such streams of one key overlap only after 2**128 blocks of numbers.
    """
    # The lowest word counts the blocks that are drawn.
    return np.random.Generator(np.random.Philox(key=key, counter=(number << 192) | (purpose << 128)))


def order_by_hash(seed: int, purpose: str, ids: np.ndarray) -> np.ndarray:
    """Return a shuffled order of structures that depends only on their ids and the seed.

    Parameters
    ----------
    seed
        The seed to store with what was shuffled.
    purpose
        Name of the shuffle: two purposes give two orders.
    ids
        Structure ids, shape (structure,), 16 bytes each.

    Returns
    -------
    numpy.ndarray
        Indices into `ids`, shape (structure,), dtype int64. Equal ids keep their order.
    """
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    key = np.frombuffer(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=32).digest(), "<u8")
    # Ids are content hashes already: two keyed rounds decide their order as well as a hash of each would.
    rank = _mix_words(_mix_words((words[:, 0] ^ key[0]) + key[1]) ^ (words[:, 1] + key[2]) ^ key[3])
    order = np.argsort(rank, kind="stable")
    ranked = rank[order]
    tied = np.flatnonzero(ranked[1:] == ranked[:-1])
    if (words[order[tied]] != words[order[tied + 1]]).any():
        # Two different ids of equal rank are very rare: then the whole id decides.
        order = np.lexsort((words[:, 1], words[:, 0], rank))
    return order


def _mix_words(words: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words, one to one: the finaliser of SplitMix64 (DOI 10.1145/2660193.2660195)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
