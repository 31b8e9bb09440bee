"""Formats of other programs, one module each.

A module makes parts side by side (`Format.write_part`), reads them with the reader of the program that the format is
for (`Format.read`), and puts them together (`Format.join`). None of them knows Dask, or where the rows come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.structures import NO_PARENT
from daskpipe.core.variables import VARIABLES, VOIGT_TO_FULL, decode_names, is_missing

if TYPE_CHECKING:
    import xarray as xr

FORMATS = {
    "extxyz": "daskpipe.store.formats.extxyz",
    "ase-db": "daskpipe.store.formats.ase_db",
    "mace-hdf5": "daskpipe.store.formats.mace_hdf5",
    "aselmdb": "daskpipe.store.formats.aselmdb",
    "hdf5": "daskpipe.store.formats.hdf5",
    "parquet": "daskpipe.store.formats.parquet",
    "csv": "daskpipe.store.formats.csv_table",
}

NEEDED = {"aselmdb": "ase_db_backends", "parquet": "pyarrow"}
"""Modules that formats want and that do not come with daskpipe."""

Record = Mapping[str, Any]
"""One structure by the names of `daskpipe.core.variables`; ids as text, coded variables as words, and no NaN: what a
structure lacks is not there."""

GEOMETRY = ("numbers", "positions", "cell", "pbc")
LABELS = ("energy", "forces", "stress")
ATOM_FACTS = ("magmoms", "initial_charges", "initial_magmoms", "masses")
FACTS = (
    "charge",
    "spin_multiplicity",
    "structure_id",
    "parent_id",
    "system_type",
    "generator",
    "config_type",
    "head",
    "config_weight",
    "label_method",
    "split",
)

SCALARS = tuple(
    name
    for name, variable in VARIABLES.items()
    if variable.dims == ("structure",) and name not in ("n_atoms", "atom_start")
)


class Format(Protocol):
    """What a module of this folder holds."""

    SUFFIX: str
    """How names of its parts end; some readers go by it."""
    READER: str
    """What the parts are read back with."""
    FIELDS: tuple[str, ...]
    """Which names of a `Record` it carries."""
    MAX_STRUCTURES: int
    """Most structures of a part."""

    def check_name(self, out: Path) -> None:
        """Raise `ConfigError` for a name that the readers of the format would not take."""

    def write_part(self, block: xr.Dataset, path: Path) -> None:
        """Write the structures of a dataset in memory."""

    def read(self, path: Path) -> Iterator[Record]:
        """Yield the structures of a part, in order, as the program that the format is for reads them."""

    def join(self, parts: Sequence[Path], out: Path) -> None:
        """Make `out`, a file or a folder, of parts in their order; the parts may be used up."""

    def count(self, out: Path) -> int:
        """Count the structures of what `join` made."""


def format_of(name: str) -> Format:
    """Return the module of a format.

    Raises
    ------
    ConfigError
        If there is no such format (the known ones are listed), or a package that it needs is missing.
    """
    if name not in FORMATS:
        raise ConfigError(describe_unknown("export format", name, list(FORMATS)))
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        raise ConfigError(f"the format {name} needs {NEEDED[name]}; type: pip install 'daskpipe[export]'")
    return cast(Format, import_module(FORMATS[name]))


def records(block: xr.Dataset) -> Iterator[Record]:
    """Yield the structures of a dataset in memory; arrays keep their dtypes, and are views.

    Variables with a further dim, such as ``features``, are left out; so are ``n_atoms`` and ``atom_start``.
    """
    columns = {str(name): array.values for name, array in block.data_vars.items()}
    scalars = {name: _plain(block[name]) for name in columns if name in SCALARS}
    stops = columns["atom_start"] + columns["n_atoms"]
    for row, (start, stop) in enumerate(zip(columns["atom_start"].tolist(), stops.tolist(), strict=True)):
        found: dict[str, Any] = {}
        for name in ("numbers", "positions", "forces", *ATOM_FACTS):
            if name in columns and not _lacks(values := columns[name][start:stop]):
                found[name] = values
        if "fixed" in columns and columns["fixed"][start:stop].any():
            found["fixed"] = columns["fixed"][start:stop]
        for name in ("cell", "pbc", "stress"):
            if name in columns and not _lacks(values := columns[name][row]):
                found[name] = values
        found |= {name: values[row] for name, values in scalars.items() if values[row] is not None}
        yield found


def same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a variable are the same to the last bit that is stored of it."""
    if one is None or other is None or isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and bool(one == other)
    dtype = VARIABLES[name].dtype
    return np.array_equal(np.asarray(one).astype(dtype), np.asarray(other).astype(dtype))


def full_stress(stress: np.ndarray) -> np.ndarray:
    """Return a stress in Voigt's order as a matrix, shape (3, 3)."""
    return np.asarray(stress)[list(VOIGT_TO_FULL)].reshape(3, 3)


def _lacks(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def _plain(array: xr.DataArray) -> list[Any]:
    """Return a column as Python objects: words for codes, text for ids, None for NaN and for no parent."""
    variable = VARIABLES[str(array.name)]
    if variable.coded:
        return [None if is_missing(variable.name, word) else str(word) for word in decode_names(array)]
    if variable.dtype.kind == "V":
        # The prefix keeps readers from taking an id for a number.
        return [None if (raw := item.tobytes()) == NO_PARENT else f"0x{raw.hex()}" for item in array.values]
    if variable.missing is not None:
        return [None if is_missing(variable.name, value) else value for value in array.values.tolist()]
    if variable.dtype.kind == "f":
        return [None if value != value else value for value in array.values.tolist()]
    return array.values.tolist()
