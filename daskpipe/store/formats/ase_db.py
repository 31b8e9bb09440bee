"""Write and read ASE databases in SQLite; `daskpipe.store.formats.ase_rows` documents the place of each variable."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from daskpipe.core.errors import ConfigError
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

SUFFIX = ".db"
READER = "ase.db.connect"
MAX_STRUCTURES = 16_384


def check_name(out: Path) -> None:
    """Require the suffix by which ASE recognises SQLite."""
    if out.suffix != SUFFIX:
        wanted = quote(str(out.with_suffix(SUFFIX)))
        raise ConfigError(f"{out}: ase.db.connect knows SQLite by the ending {SUFFIX}; type {wanted}")


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write a database without indices: `join_parts` creates them."""
    from ase.db import connect

    with connect(path, create_indices=False, use_lock_file=False) as database:
        for record in iter_records(block):
            pairs, data = pairs_and_data(record)
            database.write(row_of(record), pairs, data)


def read_part(path: Path) -> Iterator[Record]:
    """Yield the rows in the order of their ids."""
    from ase.db import connect

    for row in connect(path, use_lock_file=False).select(sort="id"):
        yield record_of(row)


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Append all parts to the first, with consecutive ids, and create the indices."""
    from ase.db.sqlite import all_tables, index_statements

    os.rename(parts[0], out)
    with closing(sqlite3.connect(out)) as database:
        for part in parts[1:]:
            database.execute("ATTACH ? AS part", (str(part),))
            (before,) = database.execute("SELECT MAX(id) FROM systems").fetchone()
            for table in all_tables:
                columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]
                values = ", ".join(f"id + {before}" if name == "id" else name for name in columns)
                database.execute(f"INSERT INTO {table} SELECT {values} FROM part.{table} ORDER BY part.{table}.rowid")
            database.commit()
            database.execute("DETACH part")
        for statement in index_statements:
            database.execute(statement)
        database.commit()


def count_structures(out: Path) -> int:
    """Count the rows of the database."""
    from ase.db import connect

    return int(connect(out, use_lock_file=False).count())
