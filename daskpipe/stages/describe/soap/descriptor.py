"""SOAP as a descriptor of the pipeline: parameters of a config, rows of many structures, each as periodic as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from daskpipe.stages.describe.soap.engine import SoapEngine, SoapParameters

if TYPE_CHECKING:
    from ase import Atoms


class SoapDescriptor:
    """SOAP descriptor of a config.

    `daskpipe.SOAP` has dscribe's other parameters, too. Defaults are those of dscribe, but for `dtype`, which is
    float64 there; it has none for `r_cut`, `n_max`, `l_max`.

    Parameters
    ----------
    species
        Chemical symbols that may occur; they fix the number of features.
    r_cut
        Radius of an environment, Å; more than 1. Neighbours count up to ``r_cut + 3.72 sigma``, where their
        Gaussians have left the environment.
    n_max, l_max
        Radial functions and largest degree of the spherical harmonics.
    sigma
        Width of the Gaussian on each neighbour, Å.
    average
        ``off``: a row an atom. ``outer``: the mean power spectrum of a structure; ``inner``: the power
        spectrum of the mean coefficients.
    compression
        dscribe's mode: ``off``, ``mu2``, ``mu1nu1`` or ``crossover``.
    dtype
        ``float32`` or ``float64``.

    Raises
    ------
    ValueError
        If `species` is empty or holds what is no element, if `r_cut` is at most 1 Å, or if the radial basis is
        singular in float64.
    """

    def __init__(
        self,
        *,
        species: Sequence[str],
        r_cut: PositiveFloat = 5.0,
        n_max: PositiveInt = 6,
        l_max: NonNegativeInt = 4,
        sigma: PositiveFloat = 1.0,
        average: Literal["off", "inner", "outer"] = "off",
        compression: Literal["off", "mu2", "mu1nu1", "crossover"] = "off",
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        from ase.data import atomic_numbers

        if unknown := sorted(set(species) - set(atomic_numbers)):
            raise ValueError(f"species must be chemical symbols such as Cu, received {', '.join(map(str, unknown))}")
        if not species:
            raise ValueError("species must name at least one element, received none")
        if r_cut <= 1:
            raise ValueError(f"r_cut must be more than 1 Å, where the radial functions begin, received {r_cut}")
        self._hypers: dict[str, Any] = {
            "species": sorted(set(species), key=atomic_numbers.__getitem__),
            "r_cut": r_cut,
            "n_max": n_max,
            "l_max": l_max,
            "sigma": sigma,
            "average": average,
            "compression": compression,
            "dtype": dtype,
        }
        numbers = tuple(atomic_numbers[symbol] for symbol in self._hypers["species"])
        others = {name: value for name, value in self._hypers.items() if name != "species"}
        self._engine = SoapEngine(SoapParameters(numbers=numbers, **others))
        self.dtype = self._engine.dtype
        self.n_features = self._engine.parameters.n_features

    def hypers(self) -> dict[str, Any]:
        """Return all parameters, as JSON types; ``SoapDescriptor(**soap.hypers())`` is the same descriptor."""
        return {**self._hypers, "species": list(self._hypers["species"])}

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return the descriptor, with the periodic images of structures that are periodic.

        Returns
        -------
        numpy.ndarray
            Shape (structure, feature), or (atom, feature) over all structures with ``average="off"``.

        Raises
        ------
        ValueError
            If a structure holds an element that is not in `species`, has no atoms, or is periodic without a cell.
        """
        return self._engine.compute_rows(structures)
