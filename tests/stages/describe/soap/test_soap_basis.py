"""Radial functions of SOAP and the table of their overlaps."""

import numpy as np
import pytest
from scipy.integrate import quad_vec
from scipy.special import spherical_in

from daskpipe.stages.describe.soap.basis import (
    TOLERANCE,
    GaussianOverlap,
    PolynomialOverlap,
    make_polynomial_basis,
    radial_table,
    scaled_bessel,
)

R_CUT, N_MAX, L_MAX, SIGMA = 4.0, 4, 5, 0.5
CUTOFF = 6.0
"""Å, where the table ends."""


def test_bessel_functions_are_those_of_scipy() -> None:
    x = np.array([0.0, 1e-8, 1e-3, 0.049, 0.051, 0.5, 3.0, 40.0, 500.0])
    expected = np.array([spherical_in(degree, x) * np.exp(-x) for degree in range(21)])
    np.testing.assert_allclose(scaled_bessel(20, x), expected, rtol=1e-10, atol=1e-300)


def test_polynomials_overlap_with_gaussians_as_their_integral_says() -> None:
    points, values = make_polynomial_basis(R_CUT, N_MAX)
    fit = np.polynomial.Polynomial.fit(points, values[1], N_MAX + 2)
    eta = 1 / (2 * SIGMA**2)
    for distance in (0.3, 2.0, 4.5):

        def integrand(r: float, distance: float = distance) -> np.ndarray:
            x = 2 * eta * r * distance
            bessel = np.array([spherical_in(degree, x) for degree in range(L_MAX + 1)])
            return 4 * np.pi * r**2 * fit(r) * np.exp(-eta * (r**2 + distance**2)) * bessel

        expected, _ = quad_vec(integrand, 0, R_CUT, epsabs=1e-12)
        prefactor = np.sqrt(np.pi * np.sqrt(8 / (2 * np.arange(L_MAX + 1) + 1)))
        received = PolynomialOverlap(R_CUT, N_MAX, L_MAX, SIGMA)(np.array([distance]))[0, :, 1]
        np.testing.assert_allclose(received, prefactor * expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("overlap", [GaussianOverlap, PolynomialOverlap])
def test_overlaps_are_even_or_odd_in_the_distance(overlap) -> None:
    values = overlap(R_CUT, N_MAX, L_MAX, SIGMA)
    r = np.array([0.0, 0.4, 3.0])
    parity = (-1.0) ** np.arange(L_MAX + 1)[:, None]
    np.testing.assert_allclose(values(-r), parity * values(r), rtol=1e-12)


@pytest.mark.parametrize("overlap", [GaussianOverlap, PolynomialOverlap])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tables_are_as_exact_as_they_should_be(overlap, dtype) -> None:
    values = overlap(R_CUT, N_MAX, L_MAX, SIGMA)
    table, step = radial_table(values, CUTOFF, TOLERANCE[dtype])
    rows = np.arange(1, int(CUTOFF / step))
    weights = np.array([-0.0625, 0.5625, 0.5625, -0.0625])  # of a cubic polynomial, half-way between two rows
    between = sum(weight * table[rows + k - 1, : L_MAX + 1, :N_MAX] for k, weight in enumerate(weights))
    exact = values((rows - 0.5) * step)
    scale = np.abs(exact).max(axis=0)
    assert (np.abs(between - exact) <= 2 * TOLERANCE[dtype] * scale + 2 * values.rounding_error).all()
    assert not table[-4:].any()
