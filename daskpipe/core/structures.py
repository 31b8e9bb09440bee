"""`ase.Atoms` <-> flat arrays, structure ids and lineage: the only door between the two currencies.

In memory a dataset of structures is an `xarray.Dataset` with flat ``atom`` and ``structure`` axes
(see `daskpipe.core.variables`). Per-structure facts travel in ``atoms.info`` under the variables' names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.constraints import fixed_components
from daskpipe.core.variables import SIZES, VARIABLES, decode, per_atom, validate

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

NO_PARENT = bytes(16)

# Facts about a structure that live in atoms.info; the rest of the variables are geometry, labels or ids.
INFO_KEYS = (
    "charge", "spin_multiplicity", "parent_id", "system_type", "generator", "config_type", "head", "config_weight",
    "temperature", "kinetic_temperature", "pressure", "time", "step", "ensemble", "replica", "force_disagreement",
    "candidate", "features", "cluster", "selection_reason", "split", "group", "label_method", "label_status",
)  # fmt: skip
ARRAY_KEYS = ("initial_charges", "initial_magmoms", "masses", "fixed")
"""Facts about atoms in ``atoms.arrays``, under ASE's names; ``fixed`` is ours, see `daskpipe.core.constraints`."""
SAME_MASS = 1e-3
"""Part of a mass by which tables of elements differ; the isotopes of no element whose mass matters come so close."""

LABEL_KEYS = ("energy", "forces", "stress", "magmoms")


def round_positions(atoms: Atoms) -> Atoms:
    """Round positions, in place, to the float32 numbers that are stored; hash and label come after this."""
    atoms.positions = atoms.positions.astype(VARIABLES["positions"].dtype).astype(float)
    return atoms


def structure_id(atoms: Atoms) -> bytes:
    """Return the content hash of a structure, 16 bytes.

    It covers numbers, positions (as float32), cell, pbc, charge and spin multiplicity: the order of atoms and the
    choice of the cell count; names, labels, and the charges of single atoms do not. Where atoms have magnetic moments
    (`initial_magmoms`, not all zero), are fixed, or are given isotopes, these count too: they decide the label, or the
    trajectory.

    Raises
    ------
    ValueError
        If charge or spin multiplicity is no whole number.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"structure_id")
    digest.update(np.asarray(atoms.numbers, dtype="<u1").tobytes())
    # Adding 0.0 turns -0.0 into 0.0: equal numbers, equal hash.
    digest.update((np.asarray(atoms.positions, dtype="<f4") + np.float32(0)).tobytes())
    digest.update((np.asarray(atoms.cell.array, dtype="<f8") + 0.0).tobytes())
    digest.update(np.asarray(atoms.pbc, dtype="?").tobytes())
    digest.update(np.array([charge(atoms), spin_multiplicity(atoms)], dtype="<i4").tobytes())
    for name, dtype in (("initial_magmoms", "<f4"), ("fixed", "?"), ("masses", "<f4")):
        values = atoms.arrays.get(name)
        # Without them the hash is that of datasets from before they counted.
        if values is not None and np.nan_to_num(values).any():
            digest.update(name.encode() + (np.asarray(values, dtype=dtype) + np.zeros(1, dtype=dtype)).tobytes())
    return digest.digest()


def charge(atoms: Atoms) -> int:
    """Total charge in e, from ``atoms.info["charge"]``; 0 if it is not given. Raises `ValueError` for a fraction."""
    return _whole("charge", atoms.info.get("charge", 0))


def spin_multiplicity(atoms: Atoms) -> int:
    """2S + 1 from ``atoms.info["spin_multiplicity"]``; if not given (or 0), 1 for an even number of electrons, else 2.

    Raises `ValueError` for a fraction.
    """
    if given := _whole("spin_multiplicity", atoms.info.get("spin_multiplicity", 0)):
        return given
    return 1 + (int(np.sum(atoms.numbers)) - charge(atoms)) % 2


def _whole(name: str, value: Any) -> int:
    if not float(value).is_integer():
        raise ValueError(f"{name} is {value}; it must be a whole number")
    return int(value)


def copy_arrays(source: Atoms, target: Atoms) -> None:
    """Give `target`, in place, what is known of `source`'s atoms: `ARRAY_KEYS`, where it has them.

    Masses that are those of the elements are left out, and the constraints of `source` become the array ``fixed``.

    Raises
    ------
    ValueError
        If a constraint is none that `daskpipe.core.constraints.fixed_components` knows.
    """
    for name in ("initial_charges", "initial_magmoms"):
        if source.has(name):
            values = source.get_array(name)
            target.set_array(name, values, float, values.shape[1:])
    if (masses := isotope_masses(source)) is not None:
        target.set_array("masses", masses, float, ())
    if (fixed := fixed_components(source)) is not None:
        target.set_array("fixed", fixed, bool, (3,))


def isotope_masses(atoms: Atoms) -> np.ndarray | None:
    """Return the masses of the atoms, amu, shape (atom,), if one of them is not that of its element; else None."""
    from ase.data import atomic_masses

    masses = atoms.arrays.get("masses")
    if masses is None:
        return None
    usual = atomic_masses[atoms.numbers]
    return None if (np.abs(masses - usual) <= SAME_MASS * usual).all() else np.asarray(masses, dtype=float)


STATE_VARIABLES = ("charge", "spin_multiplicity", "initial_magmoms")
"""What tells electronic states of one geometry apart."""


def electronic_states(columns: Mapping[str, np.ndarray]) -> list[bytes]:
    """Return bytes that are equal for structures of equal charge, spin multiplicity and magnetic moments.

    Parameters
    ----------
    columns
        ``n_atoms`` and, of `STATE_VARIABLES`, those that the structures have.
    """
    n_atoms = columns["n_atoms"]
    whole = [columns[name] for name in ("charge", "spin_multiplicity") if name in columns]
    states = np.stack([np.zeros(len(n_atoms)), *whole], axis=1).astype("<i8")
    found = [row.tobytes() for row in states]
    if "initial_magmoms" in columns:
        moments = np.nan_to_num(columns["initial_magmoms"])
        for row, (start, stop) in enumerate(zip(starts(n_atoms), np.cumsum(n_atoms, dtype=np.int64), strict=True)):
            if moments[start:stop].any():
                found[row] += moments[start:stop].tobytes()
    return found


def as_void(ids: Iterable[bytes]) -> np.ndarray:
    """Pack ids into an array, shape (structure,), dtype V16."""
    return np.frombuffer(b"".join(ids), dtype="V16")


def from_atoms(structures: Sequence[Atoms]) -> xr.Dataset:
    """Flatten structures into a dataset.

    Parameters
    ----------
    structures
        Each may carry variables in ``info``, the arrays ``initial_charges`` (e), ``initial_magmoms`` (Bohr
        magnetons, one number an atom), ``masses`` (amu) and ``fixed`` (bool, shape (atom, 3)), and energy, forces,
        stress and magmoms in a calculator that already holds them. What one structure lacks is filled with NaN or the
        neutral value.

    Returns
    -------
    xarray.Dataset
        In memory, dims ``atom`` and ``structure``; passes `daskpipe.core.variables.validate`.
    """
    import xarray as xr

    n_atoms = np.array([len(atoms) for atoms in structures], dtype=np.int32)
    columns: dict[str, Any] = {
        "n_atoms": n_atoms,
        "atom_start": starts(n_atoms),
        "numbers": _join([atoms.numbers for atoms in structures], "numbers"),
        "positions": _join([atoms.positions for atoms in structures], "positions"),
        "cell": _stack([atoms.cell.array for atoms in structures], "cell"),
        "pbc": _stack([atoms.pbc for atoms in structures], "pbc"),
        "charge": np.array([charge(atoms) for atoms in structures], dtype=np.int8),
        "spin_multiplicity": _column("spin_multiplicity", [a.info.get("spin_multiplicity") for a in structures]),
        "structure_id": as_void(structure_id(atoms) for atoms in structures),
        "parent_id": as_void(atoms.info.get("parent_id", NO_PARENT) for atoms in structures),
        "composition": np.array([atoms.get_chemical_formula("hill") for atoms in structures], dtype=str),
    }
    for name in INFO_KEYS:
        if name not in columns and any(name in atoms.info for atoms in structures):
            columns[name] = _column(name, [atoms.info.get(name) for atoms in structures])
    labels = [atoms.calc.results if atoms.calc is not None else {} for atoms in structures]
    for names, given in ((ARRAY_KEYS, [atoms.arrays for atoms in structures]), (LABEL_KEYS, labels)):
        for name in (name for name in names if any(name in facts for facts in given)):
            rows = [facts.get(name, _lacking(name, n)) for facts, n in zip(given, n_atoms, strict=True)]
            columns[name] = _join(rows, name) if per_atom(name) else _stack(rows, name)
    ds = xr.Dataset({name: (VARIABLES[name].dims, column) for name, column in columns.items()})
    validate(ds)
    return ds


def to_atoms(ds: xr.Dataset, index: int) -> Atoms:
    """Return one structure of a dataset.

    Parameters
    ----------
    ds
        A dataset in memory or from `daskpipe.open_dataset`.
    index
        Position on the ``structure`` axis; negative counts from the end.

    Returns
    -------
    ase.Atoms
        With the labels (eV, eV/Å, eV/Å^3) in a `SinglePointCalculator`, ``initial_charges``, ``initial_magmoms``,
        ``masses`` and ``fixed`` (bool, shape (atom, 3)) as arrays where the structure has them, and the other variables
        in ``info``. Fixed atoms are no constraints of ASE's, which would take the forces on them away.

    Raises
    ------
    IndexError
        If there is no such structure.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    n_structures = ds.sizes["structure"]
    if not -n_structures <= index < n_structures:
        raise IndexError(f"structure {index} of {n_structures}: give an index from 0 to {n_structures - 1}")
    row = ds.isel(structure=index % n_structures)
    start, n_atoms = int(row["atom_start"]), int(row["n_atoms"])
    row = row.isel(atom=slice(start, start + n_atoms)) if "atom" in row.dims else row
    row = row.compute()
    atoms = Atoms(
        numbers=row["numbers"].values.astype(int),
        positions=row["positions"].values.astype(float),
        cell=row["cell"].values,
        pbc=row["pbc"].values,
    )
    for name in (*INFO_KEYS, "structure_id"):
        if name in row and not is_missing(name, value := _scalar(ds[name], row[name])):
            atoms.info[name] = value
    known = {
        name: row[name].values
        for name in (*ARRAY_KEYS, *LABEL_KEYS)
        if name in row and not np.isnan(row[name].values).any()
    }
    for name in ARRAY_KEYS:
        if name in known and (name != "fixed" or known["fixed"].any()):
            atoms.set_array(name, known[name], bool if name == "fixed" else float, known[name].shape[1:])
        known.pop(name, None)
    if labels := known:
        results = {name: float(value) if name == "energy" else value.astype(float) for name, value in labels.items()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def take(ds: xr.Dataset, rows: Sequence[int] | np.ndarray) -> xr.Dataset:
    """Return the structures `rows` (indices, not a mask) of a dataset, in that order, with a fresh ragged index."""
    rows = np.asarray(rows)
    if rows.dtype == bool:
        raise TypeError("rows must be indices, received a mask; give numpy.flatnonzero(mask)")
    rows = rows.astype(np.int64)
    n_atoms = ds["n_atoms"].values[rows]
    out = ds.isel(structure=rows)
    if "atom" in ds.dims:
        out = out.isel(atom=atom_rows(ds["atom_start"].values[rows], n_atoms))
    return out.assign(atom_start=("structure", starts(n_atoms)))


def concat(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join datasets in memory along both axes; a variable that one of them lacks is filled as in `from_atoms`."""
    import xarray as xr

    names = {str(name) for ds in datasets for name in ds.data_vars} - {"atom_start"}
    columns = {}
    for name in sorted(names):
        shape = next(ds[name].shape[1:] for ds in datasets if name in ds)
        parts = [ds[name].values if name in ds else neutral(name, (_rows(ds, name), *shape)) for ds in datasets]
        columns[name] = (VARIABLES[name].dims, np.concatenate(parts))
    ds = xr.Dataset(columns)
    return ds.assign(atom_start=("structure", starts(ds["n_atoms"].values)))


def starts(n_atoms: np.ndarray) -> np.ndarray:
    """Row of the first atom of each structure, shape (structure,), dtype int64."""
    return np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)])[:-1].astype(np.int64)


def atom_rows(start: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Rows of the atoms of structures that begin at `start`, one structure after the other; dtype int64."""
    return np.repeat(start - starts(n_atoms), n_atoms) + np.arange(int(n_atoms.sum()))


def cut(n_atoms: np.ndarray, max_atoms: int, max_structures: int) -> list[slice]:
    """Cut structures into blocks: as many in each as the limits allow, but at least one."""
    ends = np.cumsum(n_atoms, dtype=np.int64)
    blocks, first = [], 0
    while first < len(n_atoms):
        stop = int(np.searchsorted(ends, ends[first] - n_atoms[first] + max_atoms, side="right"))
        stop = max(first + 1, min(stop, first + max_structures))
        blocks.append(slice(first, stop))
        first = stop
    return blocks


def hex_ids(ds: xr.Dataset) -> list[str]:
    """Structure ids of a dataset in hex."""
    return [item.tobytes().hex() for item in ds["structure_id"].values]


def _join(rows: Sequence[Any], name: str) -> np.ndarray:
    variable = VARIABLES[name]
    if rows:
        return np.concatenate([np.asarray(row) for row in rows]).astype(variable.dtype)
    return np.zeros((0, 3)[: len(variable.dims)], dtype=variable.dtype)


def _stack(rows: Sequence[Any], name: str) -> np.ndarray:
    variable = VARIABLES[name]
    shape = tuple(SIZES[dim] for dim in variable.dims[1:])
    return np.array([np.asarray(row) for row in rows], dtype=variable.dtype).reshape(len(rows), *shape)


def _lacking(name: str, n_atoms: int) -> np.ndarray:
    first, *rest = VARIABLES[name].dims
    return neutral(name, ((n_atoms,) if first == "atom" else ()) + tuple(SIZES[dim] for dim in rest))


def _column(name: str, values: list[Any]) -> np.ndarray:
    variable, fill = VARIABLES[name], neutral(name, ()).item()
    given = [fill if value is None else value for value in values]
    return np.array([str(value) for value in given]) if variable.coded else np.array(given, dtype=variable.dtype)


def neutral(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what stands for "not given": `Variable.missing`, else NaN, -1, False or "unknown"."""
    variable = VARIABLES[name]
    if variable.coded:
        return np.full(shape, variable.missing or "unknown")
    if variable.missing is not None:
        return np.full(shape, variable.missing, dtype=variable.dtype)
    return np.full(shape, {"f": np.nan, "b": False}.get(variable.dtype.kind, -1), dtype=variable.dtype)


def is_missing(name: str, value: Any) -> bool:
    """Whether a value is the one that `Variable.missing` gives for "not given"."""
    missing = VARIABLES[name].missing
    return missing is not None and bool(value == missing or (value != value and missing != missing))


def _rows(ds: xr.Dataset, name: str) -> int:
    return int(ds["n_atoms"].values.sum()) if per_atom(name) else ds.sizes["structure"]


def _scalar(column: xr.DataArray, cell: xr.DataArray) -> Any:
    variable = VARIABLES[str(column.name)]
    if variable.coded:
        return str(decode(cell.expand_dims("structure").assign_attrs(column.attrs))[0])
    if variable.dtype.kind == "V":
        return cell.values.tobytes()
    return cell.values if cell.ndim else cell.values.item()
