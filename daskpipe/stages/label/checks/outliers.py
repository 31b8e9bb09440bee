"""Find labels that are far from the others: energies from a sum over the elements, forces from a percentile."""

from __future__ import annotations

import numpy as np

from daskpipe.core.robust import estimate_deviation, fit_least_absolute
from daskpipe.stages.label.settings import EnergyOutliers, ForceOutliers

OK, OUTLIER = "ok", "outlier"

FEW = 10
"""Fewest labels for which outliers mean anything."""


def find_energy_outliers(energy: np.ndarray, counts: np.ndarray, settings: EnergyOutliers) -> np.ndarray:
    """Find energies that are far from a sum of energies of the elements.

    The energies of the elements are fitted to the energies per atom by least absolute deviations.

    Parameters
    ----------
    energy
        Shape (structure,), eV.
    counts
        Atoms of each element, shape (structure, element).
    settings
        What is an outlier.

    Returns
    -------
    numpy.ndarray
        Shape (structure,), bool.
    """
    rest = remove_elements(energy, counts)
    limit = settings.deviations * estimate_deviation(rest, settings.min_deviation)
    return np.asarray(np.abs(rest - np.median(rest)) > limit)


def remove_elements(energy: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the energies per atom without the fitted energies of the elements, eV, shape (structure,)."""
    n_atoms = counts.sum(axis=1)
    fractions, per_atom = counts / n_atoms[:, None], energy / n_atoms
    return np.asarray(per_atom - fractions @ fit_least_absolute(fractions, per_atom))


def find_force_outliers(largest: np.ndarray, settings: ForceOutliers) -> np.ndarray:
    """Find structures whose largest force is far above a percentile of those of all.

    Parameters
    ----------
    largest
        Largest force of each structure, shape (structure,), eV/Å.
    settings
        Percentile, and factor.

    Returns
    -------
    numpy.ndarray
        Shape (structure,), bool.

    Examples
    --------
    >>> find_force_outliers(np.array([1.0] * 19 + [40.0]), ForceOutliers(percentile=90)).nonzero()[0].tolist()
    [19]
    """
    limit = max(settings.factor * float(np.percentile(largest, settings.percentile)), settings.least)
    return np.asarray(largest > limit)
