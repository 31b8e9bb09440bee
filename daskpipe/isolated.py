"""Isolated atoms: which structures they are, and the reference energies that they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.geometry import complete_open_axes, widths

if TYPE_CHECKING:
    from ase import Atoms

CONFIG_TYPE = "IsolatedAtom"
"""MACE's name for the configuration of an isolated atom."""

FAR = 8.0
"""Distance, Å, from which an atom and its periodic images count as isolated: twice the longest bond of any solid."""

SINGULAR = 1e-9
"""Volume, Å^3, below which a cell spans nothing."""

type ReferenceEnergies = dict[str, dict[str, float]]
"""Energy of an isolated atom, eV, by head and symbol."""


def is_isolated(atoms: Atoms) -> bool:
    """Whether a structure is one atom that its source calls isolated, or that is `FAR` from all of its images."""
    columns = {
        "n_atoms": np.array([len(atoms)]),
        "cell": atoms.cell.array[None],
        "pbc": atoms.pbc[None],
        "config_type": np.array([str(atoms.info.get("config_type", ""))]),
    }
    return bool(isolated_rows(columns)[0])


def isolated_rows(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which structures of a dataset are isolated atoms, bool, shape (structure,); see `is_isolated`.

    Parameters
    ----------
    columns
        ``n_atoms``, ``cell``, ``pbc`` and, where the dataset has it, ``config_type`` as words.
    """
    isolated = columns["n_atoms"] == 1
    rows = np.flatnonzero(isolated)
    cells, pbc = columns["cell"][rows].astype(np.float64), columns["pbc"][rows]
    for row in np.flatnonzero(pbc.any(axis=1) & ~pbc.all(axis=1)).tolist():
        cells[row] = complete_open_axes(cells[row], pbc[row])
    # Without periodic directions no width counts; a cell that spans nothing is not wide.
    cells[~pbc.any(axis=1) | (np.abs(np.linalg.det(cells)) < SINGULAR)] = np.eye(3)
    # Widths of all cells at once: there may be a million primitive cells of one atom.
    far = (np.where(pbc, widths(cells), np.inf) >= FAR).all(axis=1)
    if "config_type" in columns:
        far |= columns["config_type"][rows] == CONFIG_TYPE
    isolated[rows] = far
    return np.asarray(isolated)


def reference_energies(columns: Mapping[str, np.ndarray], isolated: np.ndarray) -> ReferenceEnergies:
    """Return the energies of the isolated atoms of a dataset.

    Parameters
    ----------
    columns
        ``energy`` (eV), ``charge`` and, where the dataset has it, ``head`` as words, one row a structure; ``number``,
        the atomic number of the first atom of each.
    isolated
        From `isolated_rows`.

    Returns
    -------
    dict
        By head (``Default`` without one) and symbol, sorted. Ions are left out, and of an element's several spin states
        the one of lowest energy counts.
    """
    from ase.data import chemical_symbols

    found: ReferenceEnergies = {}
    if "energy" not in columns:
        return found
    for row in np.flatnonzero(isolated & (columns["charge"] == 0) & np.isfinite(columns["energy"])).tolist():
        head = str(columns["head"][row]) if "head" in columns else "Default"
        symbol, energy = chemical_symbols[int(columns["number"][row])], float(columns["energy"][row])
        of_head = found.setdefault(head, {})
        of_head[symbol] = min(energy, of_head.get(symbol, energy))
    return {head: dict(sorted(energies.items())) for head, energies in sorted(found.items())}
