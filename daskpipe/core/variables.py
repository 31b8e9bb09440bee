"""Every variable of a daskpipe dataset, once: dims, dtype, unit and meaning.

Defaults, checks, the attributes in the store and the table in the docs all come from `VARIABLES`.
Ragged data is flat: one ``atom`` axis and one ``structure`` axis, tied by ``atom_start`` and ``n_atoms``
(a CF contiguous ragged array).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from daskpipe.core.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = "daskpipe/1"
"""Version of the on-disk format; ``CHANGELOG.md`` lists what each one changed."""

SIZES = {"xyz": 3, "vector": 3, "voigt": 6}
"""Dims of fixed size."""

FULL_TO_VOIGT = (0, 4, 8, 5, 2, 1)
"""Place in a 3 x 3 stress, row by row, of ``xx yy zz yz xz xy``."""

VOIGT_TO_FULL = (0, 5, 4, 5, 1, 3, 4, 3, 2)
"""Place in ``xx yy zz yz xz xy`` of each number of a 3 x 3 stress."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of a dataset.

    Parameters
    ----------
    name, dims, doc
        As in the dataset.
    dtype
        NumPy dtype on disk and in memory; of the codes, for a coded variable.
    unit
        UDUNITS-like name; ``None`` for identifiers, codes and flags.
    coded
        Strings in memory; on disk integer codes whose names stand in the attribute ``flag_meanings``.
    flags
        Names of the codes where they are fixed.
    missing
        Stands for "not given"; by default NaN, -1, False or ``unknown``, as the dtype has it.
    escaped
        Names of the codes may hold white space: in ``flag_meanings`` it stands as in a URL (``%20``).
    """

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    unit: str | None
    doc: str
    coded: bool = False
    flags: tuple[str, ...] = ()
    missing: str | int | float | None = None
    escaped: bool = False


def _variable(name: str, dims: str, dtype: str, unit: str | None, doc: str, **rest: Any) -> Variable:
    return Variable(name=name, dims=tuple(dims.split()), dtype=np.dtype(dtype), unit=unit, doc=doc, **rest)


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        _variable("n_atoms", "structure", "int32", "1", "Number of atoms of each structure"),
        _variable("atom_start", "structure", "int64", "1", "Row of the first atom of each structure"),
        _variable("numbers", "atom", "uint8", "1", "Atomic numbers"),
        _variable("positions", "atom xyz", "float32", "angstrom", "Cartesian positions"),
        _variable("forces", "atom xyz", "float32", "eV/angstrom", "Forces"),
        _variable("magmoms", "atom", "float32", "bohr_magneton", "Magnetic moments given by the teacher"),
        _variable("initial_charges", "atom", "float32", "e", "Charges it came with; NaN without"),
        _variable("initial_magmoms", "atom", "float32", "bohr_magneton", "Moments it came with; NaN without"),
        _variable("masses", "atom", "float32", "u", "Masses of isotopes; NaN where they are those of the elements"),
        _variable("fixed", "atom xyz", "bool", None, "Cartesian components along which exploration moves no atom"),
        _variable("cell", "structure vector xyz", "float64", "angstrom", "Cell vectors as rows (as in ASE)"),
        _variable("pbc", "structure xyz", "bool", None, "Periodic along each cell vector"),
        _variable("energy", "structure", "float64", "eV", "Potential energy"),
        _variable(
            "stress", "structure voigt", "float64", "eV/angstrom^3",
            "Stress, order xx yy zz yz xz xy (as in ASE: positive under tension); NaN without a periodic cell",
        ),
        _variable("charge", "structure", "int8", "e", "Total charge"),
        _variable(
            "spin_multiplicity", "structure", "int8", "1",
            "Spin multiplicity, 2S + 1; 0 where neither source nor teacher gives one", missing=0,
        ),
        _variable(
            "structure_id", "structure", "V16", None,
            "Hash of numbers, positions, cell, pbc, charge, spin; where given of moments, fixed atoms and isotopes",
        ),
        _variable("parent_id", "structure", "V16", None, "structure_id of the seed it came from; zeros for none"),
        _variable("system_type", "structure", "int8", None, "Kind of system", coded=True),
        _variable("composition", "structure", "int32", None, "Chemical formula (Hill order)", coded=True),
        _variable("generator", "structure", "int8", None, "Source in the config that made the seed", coded=True),
        _variable(
            "config_type", "structure", "int32", None, "Kind of configuration, as its source or MACE names it",
            coded=True, escaped=True, missing="Default",
        ),
        _variable(
            "head", "structure", "int16", None, "Head of a model that its labels are for, as its source names it",
            coded=True, escaped=True, missing="Default",
        ),
        _variable(
            "config_weight", "structure", "float32", "1", "Weight in the loss; NaN where its source gives none",
            missing=float("nan"),
        ),
        _variable("temperature", "structure", "float32", "K", "Temperature of the thermostat; NaN without one"),
        _variable(
            "kinetic_temperature", "structure", "float32", "K",
            "Instantaneous temperature, of the kinetic energy; NaN without velocities",
        ),
        _variable("pressure", "structure", "float32", "GPa", "Pressure of the barostat; NaN without one"),
        _variable("time", "structure", "float32", "fs", "Time since the start of the trajectory"),
        _variable("step", "structure", "int32", "1", "MD step since the start of the trajectory"),
        _variable("ensemble", "structure", "int8", None, "Statistical ensemble", coded=True),
        _variable("replica", "structure", "int32", "1", "Number of the trajectory of its seed"),
        _variable(
            "force_disagreement", "structure", "float32", "eV/angstrom",
            "Largest disagreement of a committee about a force; NaN without one",
        ),
        _variable(
            "candidate", "structure", "bool", None,
            "The committee's disagreement ended the trajectory at this frame",
        ),
        _variable("features", "structure feature", "float32", "1", "Reduced descriptor of the structure"),
        _variable("cluster", "structure", "int32", None, "Stratum in feature space; -1 where none was made"),
        _variable("selection_reason", "structure", "int8", None, "Why the frame was picked", coded=True),
        _variable("split", "structure", "uint8", None, "Share of the data it belongs to", coded=True, flags=SPLITS),
        _variable("group", "structure", "int32", None, "What must not be torn apart by a split: one seed's frames"),
        _variable("label_method", "structure", "int8", None, "Teacher that labelled it", coded=True),
        _variable("label_status", "structure", "int8", None, "Outcome of the label checks", coded=True),
    )
}  # fmt: skip

STRUCTURE_KEYS = ("n_atoms", "atom_start", "numbers", "positions", "cell", "pbc", "structure_id")
"""What every dataset holds."""


def per_atom(name: str) -> bool:
    """Whether the variable has one row an atom."""
    return VARIABLES[name].dims[0] == "atom"


def validate(ds: xr.Dataset, require: Iterable[str] = STRUCTURE_KEYS) -> None:
    """Check names, dims, dtypes and the ragged index of a dataset against `VARIABLES`.

    Parameters
    ----------
    ds
        Dataset in memory (coded variables hold strings) or as stored (they hold codes).
    require
        Names that must be there.

    Raises
    ------
    ValueError
        Naming the variable, what was expected and what was received.
    """
    for required in require:
        if required not in ds:
            raise ValueError(f"dataset has no variable {required!r}; it has {', '.join(map(str, ds.data_vars))}")
    for name, array in ds.data_vars.items():
        variable = VARIABLES.get(str(name))
        if variable is None:
            raise ValueError(f"dataset has a variable {name!r} that variables.py does not know")
        if array.dims != variable.dims:
            raise ValueError(f"{name}: expected dims {variable.dims}, received {array.dims}")
        if array.dtype != variable.dtype and not (variable.coded and array.dtype.kind == "U"):
            raise ValueError(f"{name}: expected dtype {variable.dtype}, received {array.dtype}")
    for dim, size in SIZES.items():
        if dim in ds.sizes and ds.sizes[dim] != size:
            raise ValueError(f"dim {dim!r}: expected size {size}, received {ds.sizes[dim]}")
    if "n_atoms" in ds and "atom_start" in ds:
        n_atoms = np.asarray(ds["n_atoms"].values, dtype=np.int64)
        start = np.concatenate([[0], np.cumsum(n_atoms)])
        if not np.array_equal(ds["atom_start"].values, start[:-1]) or start[-1] != ds.sizes.get("atom", 0):
            raise ValueError("atom_start and n_atoms do not tile the atom axis without gaps")


def attributes(name: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the CF attributes of a variable: meaning, unit, and the `names` that its codes count."""
    variable = VARIABLES[name]
    found: dict[str, Any] = {"long_name": variable.doc}
    if variable.unit is not None:
        found["units"] = variable.unit
    if name == "n_atoms":
        found["sample_dimension"] = "atom"
    if names is not None:
        words = [_escape(word) for word in names] if variable.escaped else names
        found |= {"flag_values": list(range(len(names))), "flag_meanings": " ".join(words)}
    return found


def _escape(name: str) -> str:
    """Return a name without white space, from which `urllib.parse.unquote` makes the name again."""
    return re.sub(r"[\s%]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def annotate(ds: xr.Dataset) -> xr.Dataset:
    """Return `ds` with the unit, meaning and CF attributes of each variable; values are not copied."""
    ds = ds.copy(deep=False)
    for name, array in ds.data_vars.items():
        array.attrs |= attributes(str(name))
    return ds


def code_names(name: str, values: Iterable[str]) -> list[str]:
    """Return the names that the codes of a variable count: its fixed flags, or the sorted names that occur.

    Raises
    ------
    ValueError
        If there are more names than codes, a name holds white space, which ``flag_meanings`` cannot, or is no flag.
    """
    variable, found = VARIABLES[name], sorted(set(values))
    names = list(variable.flags) or found
    if bad := [item for item in names if not item or (item.split() != [item] and not variable.escaped)]:
        raise ValueError(f"{name}: {bad[0]!r} cannot be a code name; use a word without white space")
    if len(names) > np.iinfo(variable.dtype).max:
        raise ValueError(f"{name}: {len(names)} different names do not fit {variable.dtype}")
    if strangers := sorted(set(found) - set(names)):
        raise ValueError(f"{name}: {strangers[0]!r} is none of {', '.join(names)}")
    return names


def codes_of(name: str, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the code of each of the names `values`, shape (structure,), in the dtype of the variable."""
    distinct, inverse = np.unique(values, return_inverse=True)
    codes = np.array([names.index(item) for item in distinct.tolist()], dtype=VARIABLES[name].dtype)
    return codes[inverse.reshape(values.shape)]


def encode(ds: xr.Dataset) -> xr.Dataset:
    """Return `ds` with coded variables as integers and their names in ``flag_meanings``.

    Codes count the sorted names that occur (or the variable's fixed flags), so that equal data give equal bytes.
    Raises `ValueError` as `code_names` does.
    """
    ds = ds.copy(deep=False)
    for name, array in list(ds.data_vars.items()):
        if not VARIABLES[str(name)].coded or array.dtype.kind != "U":
            continue
        names = code_names(str(name), array.values.tolist())
        values = codes_of(str(name), array.values, names)
        ds[str(name)] = (array.dims, values, {**array.attrs, **attributes(str(name), names)})
    return ds


def decode(array: xr.DataArray) -> np.ndarray:
    """Return the names of a coded variable as stored, shape (structure,), dtype str."""
    if array.dtype.kind == "U":
        return np.asarray(array.values)
    words = str(array.attrs["flag_meanings"]).split()
    escaped = array.name in VARIABLES and VARIABLES[str(array.name)].escaped
    names = np.array([unquote(word) for word in words] if escaped else words, dtype=str)
    if array.size == 0:
        return np.array([], dtype=str)
    return names[np.asarray(array.values, dtype=np.int64)]


def read_root(path: Path) -> dict[str, Any]:
    """Return the root metadata (``zarr.json``) of a dataset on disk, or say what to type instead.

    Raises
    ------
    InputError
        If `path` is missing, no Zarr store, no daskpipe dataset, or written in a newer schema.
    """
    file = path / "zarr.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; give the path of a dataset, e.g. runs/NAME/dataset.zarr")
    if not file.is_file():
        if (path / "dataset.zarr").is_dir():
            raise InputError(f"{path} is a run and not a dataset; type {quote(str(path / 'dataset.zarr'))}")
        raise InputError(f"{path} is not a Zarr store (it holds no zarr.json); give the path of a dataset.zarr")
    try:
        root = json.loads(file.read_text())
        attributes = root.get("attributes", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); copy the dataset again or make it anew") from error
    schema = attributes.get("daskpipe_schema")
    if schema is None:
        raise InputError(
            f"{path} is a Zarr store but no daskpipe dataset (it has no attribute daskpipe_schema); "
            "open it with xarray.open_zarr"
        )
    if schema != SCHEMA:
        raise InputError(
            f"{path} is written in schema {schema!r} and this daskpipe reads {SCHEMA!r}; "
            "type: pip install --upgrade daskpipe"
        )
    return dict(root)
