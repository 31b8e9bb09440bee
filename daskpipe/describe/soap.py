"""SOAP power spectrum of structures, computed by dscribe.

Smooth overlap of atomic positions (Bartók, Kondor, Csányi, DOI 10.1103/PhysRevB.87.184115) with the
Gaussian-type radial basis of dscribe (DOI 10.1016/j.cpc.2019.106949); its argument names and feature order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from ase import Atoms


class SOAP:
    """SOAP descriptor.

    Parameters
    ----------
    species
        Chemical symbols that may occur; they fix the number of features.
    r_cut
        Radius of an environment, Å.
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
        For parameters that dscribe refuses.
    """

    def __init__(
        self,
        *,
        species: Sequence[str],
        r_cut: PositiveFloat = 5.0,
        n_max: PositiveInt = 6,
        l_max: PositiveInt = 4,
        sigma: PositiveFloat = 0.75,
        average: Literal["off", "inner", "outer"] = "off",
        compression: Literal["off", "mu2", "mu1nu1", "crossover"] = "off",
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        from dscribe.descriptors import SOAP as DSCRIBE

        self._hypers: dict[str, Any] = {
            "species": sorted(set(species)),
            "r_cut": r_cut,
            "n_max": n_max,
            "l_max": l_max,
            "sigma": sigma,
            "average": average,
            "compression": compression,
            "dtype": dtype,
        }
        options = {**self._hypers, "compression": {"mode": compression, "species_weighting": None}}
        # dscribe needs to be told whether to look at atoms.pbc.
        self._open, self._periodic = (DSCRIBE(**options, periodic=periodic) for periodic in (False, True))
        self.dtype = np.dtype(dtype)
        self.n_features = int(self._open.get_number_of_features())

    def hypers(self) -> dict[str, Any]:
        """Return all parameters, as JSON types; ``SOAP(**soap.hypers())`` is the same descriptor."""
        return {**self._hypers, "species": list(self._hypers["species"])}

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return the descriptor.

        Returns
        -------
        numpy.ndarray
            Shape (structure, feature), or (atom, feature) over all structures with ``average="off"``.

        Raises
        ------
        ValueError
            If a structure holds an element that is not in `species`.
        """
        blocks = []
        for atoms in structures:
            if missing := sorted(set(atoms.symbols) - set(self._hypers["species"])):
                raise ValueError(
                    f"structure of {atoms.get_chemical_formula()} holds {', '.join(missing)}, "
                    f"species are {', '.join(self._hypers['species'])}; add the missing ones to species"
                )
            descriptor = self._periodic if atoms.pbc.any() else self._open
            blocks.append(np.atleast_2d(descriptor.create(_with_volume(atoms))))
        if not blocks:
            return np.zeros((0, self.n_features), dtype=self.dtype)
        return np.concatenate(blocks).astype(self.dtype)


def _with_volume(atoms: Atoms) -> Atoms:
    """Structure whose zero cell vectors, which are not periodic, are unit vectors: dscribe wants a volume."""
    if not atoms.pbc.any() or atoms.cell.rank == 3:
        return atoms
    atoms = atoms.copy()
    atoms.cell = atoms.cell.complete()
    return atoms
