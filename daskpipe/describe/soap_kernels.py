"""Kernels of the SOAP power spectrum: neighbours to expansion coefficients, coefficients to features.

All arithmetic is on vectors of eight radial functions (`lanes`); `n_max` is padded with zeros to `n_vectors` of
them. Expansion coefficients lie as (species, lm, n_vectors, 8), where ``lm`` counts the 2 l + 1 real harmonics
of degree l from ``l * l`` on.
"""

from __future__ import annotations

import math

import numpy as np

from daskpipe.accelerate import kernel
from daskpipe.describe.lanes import (
    WIDTH,
    fma,
    fold,
    interleave_high,
    interleave_low,
    load,
    load_two,
    mul,
    spread,
    spread_two,
    spread_wide,
    store,
    sub,
    zeros,
)
from daskpipe.describe.neighbours_kernels import around

OFF, MU2, MU1NU1, CROSSOVER = 0, 1, 2, 3
"""dscribe's modes of compression."""

EACH, INNER, OUTER = 0, 1, 2
"""A row an atom; the spectrum of the mean coefficients; the mean of the spectra."""


@kernel
def harmonics(x_row, y_row, z_row, first, factors, l_max, out):
    """Real orthonormal spherical harmonics of eight unit vectors, ``out[lm, 8]``.

    `factors` starts with a one; then come, by m and l, two factors each of the recurrence
    ``q[l, m] = a z q[l - 1, m] - b q[l - 2, m]``, in whose place the first is q[m, m] itself where l = m.
    """
    x, y, z = load(x_row, first), load(y_row, first), load(z_row, first)
    real, imaginary = spread(factors, 0), zeros(factors)
    entry = 1
    for m in range(l_max + 1):
        before, now = zeros(factors), spread(factors, entry)
        for degree in range(m, l_max + 1):
            if degree > m:
                after = sub(mul(spread(factors, entry), mul(z, now)), mul(spread(factors, entry + 1), before))
                before = now
                now = after
            entry += 2
            row = degree * degree
            if m == 0:
                store(out, row * WIDTH, now)
            else:
                store(out, (row + 2 * m - 1) * WIDTH, mul(now, real))
                store(out, (row + 2 * m) * WIDTH, mul(now, imaginary))
        # (x + iy)^m
        turned = sub(mul(x, real), mul(y, imaginary))
        imaginary = fma(x, imaginary, mul(y, real))
        real = turned


@kernel
def radial(table, at, stride, w0, w1, w2, w3):
    """Sixteen radial functions between the rows of a table, from four rows and their weights."""
    near = fma(load_two(table, at + stride), w1, mul(load_two(table, at), w0))
    return fma(load_two(table, at + 3 * stride), w3, fma(load_two(table, at + 2 * stride), w2, near))


@kernel
def contract(table, n_groups, rows, weights, first, y, l_max, n_vectors, shift, pairwise):
    """Add radial functions times harmonics of four neighbours to the coefficients of one species.

    The radial functions come in `n_groups` of eight, by l and then n: `table` is (row, n_groups, 8). The neighbours'
    harmonics are four columns of `y`, which is (lm, 8). `pairwise` is (species, lm, n_vectors, 8, 2): sums over every
    other neighbour.
    """
    stride = n_groups * WIDTH
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    a0, a1, a2, a3 = (spread_wide(w0, first), spread_wide(w1, first), spread_wide(w2, first),
                      spread_wide(w3, first))  # fmt: skip
    b0, b1, b2, b3 = (spread_wide(w0, first + 1), spread_wide(w1, first + 1), spread_wide(w2, first + 1),
                      spread_wide(w3, first + 1))  # fmt: skip
    c0, c1, c2, c3 = (spread_wide(w0, first + 2), spread_wide(w1, first + 2), spread_wide(w2, first + 2),
                      spread_wide(w3, first + 2))  # fmt: skip
    d0, d1, d2, d3 = (spread_wide(w0, first + 3), spread_wide(w1, first + 3), spread_wide(w2, first + 3),
                      spread_wide(w3, first + 3))  # fmt: skip
    column = first % WIDTH
    degree, part = 0, 0
    for at in range(0, n_groups * WIDTH, 2 * WIDTH):
        a = radial(table, rows[first] * stride + at, stride, a0, a1, a2, a3)
        b = radial(table, rows[first + 1] * stride + at, stride, b0, b1, b2, b3)
        c = radial(table, rows[first + 2] * stride + at, stride, c0, c1, c2, c3)
        d = radial(table, rows[first + 3] * stride + at, stride, d0, d1, d2, d3)
        outer(interleave_low(a, b), interleave_low(c, d), degree, part, y, column, n_vectors, shift, pairwise)
        degree, part = (degree, part + 1) if part + 1 < n_vectors else (degree + 1, 0)
        if degree <= l_max:
            outer(interleave_high(a, b), interleave_high(c, d), degree, part, y, column, n_vectors, shift, pairwise)
        degree, part = (degree, part + 1) if part + 1 < n_vectors else (degree + 1, 0)


@kernel
def outer(first_two, last_two, degree, part, y, column, n_vectors, shift, pairwise):
    """Add the products of one group of radial functions of four neighbours with their harmonics."""
    for lm in range(degree * degree, (degree + 1) * (degree + 1)):
        target = shift + (lm * n_vectors + part) * 2 * WIDTH
        source = lm * WIDTH + column
        total = fma(first_two, spread_two(y, source), load_two(pairwise, target))
        store(pairwise, target, fma(last_two, spread_two(y, source + 2), total))


@kernel
def gather(centre, points, kinds, found, n_found, n_species, ends, x, y, z, far):
    """Put the points found around a centre in order of species, each species from a multiple of eight on.

    Places that stay empty are `far` away. Returns the number of places; `ends` says where each species ends, padding
    left out.
    """
    ends[:] = 0
    for number in range(n_found):
        ends[kinds[found[number]] + 1] += 1
    for kind in range(n_species):
        ends[kind + 1] = ends[kind] + (ends[kind + 1] + WIDTH - 1) // WIDTH * WIDTH
    n_places = ends[n_species]
    x[:n_places], y[:n_places], z[:n_places] = 0, 0, far
    px, py, pz = points[0], points[1], points[2]
    for number in range(n_found):
        point = found[number]
        place = ends[kinds[point]]
        ends[kinds[point]] = place + 1
        x[place], y[place], z[place] = px[point] - centre[0], py[point] - centre[1], pz[point] - centre[2]
    return n_places


@kernel
def directions(n_places, one, step, x, y, z, rows, weights):
    """Turn vectors into unit vectors, and their lengths into rows of the radial table and weights of four rows."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    half, sixth = one / 2, one / 6
    for place in range(n_places):
        r = math.sqrt(x[place] * x[place] + y[place] * y[place] + z[place] * z[place])
        # The centre itself has no direction; its radial functions vanish beyond l = 0.
        inverse = one / (r if r > 0 else one)
        x[place] *= inverse
        y[place] *= inverse
        z[place] *= inverse
        row = np.int32(r * step)
        rows[place] = row
        # Cubic Lagrange polynomials at -1, 0, 1, 2.
        t = r * step - row
        w0[place] = -sixth * t * (t - one) * (t - 2 * one)
        w1[place] = half * (t + one) * (t - one) * (t - 2 * one)
        w2[place] = -half * (t + one) * t * (t - 2 * one)
        w3[place] = sixth * (t + one) * t * (t - one)


@kernel
def expand(n_places, ends, x, y, z, rows, weights, table, n_groups, factors, l_max, n_vectors, ylm, pairwise, out):
    """Expansion coefficients of a neighbourhood; `ylm` and `pairwise` are buffers."""
    pairwise[:] = 0
    size = (l_max + 1) * (l_max + 1) * n_vectors * 2 * WIDTH
    kind = 0
    for first in range(0, n_places, WIDTH):
        while first >= ends[kind]:
            kind += 1
        shift = kind * size
        harmonics(x, y, z, first, factors, l_max, ylm)
        contract(table, n_groups, rows, weights, first, ylm, l_max, n_vectors, shift, pairwise)
        if ends[kind] - first > WIDTH // 2:
            contract(table, n_groups, rows, weights, first + WIDTH // 2, ylm, l_max, n_vectors, shift, pairwise)
    for target in range(0, len(pairwise) // 2, WIDTH):
        store(out, target, fold(load_two(pairwise, 2 * target)))


@kernel
def full_block(a, shift_a, b, shift_b, degree, n_max, n_vectors, row, at):
    """Spectrum of two species' coefficients at one degree, all n x n'; returns where it ends in `row`.

    A vector that reaches beyond n' = n_max is overwritten by what follows it.
    """
    stride = n_vectors * WIDTH
    first, last = degree * degree * stride, (degree + 1) * (degree + 1) * stride
    for n in range(0, n_max, 4):
        for part in range(n_vectors - 1, -1, -1):
            p0, p1, p2, p3 = zeros(a), zeros(a), zeros(a), zeros(a)
            for lm in range(first, last, stride):
                other = load(b, shift_b + lm + part * WIDTH)
                one = shift_a + lm + n
                p0 = fma(other, spread(a, one), p0)
                p1 = fma(other, spread(a, one + 1), p1)
                p2 = fma(other, spread(a, one + 2), p2)
                p3 = fma(other, spread(a, one + 3), p3)
            target = at + n * n_max + part * WIDTH
            store(row, target, p0)
            store(row, target + n_max, p1)
            store(row, target + 2 * n_max, p2)
            store(row, target + 3 * n_max, p3)
    return at + n_max * n_max


@kernel
def half_block(a, shift, degree, n_max, n_vectors, row, at):
    """Spectrum of one species' coefficients at one degree, n' >= n; returns where it ends in `row`."""
    stride = n_vectors * WIDTH
    first, last = degree * degree * stride + shift, (degree + 1) * (degree + 1) * stride + shift
    for n in range(n_max):
        for part in range(n, n_max, WIDTH):
            total = zeros(a)
            for lm in range(first, last, stride):
                total = fma(load(a, lm + part), spread(a, lm + n), total)
            store(row, at + part - n, total)
        at += n_max - n
    return at


@kernel
def spectrum(coefficients, summed, n_species, l_max, n_max, n_vectors, mode, row):
    """Power spectrum of one set of coefficients in dscribe's order; `row` has room for 64 more than the features."""
    size = (l_max + 1) * (l_max + 1) * n_vectors * WIDTH
    at = 0
    if mode == MU1NU1:
        summed[:] = 0
        for kind in range(n_species):
            for place in range(size):
                summed[place] += coefficients[kind * size + place]
        for kind in range(n_species):
            for degree in range(l_max + 1):
                at = full_block(coefficients, kind * size, summed, 0, degree, n_max, n_vectors, row, at)
        return
    for kind in range(n_species):
        for degree in range(l_max + 1):
            at = half_block(coefficients, kind * size, degree, n_max, n_vectors, row, at)
        if mode == CROSSOVER:
            continue
        for other in range(kind + 1, n_species):
            for degree in range(l_max + 1):
                at = full_block(
                    coefficients, kind * size, coefficients, other * size, degree, n_max, n_vectors, row, at
                )


@kernel
def aligned(size, like):
    """Array of zeros of the dtype of `like` that starts on a cache line, so that no vector lies on two."""
    line = 64 // like.itemsize
    array = np.zeros(size + line, like.dtype)
    skip = (-(array.ctypes.data // like.itemsize)) % line
    return array[skip : skip + size]


@kernel
def soap(
    positions, points, kinds, bin_ptr, low, edges, n_bins, cutoff,
    n_species, step, table, factors, l_max, n_max, mode, average, out,
):  # fmt: skip
    """Power spectra of all atoms of a structure.

    `points`, ``(xyz, point)``, are the atoms and their images in a grid of bins (`neighbours_kernels.sort`); `kinds`
    are their species, counted from 0 (all 0 for mu2). `out` is (atom, feature), or (1, feature) for an average.
    """
    n_atoms, n_features = len(positions), out.shape[1]
    n_vectors = (n_max + WIDTH - 1) // WIDTH
    size = (l_max + 1) * (l_max + 1) * n_vectors * WIDTH
    one = step / step
    found = np.empty(len(kinds) + WIDTH, np.int32)
    most = len(kinds) + n_species * WIDTH
    ends, rows = np.empty(n_species + 1, np.int64), np.empty(most, np.int32)
    x, y, z, weights = aligned(most, out), aligned(most, out), aligned(most, out), np.empty((4, most), out.dtype)
    ylm = aligned((l_max + 1) * (l_max + 1) * WIDTH, out)
    n_groups = ((l_max + 1) * n_vectors + 1) // 2 * 2
    # The last four rows are zeros.
    far = (len(table) // (n_groups * WIDTH) - 3.5) / step
    pairwise = aligned(n_species * 2 * size, out)
    coefficients, summed = aligned(n_species * size + WIDTH, out), aligned(size, out)
    # Vectors are written whole and reach beyond a row's end, where the next row follows: only the last needs room.
    row = np.empty(n_features + 8 * n_max + WIDTH, out.dtype)
    flat = out.reshape(-1)
    total = np.zeros(n_features if average == OUTER else 0, np.float64)
    mean = np.zeros(len(coefficients) if average == INNER else 0, np.float64)
    for atom in range(n_atoms):
        centre = positions[atom]
        n_found = around(centre[0], centre[1], centre[2], points, bin_ptr, low, edges, n_bins, cutoff, found)
        n_places = gather(centre, points, kinds, found, n_found, n_species, ends, x, y, z, far)
        directions(n_places, one, step, x, y, z, rows, weights)
        expand(
            n_places,
            ends,
            x,
            y,
            z,
            rows,
            weights,
            table,
            n_groups,
            factors,
            l_max,
            n_vectors,
            ylm,
            pairwise,
            coefficients,
        )
        if average == INNER:
            for place in range(len(mean)):
                mean[place] += coefficients[place]
        elif average == EACH and atom * n_features + len(row) <= len(flat):
            spectrum(coefficients, summed, n_species, l_max, n_max, n_vectors, mode, flat[atom * n_features :])
        else:
            spectrum(coefficients, summed, n_species, l_max, n_max, n_vectors, mode, row)
            if average == EACH:
                out[atom, :] = row[:n_features]
            else:
                for feature in range(n_features):
                    total[feature] += row[feature]
    if average == INNER:
        for place in range(len(mean)):
            coefficients[place] = mean[place] / n_atoms
        spectrum(coefficients, summed, n_species, l_max, n_max, n_vectors, mode, row)
        out[0, :] = row[:n_features]
    elif average == OUTER:
        for feature in range(n_features):
            out[0, feature] = total[feature] / n_atoms
