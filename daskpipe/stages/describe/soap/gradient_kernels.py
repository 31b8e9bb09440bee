"""Kernels of the gradients of a neighbour's basis functions.

With g the radial functions, w the weight by distance, and u the direction of a neighbour at r::

    d/dr [w g[n, l](r) Y[l, m](u)] = (w g)' Y u + w g (dY - u (u . dY)) / r

The gradients of w g are those of the interpolated values. All arithmetic is in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from daskpipe.core.accelerate import kernel
from daskpipe.core.simd import WIDTH, add, aligned_zeros, broadcast, fma, load, mul, store, sub, zeros
from daskpipe.stages.describe.soap.spectrum_kernels import Basis, Buffers
from daskpipe.stages.describe.soap.weighting_kernels import find_weight_slope, weigh_distance

ON_CENTRE = 1e-10
"""Distance of an atom on the centre, Å.

It has no direction. Its gradients of degree 1, the only ones, are those of the slopes of the harmonics.
"""

ROWS = 4
"""Rows of the table that interpolate a value."""

PARTS = 4
"""Numbers of a harmonic: its value and its three derivatives."""


class Slopes(NamedTuple):
    """Buffers for the gradients of the neighbours of one centre.

    Parameters
    ----------
    lengths, inverses
        Distances and their inverses, shape (place,), Å and 1/Å.
    values, slopes
        Weights of four rows of the table for w g and for its derivative, shape (row, place).
    harmonics
        Values and derivatives along x, y, z of the harmonics, divided by the distance and tangential, flat from shape
        (eight neighbours, part, lm, neighbour).
    """

    lengths: np.ndarray
    inverses: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    harmonics: np.ndarray


@kernel
def make_slopes(work: Buffers, basis: Basis) -> Slopes:
    """Return buffers that fit those of the features."""
    n_places, n_lm = len(work.places), (basis.l_max + 1) * (basis.l_max + 1)
    return Slopes(
        np.empty(n_places),
        np.empty(n_places),
        np.empty((ROWS, n_places)),
        np.empty((ROWS, n_places)),
        aligned_zeros((n_places // WIDTH + 1) * PARTS * n_lm * WIDTH, work.x),
    )


@kernel
def write_slopes(n_places: int, point_weights: np.ndarray, basis: Basis, work: Buffers, slopes: Slopes) -> None:
    """Write all that the gradients of a centre's neighbours need, after `spectrum_kernels.describe_centre`."""
    per_length = basis.rows_per_length
    values, steps = slopes.values, slopes.slopes
    for place in range(n_places):
        r = work.lengths[place]
        if r < ON_CENTRE:
            r = ON_CENTRE
            work.x[place], work.y[place], work.z[place] = 0, 0, 0
        row = np.int32(r * per_length)
        work.rows[place] = row
        t = r * per_length - row
        values[0, place], values[1, place] = -t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2
        values[2, place], values[3, place] = -(t + 1) * t * (t - 2) / 2, (t + 1) * t * (t - 1) / 6
        steps[0, place] = -(3 * t * t - 6 * t + 2) / 6 * per_length
        steps[1, place] = (3 * t * t - 4 * t - 1) / 2 * per_length
        steps[2, place] = -(3 * t * t - 2 * t - 2) / 2 * per_length
        steps[3, place] = (3 * t * t - 1) / 6 * per_length
        slopes.lengths[place], slopes.inverses[place] = r, 1 / r
    if len(point_weights):
        weigh_slopes(n_places, point_weights, basis, work, slopes)
    for first in range(0, n_places, WIDTH):
        write_harmonic_slopes(first, basis, work, slopes)


@kernel
def weigh_slopes(n_places: int, point_weights: np.ndarray, basis: Basis, work: Buffers, slopes: Slopes) -> None:
    """Multiply the radial functions by the weights of the neighbours, and add the slopes of the weights."""
    kind = 0
    for place in range(n_places):
        while place >= (work.ends[kind] + WIDTH - 1) // WIDTH * WIDTH:
            kind += 1
        if place >= work.ends[kind]:  # it fills up a vector
            continue
        own = point_weights[work.places[place]]
        weight = own * weigh_distance(slopes.lengths[place], basis.weighting)
        slope = own * find_weight_slope(slopes.lengths[place], basis.weighting)
        if slopes.lengths[place] == ON_CENTRE:
            slope = 0.0  # whatever the function: it is even in a displacement from the centre
        for row in range(ROWS):
            value = slopes.values[row, place]
            slopes.values[row, place] = weight * value
            slopes.slopes[row, place] = weight * slopes.slopes[row, place] + slope * value


@kernel
def write_harmonic_slopes(first: int, basis: Basis, work: Buffers, slopes: Slopes) -> None:
    """Write the real harmonics of eight unit vectors and their derivatives; see `spectrum_kernels.write_harmonics`."""
    factors, out = basis.factors, slopes.harmonics
    part = (basis.l_max + 1) * (basis.l_max + 1) * WIDTH
    start = first // WIDTH * PARTS * part
    x, y, z = load(work.x, first), load(work.y, first), load(work.z, first)
    one, none = broadcast(factors, 0), zeros(factors)
    frame = x, y, z, load(slopes.inverses, first)
    real, imaginary = one, none  # (x + iy)^m
    real_slope, imaginary_slope = none, none  # m (x + iy)^(m - 1)
    count = none
    entry = 1
    for m in range(basis.l_max + 1):
        before, now = none, broadcast(factors, entry)
        before_slope, now_slope = none, none
        for degree in range(m, basis.l_max + 1):
            if degree > m:
                a, b = broadcast(factors, entry), broadcast(factors, entry + 1)
                after = sub(mul(a, mul(z, now)), mul(b, before))
                after_slope = sub(mul(a, fma(z, now_slope, now)), mul(b, before_slope))
                before, before_slope = now, now_slope
                now, now_slope = after, after_slope
            entry += 2
            target = start + degree * degree * WIDTH
            if m == 0:
                store_harmonic(out, target, part, now, (none, none, now_slope), frame)
            else:
                along = mul(now, real_slope), sub(none, mul(now, imaginary_slope)), mul(now_slope, real)
                store_harmonic(out, target + (2 * m - 1) * WIDTH, part, mul(now, real), along, frame)
                along = mul(now, imaginary_slope), mul(now, real_slope), mul(now_slope, imaginary)
                store_harmonic(out, target + 2 * m * WIDTH, part, mul(now, imaginary), along, frame)
        count = add(count, one)
        real_slope, imaginary_slope = mul(count, real), mul(count, imaginary)
        turned = sub(mul(x, real), mul(y, imaginary))
        imaginary = fma(x, imaginary, mul(y, real))
        real = turned


@kernel
def store_harmonic(out: np.ndarray, target: int, part: int, value: Any, along: Any, frame: Any) -> None:
    """Write a harmonic and its derivatives without their part along the directions, divided by the distance."""
    x, y, z, inverse = frame
    outwards = fma(x, along[0], fma(y, along[1], mul(z, along[2])))
    store(out, target, value)
    store(out, target + part, mul(sub(along[0], mul(x, outwards)), inverse))
    store(out, target + 2 * part, mul(sub(along[1], mul(y, outwards)), inverse))
    store(out, target + 3 * part, mul(sub(along[2], mul(z, outwards)), inverse))


@kernel
def interpolate(weights: np.ndarray, place: int, at: int, basis: Basis, work: Buffers) -> Any:
    """Return eight radial functions of a neighbour, of the group that starts at `at` in a row of the table."""
    table, stride, n_places = basis.table, basis.n_groups * WIDTH, len(work.rows)
    row = work.rows[place] * stride + at
    near = fma(load(table, row), broadcast(weights, place), mul(load(table, row + stride),
               broadcast(weights, n_places + place)))  # fmt: skip
    far = fma(load(table, row + 2 * stride), broadcast(weights, 2 * n_places + place), mul(load(table,
              row + 3 * stride), broadcast(weights, 3 * n_places + place)))  # fmt: skip
    return add(near, far)


@kernel
def contract_harmonics(
    place: int, a: np.ndarray, start: int, degree: int, number: int, basis: Basis, slopes: Slopes
) -> Any:
    """Return sums over m of coefficients times the harmonics of a neighbour, and times their slopes along x, y and z.

    Each is a vector of eight radial functions, the `number`-th of a degree; the coefficients start at ``a[start]``.
    """
    harmonics, part = slopes.harmonics, (basis.l_max + 1) * (basis.l_max + 1) * WIDTH
    first = place // WIDTH * PARTS * part + place % WIDTH
    own, x, y, z = zeros(a), zeros(a), zeros(a), zeros(a)
    for lm in range(degree * degree, (degree + 1) * (degree + 1)):
        value = load(a, start + (lm * basis.n_vectors + number) * WIDTH)
        source = first + lm * WIDTH
        own = fma(value, broadcast(harmonics, source), own)
        x = fma(value, broadcast(harmonics, source + part), x)
        y = fma(value, broadcast(harmonics, source + 2 * part), y)
        z = fma(value, broadcast(harmonics, source + 3 * part), z)
    return own, x, y, z
