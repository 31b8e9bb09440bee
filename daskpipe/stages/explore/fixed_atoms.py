"""Fixed atoms in dynamics: free Cartesian components and degrees of freedom of a system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


def free_components(atoms: Atoms) -> np.ndarray:
    """Return the Cartesian components of atoms that may move (`daskpipe.core.constraints`), bool, shape (atom, 3)."""
    fixed = atoms.arrays.get("fixed")
    return np.ones((len(atoms), 3), dtype=bool) if fixed is None else ~fixed


def count_degrees_of_freedom(free: np.ndarray) -> int:
    """Count degrees of freedom.

    The centre of mass rests along each axis on which no atom is fixed, which takes one; a single atom keeps its three.

    Parameters
    ----------
    free
        From `free_components`.
    """
    n_free = int(free.sum())
    return n_free if len(free) == 1 else n_free - int(free.all(axis=0).sum())


def without_drift(momenta: np.ndarray, masses: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Set the momenta of fixed components, and of the centre of mass along axes without fixed atoms, to zero.

    Parameters
    ----------
    momenta
        Shape (..., atom, 3).
    masses
        amu, shape (atom,).
    free
        From `free_components`. A single atom keeps its momentum.
    """
    momenta = momenta * free
    if len(masses) == 1:
        return momenta
    drift = momenta.sum(axis=-2, keepdims=True) / masses.sum()
    return momenta - masses[:, None] * np.where(free.all(axis=0), drift, 0.0)
