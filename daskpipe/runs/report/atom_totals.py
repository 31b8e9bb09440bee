"""Add up properties of all atoms of a dataset, streamed in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.structures import cut_blocks
from daskpipe.runs.report.measures import FORCE_EDGES

if TYPE_CHECKING:
    import xarray as xr

BLOCK_ATOMS = 2**20
"""Atoms of a block of the arrays that is in memory at once."""

BLOCK_STRUCTURES = 16_384
"""Most structures of a block."""

N_ELEMENTS = 119
"""Atomic numbers, 0 included."""


@dataclass(frozen=True, kw_only=True)
class AtomTotals:
    """Sums over the atoms of a dataset.

    Parameters
    ----------
    elements, holders
        Number of atoms, and of structures that contain the element, by atomic number.
    forces, forces_of_elements
        Counts over `FORCE_EDGES`, shape (kind, bin) and (atomic number, bin).
    force_low, force_high, force_squares
        Smallest and largest norm of a force, eV/Å, and the sum of squares, by kind of system; without forces the
        smallest is infinite.
    n_forces
        Atoms with a force by kind of system.
    fit
        Energy of an atom of each element, eV, by least squares to the energies per atom.
    """

    elements: np.ndarray
    holders: np.ndarray
    forces: np.ndarray
    forces_of_elements: np.ndarray
    force_low: np.ndarray
    force_high: np.ndarray
    force_squares: np.ndarray
    n_forces: np.ndarray
    fit: np.ndarray

    @property
    def force_extremes(self) -> tuple[float, float]:
        """Smallest and largest norm of all forces, eV/Å."""
        return float(self.force_low.min(initial=np.inf)), float(self.force_high.max(initial=0.0))


def add_up_atoms(ds: xr.Dataset, names: Sequence[str], kind: np.ndarray) -> AtomTotals:
    """Stream the atoms once and add up what the page shows of them.

    Parameters
    ----------
    ds
        The dataset.
    names, kind
        Names of the kinds of system, and the kind of each structure, shape (structure,).
    """
    elements, holders = np.zeros(N_ELEMENTS, np.int64), np.zeros(N_ELEMENTS, np.int64)
    n_bins = len(FORCE_EDGES) - 1
    forces = np.zeros((len(names), n_bins), np.int64)
    forces_of_elements = np.zeros((N_ELEMENTS, n_bins), np.int64)
    low, high = np.full(len(names), np.inf), np.zeros(len(names))
    squares, n_forces = np.zeros(len(names)), np.zeros(len(names), np.int64)
    products, moments = np.zeros((N_ELEMENTS, N_ELEMENTS)), np.zeros(N_ELEMENTS)
    wanted = ["numbers", "n_atoms", *(name for name in ("energy", "forces") if name in ds)]
    for rows, block in read_blocks(ds, wanted):
        shares = _compute_shares(block["numbers"], block["n_atoms"])
        elements += np.bincount(block["numbers"], minlength=N_ELEMENTS)
        holders += (shares > 0).sum(axis=0)
        if "energy" in block:
            known = np.isfinite(block["energy"])
            products += shares[known].T @ shares[known]
            moments += shares[known].T @ (block["energy"] / block["n_atoms"])[known]
        if "forces" in block:
            norm = np.linalg.norm(block["forces"].astype(np.float64), axis=1)
            known = np.isfinite(norm)
            norm, numbers = norm[known], block["numbers"][known]
            kinds = np.repeat(kind[rows], block["n_atoms"])[known]
            place = np.clip(np.searchsorted(FORCE_EDGES, norm, side="right") - 1, 0, n_bins - 1)
            np.add.at(forces, (kinds, place), 1)
            np.add.at(forces_of_elements, (numbers, place), 1)
            np.minimum.at(low, kinds, norm)
            np.maximum.at(high, kinds, norm)
            squares += np.bincount(kinds, norm**2, minlength=len(names))
            n_forces += np.bincount(kinds, minlength=len(names))
    return AtomTotals(
        elements=elements,
        holders=holders,
        forces=forces,
        forces_of_elements=forces_of_elements,
        force_low=low,
        force_high=high,
        force_squares=squares,
        n_forces=n_forces,
        fit=np.linalg.lstsq(products, moments, rcond=1e-12)[0],
    )


def read_blocks(ds: xr.Dataset, names: Sequence[str]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Yield some variables, among them at least one per atom, in blocks of whole structures: rows and arrays."""
    n_atoms = ds["n_atoms"].values
    bounds = np.append(0, np.cumsum(n_atoms, dtype=np.int64))
    for rows in cut_blocks(n_atoms, BLOCK_ATOMS, BLOCK_STRUCTURES):
        atoms = slice(int(bounds[rows.start]), int(bounds[rows.stop]))
        block = ds[list(names)].isel(structure=rows, atom=atoms).load()
        yield rows, {name: block[name].values for name in names}


def subtract_fit(ds: xr.Dataset, fit: np.ndarray) -> np.ndarray:
    """Subtract from the energies per atom what the composition explains; return eV, shape (structure,)."""
    remainders = [
        block["energy"] / block["n_atoms"] - _compute_shares(block["numbers"], block["n_atoms"]) @ fit
        for _, block in read_blocks(ds, ["numbers", "n_atoms", "energy"])
    ]
    return np.concatenate(remainders) if remainders else np.zeros(0)


def _compute_shares(numbers: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Compute the share of each element in each structure, shape (structure, atomic number)."""
    row = np.repeat(np.arange(len(n_atoms)), n_atoms)
    counts = np.bincount(row * N_ELEMENTS + numbers, minlength=len(n_atoms) * N_ELEMENTS)
    return counts.reshape(-1, N_ELEMENTS) / n_atoms[:, None]
