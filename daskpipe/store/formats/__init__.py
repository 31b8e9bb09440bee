"""Export formats of other programs: one module and one line of `FORMATS` each.

A module writes parts in parallel (`Format.write_part`), reads them back with the reader of the program for which the
format is made (`Format.read_part`), and joins them (`Format.join_parts`). It knows neither Dask nor the origin of the
rows. The fields of the formats derive from `daskpipe.core.variables`.
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
from daskpipe.core.variables import SIZES, VARIABLES, VOIGT_TO_FULL, decode_names, is_missing

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
"""Modules that formats need and that are not installed with daskpipe alone."""

Record = Mapping[str, Any]
"""One structure by the names of `daskpipe.core.variables`: ids as text, coded variables as words. Values that a
structure lacks are left out, so there is no NaN."""

GEOMETRY = ("numbers", "positions", "cell", "pbc")
"""Variables of a geometry, which every format that holds arrays has."""

LABELS = ("energy", "forces", "stress")
"""Labels of every teacher, for which the formats have places of their own."""

ATOM_FACTS = tuple(
    name
    for name, variable in VARIABLES.items()
    if variable.dims[0] == "atom" and variable.place and name not in (*LABELS, "fixed")
)
"""Further per-atom variables. ``fixed`` is not among them: formats have constraints for it."""

SCALARS = tuple(
    name
    for name, variable in VARIABLES.items()
    if variable.dims == ("structure",) and name not in ("n_atoms", "atom_start")
)
"""Variables with one number or word per structure."""

VECTORS = tuple(
    name
    for name, variable in VARIABLES.items()
    if variable.dims[0] == "structure" and {*variable.dims[1:]} & SIZES.keys() and name not in (*GEOMETRY, *LABELS)
)
"""Variables with an array of fixed shape per structure, such as a dipole moment."""


class Format(Protocol):
    """Attributes and functions of a module of this package."""

    SUFFIX: str
    """End of the file names of parts; some readers need it."""
    READER: str
    """Program that reads the parts back, for messages."""
    FIELDS: tuple[str, ...]
    """Names of a `Record` that the format holds."""
    MAX_STRUCTURES: int
    """Most structures in a part."""

    def check_name(self, out: Path) -> None:
        """Raise `ConfigError` for a name that the readers of the format do not accept."""

    def write_part(self, block: xr.Dataset, path: Path) -> None:
        """Write the structures of a dataset in memory to a part."""

    def read_part(self, path: Path) -> Iterator[Record]:
        """Yield the structures of a part, in order, as the program for which the format is made reads them."""

    def join_parts(self, parts: Sequence[Path], out: Path) -> None:
        """Join parts, in their order, into `out`, a file or a folder; the parts may be moved or changed."""

    def count_structures(self, out: Path) -> int:
        """Count the structures in a file or folder that `join_parts` made."""


def format_of(name: str) -> Format:
    """Return the module of a format.

    Raises
    ------
    ConfigError
        If there is no such format (the known ones are listed), or a package that it needs is missing.

    Examples
    --------
    >>> format_of("extxyz").READER
    'ase.io.iread'
    """
    if name not in FORMATS:
        raise ConfigError(describe_unknown("export format", name, list(FORMATS)))
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        raise ConfigError(f"the format {name} needs {NEEDED[name]}; type: pip install 'daskpipe[export]'")
    return cast(Format, import_module(FORMATS[name]))


def iter_records(block: xr.Dataset) -> Iterator[Record]:
    """Yield the structures of a dataset in memory; arrays are views with the dtypes of the dataset.

    Variables with another dim, such as ``features``, are left out, and so are ``n_atoms`` and ``atom_start``.
    """
    columns = {str(name): array.values for name, array in block.data_vars.items()}
    scalars = {name: _to_python(block[name]) for name in columns if name in SCALARS}
    stops = columns["atom_start"] + columns["n_atoms"]
    for row, (start, stop) in enumerate(zip(columns["atom_start"].tolist(), stops.tolist(), strict=True)):
        record: dict[str, Any] = {}
        for name in ("numbers", "positions", "forces", *ATOM_FACTS):
            if name in columns and not _has_nan(values := columns[name][start:stop]):
                record[name] = values
        if "fixed" in columns and columns["fixed"][start:stop].any():
            record["fixed"] = columns["fixed"][start:stop]
        for name in ("cell", "pbc", "stress", *VECTORS):
            if name in columns and not _has_nan(values := columns[name][row]):
                record[name] = values
        record |= {name: values[row] for name, values in scalars.items() if values[row] is not None}
        yield record


def is_same_value(name: str, one: Any, other: Any) -> bool:
    """Return whether two values of a variable are equal to the last bit of its dtype in the store."""
    if one is None or other is None or isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and bool(one == other)
    dtype = VARIABLES[name].dtype
    return np.array_equal(np.asarray(one).astype(dtype), np.asarray(other).astype(dtype))


def full_stress(stress: np.ndarray) -> np.ndarray:
    """Convert a stress in Voigt order to a matrix, shape (3, 3).

    Examples
    --------
    >>> full_stress(np.array([1, 2, 3, 4, 5, 6])).tolist()
    [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    """
    return np.asarray(stress)[list(VOIGT_TO_FULL)].reshape(3, 3)


def _has_nan(values: np.ndarray) -> bool:
    """Return whether any number is NaN; integers and flags have none."""
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def _to_python(array: xr.DataArray) -> list[Any]:
    """Convert a column to Python objects: words for codes, text for ids, None for NaN and for no parent."""
    variable = VARIABLES[str(array.name)]
    if variable.coded:
        return [None if is_missing(variable.name, word) else str(word) for word in decode_names(array)]
    if variable.dtype.kind == "V":
        # The prefix keeps readers from reading an id as a number.
        return [None if (raw := item.tobytes()) == NO_PARENT else f"0x{raw.hex()}" for item in array.values]
    if variable.missing is not None:
        return [None if is_missing(variable.name, value) else value for value in array.values.tolist()]
    if variable.dtype.kind == "f":
        return [None if value != value else value for value in array.values.tolist()]
    return array.values.tolist()
