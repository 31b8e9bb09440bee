"""Sample batches of about equally many atoms from a map-style dataset."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from daskpipe.load.epoch import atom_batches, epoch_order, rank_and_world
from daskpipe.load.torch_data import TorchDataset


class AtomBatchSampler(Sampler[list[int]]):
    """Batches of at most `max_atoms` atoms: ``DataLoader(data, batch_sampler=..., collate_fn=collate)``.

    With DDP it replaces torch's ``DistributedSampler``: each structure occurs once per epoch on one rank, and all
    ranks get the same number of batches.

    Parameters
    ----------
    data
        The dataset.
    max_atoms
        Most atoms in a batch.
    shuffle, seed
        Whether to draw a new order for each epoch, from the seed and the number of the epoch; else the order is that of
        the dataset.
    rank, world
        Rank of this process and number of ranks; from torch.distributed if not given.

    Raises
    ------
    ConfigError
        When iterated: if a structure is larger than `max_atoms`, or there are fewer structures than ranks.
    """

    def __init__(
        self,
        data: TorchDataset,
        max_atoms: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.n_atoms, self.max_atoms, self.shuffle, self.seed = data.n_atoms, max_atoms, shuffle, seed
        self.rank, self.world = rank_and_world(rank, world)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Use the order of an epoch from the next pass on."""
        self.epoch = epoch

    def _make_batches(self) -> list[list[int]]:
        """Return the structures of each batch of this rank."""
        n = len(self.n_atoms)
        order = np.arange(n)
        if self.shuffle:
            order = epoch_order(n, seed=self.seed, epoch=self.epoch, block=1, buffer=max(n, 1))
        bounds = atom_batches(self.n_atoms[order], self.max_atoms, self.world)
        mine = range(self.rank, len(bounds) - 1, self.world)
        return [order[bounds[number] : bounds[number + 1]].tolist() for number in mine]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._make_batches())

    def __len__(self) -> int:
        return len(self._make_batches())
