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

type ReferenceEnergies = dict[str, dict[str, float]]
"""Energy of an isolated atom, eV, by head and symbol."""


def is_isolated(atoms: Atoms) -> bool:
    """Return whether a structure is one atom that its source calls isolated, or that is `FAR` from all its images."""
    if len(atoms) != 1:
        return False
    called_isolated = atoms.info.get("config_type") == CONFIG_TYPE
    return called_isolated or _images_are_far(atoms.cell.array, atoms.pbc)


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
    rows = np.flatnonzero(columns["n_atoms"] == 1)
    cell, pbc = columns["cell"][rows], columns["pbc"][rows]
    far = ~pbc.any(axis=1)
    whole = pbc.all(axis=1)
    # Widths of all cells at once: there may be a million primitive cells of one atom.
    far[whole] = (1 / np.linalg.norm(np.linalg.inv(cell[whole]), axis=1)).min(axis=1, initial=np.inf) >= FAR
    for row in np.flatnonzero(~whole & ~far).tolist():
        far[row] = _images_are_far(cell[row], pbc[row])
    if "config_type" in columns:
        far |= columns["config_type"][rows] == CONFIG_TYPE
    isolated = np.zeros(len(columns["n_atoms"]), dtype=np.bool_)
    isolated[rows] = far
    return isolated


def _images_are_far(cell: np.ndarray, pbc: np.ndarray) -> bool:
    return not pbc.any() or bool(cell_widths(complete_open_axes(cell, pbc))[pbc].min() >= FAR)


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
