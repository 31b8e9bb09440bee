"""Arrange the elements on the sites of an alloy: quasirandom, or with short-range order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms

REACH = 2.0
"""Distance up to which neighbours count, in units of the cube root of the volume of an atom: three shells at least."""

SHELL_TOLERANCE = 0.02
"""Relative difference of distances below which neighbours belong to the same shell."""

SWAPS_PER_ATOM = 40
MAX_SWAPS = 4000

ENOUGH = 1e-4
"""Sum of squared deviations of order parameters at which no further swap is tried."""


class Shell(NamedTuple):
    """Neighbours at one distance, each pair in both directions, with all periodic images: arrays of shape (pair,)."""

    first: np.ndarray
    second: np.ndarray


def list_shells(atoms: Atoms, n_shells: int) -> list[Shell]:
    """Return the first shells of neighbours of a lattice, before it is strained.

    All images count, so that cells smaller than a shell are right as well.
    """
    from ase.neighborlist import neighbor_list

    cutoff = REACH * (atoms.get_volume() / len(atoms)) ** (1 / 3)
    first, second, distance = neighbor_list("ijd", atoms, cutoff)
    edges = np.unique(distance)
    starts = edges[np.concatenate([[True], np.diff(edges) > SHELL_TOLERANCE * edges[:-1]])]
    number = np.searchsorted(starts * (1 - SHELL_TOLERANCE / 2), distance, side="right") - 1
    return [Shell(first[number == shell], second[number == shell]) for shell in range(min(n_shells, len(starts)))]


def order_parameters(numbers: np.ndarray, shell: Shell) -> np.ndarray:
    """Return the Warren-Cowley parameters of a shell (Cowley, Phys. Rev. 77, 669, 1950).

    Parameters
    ----------
    numbers
        Atomic numbers, shape (atom,).
    shell
        Neighbours.

    Returns
    -------
    numpy.ndarray
        One minus the number of pairs over that of a random alloy, shape (element, element), elements by atomic number:
        0 for a random alloy, below 0 for pairs that occur more often.

    Examples
    --------
    >>> from ase.build import bulk
    >>> ordered = bulk("CuZn", "cesiumchloride", a=2.95)
    >>> order_parameters(ordered.numbers, list_shells(ordered, 1)[0])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    kinds, codes = np.unique(numbers, return_inverse=True)
    n = len(kinds)
    pairs = np.bincount(codes[shell.first] * n + codes[shell.second], minlength=n * n).reshape(n, n)
    fractions = np.bincount(codes) / len(numbers)
    return np.asarray(1 - pairs / (len(shell.first) * np.outer(fractions, fractions)))


def arrange_elements(rng: np.random.Generator, atoms: Atoms, targets: list[float]) -> None:
    """Swap atoms, in place, until the order parameters of all unlike pairs come near to targets.

    Swaps that do not raise the sum of squared deviations are kept, up to `MAX_SWAPS`. A target beyond what the lattice
    and the composition allow is approached as far as that goes.

    Parameters
    ----------
    rng
        The structure's stream.
    atoms
        A lattice before it is strained.
    targets
        Order parameter of each shell, from the nearest on; all 0 for a quasirandom structure (Zunger et al., Phys.
        Rev. Lett. 65, 353, 1990).
    """
    numbers = atoms.numbers
    if len(np.unique(numbers)) < 2:
        return
    shells = list_shells(atoms, len(targets))

    def deviation() -> float:
        total = 0.0
        for rank, (shell, target) in enumerate(zip(shells, targets, strict=False), 1):
            parameters = order_parameters(numbers, shell)
            unlike = parameters[np.triu_indices(len(parameters), 1)]
            total += float(((unlike - target) ** 2).mean()) / rank
        return total

    best = deviation()
    for _ in range(min(SWAPS_PER_ATOM * len(atoms), MAX_SWAPS)):
        if best < ENOUGH:
            return
        i, j = rng.integers(len(atoms), size=2)
        if numbers[i] == numbers[j]:
            continue
        numbers[[i, j]] = numbers[[j, i]]
        changed = deviation()
        if changed <= best:
            best = changed
        else:
            numbers[[i, j]] = numbers[[j, i]]
