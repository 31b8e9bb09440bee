"""Write and read folders of ASE databases in LMDB, for training with fairchem (``AseDBDataset``) or MACE.

Files are ``data.0000.aselmdb`` ... and ``metadata.npz``, whose ``natoms`` has the number of atoms of each structure, in
the order of the files. fairchem copies the ``data`` of a row into ``atoms.info``: it contains ``charge`` and ``spin``
(2S + 1), the keys of OMol25 and UMA, which fairchem reads if ``a2g_args`` has ``r_data_keys: [spin, charge]``, and
``sid``, the id of the structure. ``total_charge`` and ``total_spin`` are the same for MACE (``LMDBDataset``).
`daskpipe.store.formats.ase_rows` documents the other variables. Source: fairchem-core 2,
``core/datasets/ase_datasets.py`` and ``atomic_data.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.store.formats import Record, iter_records
from daskpipe.store.formats.ase_rows import FIELDS, pairs_and_data, record_of, row_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "FIELDS",
    "MAX_STRUCTURES",
    "READER",
    "SUFFIX",
    "check_name",
    "count_structures",
    "join_parts",
    "read_part",
    "write_part",
]

SUFFIX = ".aselmdb"
READER = "ase.db.connect of ase-db-backends"
MAX_STRUCTURES = 10_000
"""The writer searches a list for each new id, so its time grows with the square of the rows."""


def check_name(out: Path) -> None:
    """Accept any name."""


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write a database, and the number of atoms of each structure beside it."""
    from ase.db import connect

    with connect(path) as database:
        for record in iter_records(block):
            pairs, data = pairs_and_data(record)
            data |= {"charge": record["charge"], "total_charge": record["charge"], "sid": record["structure_id"]}
            # 0 is the default of fairchem for crystals, and for an unknown spin.
            data["spin"] = record.get("spin_multiplicity", 0)
            if "spin_multiplicity" in record:
                data["total_spin"] = record["spin_multiplicity"]
            database.write(row_of(record), pairs, data)
    path.with_name(f"{path.name}-lock").unlink()
    np.save(path.with_suffix(".npy"), block["n_atoms"].values.astype(np.int64))


def read_part(path: Path) -> Iterator[Record]:
    """Yield the rows in the order of their ids."""
    from ase.db import connect

    with connect(path, readonly=True) as database:
        for row in database.select():
            yield record_of(row)


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Move the parts into a folder, and write the numbers of atoms."""
    out.mkdir()
    natoms = np.concatenate([np.load(part.with_suffix(".npy")) for part in parts])
    for number, part in enumerate(parts):
        os.rename(part, out / f"data.{number:04d}{SUFFIX}")
    np.savez(out / "metadata.npz", natoms=natoms)


def count_structures(out: Path) -> int:
    """Count the rows of all files."""
    from ase.db import connect

    return sum(connect(file, readonly=True).count() for file in sorted(out.glob(f"*{SUFFIX}")))
