"""Recognise isolated atoms, and read reference energies from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.geometry import cell_widths, complete_open_axes

if TYPE_CHECKING:
    from ase import Atoms

CONFIG_TYPE = "IsolatedAtom"
"""MACE's name for the configuration of an isolated atom."""

FAR = 8.0
"""Distance, Å, from which an atom is isolated from its periodic images: twice the longest bond of any solid."""

SINGULAR = 1e-9
"""Volume, Å^3, below which a cell spans nothing."""

type ReferenceEnergies = dict[str, dict[str, float]]
"""Energy of an isolated atom, eV, by head and symbol."""


def is_isolated(atoms: Atoms) -> bool:
    """Return whether a structure is one atom that its source calls isolated, or that is `FAR` from all its images."""
    columns = {
        "n_atoms": np.array([len(atoms)]),
        "cell": atoms.cell.array[None],
        "pbc": atoms.pbc[None],
        "config_type": np.array([str(atoms.info.get("config_type", ""))]),
    }
    return bool(isolated_rows(columns)[0])


def isolated_rows(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a mask of the structures of a dataset that are isolated atoms; see `is_isolated`.

    Parameters
    ----------
    columns
        ``n_atoms``, ``cell``, ``pbc`` and, where the dataset has it, ``config_type`` as words.

    Returns
    -------
    numpy.ndarray
        bool, shape (structure,).
    """
    isolated = columns["n_atoms"] == 1
    rows = np.flatnonzero(isolated)
    cells, pbc = columns["cell"][rows].astype(np.float64), columns["pbc"][rows]
    for row in np.flatnonzero(pbc.any(axis=1) & ~pbc.all(axis=1)).tolist():
        cells[row] = complete_open_axes(cells[row], pbc[row])
    # Without periodic directions no width counts; a cell that spans nothing is not wide.
    cells[~pbc.any(axis=1) | (np.abs(np.linalg.det(cells)) < SINGULAR)] = np.eye(3)
    # Widths of all cells at once: there may be a million primitive cells of one atom.
    far = (np.where(pbc, cell_widths(cells), np.inf) >= FAR).all(axis=1)
    if "config_type" in columns:
        far |= columns["config_type"][rows] == CONFIG_TYPE
    isolated[rows] = far
    return np.asarray(isolated)


def reference_rows(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a mask of the structures that are reference data, which stay in train: isolated atoms, and those marked.

    Parameters
    ----------
    columns
        As for `isolated_rows`, and ``reference`` where the dataset has it.
    """
    return isolated_rows(columns) | columns.get("reference", np.zeros(len(columns["n_atoms"]), dtype=np.bool_))


def reference_energies(columns: Mapping[str, np.ndarray], isolated: np.ndarray) -> ReferenceEnergies:
    """Return the energies of the isolated atoms of a dataset.

    Parameters
    ----------
    columns
        ``energy`` (eV), ``charge`` (e) and, where the dataset has it, ``head`` as words, one row a structure;
        ``number``, the atomic number of the first atom of each.
    isolated
        From `isolated_rows`.

    Returns
    -------
    dict
        By head (``Default`` without one) and symbol, sorted. Ions are left out; of several spin states of an
        element the one of lowest energy counts.
    """
    from ase.data import chemical_symbols

    energies_of: ReferenceEnergies = {}
    if "energy" not in columns:
        return energies_of
    for row in np.flatnonzero(isolated & (columns["charge"] == 0) & np.isfinite(columns["energy"])).tolist():
        head = str(columns["head"][row]) if "head" in columns else "Default"
        symbol, energy = chemical_symbols[int(columns["number"][row])], float(columns["energy"][row])
        of_head = energies_of.setdefault(head, {})
        of_head[symbol] = min(energy, of_head.get(symbol, energy))
    return {head: dict(sorted(energies.items())) for head, energies in sorted(energies_of.items())}
