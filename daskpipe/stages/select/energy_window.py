"""Find frames whose energy is far above the lowest one of their composition."""

from __future__ import annotations

import numpy as np

from daskpipe.core.formulas import count_elements


def find_low_energies(energy: np.ndarray, numbers: np.ndarray, n_atoms: np.ndarray, window: float) -> np.ndarray:
    """Return a mask of the frames within an energy window above the lowest energy of their composition.

    Energies are compared an atom, and compositions as ratios: Si8 with Si2, and Ti2O4 with TiO2.

    Parameters
    ----------
    energy
        Potential energy of each frame, eV, shape (frame,); NaN is never within.
    numbers
        Atomic numbers of all frames, one after another, shape (atom,).
    n_atoms
        Atoms of each frame, shape (frame,).
    window
        Largest distance from the lowest energy, eV an atom.

    Returns
    -------
    numpy.ndarray
        Shape (frame,), bool.

    Examples
    --------
    >>> energy, numbers, n_atoms = np.array([-1.0, -1.9, -0.2]), np.array([14, 14, 14, 14]), np.array([1, 2, 1])
    >>> find_low_energies(energy, numbers, n_atoms, 0.1)
    array([ True,  True, False])
    """
    _, counts = count_elements(numbers, n_atoms)
    _, composition = np.unique(counts // np.gcd.reduce(counts, axis=1)[:, None], axis=0, return_inverse=True)
    each = energy / n_atoms
    lowest = np.full(composition.max(initial=-1) + 1, np.inf)
    known = ~np.isnan(each)
    np.minimum.at(lowest, composition[known], each[known])
    # A rounding error must not cost the lowest one itself.
    return np.asarray(each <= lowest[composition] + window + 1e-12)
