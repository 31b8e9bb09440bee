"""Convert ``ase.Atoms`` to flat arrays and back, and compute structure ids.

In memory a dataset of structures is an `xarray.Dataset` with flat ``atom`` and ``structure`` axes. Which variables
there are, and where ``ase.Atoms`` keeps each of them, stands in `daskpipe.core.variables`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.constraints import fixed_components
from daskpipe.core.formulas import hill_formula
from daskpipe.core.variables import (
    ARRAY_KEYS,
    INFO_KEYS,
    LABEL_KEYS,
    SIZES,
    VARIABLES,
    Place,
    decode_names,
    is_missing,
    is_per_atom,
    missing_values,
    validate_dataset,
)

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

NO_PARENT = bytes(16)
"""``parent_id`` of a structure without a parent."""

SAME_MASS = 1e-3
"""Largest relative difference of a mass from that of its element that counts as none.

Tables of elements differ by less; isotopes whose mass matters differ by more.
"""

STATE_VARIABLES = ("charge", "spin_multiplicity", "initial_magmoms")
"""Variables that distinguish the electronic states of one geometry."""


def round_positions(atoms: Atoms) -> Atoms:
    """Round positions, in place, to the float32 numbers that are stored; do this before hashing and labelling."""
    atoms.positions = atoms.positions.astype(VARIABLES["positions"].dtype).astype(float)
    return atoms


def structure_id(atoms: Atoms) -> bytes:
    """Return the content hash of a structure, 16 bytes.

    The hash covers numbers, positions (as float32), cell, pbc, charge and spin multiplicity. So the order of the atoms
    and the choice of the cell count; names, labels, and the charges of single atoms do not. Magnetic moments
    (``initial_magmoms``, unless all are zero), fixed atoms and isotopes count where there are any: they decide the
    label, or the trajectory.

    Raises
    ------
    ValueError
        If charge or spin multiplicity is no whole number.

    Examples
    --------
    >>> from ase.build import molecule
    >>> structure_id(molecule("H2O")).hex()
    'da25063041f55d921199d285b2cd8ea2'
    """
    digest = hashlib.blake2b(digest_size=16, person=b"structure_id")
    digest.update(np.asarray(atoms.numbers, dtype="<u1").tobytes())
    # Adding 0.0 turns -0.0 into 0.0, so that equal numbers give equal hashes.
    digest.update((np.asarray(atoms.positions, dtype="<f4") + np.float32(0)).tobytes())
    digest.update((np.asarray(atoms.cell.array, dtype="<f8") + 0.0).tobytes())
    digest.update(np.asarray(atoms.pbc, dtype="?").tobytes())
    digest.update(np.array([total_charge(atoms), spin_multiplicity(atoms)], dtype="<i4").tobytes())
    for name, dtype in (("initial_magmoms", "<f4"), ("fixed", "?"), ("masses", "<f4")):
        values = atoms.arrays.get(name)
        # Without them the hash is that of older datasets, which did not count them.
        if values is not None and np.nan_to_num(values).any():
            digest.update(name.encode() + (np.asarray(values, dtype=dtype) + np.zeros(1, dtype=dtype)).tobytes())
    return digest.digest()


def total_charge(atoms: Atoms) -> int:
    """Return the total charge, e, in ``atoms.info["charge"]``; 0 if it is not given.

    Raises
    ------
    ValueError
        If it is no whole number.
    """
    return _to_integer("charge", atoms.info.get("charge", 0))


def spin_multiplicity(atoms: Atoms) -> int:
    """Return the spin multiplicity, 2S + 1, in ``atoms.info["spin_multiplicity"]``.

    If it is not given, or 0, return 1 for an even number of electrons and 2 for an odd one.

    Raises
    ------
    ValueError
        If it is no whole number.
    """
    if given := _to_integer("spin_multiplicity", atoms.info.get("spin_multiplicity", 0)):
        return given
    return 1 + (int(np.sum(atoms.numbers)) - total_charge(atoms)) % 2


def _to_integer(name: str, value: Any) -> int:
    if not float(value).is_integer():
        raise ValueError(f"{name} is {value}; it must be a whole number")
    return int(value)


def copy_arrays(source: Atoms, target: Atoms) -> None:
    """Copy facts about atoms, the variables in ``atoms.arrays``, from one structure to another, in place.

    Masses that are those of the elements are left out. Constraints of `source` become the array ``fixed``.

    Raises
    ------
    ValueError
        If `daskpipe.core.constraints.fixed_components` does not know a constraint.
    """
    for name in ARRAY_KEYS:
        if name not in ("masses", "fixed") and source.has(name):
            values = source.get_array(name)
            target.set_array(name, values, float, values.shape[1:])
    if (masses := isotope_masses(source)) is not None:
        target.set_array("masses", masses, float, ())
    if (fixed := fixed_components(source)) is not None:
        target.set_array("fixed", fixed, bool, (3,))


def isotope_masses(atoms: Atoms) -> np.ndarray | None:
    """Return the masses of the atoms, amu, shape (atom,), if one differs from that of its element; else None."""
    from ase.data import atomic_masses

    masses = atoms.arrays.get("masses")
    if masses is None:
        return None
    element_masses = atomic_masses[atoms.numbers]
    if (np.abs(masses - element_masses) <= SAME_MASS * element_masses).all():
        return None
    return np.asarray(masses, dtype=float)


def electronic_states(columns: Mapping[str, np.ndarray]) -> list[bytes]:
    """Return one bytes object a structure: equal for equal charge, spin multiplicity and magnetic moments.

    Parameters
    ----------
    columns
        ``n_atoms``, and those of `STATE_VARIABLES` that the structures have.
    """
    n_atoms = columns["n_atoms"]
    whole = [columns[name] for name in ("charge", "spin_multiplicity") if name in columns]
    numbers = np.stack([np.zeros(len(n_atoms)), *whole], axis=1).astype("<i8")
    states = [row.tobytes() for row in numbers]
    if "initial_magmoms" in columns:
        moments = np.nan_to_num(columns["initial_magmoms"])
        for row, (start, stop) in enumerate(zip(atom_starts(n_atoms), np.cumsum(n_atoms, dtype=np.int64), strict=True)):
            if moments[start:stop].any():
                states[row] += moments[start:stop].tobytes()
    return states


def as_void(ids: Iterable[bytes]) -> np.ndarray:
    """Return structure ids as an array, shape (structure,), dtype V16."""
    return np.frombuffer(b"".join(ids), dtype="V16")


def from_atoms(structures: Sequence[Atoms]) -> xr.Dataset:
    """Flatten structures into a dataset.

    Parameters
    ----------
    structures
        Each may carry variables of `daskpipe.core.variables` in ``info``; facts about atoms in ``arrays``:
        ``initial_charges`` (e), ``initial_magmoms`` (Bohr magnetons, one number an atom), ``masses`` (amu) and
        ``fixed`` (bool, shape (atom, 3)); and labels in a calculator that already holds them: ``energy`` (eV),
        ``forces`` (eV/Å), ``stress`` (eV/Å^3) and ``magmoms``. What one structure lacks and another has is filled as
        `daskpipe.core.variables.missing_values` says.

    Returns
    -------
    xarray.Dataset
        In memory, dims ``atom`` and ``structure``; passes `daskpipe.core.variables.validate_dataset`.

    Examples
    --------
    >>> from ase.build import molecule
    >>> ds = from_atoms([molecule("H2O"), molecule("CO2")])
    >>> ds["n_atoms"].values.tolist(), ds["numbers"].values.tolist(), ds["composition"].values.tolist()
    ([3, 3], [8, 1, 1, 6, 8, 8], ['H2O', 'CO2'])
    """
    import xarray as xr

    n_atoms = np.array([len(atoms) for atoms in structures], dtype=np.int32)
    columns: dict[str, Any] = {
        "n_atoms": n_atoms,
        "atom_start": atom_starts(n_atoms),
        "numbers": _join_atoms([atoms.numbers for atoms in structures], "numbers"),
        "positions": _join_atoms([atoms.positions for atoms in structures], "positions"),
        "cell": _stack_rows([atoms.cell.array for atoms in structures], "cell"),
        "pbc": _stack_rows([atoms.pbc for atoms in structures], "pbc"),
        "charge": np.array([total_charge(atoms) for atoms in structures], dtype=np.int8),
        "spin_multiplicity": _fill_column("spin_multiplicity", [a.info.get("spin_multiplicity") for a in structures]),
        "structure_id": as_void(structure_id(atoms) for atoms in structures),
        "parent_id": as_void(atoms.info.get("parent_id", NO_PARENT) for atoms in structures),
        "composition": np.array([hill_formula(atoms.numbers) for atoms in structures], dtype=str),
    }
    places: dict[Place, list[Mapping[str, Any]]] = {
        "info": [atoms.info for atoms in structures],
        "arrays": [atoms.arrays for atoms in structures],
        "results": [atoms.calc.results if atoms.calc is not None else {} for atoms in structures],
    }
    for name in (*INFO_KEYS, *ARRAY_KEYS, *LABEL_KEYS):
        facts = places[VARIABLES[name].place]
        if name in columns or not any(name in of_structure for of_structure in facts):
            continue
        if VARIABLES[name].place == "info":
            columns[name] = _fill_column(name, [of_structure.get(name) for of_structure in facts])
            continue
        rows = [of.get(name, _missing_row(name, n)) for of, n in zip(facts, n_atoms, strict=True)]
        columns[name] = _join_atoms(rows, name) if is_per_atom(name) else _stack_rows(rows, name)
    ds = xr.Dataset({name: (VARIABLES[name].dims, column) for name, column in columns.items()})
    validate_dataset(ds)
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
        With each variable that the structure has in its place: labels (eV, eV/Å, eV/Å^3) in a
        `SinglePointCalculator`, facts about atoms in ``arrays``, all others in ``info``. Fixed atoms are the array
        ``fixed`` and no constraints of ASE's, which would remove the forces on them.

    Raises
    ------
    IndexError
        If there is no such structure.

    Examples
    --------
    >>> from ase.build import molecule
    >>> atoms = to_atoms(from_atoms([molecule("H2O"), molecule("CO2")]), -1)
    >>> str(atoms.symbols), atoms.info["charge"]
    ('CO2', 0)
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
        if name in row and not is_missing(name, value := _plain_value(ds[name], row[name])):
            atoms.info[name] = value
    given = [name for name in (*ARRAY_KEYS, *LABEL_KEYS) if name in row and not np.isnan(row[name].values).any()]
    results = {}
    for name in given:
        values, dtype = row[name].values, bool if VARIABLES[name].dtype.kind == "b" else float
        if VARIABLES[name].place == "results":
            results[name] = values.astype(dtype) if values.ndim else values.item()
        elif dtype is float or values.any():
            atoms.set_array(name, values, dtype, values.shape[1:])
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def take(ds: xr.Dataset, rows: Sequence[int] | np.ndarray) -> xr.Dataset:
    """Return some structures of a dataset, in a given order, with a new ragged index.

    Parameters
    ----------
    ds
        In memory or lazy; what is lazy stays so.
    rows
        Positions on the ``structure`` axis; negative counts from the end. A mask is refused.

    Raises
    ------
    TypeError
        If `rows` is a mask.
    IndexError
        If there is no such structure.

    Examples
    --------
    >>> from ase.build import molecule
    >>> ds = from_atoms([molecule("H2O"), molecule("CO2"), molecule("CH4")])
    >>> take(ds, [2, 0])["atom_start"].values.tolist()
    [0, 5]
    """
    rows = np.asarray(rows)
    if rows.dtype == bool:
        raise TypeError("rows must be indices, received a mask; give numpy.flatnonzero(mask)")
    rows = rows.astype(np.int64)
    n_atoms = ds["n_atoms"].values[rows]
    out = ds.isel(structure=rows)
    if "atom" in ds.dims:
        out = out.isel(atom=atom_rows(ds["atom_start"].values[rows], n_atoms))
    return out.assign(atom_start=("structure", atom_starts(n_atoms)))


def concat(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join datasets in memory along both axes; a variable that one of them lacks is filled as in `from_atoms`.

    Examples
    --------
    >>> from ase.build import molecule
    >>> ds = concat([from_atoms([molecule("H2O")]), from_atoms([molecule("CO2")])])
    >>> ds["atom_start"].values.tolist()
    [0, 3]
    """
    import xarray as xr

    names = {str(name) for ds in datasets for name in ds.data_vars} - {"atom_start"}
    columns = {}
    for name in sorted(names):
        shape = next(ds[name].shape[1:] for ds in datasets if name in ds)
        parts = [
            ds[name].values if name in ds else missing_values(name, (_count_rows(ds, name), *shape)) for ds in datasets
        ]
        columns[name] = (VARIABLES[name].dims, np.concatenate(parts))
    ds = xr.Dataset(columns)
    return ds.assign(atom_start=("structure", atom_starts(ds["n_atoms"].values)))


def atom_starts(n_atoms: np.ndarray) -> np.ndarray:
    """Return the row of the first atom of each structure, shape (structure,), dtype int64."""
    return np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)])[:-1].astype(np.int64)


def atom_rows(start: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Return the rows of the atoms of structures, one structure after the other, dtype int64.

    Parameters
    ----------
    start, n_atoms
        Row of the first atom, and number of atoms, of each structure; shape (structure,).
    """
    return np.repeat(start - atom_starts(n_atoms), n_atoms) + np.arange(int(n_atoms.sum()))


def cut_blocks(n_atoms: np.ndarray, max_atoms: int, max_structures: int) -> list[slice]:
    """Cut structures into blocks of as many as the limits allow, but at least one.

    Examples
    --------
    >>> cut_blocks(np.array([4, 4, 9, 1]), max_atoms=8, max_structures=10)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    ends = np.cumsum(n_atoms, dtype=np.int64)
    blocks, first = [], 0
    while first < len(n_atoms):
        stop = int(np.searchsorted(ends, ends[first] - n_atoms[first] + max_atoms, side="right"))
        stop = max(first + 1, min(stop, first + max_structures))
        blocks.append(slice(first, stop))
        first = stop
    return blocks


def hex_ids(ds: xr.Dataset) -> list[str]:
    """Return the structure ids of a dataset in hex."""
    return [item.tobytes().hex() for item in ds["structure_id"].values]


def _join_atoms(rows: Sequence[Any], name: str) -> np.ndarray:
    """Return the column of a variable with one row an atom, from its arrays of each structure."""
    variable = VARIABLES[name]
    if rows:
        return np.concatenate([np.asarray(row) for row in rows]).astype(variable.dtype)
    return np.zeros((0, *(SIZES[dim] for dim in variable.dims[1:])), dtype=variable.dtype)


def _stack_rows(rows: Sequence[Any], name: str) -> np.ndarray:
    """Return the column of a variable with one row a structure, from its arrays of each structure."""
    variable = VARIABLES[name]
    shape = tuple(SIZES[dim] for dim in variable.dims[1:])
    return np.array([np.asarray(row) for row in rows], dtype=variable.dtype).reshape(len(rows), *shape)


def _missing_row(name: str, n_atoms: int) -> np.ndarray:
    """Return what stands for a variable that one structure lacks."""
    first, *rest = VARIABLES[name].dims
    return missing_values(name, ((n_atoms,) if first == "atom" else ()) + tuple(SIZES[dim] for dim in rest))


def _fill_column(name: str, values: list[Any]) -> np.ndarray:
    """Return the column of a variable of ``atoms.info``; None stands for "not given"."""
    variable = VARIABLES[name]
    shape = next((np.shape(value) for value in values if value is not None), ()) if variable.dims[1:] else ()
    fill = missing_values(name, shape)
    filled = [(fill if shape else fill.item()) if value is None else value for value in values]
    return np.array([str(value) for value in filled]) if variable.coded else np.array(filled, dtype=variable.dtype)


def _count_rows(ds: xr.Dataset, name: str) -> int:
    return int(ds["n_atoms"].values.sum()) if is_per_atom(name) else ds.sizes["structure"]


def _plain_value(column: xr.DataArray, cell: xr.DataArray) -> Any:
    """Return one value of a variable as ``atoms.info`` holds it: a word, bytes, a number or an array."""
    variable = VARIABLES[str(column.name)]
    if variable.coded:
        return str(decode_names(cell.expand_dims("structure").assign_attrs(column.attrs))[0])
    if variable.dtype.kind == "V":
        return cell.values.tobytes()
    return cell.values if cell.ndim else cell.values.item()
