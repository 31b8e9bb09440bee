"""SOAP power spectrum of structures, in place of dscribe's class of the same name.

Smooth overlap of atomic positions (Bartók, Kondor, Csányi, DOI 10.1103/PhysRevB.87.184115) with dscribe's arguments,
numbers and order of features (DOI 10.1016/j.cpc.2019.106949), computed by kernels of our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.stages.describe.soap import checks
from daskpipe.stages.describe.soap.basis import find_padding, make_gaussian_basis, make_polynomial_basis
from daskpipe.stages.describe.soap.engine import AVERAGES, NO_CENTRE, OVERLAPS, SoapEngine, SoapParameters
from daskpipe.stages.describe.soap.jobs import hold_for_all, pair_arguments, run_jobs, stack_results

if TYPE_CHECKING:
    from ase import Atoms

NO_COMPRESSION: Mapping[str, Any] = MappingProxyType({"mode": "off", "species_weighting": None})

METHODS = ("numerical", "analytical", "auto")
"""Methods of derivatives."""

build_engine = lru_cache(maxsize=16)(SoapEngine)
"""Return the engine of parameters; tables are kept, so that attributes can be changed between calls."""


class SOAP:
    """SOAP descriptor with the arguments, methods, shapes and numbers of ``dscribe.descriptors.SOAP`` (2.1).

    Scripts need no other change than ``from daskpipe import SOAP``. What differs from dscribe: atoms and centres
    outside of the cell see all of their images; ``n_jobs`` counts threads; derivatives are analytical for all
    parameters where ``method="auto"``. `compute` and `project_derivatives` are daskpipe's own.

    Parameters
    ----------
    r_cut
        Radius of an environment, Å; more than 1 for ``rbf="gto"``. Neighbours count up to ``r_cut + 3.72 sigma``,
        where their Gaussians have left the environment. Without it, the weighting function says it.
    n_max, l_max
        Radial functions and largest degree of the spherical harmonics, at most 20.
    sigma
        Width of the Gaussian on each neighbour, Å.
    rbf
        Radial functions: ``gto`` or ``polynomial``.
    weighting
        Weight of a neighbour by its distance: ``function`` (``poly``, ``pow`` or ``exp``) with its ``r0`` (Å), ``c``,
        ``d``, ``m``, and ``threshold``; and ``w0``, the weight of an atom on the centre. With ``w0``, features jump
        where an atom leaves a centre that does not move with it; analytical derivatives leave the jump out.
    average
        ``off``: a row a centre. ``outer``: the mean power spectrum of a structure; ``inner``: the power spectrum of
        the mean coefficients.
    compression
        ``mode``: ``off``, ``mu2``, ``mu1nu1`` or ``crossover``; ``species_weighting``: a weight for each of `species`.
        The mode alone will do.
    species
        Chemical symbols or atomic numbers that may occur; they fix the number of features.
    periodic
        Whether `create` and `derivatives` see periodic images, along the axes that a structure is periodic along.
    sparse
        Whether they return ``sparse.COO`` arrays, which takes the package sparse.
    dtype
        ``float32`` or ``float64``, of the results. Derivatives are computed in float64.

    Raises
    ------
    ValueError
        If an argument is missing or out of its range, or if the radial basis is singular in float64.
    """

    def __init__(
        self,
        r_cut: float | None = None,
        n_max: int | None = None,
        l_max: int | None = None,
        sigma: float = 1.0,
        rbf: str = "gto",
        weighting: Mapping[str, Any] | None = None,
        average: str = "off",
        compression: Mapping[str, Any] | str = NO_COMPRESSION,
        species: Iterable[str] | Iterable[int] | None = None,
        periodic: bool = False,
        sparse: bool = False,
        dtype: str = "float64",
    ) -> None:
        checks.check_choice("dtype", dtype, ("float32", "float64"))
        checks.check_choice("rbf", rbf, OVERLAPS)
        checks.check_choice("average", average, AVERAGES)
        self.species = species
        self._weighting = checks.check_weighting(weighting)
        self._r_cut = checks.choose_r_cut(r_cut, self._weighting)
        checks.check_radial(self._r_cut, n_max, l_max, sigma, rbf)
        self._radial: dict[str, Any] = {"n_max": n_max, "l_max": l_max, "sigma": float(sigma), "rbf": rbf}
        self.compression = compression
        self.average, self.periodic, self.sparse, self.dtype = average, periodic, sparse, dtype
        if rbf == "gto":
            self.get_basis_gto(self._r_cut, self._radial["n_max"], self._radial["l_max"])  # raises if it is singular

    @property
    def species(self) -> Any:
        """Chemical symbols or atomic numbers, as they were given."""
        return self._species

    @species.setter
    def species(self, species: Any) -> None:
        self._numbers = checks.find_numbers(species)
        self._species = species

    @property
    def compression(self) -> Any:
        """Mode and weights of the species, as dscribe's dict."""
        return self._compression

    @compression.setter
    def compression(self, compression: Mapping[str, Any] | str) -> None:
        self._compression, self._species_weights = checks.check_compression(compression, self._species)

    @property
    def n_features(self) -> int:
        """Number of features of a row."""
        return self._parameters().n_features

    def hypers(self) -> dict[str, Any]:
        """Return all arguments; ``SOAP(**soap.hypers())`` is the same descriptor."""
        return {
            "r_cut": self._r_cut,
            **self._radial,
            "weighting": dict(self._weighting) or None,
            "average": self.average,
            "compression": dict(self._compression),
            "species": list(self._species),
            "periodic": self.periodic,
            "sparse": self.sparse,
            "dtype": self.dtype,
        }

    def _parameters(self) -> SoapParameters:
        return SoapParameters(
            numbers=self._numbers,
            r_cut=self._r_cut,
            **self._radial,
            weighting=tuple(sorted(self._weighting.items())),
            species_weights=self._species_weights,
            average=self.average,
            compression=self._compression["mode"],
            dtype=self.dtype,
        )

    # --- features -------------------------------------------------------------------------------------

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return the features of all atoms of many structures, each with the images of its own ``pbc``.

        Here `periodic` and `sparse` do not count.

        Returns
        -------
        numpy.ndarray
            Shape (structure, feature), or (atom, feature) over all structures with ``average="off"``.

        Raises
        ------
        ValueError
            If a structure holds an element that is not in `species`, has no atoms, or is periodic without a cell.
        """
        return build_engine(self._parameters()).compute_rows(structures)

    def create(
        self,
        system: Atoms | Sequence[Atoms],
        centers: Sequence[Any] | None = None,
        n_jobs: int = 1,
        only_physical_cores: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Return the features of one structure or of several.

        Parameters
        ----------
        system
            Structures.
        centers
            Indices of atoms or Cartesian positions, Å; by default all atoms. A list for each of several structures.
        n_jobs
            Threads; a negative number is added to the number of cores.
        only_physical_cores
            Whether that number is of physical cores.
        verbose
            Whether to print the progress.

        Returns
        -------
        numpy.ndarray, sparse.COO or list
            Shape (centre, feature), or (feature,) for an average, with a first dimension over structures if there
            are several; a list if these differ in their numbers of centres.

        Raises
        ------
        ValueError
            If a structure or a centre cannot be described, or if the numbers of structures and centres differ.
        """
        systems, (lists,) = pair_arguments(system, centers=centers)
        jobs = list(zip(systems, lists, strict=True))

        def describe(atoms: Atoms, points: Any) -> Any:
            return self._format_array(self.create_single(atoms, points))

        results = run_jobs(describe, jobs, n_jobs, only_physical_cores, verbose)
        return results[0] if len(results) == 1 else stack_results(results)

    def create_single(self, system: Atoms, centers: Sequence[Any] | None = None) -> np.ndarray:
        """Return the features of one structure, dense; parameters, shape and errors as in `create`."""
        points, _ = self._prepare_centers(system, centers)
        rows = self._describe_points(system, points, build_engine(self._parameters()))
        return rows if self.average == "off" else rows[0]

    def _prepare_centers(self, atoms: Atoms, centers: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
        if self.periodic:
            checks.check_cell(atoms)
        return checks.find_centers(atoms, centers)

    def _describe_points(self, atoms: Atoms, points: np.ndarray, engine: SoapEngine) -> np.ndarray:
        n_rows = len(points) if self.average == "off" else 1
        rows = np.empty((n_rows, engine.parameters.n_features), engine.dtype)
        engine.write_rows(atoms, rows, centres=points, periodic=self.periodic)
        return rows

    def _format_array(self, array: np.ndarray) -> Any:
        """Return an array in the type of the results, sparse if they are."""
        array = array.astype(self.dtype, copy=False)
        if not self.sparse:
            return array
        try:
            from sparse import COO
        except ImportError as error:
            raise ImportError("sparse=True needs the package sparse: pip install sparse") from error
        return COO.from_numpy(array)

    # --- derivatives ----------------------------------------------------------------------------------

    def derivatives(
        self,
        system: Atoms | Sequence[Atoms],
        centers: Sequence[Any] | None = None,
        include: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
        method: str = "auto",
        return_descriptor: bool = True,
        attach: bool = False,
        n_jobs: int = 1,
        only_physical_cores: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Return the derivatives of the features by the positions of atoms, 1/Å.

        Parameters
        ----------
        system, centers, n_jobs, only_physical_cores, verbose
            As in `create`.
        include, exclude
            Indices of the atoms that move, or of those that do not: one list for all structures, or one for each.
        method
            ``numerical``: central differences. ``analytical``: by the kernels; for what dscribe refuses under this
            name, so does this method. ``auto``: by the kernels, whatever the parameters.
        return_descriptor
            Whether to return the features, too.
        attach
            Whether a centre that is given by the index of an atom moves with this atom.

        Returns
        -------
        numpy.ndarray, sparse.COO or list
            Shape (centre, atom, 3, feature), with one centre for an average; a first dimension over several
            structures, or a list, as in `create`. In a tuple with the features if they are asked for.

        Raises
        ------
        ValueError
            As `create`; for no atom or no such atom to move; for an unknown method.
        """
        method = self.validate_derivatives_method(method, attach)
        one = [hold_for_all(system, indices) for indices in (include, exclude)]
        systems, (lists, includes, excludes) = pair_arguments(system, centers=centers, include=one[0], exclude=one[1])
        moved = [
            checks.find_included(len(atoms), some, others)
            for atoms, some, others in zip(systems, includes, excludes, strict=True)
        ]
        jobs = list(zip(systems, lists, moved, strict=True))

        def differentiate(atoms: Atoms, points: Any, indices: np.ndarray) -> Any:
            return self.derivatives_single(atoms, points, indices, method, attach, return_descriptor)

        results = run_jobs(differentiate, jobs, n_jobs, only_physical_cores, verbose)
        if len(results) == 1:
            return results[0]
        if return_descriptor:
            return tuple(stack_results(list(parts)) for parts in zip(*results, strict=True))
        return stack_results(results)

    def derivatives_single(
        self,
        system: Atoms,
        centers: Sequence[Any] | None,
        indices: Sequence[int] | np.ndarray,
        method: str = "numerical",
        attach: bool = False,
        return_descriptor: bool = True,
    ) -> Any:
        """Return the derivatives for one structure by the atoms of `indices`; otherwise as `derivatives`."""
        points, owners = self._prepare_centers(system, centers)
        if not attach:
            owners = np.full(len(points), NO_CENTRE)
        engine = build_engine(replace(self._parameters(), dtype="float64"))
        if method == "numerical":
            result = engine.estimate_derivatives(system, points, owners, np.asarray(indices), periodic=self.periodic)
        else:
            result = engine.compute_derivatives(system, points, owners, np.asarray(indices), periodic=self.periodic)
        result = self._format_array(result)
        if return_descriptor:
            return result, self._format_array(self._describe_points(system, points, engine))
        return result

    def validate_derivatives_method(self, method: str, attach: bool = False) -> str:
        """Return the method of `derivatives` that is used: ``numerical`` or ``analytical``.

        Raises
        ------
        ValueError
            For an unknown method, or for ``analytical`` where dscribe has none.
        """
        checks.check_choice("method", method, METHODS)
        if method != "analytical":
            return "numerical" if method == "numerical" else "analytical"
        refusals = {
            "for polynomial radial basis functions": self._radial["rbf"] == "polynomial",
            "for averaged output": self.average != "off",
            "for mu1nu1, mu2 compression": self._compression["mode"] not in ("off", "crossover"),
            "for periodic systems": self.periodic,
            "when weighting is used": bool(self._weighting),
        }
        for case, applies in refusals.items():
            if applies:
                # dscribe's message, by which scripts may know the case.
                raise ValueError(f"Analytical derivatives currently not available {case}.")
        return method

    def project_derivatives(
        self,
        system: Atoms,
        weights: np.ndarray,
        centers: Sequence[Any] | None = None,
        attach: bool = True,
    ) -> np.ndarray:
        """Return the derivatives of a weighted sum of all features by the positions of all atoms.

        The forces of a model ``energy = (weights * features).sum()`` are minus the result. The derivatives of the
        features are summed as they are made, and nowhere stored: memory grows with the number of atoms alone.

        Parameters
        ----------
        system
            Structure.
        weights
            Shape (feature,), the same for each centre, or (centre, feature).
        centers
            As in `create`.
        attach
            Whether a centre that is given by the index of an atom, as all are by default, moves with this atom.

        Returns
        -------
        numpy.ndarray
            Shape (atom, 3), float64; units of the weights by Å.

        Raises
        ------
        ValueError
            As `create`, and for weights of another shape.
        """
        points, owners = self._prepare_centers(system, centers)
        if not attach:
            owners = np.full(len(points), NO_CENTRE)
        n_rows = len(points) if self.average == "off" else 1
        shape = (n_rows, self.n_features)
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape not in (shape, shape[1:]):
            raise ValueError(f"weights must have the shape {shape} or {shape[1:]}, received {weights.shape}")
        engine = build_engine(replace(self._parameters(), dtype="float64"))
        return engine.project_derivatives(
            system, np.broadcast_to(weights, shape), points, owners, periodic=self.periodic
        )

    # --- order of the features, and the radial basis ---------------------------------------------------

    def get_number_of_features(self) -> int:
        """Return the number of features of a row."""
        return self.n_features

    def get_location(self, species: Sequence[str] | Sequence[int]) -> slice:
        """Return where the features of a pair of elements stand in a row.

        Parameters
        ----------
        species
            Two chemical symbols or atomic numbers, in either order.

        Raises
        ------
        ValueError
            If these are not two elements of `species`, or if the compression leaves features of this pair out.
        """
        if len(species) != 2:
            raise ValueError(f"get_location takes a pair of species such as ('H', 'O'), received {species!r}")
        numbers = [checks.find_numbers([one])[0] for one in species]
        if unknown := [number for number in numbers if number not in self._numbers]:
            raise ValueError(f"atomic number {unknown[0]} is not among those of species, {list(self._numbers)}")
        first, second = sorted(self._numbers.index(number) for number in numbers)
        mode = self._compression["mode"]
        n_max, n_degrees = self._radial["n_max"], self._radial["l_max"] + 1
        alike, mixed = n_max * (n_max + 1) // 2 * n_degrees, n_max**2 * n_degrees
        if mode == "mu2":
            return slice(0, alike)
        if mode == "off":
            n_before = first * len(self._numbers) - first * (first - 1) // 2 + second - first
            n_alike = first + (second > first)
            start = n_alike * alike + (n_before - n_alike) * mixed
            return slice(start, start + (alike if first == second else mixed))
        if first != second:
            raise ValueError(f"compression {mode} has no features of two elements, received {species!r}")
        size = alike if mode == "crossover" else mixed
        return slice(first * size, (first + 1) * size)

    def get_cutoff_padding(self) -> float:
        """Return the distance (Å) beyond `r_cut` up to which neighbours count."""
        return find_padding(self._radial["sigma"])

    def get_basis_gto(self, r_cut: float, n_max: int, l_max: int) -> tuple[np.ndarray, np.ndarray]:
        """Return alpha, shape (l, n), 1/Å^2, and beta, shape (l, n, n), of ``rbf="gto"``; raises as the class."""
        return make_gaussian_basis(r_cut, n_max, l_max)

    def get_basis_poly(self, r_cut: float, n_max: int) -> tuple[np.ndarray, np.ndarray]:
        """Return points, shape (point,), Å, and the functions of ``rbf="polynomial"`` there, shape (n, point)."""
        return make_polynomial_basis(r_cut, n_max)
