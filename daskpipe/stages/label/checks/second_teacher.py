"""Compare the labels of one teacher with those of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.robust import estimate_deviation
from daskpipe.stages.label.checks.outliers import remove_elements
from daskpipe.stages.label.settings import Agreement

if TYPE_CHECKING:
    from daskpipe.potentials import Results

OK, ENERGY, FORCES, BOTH = "ok", "energy", "forces", "energy_and_forces"
"""Outcomes: the teachers agree as usual, or not about one of them or both."""

SMALL_FORCE = 0.1
"""eV/Å that is added to forces, so that those near a minimum count for little."""

LEAST = 0.1
"""Disagreement of forces, as a share, below which nothing is wrong."""

OPPOSITE = 1.5
"""Disagreement of forces, as a share, above which they have nothing to do with each other; 2 with the wrong sign."""

MEMBERS = 5
"""Structures of one composition that are compared among themselves; with fewer, with all others."""


def compare_labels(first: Results, second: Results) -> tuple[float, np.ndarray]:
    """Return how the labels of two teachers differ.

    Parameters
    ----------
    first, second
        Results for the same structure.

    Returns
    -------
    energy : float
        Energy of the second minus that of the first, eV. Teachers count energies from different zeros, so only its
        spread over structures of the same elements means something.
    forces : numpy.ndarray
        Shape (atom, 3), float32, eV/Å: forces of the second minus those of the first.
    """
    return second.energy - first.energy, (second.forces - first.forces).astype(np.float32)


def judge_agreement(
    energy: np.ndarray, counts: np.ndarray, disagreement: np.ndarray, settings: Agreement
) -> np.ndarray:
    """Find structures about which the teachers disagree more than about the others.

    Parameters
    ----------
    energy
        Energy of the second teacher minus that of the first, shape (structure,), eV. Energies of the elements are
        fitted and taken off; the rest is compared within a composition, where that has `MEMBERS`.
    counts
        Atoms of each element, shape (structure, element).
    disagreement
        From `measure_disagreement`, shape (structure,).
    settings
        What is too much.

    Returns
    -------
    numpy.ndarray
        Words, shape (structure,): `OK`, `ENERGY`, `FORCES` or `BOTH`.
    """
    rest = remove_elements(energy, counts)
    composition = np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)
    group = np.where(np.bincount(composition)[composition] >= MEMBERS, composition, -1)
    wrong_energy = np.zeros(len(energy), dtype=np.bool_)
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        # Those of no group are few, maybe, and differ as all do.
        others = rest if number < 0 else rest[rows]
        limit = settings.deviations * estimate_deviation(others, settings.min_deviation)
        wrong_energy[rows] = np.abs(rest[rows] - np.median(others)) > limit
    wrong_forces = disagreement > max(min(settings.factor * float(np.median(disagreement)), OPPOSITE), LEAST)
    return np.array([OK, ENERGY, FORCES, BOTH])[wrong_energy + 2 * wrong_forces]


def measure_disagreement(forces: np.ndarray, difference: np.ndarray) -> float:
    """Return the difference of forces as a share of the forces, both root mean squares of shape (atom, 3), eV/Å.

    Examples
    --------
    >>> forces = np.full((2, 3), 10.0)
    >>> round(measure_disagreement(forces, -2 * forces), 2)
    2.0
    """
    return float(np.sqrt((difference**2).mean() / ((forces**2).mean() + SMALL_FORCE**2)))
