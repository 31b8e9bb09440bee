"""Other descriptors of dscribe (DOI 10.1016/j.cpc.2019.106949), with its names, meanings, numbers and order.

This module adds what dscribe leaves to its caller: whether a structure is periodic, cells without a volume, elements
that are not in `species`, and averages over a structure's atoms.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from daskpipe.core.errors import ConfigError, InputError
from daskpipe.stages.describe.dscribe_params import (
    FADING,
    INVERSE_DISTANCES,
    LOCAL_FADING,
    LOCAL_INVERSE_DISTANCES,
    TO_ONE_ANGSTROM,
    Geometry,
    Grid,
    LocalGeometry,
    LocalWeighting,
    Weighting,
)
from daskpipe.stages.describe.species import check_species

if TYPE_CHECKING:
    from ase import Atoms

Average = Literal["off", "outer"]
DType = Literal["float32", "float64"]


class _DscribeDescriptor:
    """Common part of the classes of this file, which differ in their parameters.

    Parameters
    ----------
    engine
        Name of dscribe's class.
    species, average, dtype
        As in the classes.
    options
        Further arguments of dscribe's class.
    """

    per_atom: ClassVar[bool] = True
    """True if the descriptor has a row for each atom."""

    def __init__(self, engine: str, species: Sequence[str], average: Average, dtype: DType, **options: Any) -> None:
        if average == "off" and not self.per_atom:
            raise ConfigError(
                f"{engine} describes whole structures only, received average='off'; give average='outer' "
                "(describe.level=structure), or take soap, acsf or lmbtr for a row an atom"
            )
        self.dtype = np.dtype(dtype)
        self._engine = engine
        hypers = {"species": sorted(set(species)), **options, "average": average, "dtype": dtype}
        self._hypers: dict[str, Any] = json.loads(json.dumps(hypers))
        self._built: dict[bool, Any] = {}
        self.n_features = int(self._build_engine(periodic=False).get_number_of_features())

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> None:
        """Check the parameters of a config before anything runs; raises as the class does."""
        cls(species=["H"], average="outer", **params)

    def hypers(self) -> dict[str, Any]:
        """Return all parameters, as JSON types; the class called with them is the same descriptor."""
        return copy.deepcopy(self._hypers)

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
        ConfigError
            If dscribe refuses the parameters for periodic structures, and there is one.
        """
        check_species(structures, self._hypers["species"])
        blocks = [self._compute_rows(atoms) for atoms in structures]
        if not blocks:
            return np.zeros((0, self.n_features), dtype=self.dtype)
        return np.concatenate(blocks).astype(self.dtype)

    def _compute_rows(self, atoms: Atoms) -> np.ndarray:
        """Return the rows of one structure, float64."""
        rows = np.atleast_2d(self._build_engine(periodic=bool(atoms.pbc.any())).create(_wrap_into_cell(atoms)))
        return rows.mean(axis=0, keepdims=True) if self._hypers["average"] == "outer" else rows

    def _build_engine(self, *, periodic: bool) -> Any:
        """Return dscribe's object for periodic or for open structures, built on first use."""
        if periodic not in self._built:
            try:
                self._built[periodic] = getattr(_import_dscribe(), self._engine)(**self._engine_options(periodic))
            except (ValueError, KeyError) as error:
                own = {key: self._hypers[key] for key in self._hypers if key not in ("species", "average", "dtype")}
                raise ConfigError(
                    f"{self._engine} of {'periodic' if periodic else 'open'} structures: {error.args[0]} Received "
                    f"{own}; change describe.params"
                ) from error
        return self._built[periodic]

    def _engine_options(self, periodic: bool) -> dict[str, Any]:
        """Return the arguments of dscribe's class as a copy, since dscribe changes its arguments."""
        options = self.hypers() | {"dtype": "float64", "periodic": periodic}
        del options["average"]
        return options


class ACSF(_DscribeDescriptor):
    """Atom-centred symmetry functions of Behler (DOI 10.1063/1.3553717). The element of the centre does not count.

    Parameters
    ----------
    species
        Chemical symbols that may occur; they fix the number of features.
    r_cut
        Radius of an environment, Å.
    g2_params
        Pairs (eta in 1/Å^2, R_s in Å).
    g3_params
        Each kappa, 1/Å.
    g4_params, g5_params
        Triples (eta in 1/Å^2, zeta, lambda).
    average
        ``off``: a row an atom. ``outer``: the mean over a structure's atoms.
    dtype
        Of the result; dscribe computes in float64.

    Raises
    ------
    ConfigError
        For parameters that dscribe refuses.
    """

    def __init__(
        self,
        *,
        species: Sequence[str],
        r_cut: PositiveFloat = 6.0,
        g2_params: Sequence[tuple[float, float]] | None = ((1.0, 1.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0), (1.0, 5.0)),
        g3_params: Sequence[float] | None = None,
        g4_params: Sequence[tuple[float, float, float]] | None = ((0.01, 1.0, 1.0), (0.01, 1.0, -1.0)),
        g5_params: Sequence[tuple[float, float, float]] | None = None,
        average: Average = "off",
        dtype: DType = "float32",
    ) -> None:
        functions = {"g2_params": g2_params, "g3_params": g3_params, "g4_params": g4_params, "g5_params": g5_params}
        super().__init__("ACSF", species, average, dtype, r_cut=r_cut, **functions)


class LMBTR(_DscribeDescriptor):
    """Local many-body tensor representation. The element of the centre does not count.

    Source: Huo and Rupp, DOI 10.1088/2632-2153/aca005.

    Parameters
    ----------
    species
        Chemical symbols that may occur; they fix the number of features.
    geometry, grid, weighting
        As in dscribe: what is measured, on which axis it is drawn, how it fades. Periodic structures need a
        weighting other than ``unity``.
    normalize_gaussians
        Whether each Gaussian has the area one.
    normalization
        ``none``, or ``l2`` for rows of length one.
    average
        ``off``: a row an atom. ``outer``: the mean over a structure's atoms.
    dtype
        Of the result; dscribe computes in float64.

    Raises
    ------
    ConfigError
        For parameters that dscribe refuses.
    """

    def __init__(
        self,
        *,
        species: Sequence[str],
        geometry: LocalGeometry = LOCAL_INVERSE_DISTANCES,
        grid: Grid = TO_ONE_ANGSTROM,
        weighting: LocalWeighting | None = LOCAL_FADING,
        normalize_gaussians: bool = True,
        normalization: Literal["none", "l2"] = "none",
        average: Average = "off",
        dtype: DType = "float32",
    ) -> None:
        axis = {"geometry": geometry, "grid": grid, "weighting": weighting}
        norm = {"normalize_gaussians": normalize_gaussians, "normalization": normalization}
        super().__init__("LMBTR", species, average, dtype, **axis, **norm)


class MBTR(_DscribeDescriptor):
    """Many-body tensor representation of whole structures (Huo and Rupp, DOI 10.1088/2632-2153/aca005).

    Parameters
    ----------
    species
        Chemical symbols that may occur; they fix the number of features.
    geometry, grid, weighting, normalize_gaussians
        As in `LMBTR`; here ``atomic_number`` can be measured, too.
    normalization
        ``none``, ``l2`` or ``n_atoms``; the last, so that a supercell is described like its cell, is the default here
        and ``none`` is dscribe's. (dscribe's fourth has a descriptor of its own, `ValleOganov`.)
    average
        ``outer``.
    dtype
        Of the result; dscribe computes in float64.

    Raises
    ------
    ConfigError
        For ``average="off"``, and for parameters that dscribe refuses.
    """

    per_atom = False

    def __init__(
        self,
        *,
        species: Sequence[str],
        geometry: Geometry = INVERSE_DISTANCES,
        grid: Grid = TO_ONE_ANGSTROM,
        weighting: Weighting | None = FADING,
        normalize_gaussians: bool = True,
        normalization: Literal["none", "l2", "n_atoms"] = "n_atoms",
        average: Average = "outer",
        dtype: DType = "float32",
    ) -> None:
        axis = {"geometry": geometry, "grid": grid, "weighting": weighting}
        norm = {"normalize_gaussians": normalize_gaussians, "normalization": normalization}
        super().__init__("MBTR", species, average, dtype, **axis, **norm)


class ValleOganov(_DscribeDescriptor):
    """Fingerprint of whole crystals by Valle and Oganov (DOI 10.1107/S0108767310026395).

    Parameters
    ----------
    species
        Chemical symbols that may occur; they fix the number of features.
    function
        What is measured: ``distance`` (Å) or ``angle`` (degrees).
    n
        Points of the axis, which goes to `r_cut` or to 180 degrees.
    sigma
        Width of each Gaussian, in the axis' unit.
    r_cut
        Radius, Å.
    average
        ``outer``.
    dtype
        Of the result; dscribe computes in float64.

    Raises
    ------
    ConfigError
        For ``average="off"``, and for parameters that dscribe refuses.
    InputError
        From `compute`, for a structure that is not periodic along all three cell vectors.
    """

    per_atom = False

    def __init__(
        self,
        *,
        species: Sequence[str],
        function: Literal["distance", "angle"] = "distance",
        n: PositiveInt = 100,
        sigma: PositiveFloat = 0.1,
        r_cut: PositiveFloat = 8.0,
        average: Average = "outer",
        dtype: DType = "float32",
    ) -> None:
        super().__init__("ValleOganov", species, average, dtype, function=function, n=n, sigma=sigma, r_cut=r_cut)

    def _engine_options(self, periodic: bool) -> dict[str, Any]:
        options = super()._engine_options(periodic)
        del options["periodic"]  # it describes periodic structures only
        return options

    def _compute_rows(self, atoms: Atoms) -> np.ndarray:
        if not atoms.pbc.all():
            raise InputError(
                f"ValleOganov describes crystals, periodic along all three cell vectors; the structure of "
                f"{atoms.get_chemical_formula()} has pbc={atoms.pbc.tolist()}. Take describe=mbtr or describe=soap, "
                "or leave such structures out"
            )
        return super()._compute_rows(atoms)


def _import_dscribe() -> Any:
    """Import ``dscribe.descriptors`` and mend its reader of ASE structures."""
    import dscribe.descriptors
    from dscribe.core import System

    def from_atoms(atoms: Atoms) -> Any:
        return System(atoms.get_chemical_symbols(), atoms.get_positions(), cell=atoms.cell, pbc=atoms.pbc)

    # dscribe 2.1.2 hands ASE its arguments by their place, and ASE 3.27 put others there: MBTR and LMBTR raise for
    # any structure (https://github.com/SINGROUP/dscribe/issues/165). They use no more than these four.
    System.from_atoms = staticmethod(from_atoms)
    return dscribe.descriptors


def _wrap_into_cell(atoms: Atoms) -> Atoms:
    """Return a copy with its atoms wrapped into its cell, and with a cell that has a volume.

    dscribe puts as many images around a cell as an atom in it can see: atoms that have left the cell, as they do in
    molecular dynamics, would miss neighbours. It refuses cells without a volume; zero vectors, which are not periodic,
    become unit vectors.
    """
    if not atoms.pbc.any():
        return atoms
    atoms = atoms.copy()
    atoms.cell = atoms.cell.complete()
    atoms.wrap()
    return atoms
