"""Fit lines, and estimate deviations, that outliers do not move."""

from __future__ import annotations

import numpy as np

ROUNDS = 30
"""Rounds of reweighting, after which the fit changes no more."""

LEAST = 1e-4
"""Smallest residual that a weight is made of."""

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def fit_least_absolute(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit least absolute deviations by iteratively reweighted least squares.

    Parameters
    ----------
    design, target
        Shapes (sample, parameter) and (sample,).

    Returns
    -------
    numpy.ndarray
        Shape (parameter,); of several best fits the one of smallest norm.

    Examples
    --------
    >>> x = np.arange(5.0)
    >>> fit_least_absolute(x[:, None], 2 * x + [0, 0, 0, 100, 0]).round(3).tolist()
    [2.0]
    """
    weight = np.ones(len(target))
    for _ in range(ROUNDS):
        scale = np.sqrt(weight)
        solution = np.linalg.lstsq(design * scale[:, None], target * scale, rcond=None)[0]
        weight = 1 / np.maximum(np.abs(target - design @ solution), LEAST)
    return np.asarray(solution)


def estimate_deviation(values: np.ndarray, least: float) -> float:
    """Estimate the standard deviation from the median absolute deviation.

    Parameters
    ----------
    values
        Shape (sample,), finite.
    least
        Smallest one that is assumed.

    Examples
    --------
    >>> round(estimate_deviation(np.array([-1.0, 0, 1, 0, 100]), 0.1), 2), estimate_deviation(np.ones(5), 0.1)
    (1.48, 0.1)
    """
    return max(NORMAL * float(np.median(np.abs(values - np.median(values)))), least)
