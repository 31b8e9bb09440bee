"""Declare every variable of a daskpipe dataset once: dims, dtype, unit, meaning, and where ASE keeps it.

Defaults, checks, the attributes in the store, the conversion from and to ``ase.Atoms``, the fields of the export
formats and the sizes in ``daskpipe plan`` derive from `VARIABLES`: a new variable is one entry in this table.
Ragged data is flat: one ``atom`` axis and one ``structure`` axis, tied by ``atom_start`` and ``n_atoms``
(a CF contiguous ragged array).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = "daskpipe/1"
"""Version of the on-disk format; ``CHANGELOG.md`` lists the changes of each."""

SIZES = {"xyz": 3, "vector": 3, "voigt": 6}
"""Sizes of the dims that have a fixed one."""

FULL_TO_VOIGT = (0, 4, 8, 5, 2, 1)
"""Index into a 3 x 3 stress, row by row, of each of ``xx yy zz yz xz xy``."""

VOIGT_TO_FULL = (0, 5, 4, 5, 1, 3, 4, 3, 2)
"""Index into ``xx yy zz yz xz xy`` of each number of a 3 x 3 stress, row by row."""

SPLITS = ("train", "val", "test")
"""Names of the splits, in the order of their codes."""

type Place = Literal["", "info", "arrays", "results"]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """Declare one variable of a dataset.

    Everything else derives from it: `daskpipe.core.structures` reads it from ``ase.Atoms`` and writes it there, the
    export formats carry it, and ``daskpipe plan`` counts its bytes.

    Parameters
    ----------
    name, dims, doc
        As in the dataset.
    dtype
        NumPy dtype on disk and in memory; of the codes, for a coded variable.
    unit
        UDUNITS-like name; ``None`` for identifiers, codes and flags.
    place
        Where ``ase.Atoms`` keeps it under its name: ``info``, ``arrays``, or ``results`` of the calculator. Empty for
        the geometry, and for what follows from it.
    stage
        Stage of a run that gives it to every structure; empty for a variable that only some datasets have.
    coded
        Strings in memory; on disk integer codes whose names stand in the attribute ``flag_meanings``.
    flags
        Names of the codes where they are fixed.
    missing
        Value for "not given"; by default NaN, -1, False, zero bytes or ``unknown``, as the dtype has it.
    escaped
        Names of the codes may hold white space: ``flag_meanings`` has it as in a URL (``%20``).
    in_extxyz
        Written into the comment line of extended XYZ. The other formats carry every variable that they can hold.
    inherited
        Frames of a trajectory, and structures that are made from others, have the value of where they came from.
    """

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    unit: str | None
    doc: str
    place: Place = ""
    stage: str = ""
    coded: bool = False
    flags: tuple[str, ...] = ()
    missing: str | int | float | None = None
    escaped: bool = False
    in_extxyz: bool = False
    inherited: bool = False


def _new_variable(name: str, dims: str, dtype: str, unit: str | None, doc: str, **rest: Any) -> Variable:
    return Variable(name=name, dims=tuple(dims.split()), dtype=np.dtype(dtype), unit=unit, doc=doc, **rest)


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        # --- geometry, and what follows from it
        _new_variable("n_atoms", "structure", "int32", "1", "Number of atoms of each structure", stage="generate"),
        _new_variable(
            "atom_start", "structure", "int64", "1", "Row of the first atom of each structure", stage="generate",
        ),
        _new_variable("numbers", "atom", "uint8", "1", "Atomic numbers", stage="generate"),
        _new_variable("positions", "atom xyz", "float32", "angstrom", "Cartesian positions", stage="generate"),
        _new_variable(
            "cell", "structure vector xyz", "float64", "angstrom", "Cell vectors as rows (as in ASE)",
            stage="generate",
        ),
        _new_variable("pbc", "structure xyz", "bool", None, "Periodic along each cell vector", stage="generate"),
        # --- labels
        _new_variable("energy", "structure", "float64", "eV", "Potential energy", place="results", stage="label"),
        _new_variable("forces", "atom xyz", "float32", "eV/angstrom", "Forces", place="results", stage="label"),
        _new_variable(
            "stress", "structure voigt", "float64", "eV/angstrom^3",
            "Stress, order xx yy zz yz xz xy (as in ASE: positive under tension); NaN without a periodic cell",
            place="results", stage="label",
        ),
        _new_variable(
            "magmoms", "atom", "float32", "bohr_magneton", "Magnetic moments given by the teacher", place="results",
        ),
        # --- facts about atoms
        _new_variable("initial_charges", "atom", "float32", "e", "Charges it came with; NaN without", place="arrays"),
        _new_variable(
            "initial_magmoms", "atom", "float32", "bohr_magneton", "Moments it came with; NaN without", place="arrays",
        ),
        _new_variable(
            "masses", "atom", "float32", "u", "Masses of isotopes; NaN where they are those of the elements",
            place="arrays",
        ),
        _new_variable(
            "fixed", "atom xyz", "bool", None, "Cartesian components along which exploration moves no atom",
            place="arrays",
        ),
        # --- facts about structures
        _new_variable(
            "charge", "structure", "int8", "e", "Total charge", place="info", stage="generate", in_extxyz=True,
            inherited=True,
        ),
        _new_variable(
            "spin_multiplicity", "structure", "int8", "1",
            "Spin multiplicity, 2S + 1; 0 where neither source nor teacher gives one", place="info", stage="generate",
            missing=0, in_extxyz=True, inherited=True,
        ),
        _new_variable(
            "structure_id", "structure", "V16", None,
            "Hash of numbers, positions, cell, pbc, charge, spin; where given of moments, fixed atoms and isotopes",
            stage="generate", in_extxyz=True,
        ),
        _new_variable(
            "parent_id", "structure", "V16", None, "structure_id of the seed it came from; zeros for none",
            place="info", stage="explore", in_extxyz=True,
        ),
        _new_variable(
            "system_type", "structure", "int8", None, "Kind of system", place="info", stage="generate", coded=True,
            in_extxyz=True, inherited=True,
        ),
        _new_variable(
            "composition", "structure", "int32", None, "Chemical formula (Hill order)", stage="generate", coded=True,
        ),
        _new_variable(
            "generator", "structure", "int8", None, "Source in the config that made the seed", place="info",
            stage="generate", coded=True, in_extxyz=True, inherited=True,
        ),
        _new_variable(
            "config_type", "structure", "int32", None, "Kind of configuration, as its source or MACE names it",
            place="info", coded=True, escaped=True, missing="Default", in_extxyz=True, inherited=True,
        ),
        _new_variable(
            "reference", "structure", "bool", None,
            "Reference data (isolated atoms, pairs, equations of state): labelled in any case, and kept in train",
            place="info", inherited=True,
        ),
        _new_variable(
            "head", "structure", "int16", None, "Head of a model that its labels are for, as its source names it",
            place="info", coded=True, escaped=True, missing="Default", in_extxyz=True,
        ),
        _new_variable(
            "config_weight", "structure", "float32", "1", "Weight in the loss; NaN where its source gives none",
            place="info", missing=float("nan"), in_extxyz=True,
        ),
        # --- the frame of a trajectory
        _new_variable(
            "temperature", "structure", "float32", "K", "Temperature of the thermostat; NaN without one", place="info",
            stage="explore",
        ),
        _new_variable(
            "kinetic_temperature", "structure", "float32", "K",
            "Instantaneous temperature, of the kinetic energy; NaN without velocities", place="info", stage="explore",
        ),
        _new_variable(
            "pressure", "structure", "float32", "GPa", "Pressure of the barostat; NaN without one", place="info",
            stage="explore",
        ),
        _new_variable(
            "time", "structure", "float32", "fs", "Time since the start of the trajectory", place="info",
            stage="explore",
        ),
        _new_variable(
            "step", "structure", "int32", "1", "MD step since the start of the trajectory", place="info",
            stage="explore",
        ),
        _new_variable(
            "ensemble", "structure", "int8", None, "Statistical ensemble", place="info", stage="explore", coded=True,
        ),
        _new_variable(
            "replica", "structure", "int32", "1", "Number of the trajectory of its seed", place="info",
            stage="explore",
        ),
        _new_variable(
            "explore_energy", "structure", "float64", "eV",
            "Potential energy by the potential that explored, where seeds are relaxed", place="info",
        ),
        _new_variable(
            "force_disagreement", "structure", "float32", "eV/angstrom",
            "Largest disagreement of a committee about a force; NaN without one", place="info",
        ),
        _new_variable(
            "candidate", "structure", "bool", None, "The committee's disagreement ended the trajectory at this frame",
            place="info",
        ),
        # --- selection, splits and labels
        _new_variable(
            "features", "structure feature", "float32", "1", "Reduced descriptor of the structure", place="info",
            stage="select",
        ),
        _new_variable(
            "cluster", "structure", "int32", None, "Stratum in feature space; -1 where none was made", place="info",
            stage="select",
        ),
        _new_variable(
            "selection_reason", "structure", "int8", None, "Why the frame was picked", place="info", stage="select",
            coded=True,
        ),
        _new_variable(
            "split", "structure", "uint8", None, "Share of the data it belongs to", place="info", stage="store",
            coded=True, flags=SPLITS, in_extxyz=True,
        ),
        _new_variable(
            "group", "structure", "int32", None, "What must not be torn apart by a split: one seed's frames",
            place="info", stage="store",
        ),
        _new_variable(
            "label_method", "structure", "int8", None, "Teacher that labelled it", place="info", stage="label",
            coded=True, in_extxyz=True,
        ),
        _new_variable(
            "label_status", "structure", "int8", None, "ok, or the check that the label does not pass", place="info",
            stage="label", coded=True,
        ),
        _new_variable(
            "finite_difference_check", "structure", "int8", None,
            "Whether forces and stress agree with energies of displaced structures", place="info", coded=True,
            missing="not_checked",
        ),
        _new_variable(
            "finite_difference_error", "structure", "float32", "eV/angstrom",
            "Force along one direction by finite differences of the energy minus that of the label", place="info",
        ),
        _new_variable(
            "energy_outlier_check", "structure", "int8", None, "Whether its energy is far from a sum over the elements",
            place="info", coded=True, missing="not_checked",
        ),
        _new_variable(
            "force_outlier_check", "structure", "int8", None, "Whether its largest force is far above those of others",
            place="info", coded=True, missing="not_checked",
        ),
        _new_variable(
            "second_teacher_check", "structure", "int8", None,
            "Whether a second teacher disagrees about it more than about others", place="info", coded=True,
            missing="not_checked",
        ),
        _new_variable(
            "energy_check", "structure", "float64", "eV", "Energy of a second teacher minus the label; NaN without one",
            place="info",
        ),
        _new_variable(
            "forces_check", "atom xyz", "float32", "eV/angstrom",
            "Forces of a second teacher minus the label; NaN without one", place="arrays",
        ),
    )
}  # fmt: skip

INFO_KEYS = tuple(name for name, variable in VARIABLES.items() if variable.place == "info")
"""Facts about a structure that ``atoms.info`` holds."""

ARRAY_KEYS = tuple(name for name, variable in VARIABLES.items() if variable.place == "arrays")
"""Facts about atoms that ``atoms.arrays`` holds; ``fixed`` is daskpipe's own, see `daskpipe.core.constraints`."""

LABEL_KEYS = tuple(name for name, variable in VARIABLES.items() if variable.place == "results")
"""Labels that ``atoms.calc.results`` holds."""

STRUCTURE_KEYS = ("n_atoms", "atom_start", "numbers", "positions", "cell", "pbc", "structure_id")
"""Variables that every dataset holds."""


def is_per_atom(name: str) -> bool:
    """Return whether a variable has one row an atom, and not one a structure."""
    return VARIABLES[name].dims[0] == "atom"


def missing_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of the value that stands for "not given": `Variable.missing`, or the default of the dtype.

    Examples
    --------
    >>> [missing_values(name, (1,)).tolist() for name in ("energy", "step", "generator")]
    [[nan], [-1], ['unknown']]
    """
    variable = VARIABLES[name]
    if variable.coded:
        return np.full(shape, variable.missing or "unknown")
    if variable.dtype.kind == "V":
        return np.zeros(shape, dtype=variable.dtype)
    if variable.missing is not None:
        return np.full(shape, variable.missing, dtype=variable.dtype)
    return np.full(shape, {"f": np.nan, "b": False}.get(variable.dtype.kind, -1), dtype=variable.dtype)


def is_missing(name: str, value: Any) -> bool:
    """Return whether a value is the one that `Variable.missing` declares for "not given"."""
    missing = VARIABLES[name].missing
    return missing is not None and bool(value == missing or (value != value and missing != missing))


def validate_dataset(ds: xr.Dataset, require: Iterable[str] = STRUCTURE_KEYS) -> None:
    """Check names, dims, dtypes and the ragged index of a dataset against `VARIABLES`.

    Parameters
    ----------
    ds
        In memory (coded variables hold strings) or as stored (they hold codes).
    require
        Names of the variables that it must have.

    Raises
    ------
    ValueError
        If a check fails; the message names the variable, what was expected and what was received.
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


def cf_attributes(name: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the CF attributes of a variable: its meaning, its unit, and the names of its codes if they are given."""
    variable = VARIABLES[name]
    attributes: dict[str, Any] = {"long_name": variable.doc}
    if variable.unit is not None:
        attributes["units"] = variable.unit
    if name == "n_atoms":
        attributes["sample_dimension"] = "atom"
    if names is not None:
        words = [_escape_name(word) for word in names] if variable.escaped else names
        attributes |= {"flag_values": list(range(len(names))), "flag_meanings": " ".join(words)}
    return attributes


def _escape_name(name: str) -> str:
    """Return a name without white space, which `urllib.parse.unquote` turns back into the name."""
    return re.sub(r"[\s%]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name)


def annotate_dataset(ds: xr.Dataset) -> xr.Dataset:
    """Return a dataset with the unit, meaning and CF attributes of each variable; values are not copied."""
    ds = ds.copy(deep=False)
    for name, array in ds.data_vars.items():
        array.attrs |= cf_attributes(str(name))
    return ds


def code_names(name: str, values: Iterable[str]) -> list[str]:
    """Return the names of the codes of a variable: its fixed flags, or the sorted names that occur.

    Raises
    ------
    ValueError
        If there are more names than codes, or a name holds white space, which ``flag_meanings`` cannot, or is no flag.
    """
    variable, distinct = VARIABLES[name], sorted(set(values))
    names = list(variable.flags) or distinct
    if bad := [item for item in names if not item or (item.split() != [item] and not variable.escaped)]:
        raise ValueError(f"{name}: {bad[0]!r} cannot be a code name; use a word without white space")
    if len(names) > np.iinfo(variable.dtype).max:
        raise ValueError(f"{name}: {len(names)} different names do not fit {variable.dtype}")
    if unknown := sorted(set(distinct) - set(names)):
        raise ValueError(f"{name}: {unknown[0]!r} is none of {', '.join(names)}")
    return names


def codes_of(name: str, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the code of each of the names `values`, shape (structure,), in the dtype of the variable."""
    distinct, inverse = np.unique(values, return_inverse=True)
    codes = np.array([names.index(item) for item in distinct.tolist()], dtype=VARIABLES[name].dtype)
    return codes[inverse.reshape(values.shape)]


def encode_names(ds: xr.Dataset) -> xr.Dataset:
    """Return a dataset with its coded variables as integers, and their names in ``flag_meanings``.

    Codes count the sorted names that occur (or the fixed flags of the variable), so that equal data give equal bytes.

    Raises
    ------
    ValueError
        As `code_names` does.

    Examples
    --------
    >>> import xarray as xr
    >>> ds = encode_names(xr.Dataset({"system_type": ("structure", np.array(["slab", "bulk", "slab"]))}))
    >>> ds["system_type"].values.tolist(), ds["system_type"].attrs["flag_meanings"]
    ([1, 0, 1], 'bulk slab')
    >>> decode_names(ds["system_type"]).tolist()
    ['slab', 'bulk', 'slab']
    """
    ds = ds.copy(deep=False)
    for name, array in list(ds.data_vars.items()):
        if not VARIABLES[str(name)].coded or array.dtype.kind != "U":
            continue
        names = code_names(str(name), array.values.tolist())
        values = codes_of(str(name), array.values, names)
        ds[str(name)] = (array.dims, values, {**array.attrs, **cf_attributes(str(name), names)})
    return ds


def decode_names(array: xr.DataArray) -> np.ndarray:
    """Return the names that a coded variable of a dataset stands for, shape (structure,), dtype str."""
    if array.dtype.kind == "U":
        return np.asarray(array.values)
    words = str(array.attrs["flag_meanings"]).split()
    escaped = array.name in VARIABLES and VARIABLES[str(array.name)].escaped
    names = np.array([unquote(word) for word in words] if escaped else words, dtype=str)
    if array.size == 0:
        return np.array([], dtype=str)
    return names[np.asarray(array.values, dtype=np.int64)]
