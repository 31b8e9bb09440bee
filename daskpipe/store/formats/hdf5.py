"""Write and read flat arrays in one HDF5 file, for programs that read neither Zarr nor xarray.

Arrays have the names, dtypes and units of `daskpipe.core.variables`. The atoms of all structures are concatenated;
those of structure ``i`` are rows ``atom_ptr[i]:atom_ptr[i + 1]``. Where all structures have the same number of atoms,
as in sets made for distillation, ``positions[:].reshape(n_structures, -1, 3)`` is the usual (structure, atom, xyz).
Coded variables hold integers whose words are in the attribute ``flag_meanings``; ids are text of 32 hex digits after
``0x``. The attributes of the file describe all this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.variables import VARIABLES
from daskpipe.store.formats import ATOM_FACTS, GEOMETRY, LABELS, SCALARS, VECTORS, Record, iter_records

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".h5"
READER = "h5py"
FIELDS = (*GEOMETRY, *LABELS, *ATOM_FACTS, "fixed", *VECTORS, *(name for name in SCALARS if name != "energy"))
MAX_STRUCTURES = 65_536

PTR = "atom_ptr"
LAYOUT = (
    "Flat arrays. Atoms of structure i are rows atom_ptr[i]:atom_ptr[i + 1] of the arrays with the dimension 'atom'; "
    "the other arrays have one row a structure. NaN: not known. Integers with the attribute flag_meanings are codes."
)


def check_name(out: Path) -> None:
    """Accept any name."""


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write the variables of a block as arrays."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["title"] = "Labelled atomic structures, written by daskpipe"
        file.attrs["layout"] = LAYOUT
        file.attrs["units"] = "eV, angstrom, eV/angstrom, eV/angstrom^3 (stress positive under tension)"
        file.attrs["voigt"] = "xx yy zz yz xz xy"
        if "isolated_atom_energies" in block.attrs:
            file.attrs["isolated_atom_energies"] = block.attrs["isolated_atom_energies"]
        ends = np.cumsum(block["n_atoms"].values, dtype=np.int64)
        file[PTR] = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        file[PTR].attrs["long_name"] = "Row of the first atom of each structure, and the number of atoms at the end"
        for name in sorted(map(str, block.data_vars)):
            if name != "atom_start":
                _write_array(file, block[name])


def _write_array(file: Any, array: xr.DataArray) -> None:
    """Write a variable with its attributes; ids become text."""
    values = array.values
    if values.dtype.kind == "V":
        values = np.array([f"0x{item.tobytes().hex()}" for item in values], dtype="S34")
    stored = file.create_dataset(str(array.name), data=values)
    stored.attrs["dimensions"] = " ".join(map(str, array.dims))
    stored.attrs.update({key: value for key, value in array.attrs.items() if isinstance(value, str | list)})


def read_part(path: Path) -> Iterator[Record]:
    """Yield the structures of a file."""
    import h5py
    import xarray as xr

    with h5py.File(path) as file:
        columns = {name: (file[name][:], dict(file[name].attrs)) for name in file if name != PTR}
        ptr = file[PTR][:]
    for name, (values, attrs) in columns.items():
        if VARIABLES[name].dtype.kind == "V":
            raw = b"".join(bytes.fromhex(item[2:].decode()) for item in values)
            columns[name] = (np.frombuffer(raw, dtype=VARIABLES[name].dtype), attrs)
    arrays = {name: (VARIABLES[name].dims, *column) for name, column in columns.items()}
    ds = xr.Dataset(arrays).assign(atom_start=("structure", ptr[:-1]), n_atoms=("structure", np.diff(ptr)))
    yield from iter_records(ds)


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Copy the parts one after another into arrays of the full length."""
    import h5py

    lengths: dict[str, int] = {}
    for part in parts:
        with h5py.File(part) as source:
            for name in source:
                lengths[name] = lengths.get(name, 0) + len(source[name]) - (name == PTR)
    done = dict.fromkeys(lengths, 0)
    with h5py.File(out, "w") as file:
        for part in parts:
            with h5py.File(part) as source:
                if part == parts[0]:
                    file.attrs.update(source.attrs)
                    for name in source:
                        shape = (lengths[name] + (name == PTR), *source[name].shape[1:])
                        file.create_dataset(name, shape=shape, dtype=source[name].dtype).attrs.update(
                            source[name].attrs
                        )
                    file[PTR][0] = 0
                before = int(file[PTR][done[PTR]])
                for name in source:
                    values = source[name][1:] + before if name == PTR else source[name][:]
                    first = done[name] + (name == PTR)
                    file[name][first : first + len(values)] = values
                    done[name] += len(values)
        file.attrs["n_structures"], file.attrs["n_atoms"] = lengths[PTR], lengths["numbers"]


def count_structures(out: Path) -> int:
    """Return the length of a per-structure array."""
    import h5py

    with h5py.File(out) as file:
        return len(file["energy"] if "energy" in file else file["n_atoms"])
