"""SOAP of one structure around any centres: features, their derivatives and projections of the derivatives.

This module stands between the classes that users see (`drop_in`, `descriptor`) and the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from daskpipe.stages.describe.soap.basis import (
    TOLERANCE,
    WIDTH,
    GaussianOverlap,
    PolynomialOverlap,
    RadialOverlap,
    find_padding,
    harmonic_factors,
    radial_table,
)
from daskpipe.stages.describe.species import check_species

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.neighbours_kernels import Grid
    from daskpipe.stages.describe.soap.spectrum_kernels import Basis

COMPRESSIONS = ("off", "mu2", "mu1nu1", "crossover")
AVERAGES = ("off", "inner", "outer")
WEIGHTINGS = ("", "poly", "pow", "exp")
OVERLAPS: dict[str, Callable[..., RadialOverlap]] = {"gto": GaussianOverlap, "polynomial": PolynomialOverlap}

NO_CENTRE = -1
"""Atom of a centre that moves with no atom."""


DISPLACEMENT = 1e-4
"""Å, of numerical derivatives, as in dscribe."""


@dataclass(frozen=True, kw_only=True)
class SoapParameters:
    """Parameters of SOAP, checked by the class that takes them from the user.

    Parameters
    ----------
    numbers
        Atomic numbers that may occur, sorted.
    r_cut, sigma
        Å.
    n_max, l_max
        Radial functions and largest degree of the spherical harmonics.
    rbf
        A key of `OVERLAPS`.
    weighting
        Items of dscribe's dict, sorted; empty for none.
    species_weights
        Weight of each of `numbers`; empty for ones.
    average, compression
        Of `AVERAGES` and `COMPRESSIONS`.
    dtype
        ``float32`` or ``float64``.
    """

    numbers: tuple[int, ...]
    r_cut: float
    n_max: int
    l_max: int
    sigma: float
    rbf: str = "gto"
    weighting: tuple[tuple[str, Any], ...] = ()
    species_weights: tuple[float, ...] = ()
    average: str = "off"
    compression: str = "off"
    dtype: str = "float64"

    @property
    def n_features(self) -> int:
        """Number of features of a row."""
        n_species, n_max = len(self.numbers), self.n_max
        blocks = {
            "off": n_species * n_max * (n_species * n_max + 1) // 2,
            "mu2": n_max * (n_max + 1) // 2,
            "mu1nu1": n_species * n_max**2,
            "crossover": n_species * n_max * (n_max + 1) // 2,
        }
        return blocks[self.compression] * (self.l_max + 1)


class SoapEngine:
    """SOAP with its tables.

    Parameters
    ----------
    parameters
        What to compute.

    Raises
    ------
    ValueError
        If the radial basis is singular in float64.
    """

    def __init__(self, parameters: SoapParameters) -> None:
        from ase.data import atomic_numbers

        self.parameters = parameters
        self.dtype = np.dtype(parameters.dtype)
        numbers = list(parameters.numbers)
        self._kind = np.full(len(atomic_numbers), -1, dtype=np.int32)
        self._kind[numbers] = 0 if parameters.compression == "mu2" else np.arange(len(numbers))
        self._atom_weights = np.ones(len(atomic_numbers))
        if parameters.species_weights:
            self._atom_weights[numbers] = parameters.species_weights
        self._cutoff = parameters.r_cut + find_padding(parameters.sigma)
        overlap = OVERLAPS[parameters.rbf](parameters.r_cut, parameters.n_max, parameters.l_max, parameters.sigma)
        self._table, self._step = radial_table(overlap, self._cutoff, TOLERANCE[parameters.dtype])

    def compute_rows(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return the rows of all atoms of structures, or an average for each, as periodic as each structure is.

        Returns
        -------
        numpy.ndarray
            Shape (structure, feature), or (atom, feature) over all structures with ``average="off"``.

        Raises
        ------
        ValueError
            As `write_rows`.
        """
        each = self.parameters.average == "off"
        n_rows = [len(atoms) if each else 1 for atoms in structures]
        out = np.empty((sum(n_rows), self.parameters.n_features), dtype=self.dtype)
        end = 0
        for atoms, rows in zip(structures, n_rows, strict=True):
            self.write_rows(atoms, out[end : end + rows])
            end += rows
        return out

    def write_rows(
        self, atoms: Atoms, out: np.ndarray, *, centres: np.ndarray | None = None, periodic: bool = True
    ) -> None:
        """Compute the features of a structure.

        Parameters
        ----------
        atoms
            Structure.
        out
            Rows to write, shape (centre, feature), or (1, feature) for an average, C-contiguous, of `dtype`.
        centres
            Points, shape (centre, 3), float64, Å; by default the atoms.
        periodic
            False leaves out periodic images.

        Raises
        ------
        ValueError
            If the structure has no atoms, an element that is not in the parameters, or is periodic without a cell.
        """
        from daskpipe.stages.describe.soap.spectrum_kernels import write_soap

        grid, kinds, weights = self._find_neighbours(atoms, centres, periodic)
        write_soap(grid, kinds, weights, self._kernel_basis, self._mode, self._average, out)

    def compute_derivatives(
        self, atoms: Atoms, centres: np.ndarray, owners: np.ndarray, included: np.ndarray, *, periodic: bool
    ) -> np.ndarray:
        """Compute the derivatives of the features by the positions of atoms; `dtype` must be float64.

        Parameters
        ----------
        atoms, centres, periodic
            As in `write_rows`.
        owners
            The atom that each centre moves with, shape (centre,), int64; -1 for none.
        included
            Indices of the atoms, shape (included,), int64.

        Returns
        -------
        numpy.ndarray
            Shape (centre, included, 3, feature), or (1, included, 3, feature) for an average, float64, 1/Å.

        Raises
        ------
        ValueError
            As `write_rows`.
        """
        from daskpipe.stages.describe.soap.derivative_kernels import write_derivatives

        grid, kinds, weights = self._find_neighbours(atoms, centres, periodic)
        n_rows = len(centres) if self.parameters.average == "off" else 1
        out = np.zeros((n_rows, len(included), 3, self.parameters.n_features))
        # An atom that is listed twice has the derivatives twice.
        slots = np.full(len(atoms), -1)
        slots[included] = np.arange(len(included))
        write_derivatives(grid, kinds, weights, self._kernel_basis, self._mode, self._average, owners, slots, out)
        for place in np.flatnonzero(slots[included] != np.arange(len(included))):
            out[:, place] = out[:, slots[included[place]]]
        return out

    def project_derivatives(
        self, atoms: Atoms, weights: np.ndarray, centres: np.ndarray, owners: np.ndarray, *, periodic: bool
    ) -> np.ndarray:
        """Compute the derivatives of a weighted sum of the features by the positions of all atoms; of float64 only.

        Parameters
        ----------
        atoms, centres, owners, periodic
            As in `compute_derivatives`.
        weights
            Shape (centre, feature), or (1, feature) for an average, float64.

        Returns
        -------
        numpy.ndarray
            Shape (atom, 3), float64.

        Raises
        ------
        ValueError
            As `write_rows`.
        """
        from daskpipe.stages.describe.soap.projection_kernels import write_projection

        grid, kinds, point_weights = self._find_neighbours(atoms, centres, periodic)
        out = np.zeros((len(atoms), 3))
        write_projection(
            grid, kinds, point_weights, self._kernel_basis, self._mode, self._average, weights, owners, out
        )
        return out

    def estimate_derivatives(
        self, atoms: Atoms, centres: np.ndarray, owners: np.ndarray, included: np.ndarray, *, periodic: bool
    ) -> np.ndarray:
        """Compute what `compute_derivatives` does by central differences of the features; of float64 only."""
        n_rows = len(centres) if self.parameters.average == "off" else 1
        out = np.zeros((n_rows, len(included), 3, self.parameters.n_features))
        rows = np.empty((n_rows, self.parameters.n_features))
        moved, moved_centres = atoms.copy(), centres.copy()
        for place, atom in enumerate(included):
            for axis in range(3):
                for sign in (1, -1):
                    moved.positions[atom, axis] = atoms.positions[atom, axis] + sign * DISPLACEMENT
                    moved_centres[owners == atom, axis] = centres[owners == atom, axis] + sign * DISPLACEMENT
                    self.write_rows(moved, rows, centres=moved_centres, periodic=periodic)
                    out[:, place, axis] += sign * rows / (2 * DISPLACEMENT)
                moved.positions[atom, axis] = atoms.positions[atom, axis]
                moved_centres[owners == atom, axis] = centres[owners == atom, axis]
        return out

    def _find_neighbours(
        self, atoms: Atoms, centres: np.ndarray | None, periodic: bool
    ) -> tuple[Grid, np.ndarray, np.ndarray]:
        """Return the grid, and the species and weights of its points."""
        from ase.data import chemical_symbols

        from daskpipe.core.neighbours import neighbour_grid

        if not len(atoms):
            raise ValueError("a structure without atoms has no descriptor; drop it")
        kinds = self._kind[atoms.numbers]
        if kinds.min() < 0:
            check_species([atoms], [chemical_symbols[number] for number in self.parameters.numbers])
        grid = neighbour_grid(atoms, self._cutoff, centres=centres, periodic=periodic)
        weights = np.empty(0)
        if self.parameters.weighting or self.parameters.species_weights:
            weights = self._atom_weights[atoms.numbers[grid.atom_index]]
        return grid, kinds[grid.atom_index], weights

    @property
    def _mode(self) -> int:
        return COMPRESSIONS.index(self.parameters.compression)

    @property
    def _average(self) -> int:
        return AVERAGES.index(self.parameters.average)

    @cached_property
    def _kernel_basis(self) -> Basis:
        """Input of the kernels, made on first use, since it imports Numba."""
        from daskpipe.core.simd import aligned_zeros
        from daskpipe.stages.describe.soap.spectrum_kernels import Basis
        from daskpipe.stages.describe.soap.weighting_kernels import Weighting

        table = aligned_zeros(self._table.size, np.empty(0, self.dtype))
        table[:] = self._table.reshape(-1)
        n_max, l_max = self.parameters.n_max, self.parameters.l_max
        weighting = dict(self.parameters.weighting)
        function = WEIGHTINGS.index(weighting.get("function") or "")
        numbers = {"r0": 1.0, "c": 1.0, "d": 0.0, "m": 0.0, "w0": np.nan}
        return Basis(
            table=table,
            rows_per_length=cast(float, self.dtype.type(1 / self._step)),
            factors=harmonic_factors(l_max).astype(self.dtype),
            n_species=int(self._kind.max()) + 1,
            n_max=n_max,
            l_max=l_max,
            n_vectors=-(-n_max // WIDTH),
            n_groups=self._table.shape[1],
            weighting=Weighting(function, **{name: float(weighting.get(name, numbers[name])) for name in numbers}),
        )
