"""Weights of neighbours by their distance, with dscribe's functions, and their slopes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from daskpipe.core.accelerate import kernel

NO_FUNCTION, POLY, POW, EXP = 0, 1, 2, 3
"""dscribe's functions, as `engine.WEIGHTINGS` names them."""


class Weighting(NamedTuple):
    """Weighting function, its parameters, and the weight of an atom on the centre.

    Parameters
    ----------
    function
        One of the constants of this module.
    r0
        Å.
    c, d, m
        Parameters of dscribe's formulas; a function ignores those that it has not.
    w0
        Weight of an atom at distance 0; NaN where the function says it.
    """

    function: int
    r0: float
    c: float
    d: float
    m: float
    w0: float


@kernel
def weigh_distance(r: float, weighting: Weighting) -> float:
    """Return the weight of a neighbour at distance r, Å."""
    if r == 0 and not np.isnan(weighting.w0):
        return weighting.w0
    x = r / weighting.r0
    if weighting.function == POLY:
        return weighting.c * max(1 + x * x * (2 * x - 3), 0.0) ** weighting.m if x <= 1 else 0.0
    if weighting.function == POW:
        return weighting.c / (weighting.d + x**weighting.m)
    if weighting.function == EXP:
        return weighting.c / (weighting.d + math.exp(-x))
    return 1.0


@kernel
def find_weight_slope(r: float, weighting: Weighting) -> float:
    """Return the derivative of the weight at distance r, 1/Å."""
    x = r / weighting.r0
    if x <= 0 or (weighting.function == POLY and x >= 1):
        return 0.0
    if weighting.function == POLY:
        inner = 1 + x * x * (2 * x - 3)
        return weighting.c * weighting.m * inner ** (weighting.m - 1) * 6 * x * (x - 1) / weighting.r0
    if weighting.function == POW:
        below = weighting.d + x**weighting.m
        return -weighting.c * weighting.m * x ** (weighting.m - 1) / (below * below * weighting.r0)
    if weighting.function == EXP:
        decay = math.exp(-x)
        return weighting.c * decay / ((weighting.d + decay) ** 2 * weighting.r0)
    return 0.0
