"""Stream batches in shuffled blocks: the same for any number of workers, resumable, and fit for DDP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from daskpipe.core.errors import ConfigError
from daskpipe.load.batch import Batch
from daskpipe.load.epoch import atom_batches, epoch_order, even_batches, rank_and_world
from daskpipe.load.torch_data import TorchDataset, collate

MOST_WORKERS = 1024
"""Most workers of a data loader."""


class TorchStream(IterableDataset[Batch]):
    """Batches of a dataset, read in contiguous blocks: ``DataLoader(stream, batch_size=None, num_workers=n)``.

    Blocks of neighbouring structures come in a shuffled order, and the structures of each window of blocks are
    shuffled. The batches and their order depend on the arguments and the epoch, not on the number of workers: worker w
    of n makes batches w, w + n, ... Over all ranks each structure occurs once per epoch, and each rank gets the same
    number of batches, so that DDP does not wait for ever.

    Parameters
    ----------
    path, split, verify
        As for `TorchDataset`.
    batch_size
        Most structures in a batch; sizes differ by at most one.
    max_atoms
        Most atoms in a batch, instead of `batch_size`. The largest batches are halved until all ranks get the same
        number.
    seed
        Seed of the order, together with the number of the epoch.
    rank, world
        Rank of this process and number of ranks; from torch.distributed if not given.
    block
        Structures in a block.
    buffer
        Blocks in a window. For a compressed copy, a worker holds the structures of a window in memory, divided by the
        number of workers and ranks.
    shuffle
        Whether to shuffle; else the batches come in the order of the dataset.
    cutoff, dtype
        As for `collate`, which the workers call.

    Raises
    ------
    InputError, ConfigError, IntegrityError
        As `TorchDataset`; ConfigError also if not exactly one of `batch_size` and `max_atoms` is given, a structure is
        larger than `max_atoms`, or there are fewer structures than ranks.

    Examples
    --------
    Each batch carries the `state` of the stream after it. Save it with the weights, and a later run continues with the
    next batch, with any number of workers:

    >>> stream = TorchStream("runs/q/dataset.zarr", "train", batch_size=2, seed=1)
    >>> batch = next(iter(torch.utils.data.DataLoader(stream, batch_size=None)))
    >>> checkpoint = {"stream": batch.state}  # to be saved with the weights
    >>> stream.load_state_dict(checkpoint["stream"])  # the next batch is the second one of the epoch
    """

    def __init__(
        self,
        path: Path | str,
        split: str | None = None,
        *,
        batch_size: int | None = None,
        max_atoms: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        block: int = 1024,
        buffer: int = 16,
        shuffle: bool = True,
        cutoff: float | None = None,
        dtype: torch.dtype | None = None,
        verify: bool = True,
    ) -> None:
        if (batch_size is None) == (max_atoms is None):
            raise ConfigError(f"batch_size={batch_size}, max_atoms={max_atoms}: give exactly one of them")
        for name, value in (("batch_size", batch_size), ("max_atoms", max_atoms), ("block", block), ("buffer", buffer)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: give at least 1")
        self.rank, self.world = rank_and_world(rank, world)
        self.batch_size, self.max_atoms, self.seed = batch_size, max_atoms, seed
        self.block, self.buffer, self.shuffle = block, buffer, shuffle
        self.cutoff, self.dtype = cutoff, dtype
        self.data = TorchDataset(path, split, verify=verify)
        # Epoch, batches of it that the next pass skips, number of this setting, and workers of the pass that uses it
        # (0: none yet). Shared between processes: persistent workers see the settings of the main process, and it sees
        # which passes they began.
        self._progress = torch.zeros(4, dtype=torch.int64).share_memory_()
        # Last setting that each worker used: its later passes give whole epochs.
        self._followed = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()
        self._planned: tuple[int, np.ndarray, np.ndarray] | None = None
        self._plan_epoch()  # wrong arguments raise here, not in a worker

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next pass."""
        return int(self._progress[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass: all of it, or the rest of it if `load_state_dict` has set the same epoch."""
        if epoch != self.epoch:
            self._start_at(epoch, 0)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch that carried `state`, on any rank, in the next pass; later passes give whole epochs.

        Raises
        ------
        ConfigError
            If the state belongs to another dataset, split, seed, number of ranks, or other batches.
        """
        for name, mine in self._describe_order().items():
            if state.get(name) != mine:
                raise ConfigError(
                    f"the state is of a stream with {name}={state.get(name)!r}, this one has {mine!r}; "
                    "make the stream as it was, or start the epoch anew with set_epoch"
                )
        self._start_at(int(state["epoch"]), int(state["n_batches"]))

    def _start_at(self, epoch: int, done: int) -> None:
        """Start the next pass, on all workers, after `done` batches of an epoch."""
        self._progress[:] = torch.tensor([epoch, done, int(self._progress[2]) + 1, 0])

    def _begin_pass(self, worker: int, n_workers: int) -> tuple[int, int]:
        """Return the epoch of the pass that a worker begins, and the number of batches to skip."""
        epoch, done, number, n_following = self._progress.tolist()
        if done == 0 or int(self._followed[worker]) == number or n_following not in (0, n_workers):
            return epoch, 0
        self._followed[worker] = number
        self._progress[3] = n_workers
        return epoch, done

    def _describe_order(self) -> dict[str, Any]:
        """Return the settings that decide the sequence of batches, JSON types."""
        return {
            "dataset": self.data.checksum,
            "split": self.data.split,
            "seed": self.seed,
            "world": self.world,
            "batch_size": self.batch_size,
            "max_atoms": self.max_atoms,
            "block": self.block,
            "buffer": self.buffer,
            "shuffle": self.shuffle,
        }

    def _plan_epoch(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of the epoch, shape (structure,), and the bounds of its batches, shape (batch + 1,)."""
        epoch = self.epoch
        if self._planned is None or self._planned[0] != epoch:
            n = len(self.data)
            order = np.arange(n)
            if self.shuffle:
                order = epoch_order(n, seed=self.seed, epoch=epoch, block=self.block, buffer=self.buffer)
            if self.max_atoms is not None:
                bounds = atom_batches(self.data.n_atoms[order], self.max_atoms, self.world)
            else:
                assert self.batch_size is not None
                bounds = even_batches(n, self.batch_size, self.world)
            self._planned = epoch, order, bounds
        return self._planned[1:]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_planned": None}

    def __len__(self) -> int:
        """Return the number of batches per rank in the next pass: of the epoch, or of its rest after a state."""
        done = int(self._progress[1]) if int(self._progress[3]) == 0 else 0
        return max(0, self._n_batches - done)

    @property
    def _n_batches(self) -> int:
        """Number of batches per rank in the epoch."""
        return (len(self._plan_epoch()[1]) - 1) // self.world

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if step > MOST_WORKERS:
            raise ConfigError(f"num_workers={step}: give at most {MOST_WORKERS}")
        epoch, done = self._begin_pass(first, step)
        order, bounds = self._plan_epoch()
        n_batches = self._n_batches
        numbers = range(done + first, n_batches, step)
        # Number of consecutive batches that span a window.
        together = max(1, self.block * self.buffer * n_batches // (len(order) * step))
        for start in range(0, len(numbers), together):
            group = numbers[start : start + together]
            places = [self.rank + number * self.world for number in group]
            chosen = [order[bounds[place] : bounds[place + 1]] for place in places]
            window = np.sort(np.concatenate(chosen))
            table = self.data.table.read_window(window)
            for number, structures in zip(group, chosen, strict=True):
                batch = collate(table.read_batch(np.searchsorted(window, structures)), self.dtype, self.cutoff)
                batch.state = {**self._describe_order(), "epoch": epoch, "n_batches": number + 1}
                yield batch
