"""Write and read MACE's HDF5: one file, or a folder of files, for ``mace_run_train --train_file``.

A file has one group ``config_batch_0`` with ``config_0``, ``config_1`` ...: MACE assumes that all groups are as large
as the first one, so a single group is always counted right. Numbers are float64, as ``mace_prepare_data`` of MACE
writes them; a property that a structure lacks has the weight 0, and so has the stress of an open cell. ``config_type``,
``config_weight`` and ``head`` are where MACE has them (its reader assigns one head to all of a file); without a
``spin_multiplicity`` MACE assumes 1. Such a file tells MACE neither the elements nor the energies of single atoms: give
``--atomic_numbers`` and ``--E0s``, and ``--valid_file`` in the same format. Source: mace-torch 0.3.16,
``mace/data/hdf5_dataset.py`` and ``mace/data/utils.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.third_party import import_mace
from daskpipe.core.variables import FULL_TO_VOIGT, is_missing
from daskpipe.store.formats import GEOMETRY, LABELS, Record, full_stress, iter_records

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".h5"
READER = "mace.data.HDF5Dataset"
FIELDS = (*GEOMETRY, *LABELS, "charge", "spin_multiplicity", "config_type", "head", "config_weight")
MAX_STRUCTURES = 8_192
"""About 30 HDF5 objects are created for each structure."""

SINGLE = (".h5", ".hdf5")
"""Suffixes of a single file, here as in MACE; any other name is a folder."""

GROUP = "config_batch_0"
OTHERS = ("virials", "dipole", "charges", "polarizability")
"""Properties that MACE can train on and daskpipe does not have."""


def check_name(out: Path) -> None:
    """Accept any name: without ``.h5`` it is a folder."""


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write one file in the layout of MACE."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        group = file.create_group(GROUP)
        for row, record in enumerate(iter_records(block)):
            _write_structure(group.create_group(f"config_{row}"), record)


def _write_structure(group: Any, record: Record) -> None:
    """Write a structure into a group ``config_N``."""
    group["atomic_numbers"] = record["numbers"].astype(np.int64)
    group["positions"] = record["positions"].astype(float)
    group["cell"] = record["cell"]
    group["pbc"] = record["pbc"]
    group["weight"] = record.get("config_weight", 1.0)
    group.attrs["config_weight"] = "config_weight" in record
    group["config_type"] = record.get("config_type", "Default")
    properties = group.create_group("properties")
    properties["head"] = record.get("head", "Default")
    if "energy" in record:
        properties["energy"] = record["energy"]
    if "forces" in record:
        properties["forces"] = record["forces"].astype(float)
    if "stress" in record:
        properties["stress"] = full_stress(record["stress"])
    properties["total_charge"] = record["charge"]
    if "spin_multiplicity" in record:
        properties["total_spin"] = record["spin_multiplicity"]
    weights = group.create_group("property_weights")
    for name in (*LABELS, *OTHERS):
        weights[name] = float(name in LABELS and name in record)
    if not record["pbc"].all():
        weights["stress"][()] = 0.0  # MACE's own stress of an open cell is wrong: ACEsuit/mace#1509


def read_part(path: Path) -> Iterator[Record]:
    """Yield the structures that the dataset class of MACE reads, before it searches for neighbours."""
    import_mace()
    from mace.data.hdf5_dataset import HDF5Dataset

    dataset = HDF5Dataset(str(path), r_max=0.0, z_table=None, atomic_dataclass=_AsRead)
    try:
        for index in range(len(dataset)):
            config = dataset[index]
            properties, weights = config.properties, config.property_weights
            record = {"numbers": config.atomic_numbers, "positions": config.positions, "cell": config.cell}
            record |= {"pbc": config.pbc, "charge": properties["total_charge"]}
            words = {"config_type": config.config_type, "head": properties["head"]}
            record |= {name: word for name, word in words.items() if not is_missing(name, word)}
            if "total_spin" in properties:
                record["spin_multiplicity"] = properties["total_spin"]
            if dataset.file[f"{GROUP}/config_{index}"].attrs["config_weight"]:
                record["config_weight"] = config.weight
            record |= {name: properties[name] for name in LABELS if weights[name] or properties.get(name) is not None}
            if "stress" in record:
                record["stress"] = record["stress"].reshape(9)[list(FULL_TO_VOIGT)]
            yield record
    finally:
        dataset.file.close()


class _AsRead:
    """Replaces the graph that MACE would make of a structure in single precision."""

    @staticmethod
    def from_config(config: Any, **_: Any) -> Any:
        return config


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Move the parts into a folder, or copy their structures into one group of one file."""
    import h5py

    if out.suffix not in SINGLE:
        out.mkdir()
        for number, part in enumerate(parts):
            os.rename(part, out / f"data.{number:04d}{SUFFIX}")
        return
    os.rename(parts[0], out)
    with h5py.File(out, "a") as file:
        group = file[GROUP]
        for part in parts[1:]:
            with h5py.File(part) as source:
                before = len(group)
                for row in range(len(source[GROUP])):
                    source.copy(f"{GROUP}/config_{row}", group, f"config_{before + row}")


def count_structures(out: Path) -> int:
    """Count the structures as MACE does."""
    import h5py

    n = 0
    for path in sorted(out.iterdir()) if out.is_dir() else [out]:
        with h5py.File(path) as file:
            n += len(file) * len(file[GROUP])
    return n
