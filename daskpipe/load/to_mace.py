"""Convert structures of a dataset to the `AtomicData` of MACE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from daskpipe.core.errors import ConfigError
from daskpipe.core.third_party import import_mace
from daskpipe.load.batch import Batch
from daskpipe.load.torch_data import TorchDataset

PROPERTIES = {
    "energy": "energy", "forces": "forces", "stress": "stress", "total_charge": "charge",
    "total_spin": "spin_multiplicity",
}  # fmt: skip
"""Names of properties in MACE, and in a dataset."""


def mace_data(
    batch: Batch | dict[str, torch.Tensor],
    elements: Iterable[int],
    cutoff: float,
    *,
    head: str = "Default",
    heads: Sequence[str] = ("Default",),
) -> list[Any]:
    """Convert structures to the objects that MACE makes of the extxyz file of `daskpipe.export`, field by field.

    Parameters
    ----------
    batch
        A batch, or one structure of a `TorchDataset`, with the dtypes of the dataset.
    elements
        Atomic numbers of the model, in its order: ``z_table.zs`` of MACE.
    cutoff
        ``r_max`` of MACE, Å.
    head, heads
        Head of the structures, and all heads of the model.

    Returns
    -------
    list of mace.data.AtomicData
        In torch's default dtype. Properties that a structure lacks (e.g. a stress without a periodic cell) are zero,
        and so is their weight. The stress of a structure that is not periodic along all vectors has weight zero, too:
        MACE 0.3.16 lengthens open cell vectors and divides by that volume (ACEsuit/mace#1509).

    Raises
    ------
    ConfigError
        If a structure contains an element that is not among `elements`.
    """
    import_mace()
    from mace.data import AtomicData, Configuration, KeySpecification
    from mace.tools import AtomicNumberTable

    table = AtomicNumberTable(list(elements))
    keys = KeySpecification.from_defaults()
    names = [*keys.arrays_keys, *keys.info_keys]
    converted = []
    for item in batch.structures() if isinstance(batch, Batch) else [batch]:
        numbers = item["numbers"].numpy()
        if unknown_elements := sorted(set(numbers.tolist()) - set(table.zs)):
            raise ConfigError(
                f"structure {int(item['index'])} holds element {unknown_elements[0]}, which is not among the elements "
                f"{', '.join(map(str, table.zs))}; give all atomic numbers of the dataset (daskpipe.load.spec)"
            )
        values = {name: item[ours].numpy().astype(float) for name, ours in PROPERTIES.items() if ours in item}
        known = {name: value if value.ndim else value.item() for name, value in values.items() if _has_values(value)}
        if not known.get("total_spin"):
            known.pop("total_spin", None)  # unknown; MACE has a default
        weights = {name: float(name in known) for name in names}
        if not item["pbc"].all():
            weights["stress"] = 0.0
        weight = float(item["config_weight"]) if "config_weight" in item else math.nan
        config = Configuration(
            atomic_numbers=numbers,
            positions=item["positions"].numpy().astype(float),
            properties={name: known.get(name) for name in names},
            property_weights=weights,
            cell=item["cell"].numpy(),
            pbc=tuple(item["pbc"].tolist()),
            weight=1.0 if math.isnan(weight) else weight,
            head=head,
        )
        converted.append(AtomicData.from_config(config, z_table=table, cutoff=cutoff, heads=list(heads)))
    return converted


def _has_values(value: np.ndarray) -> bool:
    """Return whether a property is known: no number is NaN."""
    return not np.isnan(value).any()


class MACEDataset(Dataset[Any]):
    """A dataset for MACE's own ``mace.tools.torch_geometric.dataloader.DataLoader``.

    Parameters
    ----------
    path, split, verify
        As for `TorchDataset`.
    elements, cutoff, head, heads
        As for `mace_data`.
    """

    def __init__(
        self,
        path: Path | str,
        split: str | None = None,
        *,
        elements: Iterable[int],
        cutoff: float,
        head: str = "Default",
        heads: Sequence[str] = ("Default",),
        verify: bool = True,
    ) -> None:
        self.data = TorchDataset(path, split, verify=verify)
        self.elements, self.cutoff, self.head, self.heads = list(elements), cutoff, head, list(heads)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read several structures; torch's `DataLoader` calls this with the indices of a batch."""
        batch = self.data.__getitems__(indices)
        return mace_data(batch, self.elements, self.cutoff, head=self.head, heads=self.heads)
