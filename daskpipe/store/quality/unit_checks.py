"""Compare energies with the work of forces, and name the units that explain their ratio."""

from __future__ import annotations

import numpy as np

from daskpipe.core.constants import BOHR, HARTREE, KCAL_PER_MOL, KJ_PER_MOL, RYDBERG

TIGHT = 1.3
"""Factor by which energies and forces may disagree where pairs determine it precisely; the closest of `RATIOS` is
1.89."""

SIGMAS = 3.0
"""Half the width of `slope_range`, in standard errors."""

SAME_RATIO = 0.15
"""Relative difference from a known ratio up to which it is named."""

RATIOS = {
    "energies and forces in one unit of energy, and forces per bohr (Hartree and Hartree/bohr)": 1 / BOHR,
    "positions in bohr, and forces per Å": BOHR,
    "energies in Hartree and forces in eV/Å": 1 / HARTREE,
    "energies in eV and forces in Hartree/bohr": HARTREE / BOHR,
    "energies in eV and forces in Hartree/Å": HARTREE,
    "energies in Rydberg and forces in eV/Å": 1 / RYDBERG,
    "energies in eV and forces in Rydberg/bohr": RYDBERG / BOHR,
    "energies in kcal/mol and forces in eV/Å": 1 / KCAL_PER_MOL,
    "energies in eV and forces in kcal/mol/Å": KCAL_PER_MOL,
    "energies in kJ/mol and forces in eV/Å": 1 / KJ_PER_MOL,
    "energies in eV and forces in kJ/mol/Å": KJ_PER_MOL,
    "energies in kJ/mol and forces in kcal/mol/Å": KCAL_PER_MOL / KJ_PER_MOL,
    "energies in kcal/mol and forces in kJ/mol/Å": KJ_PER_MOL / KCAL_PER_MOL,
    "energies in kcal/mol and forces in Hartree/bohr": HARTREE / BOHR / KCAL_PER_MOL,
    "energies in Hartree and forces in kcal/mol/Å": KCAL_PER_MOL / HARTREE,
    "energies in meV and forces in eV/Å": 1e3,
    "energies in eV and forces in meV/Å": 1e-3,
}
"""Change of the energy over the work of the forces, in the numbers of a file, by the units that cause it."""


def slope_range(difference: np.ndarray, work: np.ndarray) -> tuple[float, float, float]:
    """Estimate the ratio of energy differences to work: smallest plausible value, median, and largest.

    A least absolute deviations fit of the difference to the work is the median of their ratios, weighted by the work;
    it is too small where the pairs are noisy. The fit of the work to the difference, weighted by the difference, is
    too large. The range covers both, each with `SIGMAS` standard errors of a weighted median (as of a sign test). It
    is wide, and tells nothing, where the pairs are few or far apart.

    Parameters
    ----------
    difference, work
        eV, not 0; shape (pair,).

    Returns
    -------
    low, middle, high : float
        Of the ratio.

    Examples
    --------
    >>> slope_range(np.full(40, 0.2), np.full(40, 0.1))
    (2.0, 2.0, 2.0)
    """
    ratio = difference / work
    order = np.argsort(ratio, kind="stable")
    low: list[float] = []
    middles: list[float] = []
    high: list[float] = []
    for weight in (np.abs(work[order]), np.abs(difference[order])):
        share = np.cumsum(weight) / weight.sum()
        half = SIGMAS * 0.5 * float(np.sqrt((weight**2).sum())) / float(weight.sum())
        places = np.searchsorted(share, np.clip([0.5 - half, 0.5, 0.5 + half], 0, 1))
        of_weight = ratio[order][np.minimum(places, len(ratio) - 1)].tolist()
        for values, value in zip((low, middles, high), of_weight, strict=True):
            values.append(value)
    return min(low), float(np.median(middles)), max(high)


def name_ratio(ratio: float) -> str | None:
    """Name the units that give a ratio of energy differences to work; None if no known ones do.

    Examples
    --------
    >>> name_ratio(27.2)
    'energies in eV and forces in Hartree/Å'
    >>> name_ratio(1.0) is None
    True
    """
    if ratio <= 0:
        return None
    name = min(RATIOS, key=lambda words: abs(np.log(ratio / RATIOS[words])))
    return name if abs(ratio / RATIOS[name] - 1) <= SAME_RATIO else None
