"""Write and read CSV tables of scalars: one row per structure, one column per variable, no arrays.

Ids are ``0x`` and hex digits, coded variables are words, and values that a structure lacks are empty. Floats are
printed so that they read back as stored; pandas before 3.1 needs ``float_precision="round_trip"`` for that.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.core.variables import VARIABLES
from daskpipe.store.formats import SCALARS, Record, iter_records

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".csv"
READER = "pandas.read_csv"
FIELDS = SCALARS
MAX_STRUCTURES = 65_536


def check_name(out: Path) -> None:
    """Accept any name."""


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write a header, and one row per structure."""
    names = [name for name in SCALARS if name in block]
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["n_atoms", *names])
        for record in iter_records(block):
            table.writerow([len(record["numbers"]), *(_format_value(name, record.get(name)) for name in names)])


def _format_value(name: str, value: Any) -> Any:
    """Format a number as text that reads back as the same number in its precision."""
    return f"{value:.9g}" if isinstance(value, float) and VARIABLES[name].dtype.itemsize == 4 else value


def read_part(path: Path) -> Iterator[Record]:
    """Yield the rows that pandas reads."""
    import pandas as pd

    words: dict[Any, Any] = {
        name: str for name in SCALARS if VARIABLES[name].coded or VARIABLES[name].dtype.kind == "V"
    }
    table = pd.read_csv(path, dtype=words, na_values=[""], keep_default_na=False)
    known = table.notna().to_numpy()
    for row, values in enumerate(zip(*(table[name].tolist() for name in table), strict=True)):
        yield {str(name): value for name, value, given in zip(table, values, known[row], strict=True) if given}


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Copy the bytes of all parts, the header once."""
    with open(out, "wb") as stream:
        for part in parts:
            with open(part, "rb") as source:
                header = source.readline()
                if part == parts[0]:
                    stream.write(header)
                shutil.copyfileobj(source, stream, 2**20)


def count_structures(out: Path) -> int:
    """Count the lines; no word contains a line break."""
    with open(out, "rb") as lines:
        return sum(1 for _ in lines) - 1
