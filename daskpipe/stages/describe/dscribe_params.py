"""Parameters of dscribe's many-body tensors: in its own words, and refused where it would be silent about them."""

from __future__ import annotations

from typing import Literal, Required, TypedDict

from pydantic import ConfigDict, PositiveFloat, PositiveInt, with_config


@with_config(ConfigDict(extra="forbid"))
class Geometry(TypedDict):
    """What is measured: of atoms, pairs or triples."""

    function: Literal["atomic_number", "distance", "inverse_distance", "angle", "cosine"]


@with_config(ConfigDict(extra="forbid"))
class LocalGeometry(TypedDict):
    """What is measured around an atom: of pairs or triples."""

    function: Literal["distance", "inverse_distance", "angle", "cosine"]


@with_config(ConfigDict(extra="forbid"))
class Grid(TypedDict):
    """Axis on which it is drawn: n points from min to max, each value a Gaussian of width sigma."""

    min: float
    max: float
    sigma: PositiveFloat
    n: PositiveInt


@with_config(ConfigDict(extra="forbid"))
class Weighting(TypedDict, total=False):
    """How it fades with distance, and from where on it is left out."""

    function: Required[Literal["unity", "exp", "inverse_square", "smooth_cutoff"]]
    scale: PositiveFloat
    threshold: PositiveFloat
    r_cut: PositiveFloat
    sharpness: PositiveFloat


@with_config(ConfigDict(extra="forbid"))
class LocalWeighting(TypedDict, total=False):
    """How it fades with distance; of dscribe's weightings its local code has only these, and no ``r_cut``."""

    function: Required[Literal["unity", "exp"]]
    scale: PositiveFloat
    threshold: PositiveFloat


INVERSE_DISTANCES: Geometry = {"function": "inverse_distance"}
LOCAL_INVERSE_DISTANCES: LocalGeometry = {"function": "inverse_distance"}
TO_ONE_ANGSTROM: Grid = {"min": 0.0, "max": 1.0, "sigma": 0.02, "n": 100}
FADING: Weighting = {"function": "exp", "scale": 0.5, "threshold": 1e-3}
LOCAL_FADING: LocalWeighting = {"function": "exp", "scale": 0.5, "threshold": 1e-3}
"""Down to a thousandth at 14 Å."""
