"""Write chemical formulas, and count elements."""

from __future__ import annotations

import numpy as np


def hill_formula(numbers: np.ndarray) -> str:
    """Return the chemical formula of atomic numbers in Hill order: carbon, hydrogen with it, then by the alphabet.

    Examples
    --------
    >>> hill_formula(np.array([8, 1, 6, 1]))
    'CH2O'
    """
    from ase.data import chemical_symbols

    counts = {chemical_symbols[number]: n for number, n in enumerate(np.bincount(numbers).tolist()) if n}
    first = [symbol for symbol in ("C", "H") if symbol in counts] if "C" in counts else []
    order = first + sorted(set(counts) - set(first))
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in order)


def count_elements(numbers: np.ndarray, n_atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the atoms of each element in each of several structures.

    Parameters
    ----------
    numbers
        Atomic numbers of all structures, one after another, shape (atom,).
    n_atoms
        Atoms of each structure, shape (structure,).

    Returns
    -------
    elements : numpy.ndarray
        Atomic numbers that occur, sorted.
    counts : numpy.ndarray
        Shape (structure, element), int64.

    Examples
    --------
    >>> elements, counts = count_elements(np.array([8, 1, 1, 8, 8]), np.array([3, 2]))
    >>> elements.tolist(), counts.tolist()
    ([1, 8], [[2, 1], [0, 2]])
    """
    elements, element = np.unique(numbers, return_inverse=True)
    counts = np.zeros((len(n_atoms), len(elements)), dtype=np.int64)
    np.add.at(counts, (np.repeat(np.arange(len(n_atoms)), n_atoms), element), 1)
    return elements, counts
