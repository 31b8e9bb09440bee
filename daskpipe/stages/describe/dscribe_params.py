"""Parameters of dscribe's many-body tensors under its names; values that dscribe would ignore are refused."""

from __future__ import annotations

from typing import Literal, Required, TypedDict

from pydantic import ConfigDict, PositiveFloat, PositiveInt, with_config


@with_config(ConfigDict(extra="forbid"))
class Geometry(TypedDict):
    """Quantity that is measured, of atoms, pairs or triples."""

    function: Literal["atomic_number", "distance", "inverse_distance", "angle", "cosine"]


@with_config(ConfigDict(extra="forbid"))
class LocalGeometry(TypedDict):
    """Quantity that is measured around an atom, of pairs or triples."""

    function: Literal["distance", "inverse_distance", "angle", "cosine"]


@with_config(ConfigDict(extra="forbid"))
class Grid(TypedDict):
    """Axis of the spectrum: n points from min to max; each value becomes a Gaussian of width sigma."""

    min: float
    max: float
    sigma: PositiveFloat
    n: PositiveInt


@with_config(ConfigDict(extra="forbid"))
class Weighting(TypedDict, total=False):
    """Weight by distance, and the threshold or radius beyond which it is zero."""

    function: Required[Literal["unity", "exp", "inverse_square", "smooth_cutoff"]]
    scale: PositiveFloat
    threshold: PositiveFloat
    r_cut: PositiveFloat
    sharpness: PositiveFloat


@with_config(ConfigDict(extra="forbid"))
class LocalWeighting(TypedDict, total=False):
    """Weight by distance; dscribe's local code has only these functions, and no ``r_cut``."""

    function: Required[Literal["unity", "exp"]]
    scale: PositiveFloat
    threshold: PositiveFloat


INVERSE_DISTANCES: Geometry = {"function": "inverse_distance"}
LOCAL_INVERSE_DISTANCES: LocalGeometry = {"function": "inverse_distance"}
TO_ONE_ANGSTROM: Grid = {"min": 0.0, "max": 1.0, "sigma": 0.02, "n": 100}
FADING: Weighting = {"function": "exp", "scale": 0.5, "threshold": 1e-3}
LOCAL_FADING: LocalWeighting = {"function": "exp", "scale": 0.5, "threshold": 1e-3}
"""Weight that falls to a thousandth at 14 Å."""
