"""Features as a stream of blocks of fixed size, which does not depend on the chunks on disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import dask.array as da

BLOCK_SIZE = 4096
"""Rows a block. Fixed, so that no choice of chunks changes what is picked."""

SAMPLE_SIZE = 2**18
"""Most rows on which centres, axes and scales are fitted: 64 float32 features of so many rows take 67 MB."""


LARGEST = 1e15
"""Largest features: squares of larger ones, summed over many rows and features, overflow in float32."""


@dataclass(frozen=True)
class Picks:
    """Picks of a selector.

    Parameters
    ----------
    index
        Sorted rows of the features (structures, where rows are atoms), shape (pick,), int64.
    cluster
        Stratum of each pick, shape (pick,), int32; -1 where the selector makes none.
    reason
        One word for all picks.
    """

    index: np.ndarray
    cluster: np.ndarray
    reason: str


class Selector(Protocol):
    """Interface of a selector; one that fits nothing has `pick` alone."""

    def fit_block(self, features: np.ndarray) -> None:
        """Learn from a block of features, shape (row, feature)."""

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the stratum of each row (int32) and its distance to the centre."""

    def pick(self, blocks: Blocks) -> Picks:
        """Pick from all rows."""


@dataclass(frozen=True)
class Blocks:
    """Rows of features, streamed in the order in which they are stored, and the canonical order of the structures.

    Parameters
    ----------
    features
        NumPy or Dask array, shape (row, feature). A pass computes each chunk of a Dask array once.
    order
        Permutation of the structures, shape (structure,), int64. Fits see them in this order, and of two
        that are equally good the earlier wins.
    n_atoms
        Rows of each structure, shape (structure,), where rows are atoms; else a row is a structure.
    keep
        Mask of the stored rows that take part, shape (stored row,), bool; by default all. Row numbers count only
        these rows.
    """

    features: np.ndarray | da.Array
    order: np.ndarray
    n_atoms: np.ndarray | None = None
    keep: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows that take part."""
        return len(self.order) if self.n_atoms is None else int(self.n_atoms.sum())

    @property
    def rank(self) -> np.ndarray:
        """Place of each structure in the canonical order, shape (structure,), int32."""
        rank = np.empty(len(self.order), dtype=np.int32)
        rank[self.order] = np.arange(len(self.order), dtype=np.int32)
        return rank

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, their features) in blocks of `BLOCK_SIZE` rows, the last one shorter.

        float32 stays float32; all else becomes float64.

        Raises
        ------
        ValueError
            If features are not finite, which names the first row as stored, or larger than `LARGEST`.
        """
        start = 0
        waiting: list[np.ndarray] = []
        for piece in self._checked_pieces():
            waiting.append(piece)
            n_waiting = sum(map(len, waiting))
            if n_waiting < BLOCK_SIZE:
                continue
            rows = np.concatenate(waiting)
            whole = n_waiting - n_waiting % BLOCK_SIZE
            for lo in range(0, whole, BLOCK_SIZE):
                yield slice(start + lo, start + lo + BLOCK_SIZE), rows[lo : lo + BLOCK_SIZE]
            start += whole
            waiting = [rows[whole:]]
        if waiting and len(rest := np.concatenate(waiting)):
            yield slice(start, start + len(rest)), rest

    def map_blocks[T](self, function: Callable[[np.ndarray], T]) -> Iterator[tuple[slice, T]]:
        """Yield (rows, result of `function` for their features) in order, computed in threads.

        `function` must release the GIL to gain by it, and treat each row alone, as the kernels do: then neither
        threads nor blocks show in the results.
        """
        n_threads = count_threads()
        with ThreadPoolExecutor(n_threads) as pool:
            running: deque[tuple[slice, Future[T]]] = deque()
            for rows, features in self:
                running.append((rows, pool.submit(function, features)))
                if len(running) > 2 * n_threads:
                    ready, future = running.popleft()
                    yield ready, future.result()
            for ready, future in running:
                yield ready, future.result()

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of some rows, sorted row numbers, in one pass; shape (len(rows), feature)."""
        gathered: np.ndarray | None = None
        for block, features in self:
            if gathered is None:
                gathered = np.empty((len(rows), features.shape[1]), dtype=features.dtype)
            lo, hi = np.searchsorted(rows, [block.start, block.stop])
            gathered[lo:hi] = features[rows[lo:hi] - block.start]
        assert gathered is not None, "a table without rows"
        return gathered

    def read_sample(self) -> np.ndarray:
        """Return the features of the first `SAMPLE_SIZE` rows of the canonical order, in this order."""
        if self.n_atoms is None:
            rows = self.order[:SAMPLE_SIZE]
        else:
            ends = np.cumsum(self.n_atoms)
            enough = int(np.searchsorted(np.cumsum(self.n_atoms[self.order]), SAMPLE_SIZE)) + 1
            atoms = [np.arange(ends[at] - self.n_atoms[at], ends[at]) for at in self.order[:enough]]
            rows = np.concatenate(atoms)[:SAMPLE_SIZE]
        sort = np.argsort(rows)
        sampled = self.gather_rows(rows[sort])
        canonical = np.empty_like(sampled)
        canonical[sort] = sampled
        return canonical

    def _checked_pieces(self) -> Iterator[np.ndarray]:
        """Yield the rows that take part as they are stored, checked, chunk by chunk."""
        stored = 0
        for chunk in _read_chunks(self.features):
            piece = np.ascontiguousarray(chunk, dtype=np.float32 if chunk.dtype == np.float32 else np.float64)
            finite = np.isfinite(piece).all(axis=1)
            if not finite.all():
                first = stored + int(np.argmin(finite))
                raise ValueError(f"features must be finite, and row {first} is not; drop such rows first")
            if piece.size and not (largest := float(np.abs(piece).max())) <= LARGEST:
                raise ValueError(
                    f"features must not exceed {LARGEST:g}, for squared distances overflow beyond, and one is "
                    f"{largest:g}; scale them first, e.g. X / abs(X).max()"
                )
            yield piece if self.keep is None else piece[self.keep[stored : stored + len(piece)]]
            stored += len(piece)


def _read_chunks(features: Any) -> Iterator[np.ndarray]:
    """Yield an array's rows: a Dask array's chunk by chunk, each computed once."""
    if not hasattr(features, "dask"):
        for start in range(0, len(features), 16 * BLOCK_SIZE):
            yield features[start : start + 16 * BLOCK_SIZE]
        return
    for number in range(features.numblocks[0]):
        # The scheduler of a run is not used: this may be one of its tasks, and it needs one chunk at a time.
        yield features.blocks[number].compute(scheduler="synchronous")


def count_threads() -> int:
    """Return the number of threads: ``OMP_NUM_THREADS``, which a run sets to 1 on its workers, or one a core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))
