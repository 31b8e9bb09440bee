"""Radial functions of SOAP, tabulated for the kernels, and factors of the spherical harmonics.

The coefficients of a neighbour at distance r in direction u are ``g[n, l](r) Y[l, m](u)``, with g the overlap of a
radial function with the neighbour's Gaussian. Both radial bases are dscribe's (DOI 10.1016/j.cpc.2019.106949).
"""

from __future__ import annotations

import math
import warnings
from typing import Protocol

import numpy as np

WIDTH = 8
"""Radial functions in a vector of `spectrum_kernels`."""

TAIL = 1e-3
"""dscribe's threshold: Gaussians of neighbours count up to where they have fallen to it at `r_cut`."""

TOLERANCE = {"float32": 1e-6, "float64": 1e-11}
"""Largest error of the tabulated radial functions, in units of the largest value of each."""

N_QUADRATURE = 100
"""Points of dscribe's Gauss-Legendre quadrature of the polynomial basis."""

SMALL_ARGUMENT = 0.05
"""Argument of modified Bessel functions below which their power series is summed."""


class RadialOverlap(Protocol):
    """Overlaps of the radial functions with a neighbour's Gaussian."""

    @property
    def rounding_error(self) -> np.ndarray:
        """Rounding error of the overlaps in float64, shape (l, n)."""

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """Return overlaps at distances (Å), also negative ones, shape (distance, l, n)."""


def find_padding(sigma: float) -> float:
    """Return the distance (Å) beyond `r_cut` up to which neighbours count; `sigma` in Å."""
    return sigma * math.sqrt(-2 * math.log(TAIL))


def radial_table(overlap: RadialOverlap, cutoff: float, tolerance: float) -> tuple[np.ndarray, float]:
    """Tabulate the radial parts of a neighbour's coefficients, for interpolation by cubic polynomials of four rows.

    Returns
    -------
    tuple of numpy.ndarray, float
        Values, shape (row, group, 8), float64; a group are eight radial functions of one l. Row i lies at
        ``(i - 1) * step``. Zeros are the last four rows, for a neighbour beyond the cutoff, and the radial functions
        beyond `n_max`. And the step, Å.
    """
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
    n_degrees, n_max = values.shape[1:]
    n_groups = n_degrees * -(-n_max // WIDTH)
    padded = np.zeros((n_steps + 7, n_degrees, n_groups // n_degrees * WIDTH))
    padded[:-4, :, :n_max] = values
    table = np.zeros((n_steps + 7, n_groups + n_groups % 2, WIDTH))
    table[:, :n_groups] = padded.reshape(n_steps + 7, n_groups, WIDTH)
    return table, step


def make_gaussian_basis(r_cut: float, n_max: int, l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Return dscribe's radial basis ``gto``: decay of each primitive, and the weights that make them orthonormal.

    The n-th function of degree l is ``sum_k beta[l, n, k] r^l exp(-alpha[l, k] r^2)``.

    Returns
    -------
    tuple of numpy.ndarray
        alpha, shape (l, k), 1/Å^2, and beta, shape (l, n, k).

    Raises
    ------
    ValueError
        If the functions are not independent in float64.
    """
    from scipy.linalg import LinAlgWarning, inv, sqrtm
    from scipy.special import gamma

    ends = np.linspace(1, r_cut, n_max)
    alpha, beta = np.empty((l_max + 1, n_max)), np.empty((l_max + 1, n_max, n_max))
    for k in range(l_max + 1):
        # Operation by operation as dscribe: the inverse magnifies a difference in the last bit up to 1e10 times.
        alpha[k] = -np.log(TAIL / np.power(ends, k)) / ends**2
        metric = 0.5 * gamma(k + 3.0 / 2.0) * (alpha[k] + alpha[k][:, None]) ** (-k - 3.0 / 2.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinAlgWarning)  # many radial functions are ill-conditioned
            root = sqrtm(inv(metric))
        beta[k] = check_root(root, r_cut, f" (l = {k})")
    return alpha, beta


def make_polynomial_basis(r_cut: float, n_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Return dscribe's radial basis ``polynomial``, ``sum_k beta[n, k] (r_cut - r)^(k + 3)``, at quadrature points.

    Returns
    -------
    tuple of numpy.ndarray
        Points, shape (point,), Å, and values, shape (n, point).

    Raises
    ------
    ValueError
        If the functions are not independent in float64.
    """
    from scipy.linalg import LinAlgWarning, sqrtm

    power = np.arange(1, n_max + 1)
    # Operation by operation as dscribe: the inverse magnifies a difference in the last bit.
    metric = np.empty((n_max, n_max))
    for i in range(1, n_max + 1):
        for j in range(1, n_max + 1):
            metric[i - 1, j - 1] = 2 * r_cut ** (7 + i + j) / ((5 + i + j) * (6 + i + j) * (7 + i + j))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        root = sqrtm(np.linalg.inv(metric))
    beta = check_root(root, r_cut, "")
    points = r_cut / 2 * (np.polynomial.legendre.leggauss(N_QUADRATURE)[0] + 1)
    return points, beta @ (r_cut - points) ** (power[:, None] + 2)


def check_root(root: np.ndarray, r_cut: float, which: str) -> np.ndarray:
    """Return the root of an inverse overlap matrix; raise ValueError where rounding made it complex."""
    if np.iscomplexobj(root):
        raise ValueError(
            f"{len(root)} radial functions within {r_cut} Å are not independent in float64{which}; "
            "lower n_max or raise r_cut"
        )
    return root


class GaussianOverlap:
    """Overlap of dscribe's radial basis ``gto`` with the Gaussian of a neighbour, as a function of its distance.

    ``g[n, l](r) = sum_k beta[l, n, k] r^l exp(-alpha[l, k] r^2)``, where alpha lets the k-th primitive fall to 1e-3 at
    a distance between 1 Å and `r_cut` and beta makes them orthonormal (Löwdin).
    """

    def __init__(self, r_cut: float, n_max: int, l_max: int, sigma: float) -> None:
        degree = np.arange(l_max + 1)[:, None]
        alpha, beta = make_gaussian_basis(r_cut, n_max, l_max)
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


class PolynomialOverlap:
    """Overlap of dscribe's radial basis ``polynomial`` with the Gaussian of a neighbour, by quadrature over r.

    ``g[n, l](R) = 4 pi sum_r w_r r^2 g_n(r) exp(-eta (r^2 + R^2)) i_l(2 eta r R)``, with the modified spherical Bessel
    functions of the first kind.
    """

    def __init__(self, r_cut: float, n_max: int, l_max: int, sigma: float) -> None:
        self._points, values = make_polynomial_basis(r_cut, n_max)
        self._eta, self._l_max = 1 / (2 * sigma**2), l_max
        # The power spectrum's prefactor, shared among its two factors.
        self._prefactor = np.sqrt(np.pi * np.sqrt(8 / (2 * np.arange(l_max + 1) + 1)))
        weights = r_cut / 2 * np.polynomial.legendre.leggauss(N_QUADRATURE)[1]
        self._weights = 4 * np.pi * weights * self._points**2 * values

    @property
    def rounding_error(self) -> np.ndarray:
        """Rounding error in float64, shape (l, n): the basis holds large numbers of both signs."""
        largest: np.ndarray = self._prefactor[:, None] * np.abs(self._weights).sum(axis=1)
        return 8 * np.finfo(np.float64).eps * largest

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """Return values at distances, also negative ones, shape (distance, l, n)."""
        length = np.abs(distance)[:, None]
        bessel = scaled_bessel(self._l_max, 2 * self._eta * length * self._points)
        bessel *= np.exp(-self._eta * (length - self._points) ** 2)
        values = np.einsum("lrp,np->rln", bessel, self._weights, optimize=True) * self._prefactor[:, None]
        odd = np.arange(self._l_max + 1) % 2 == 1
        return np.where((distance < 0)[:, None, None] & odd[:, None], -values, values)


def scaled_bessel(l_max: int, x: np.ndarray) -> np.ndarray:
    """Return modified spherical Bessel functions of the first kind times ``exp(-x)``, shape (l, *x.shape); x >= 0.

    Two of them come from SciPy and the others by their recurrence, downwards, where it is stable; small arguments,
    for which the functions of high degree underflow, by three terms of the power series.
    """
    from scipy.special import ive

    out = np.empty((l_max + 1, *x.shape))
    small = x < SMALL_ARGUMENT
    safe = np.where(small, 1.0, x)
    above, now = (np.sqrt(np.pi / (2 * safe)) * ive(degree + 0.5, safe) for degree in (l_max + 1, l_max))
    for degree in range(l_max, -1, -1):
        out[degree] = now
        above, now = now, above + (2 * degree + 1) / safe * now
    x = x[small]
    first, square = np.exp(-x), x**2 / 2
    for degree in range(l_max + 1):
        first = first * (x / (2 * degree + 1) if degree else 1.0)
        second = square / (2 * degree + 3)
        third = second * square / (2 * (2 * degree + 5))
        out[degree][small] = first * (1 + second + third + third * square / (3 * (2 * degree + 7)))
    return out


def harmonic_factors(l_max: int) -> np.ndarray:
    """Return the factors of the recurrence in `spectrum_kernels.write_harmonics`, float64.

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
