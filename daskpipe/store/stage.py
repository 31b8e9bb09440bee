"""From the rows that labelling left to a dataset on disk: shuffle, group, split, write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.store.splits import assign_splits, check_fractions, group_numbers
from daskpipe.store.writer import write_dataset
from daskpipe.structures import concat, take
from daskpipe.variables import SPLITS
from daskpipe.work import Payload, read_unit

if TYPE_CHECKING:
    import xarray as xr

VERSION = 1


def store(
    root: Path, keys: list[str], *, target: Path, seed: int, fractions: Mapping[str, float], attrs: Mapping[str, Any]
) -> Payload:
    """Pack the labelled units `keys` into one dataset at `target`; see `pack`."""
    started = time.perf_counter()
    ds = concat([read_unit(root, "label", key) for key in keys])
    pack(ds, target, seed=seed, fractions=fractions, attrs=attrs)
    arrays = {"system_type": ds["system_type"].values}
    return Payload(arrays=arrays, n_out=ds.sizes["structure"], seconds=time.perf_counter() - started)


def arrange(ds: xr.Dataset, *, seed: int, fractions: Mapping[str, float]) -> xr.Dataset:
    """Return the dataset in its final order, with ``group`` and ``split``.

    The order, the groups and the splits depend on structure ids, parent ids and the seed, and on nothing else:
    not on the order in which the rows arrive.

    Parameters
    ----------
    ds
        In memory, structure ids all different.
    seed
        Of the shuffle and of the split.
    fractions
        Share of the structures of each of ``train``, ``val`` and ``test``; they sum to 1, a missing one is 0.

    Returns
    -------
    xarray.Dataset
        The same structures in an order that is random with respect to all they hold.

    Raises
    ------
    ConfigError
        If the fractions are not shares that sum to 1, or name an unknown split.
    """
    check_fractions(fractions)
    ds = take(ds, order_by_hash(seed, "shuffle", ds["structure_id"].values))
    group, group_ids = group_numbers(ds["structure_id"].values, ds["parent_id"].values)
    codes = assign_splits(np.bincount(group, minlength=len(group_ids)), group_ids, seed=seed, fractions=fractions)
    return ds.assign(group=("structure", group), split=("structure", np.array(SPLITS)[codes[group]]))


def pack(
    ds: xr.Dataset, path: Path | str, *, seed: int, fractions: Mapping[str, float], attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arrange a dataset and write it; see `arrange` and `daskpipe.store.writer.write_dataset`."""
    rule = {"seed": seed, "fractions": dict(fractions), "unit": "group"}
    return write_dataset(arrange(ds, seed=seed, fractions=fractions), path, attrs={**attrs, "split_rule": rule})
