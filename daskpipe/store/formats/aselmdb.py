"""A folder of ASE databases in LMDB, which fairchem trains on (``AseDBDataset``), and MACE as well (``LMDBDataset``).

Files are ``data.0000.aselmdb`` ... and ``metadata.npz``, whose ``natoms`` has the number of atoms of each structure, in
the order of the files. fairchem copies a row's ``data`` into ``atoms.info``: there stand ``charge`` and ``spin``
(2S + 1), the keys of OMol25 and UMA, which are read if ``a2g_args`` has ``r_data_keys: [spin, charge]``, and ``sid``,
the structure's id. ``total_charge`` and ``total_spin`` are the same for MACE. For the rest see
`daskpipe.store.formats.ase_rows`. Source: fairchem-core 2, ``core/datasets/ase_datasets.py`` and ``atomic_data.py``.
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
"""Its writer looks each new id up in a list, so the time grows with the square of the rows."""


def check_name(out: Path) -> None:
    """Any name will do."""


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write a database, and beside it the number of atoms of each structure."""
    from ase.db import connect

    with connect(path) as database:
        for record in iter_records(block):
            pairs, data = pairs_and_data(record)
            data |= {"charge": record["charge"], "total_charge": record["charge"], "sid": record["structure_id"]}
            # Their default for crystals, and for what nobody says.
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
    """Ask all files."""
    from ase.db import connect

    return sum(connect(file, readonly=True).count() for file in sorted(out.glob(f"*{SUFFIX}")))
