"""Copy a dataset into a format of other programs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskpipe.errors import ConfigError, InputError, unknown
from daskpipe.store.reader import open_dataset
from daskpipe.structures import NO_PARENT
from daskpipe.variables import decode

if TYPE_CHECKING:
    import xarray as xr

FORMATS = ("extxyz",)

BLOCK_ATOMS = 2**20
BLOCK_STRUCTURES = 65_536
"""What is in memory at once: about one chunk of each array."""

CODED = ("system_type", "generator", "label_method", "split")
VOIGT_TO_FULL = (0, 5, 4, 5, 1, 3, 4, 3, 2)


def export(
    path: Path | str, to: Literal["extxyz"], out: Path | str, *, split: str | None = None, force: bool = False
) -> int:
    """Write the structures of a dataset to a file, in its order.

    ``extxyz`` carries each label twice: ``energy``, ``forces``, ``stress``, which `ase.io.read` puts into a calculator,
    and ``REF_energy``, ``REF_forces``, ``REF_stress``, the keys that ``mace_run_train --train_file`` looks for by
    default. ASE (since 3.23) moves the plain names out of ``info`` and ``arrays``, where MACE then finds nothing, so
    one set cannot serve both. ``total_charge`` and ``total_spin`` (2S + 1) are MACE's names as well. Ids start with
    ``0x``, without which a reader takes some of them for numbers.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    to
        The format.
    out
        File to write. It appears when it is complete.
    split
        Write the structures of this split only.
    force
        Replace `out` if it exists.

    Returns
    -------
    int
        How many structures were written.

    Raises
    ------
    ConfigError
        If the format or the split is unknown, or `out` exists and `force` is not given.
    InputError
        If `path` is no dataset, or has no structure of that split.
    """
    if to not in FORMATS:
        raise ConfigError(unknown("export format", to, list(FORMATS)))
    out = Path(out)
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; give another name, or --force to replace it")
    ds = open_dataset(path)
    rows = _rows_of(ds, split)
    temporary = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as stream:
            for frame in _frames(ds, rows):
                stream.write(frame)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return int(rows.sum())


def _rows_of(ds: xr.Dataset, split: str | None) -> np.ndarray:
    """Which structures to write, shape (structure,), dtype bool."""
    if split is None:
        rows = np.ones(ds.sizes["structure"], dtype=bool)
    else:
        names = str(ds["split"].attrs["flag_meanings"]).split() if "split" in ds else []
        if split not in names:
            raise ConfigError(unknown("split", split, names))
        rows = ds["split"].values == names.index(split)
    if not rows.any():
        raise InputError(f"the dataset has no structure{f' of split {split!r}' if split else ''}; nothing to export")
    return rows


def _frames(ds: xr.Dataset, wanted: np.ndarray) -> Iterator[str]:
    n_atoms, atom_start = ds["n_atoms"].values, ds["atom_start"].values
    stop_atom = atom_start + n_atoms
    first, last = 0, len(n_atoms)
    while first < last:
        # As many rows as the limits allow, but at least one.
        stop = int(np.searchsorted(stop_atom, atom_start[first] + BLOCK_ATOMS, side="right"))
        stop = max(first + 1, min(stop, first + BLOCK_STRUCTURES))
        if wanted[first:stop].any():
            atoms = slice(int(atom_start[first]), int(stop_atom[stop - 1]))
            block = ds.isel(structure=slice(first, stop), atom=atoms).load()
            columns = {str(name): array.values for name, array in block.data_vars.items()}
            columns |= {name: decode(block[name]) for name in CODED if name in block}
            columns["atom_start"] = columns["atom_start"] - atoms.start
            for row in np.flatnonzero(wanted[first:stop]):
                yield _extxyz(columns, int(row))
        first = stop


def _extxyz(columns: dict[str, np.ndarray], row: int) -> str:
    """One frame. Numbers are printed so that they read back as the stored ones, bit for bit."""
    from ase.data import chemical_symbols
    from ase.io.extxyz import key_val_dict_to_str

    atoms = slice(start := int(columns["atom_start"][row]), start + int(columns["n_atoms"][row]))
    table = [columns["positions"][atoms]]
    properties = "species:S:1:pos:R:3"
    info: dict[str, Any] = {}
    if (cell := columns["cell"][row]).any():
        info["Lattice"] = cell.T  # the writer flattens it column by column
    if "forces" in columns and not np.isnan(forces := columns["forces"][atoms]).any():
        table += [forces, forces]
        properties += ":forces:R:3:REF_forces:R:3"
    info |= {"Properties": properties, "pbc": columns["pbc"][row]}
    if "energy" in columns and not np.isnan(energy := columns["energy"][row]):
        info |= {"energy": float(energy), "REF_energy": float(energy)}
    if "stress" in columns and not np.isnan(stress := columns["stress"][row]).any():
        full = stress[list(VOIGT_TO_FULL)]
        info |= {"stress": full.reshape(3, 3), "REF_stress": full}
    info["structure_id"] = f"0x{columns['structure_id'][row].tobytes().hex()}"
    if "parent_id" in columns and (parent := columns["parent_id"][row].tobytes()) != NO_PARENT:
        info["parent_id"] = f"0x{parent.hex()}"
    info |= {name: str(columns[name][row]) for name in CODED if name in columns}
    if "charge" in columns:
        info |= {"charge": int(columns["charge"][row]), "total_charge": int(columns["charge"][row])}
    if "spin_multiplicity" in columns:
        spin = int(columns["spin_multiplicity"][row])
        info |= {"spin_multiplicity": spin, "total_spin": spin}
    numbers = columns["numbers"][atoms]
    values = np.concatenate(table, axis=1)
    line = "%s" + f" %.{9 if values.dtype == np.float32 else 17}g" * values.shape[1]
    comment: str = key_val_dict_to_str(info)
    body = "\n".join(line % (chemical_symbols[z], *xyz) for z, xyz in zip(numbers, values.tolist(), strict=True))
    return f"{len(numbers)}\n{comment}\n{body}\n"
