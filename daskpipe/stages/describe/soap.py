"""SOAP power spectrum of structures, with the values of dscribe.

Smooth overlap of atomic positions (Bartók, Kondor, Csányi, DOI 10.1103/PhysRevB.87.184115) with the
Gaussian-type radial basis of dscribe (DOI 10.1016/j.cpc.2019.106949); its argument names and feature order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from daskpipe.stages.describe.species import check_species

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.stages.describe.soap_kernels import Basis

COMPRESSIONS = ("off", "mu2", "mu1nu1", "crossover")
AVERAGES = ("off", "inner", "outer")

WIDTH = 8
"""Radial functions in a vector of `soap_kernels`."""

TAIL = 1e-3
"""dscribe's threshold: Gaussians of neighbours count up to where they have fallen to it at `r_cut`."""

TOLERANCE = {"float32": 1e-6, "float64": 1e-11}
"""Largest error of the tabulated radial functions, in units of the largest value of each."""


class SOAP:
    """SOAP descriptor.

    Defaults are those of dscribe, but for `dtype`, which is float64 there; it has none for `r_cut`, `n_max`, `l_max`.

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

    Notes
    -----
    The coefficients of a neighbour at distance r in direction u are ``g[n, l](r) Y[l, m](u)``, with g the overlap of a
    radial function with the neighbour's Gaussian. It is tabulated once and interpolated by cubic polynomials;
    harmonics come by recurrence; the power spectrum by small products of matrices.
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
        self.dtype = np.dtype(dtype)
        n_species = len(self._hypers["species"])
        blocks = {
            "off": n_species * n_max * (n_species * n_max + 1) // 2,
            "mu2": n_max * (n_max + 1) // 2,
            "mu1nu1": n_species * n_max**2,
            "crossover": n_species * n_max * (n_max + 1) // 2,
        }
        self.n_features = blocks[compression] * (l_max + 1)
        self._kind = np.full(len(atomic_numbers), -1, dtype=np.int32)
        self._kind[[atomic_numbers[symbol] for symbol in self._hypers["species"]]] = (
            0 if compression == "mu2" else np.arange(n_species)
        )
        self._cutoff = r_cut + sigma * math.sqrt(-2 * math.log(TAIL))
        self._table, self._step = radial_table(r_cut, n_max, l_max, sigma, self._cutoff, TOLERANCE[dtype])

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
            If a structure holds an element that is not in `species`, has no atoms, or is periodic without a cell.
        """
        each = self._hypers["average"] == "off"
        n_rows = [len(atoms) if each else 1 for atoms in structures]
        out = np.empty((sum(n_rows), self.n_features), dtype=self.dtype)
        end = 0
        for atoms, rows in zip(structures, n_rows, strict=True):
            self._fill_rows(atoms, out[end : end + rows])
            end += rows
        return out

    def _fill_rows(self, atoms: Atoms, out: np.ndarray) -> None:
        """Compute the rows of one structure into `out`."""
        from daskpipe.core.neighbours import neighbour_grid
        from daskpipe.stages.describe.soap_kernels import write_soap

        if not len(atoms):
            raise ValueError("a structure without atoms has no descriptor; drop it")
        kinds = self._kind[atoms.numbers]
        if kinds.min() < 0:
            check_species([atoms], self._hypers["species"])
        grid = neighbour_grid(atoms, self._cutoff)
        mode, average = COMPRESSIONS.index(self._hypers["compression"]), AVERAGES.index(self._hypers["average"])
        write_soap(grid, kinds[grid.atom_index], self._kernel_basis, mode, average, out)

    @cached_property
    def _kernel_basis(self) -> Basis:
        """Input of the kernels, made on first use, since it imports Numba."""
        from daskpipe.stages.describe.soap_kernels import Basis, aligned_zeros

        table = aligned_zeros(self._table.size, np.empty(0, self.dtype))
        table[:] = self._table.reshape(-1)
        n_max, l_max = self._hypers["n_max"], self._hypers["l_max"]
        return Basis(
            table=table,
            rows_per_length=cast(float, self.dtype.type(1 / self._step)),
            factors=harmonic_factors(l_max).astype(self.dtype),
            n_species=int(self._kind.max()) + 1,
            n_max=n_max,
            l_max=l_max,
            n_vectors=-(-n_max // WIDTH),
            n_groups=self._table.shape[1],
        )


# --- tables -----------------------------------------------------------------------------------------


def radial_table(
    r_cut: float, n_max: int, l_max: int, sigma: float, cutoff: float, tolerance: float
) -> tuple[np.ndarray, float]:
    """Tabulate the radial parts of a neighbour's coefficients, for interpolation by cubic polynomials of four rows.

    Returns
    -------
    tuple of numpy.ndarray, float
        Values, shape (row, group, 8), float64; a group are eight radial functions of one l. Row i lies at
        ``(i - 1) * step``. Zeros are the last four rows, for a neighbour beyond the cutoff, and the radial functions
        beyond `n_max`. And the step, Å.
    """
    overlap = _RadialOverlap(r_cut, n_max, l_max, sigma)
    n_steps = 64
    while True:
        # A little more than the cutoff, so that a neighbour there does not fall beyond.
        step = cutoff * (1 + 1e-6) / n_steps
        values = overlap(step * np.arange(-1, n_steps + 2))
        middle = (9 * (values[1:-2] + values[2:-1]) - values[:-3] - values[3:]) / 16
        exact = overlap(step * (np.arange(n_steps) + 0.5))
        error, scale = np.abs(middle - exact).max(axis=0), np.abs(exact).max(axis=0)
        excess = float((error / (tolerance * scale + overlap.rounding_error)).max())
        if excess <= 1:
            break
        # The error goes with the fourth power of the step.
        n_steps = math.ceil(n_steps * max(1.05, 1.02 * excess**0.25))
    n_groups = (l_max + 1) * -(-n_max // WIDTH)
    padded = np.zeros((n_steps + 7, l_max + 1, n_groups // (l_max + 1) * WIDTH))
    padded[:-4, :, :n_max] = values
    table = np.zeros((n_steps + 7, n_groups + n_groups % 2, WIDTH))
    table[:, :n_groups] = padded.reshape(n_steps + 7, n_groups, WIDTH)
    return table, step


class _RadialOverlap:
    """Overlap of dscribe's radial functions with the Gaussian of a neighbour, as a function of its distance.

    ``g[n, l](r) = sum_k beta[l, n, k] r^l exp(-alpha[l, k] r^2)``, where alpha lets the k-th primitive fall to 1e-3 at
    a distance between 1 Å and `r_cut` and beta makes them orthonormal (Löwdin).
    """

    def __init__(self, r_cut: float, n_max: int, l_max: int, sigma: float) -> None:
        from scipy.linalg import LinAlgWarning, inv, sqrtm
        from scipy.special import gamma

        degree = np.arange(l_max + 1)[:, None]
        ends = np.linspace(1, r_cut, n_max)
        alpha, beta = np.empty((l_max + 1, n_max)), np.empty((l_max + 1, n_max, n_max))
        for k in range(l_max + 1):
            # Operation by operation as dscribe: the inverse magnifies a difference in the last bit up to 1e10 times.
            alpha[k] = -np.log(TAIL / np.power(ends, k)) / ends**2
            metric = 0.5 * gamma(k + 3.0 / 2.0) * (alpha[k] + alpha[k][:, None]) ** (-k - 3.0 / 2.0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LinAlgWarning)  # many radial functions are ill-conditioned
                root = sqrtm(inv(metric))
            if np.iscomplexobj(root):
                raise ValueError(
                    f"{n_max} radial functions within {r_cut} Å are not independent in float64 (l = {k}); "
                    "lower n_max or raise r_cut"
                )
            beta[k] = root
        eta = 1 / (2 * sigma**2)
        # A product of Gaussians is a Gaussian: integral of r^l Y exp(-alpha r^2) exp(-eta (r - R)^2).
        primitive = (eta / (alpha + eta)) ** degree * (np.pi / (alpha + eta)) ** 1.5
        # The power spectrum's prefactor, shared among its two factors.
        prefactor = np.sqrt(np.pi * np.sqrt(8 / (2 * degree + 1)))
        self._weights = beta * (primitive * prefactor)[:, None, :]
        self._decay = alpha * eta / (alpha + eta)
        self._degree = degree
        # The largest value of r^l exp(-a r^2) lies at r^2 = l / 2a.
        peak = np.exp(-degree / 2) * (np.maximum(degree, 1) / (2 * self._decay)) ** (degree / 2)
        self._largest = np.einsum("lk,lnk->ln", peak, np.abs(self._weights))

    @property
    def rounding_error(self) -> np.ndarray:
        """Rounding error in float64, shape (l, n): beta holds large numbers of both signs."""
        return 8 * np.finfo(np.float64).eps * self._largest

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """Return values at distances, also negative ones, shape (distance, l, n)."""
        r = distance[:, None, None]
        return np.einsum("rlk,lnk->rln", r**self._degree * np.exp(-self._decay * r**2), self._weights)


def harmonic_factors(l_max: int) -> np.ndarray:
    """Return the factors of the recurrence in `soap_kernels.write_harmonics`, float64.

    Shape (1 + 2 x number of (l, m >= 0)).
    """
    factors = [1.0]
    for m in range(l_max + 1):
        start = math.sqrt(math.prod((2 * k + 1) / (2 * k) for k in range(1, m + 1)) / (4 * math.pi))
        factors += [start * (math.sqrt(2) if m else 1), 0.0]
        for degree in range(m + 1, l_max + 1):
            factor = math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            factors += [factor, factor * math.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))]
    return np.array(factors)
