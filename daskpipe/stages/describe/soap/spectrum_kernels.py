"""Kernels of the SOAP power spectrum: neighbours to expansion coefficients, coefficients to features.

All arithmetic is on vectors of eight radial functions (`simd`); `n_max` is padded with zeros to `n_vectors` of
them. Expansion coefficients lie as (species, lm, n_vectors, 8), where ``lm`` counts the 2 l + 1 real harmonics
of degree l from ``l * l`` on.

Input is a grid of `daskpipe.core.neighbours`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from daskpipe.core.accelerate import kernel
from daskpipe.core.neighbours_kernels import Grid, write_neighbours
from daskpipe.core.simd import (
    WIDTH,
    add,
    add_neighbours,
    aligned_zeros,
    append_where_equal,
    broadcast,
    broadcast_two,
    broadcast_wide,
    fma,
    interleave_high,
    interleave_low,
    load,
    load_two,
    mul,
    store,
    sub,
    zeros,
)
from daskpipe.stages.describe.soap.weighting_kernels import Weighting, weigh_distance

OFF, MU2, MU1NU1, CROSSOVER = 0, 1, 2, 3
"""dscribe's modes of compression, as `engine.COMPRESSIONS` names them."""

EACH, INNER, OUTER = 0, 1, 2
"""A row a centre; the spectrum of the mean coefficients; the mean of the spectra. As `engine.AVERAGES`."""


class Basis(NamedTuple):
    """Basis in which the neighbours of an atom are expanded.

    Parameters
    ----------
    table
        Radial functions, flat from shape (row, n_groups, 8); a group are eight functions of one l. Row i lies at
        ``(i - 1) / rows_per_length``; the last four rows are zeros.
    rows_per_length
        Scalar of the table's dtype, 1/Å.
    factors
        Of the recurrence in `write_harmonics`.
    n_species, n_max, l_max
        Numbers of species (1 for mu2) and of radial functions, and the largest degree.
    n_vectors, n_groups
        Vectors an l, and groups a row; the latter even.
    weighting
        Weight of a neighbour by its distance.
    """

    table: np.ndarray
    rows_per_length: float
    factors: np.ndarray
    n_species: int
    n_max: int
    l_max: int
    n_vectors: int
    n_groups: int
    weighting: Weighting


class Buffers(NamedTuple):
    """Buffers for one centre: its neighbours by species, their basis functions and the sums of these."""

    neighbours: np.ndarray
    neighbour_kinds: np.ndarray
    places: np.ndarray
    ends: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    harmonics: np.ndarray
    radial: np.ndarray
    pairwise: np.ndarray
    summed: np.ndarray


@kernel
def gather_neighbours(centre: np.ndarray, grid: Grid, kinds: np.ndarray, basis: Basis, work: Buffers) -> int:
    """Find the neighbours of a centre and order them by species, each species from a multiple of eight on.

    Places that stay empty are so far away that radial functions are zero there. Returns the number of places;
    ``work.ends`` says where each species ends, padding left out.
    """
    neighbours, neighbour_kinds, places, ends = work.neighbours, work.neighbour_kinds, work.places, work.ends
    x, y, z = work.x, work.y, work.z
    n_neighbours = write_neighbours(centre, grid, neighbours)
    for number in range(n_neighbours):
        neighbour_kinds[number] = kinds[neighbours[number]]
    # The last vector reaches beyond the end, where nothing is of any species.
    for number in range(n_neighbours, n_neighbours + WIDTH):
        neighbour_kinds[number] = -1
    n_places = 0
    for kind in range(basis.n_species):
        ends[kind] = n_places
        for number in range(0, n_neighbours, WIDTH):
            ends[kind] = append_where_equal(neighbour_kinds, neighbours, number, kind, places, ends[kind])
        n_places = (ends[kind] + WIDTH - 1) // WIDTH * WIDTH
        for place in range(ends[kind], n_places):
            places[place] = 0
    px, py, pz = grid.points[0], grid.points[1], grid.points[2]
    for place in range(n_places):
        point = places[place]
        x[place], y[place], z[place] = px[point] - centre[0], py[point] - centre[1], pz[point] - centre[2]
    far = (len(basis.table) // (basis.n_groups * WIDTH) - 3.5) / basis.rows_per_length
    for kind in range(basis.n_species):
        for place in range(ends[kind], (ends[kind] + WIDTH - 1) // WIDTH * WIDTH):
            x[place], y[place], z[place] = 0, 0, far
    return n_places


@kernel
def write_directions(n_places: int, basis: Basis, work: Buffers) -> None:
    """Normalise vectors, and write rows of the radial table and weights of four rows for their lengths."""
    x, y, z, rows = work.x, work.y, work.z, work.rows
    w0, w1, w2, w3 = work.weights[0], work.weights[1], work.weights[2], work.weights[3]
    one = basis.rows_per_length / basis.rows_per_length  # of the table's dtype
    half, sixth = one / 2, one / 6
    for place in range(n_places):
        r = math.sqrt(x[place] * x[place] + y[place] * y[place] + z[place] * z[place])
        work.lengths[place] = r
        # The centre itself has no direction; its radial functions vanish beyond l = 0.
        inverse = one / (r if r > 0 else one)
        x[place] *= inverse
        y[place] *= inverse
        z[place] *= inverse
        row = np.int32(r * basis.rows_per_length)
        rows[place] = row
        # Cubic Lagrange polynomials at -1, 0, 1, 2.
        t = r * basis.rows_per_length - row
        w0[place] = -sixth * t * (t - one) * (t - 2 * one)
        w1[place] = half * (t + one) * (t - one) * (t - 2 * one)
        w2[place] = -half * (t + one) * t * (t - 2 * one)
        w3[place] = sixth * (t + one) * t * (t - one)


@kernel
def weigh_neighbours(n_places: int, point_weights: np.ndarray, basis: Basis, work: Buffers) -> None:
    """Multiply the weights of the rows by those of the neighbours: of the points, and by distance."""
    kind = 0
    for place in range(n_places):
        while place >= (work.ends[kind] + WIDTH - 1) // WIDTH * WIDTH:
            kind += 1
        if place < work.ends[kind]:  # the others fill up a vector
            weight = point_weights[work.places[place]] * weigh_distance(work.lengths[place], basis.weighting)
            for row in range(4):
                work.weights[row, place] *= weight


@kernel
def write_harmonics(first: int, basis: Basis, work: Buffers) -> None:
    """Write the real orthonormal spherical harmonics of eight unit vectors, (lm, 8).

    ``basis.factors`` starts with a one; then come, by m and l, two factors each of the recurrence
    ``q[l, m] = a z q[l - 1, m] - b q[l - 2, m]``, in whose place the first is q[m, m] itself where l = m.
    """
    factors, out = basis.factors, work.harmonics
    x, y, z = load(work.x, first), load(work.y, first), load(work.z, first)
    real, imaginary = broadcast(factors, 0), zeros(factors)
    entry = 1
    for m in range(basis.l_max + 1):
        before, now = zeros(factors), broadcast(factors, entry)
        for degree in range(m, basis.l_max + 1):
            if degree > m:
                after = sub(mul(broadcast(factors, entry), mul(z, now)), mul(broadcast(factors, entry + 1), before))
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
def write_radial(first: int, basis: Basis, work: Buffers) -> None:
    """Interpolate the radial functions of eight neighbours, (n_groups / 2, neighbour, 16), between four rows."""
    table, rows, out = basis.table, work.rows, work.radial
    to_0, to_1, to_2, to_3 = work.weights[0], work.weights[1], work.weights[2], work.weights[3]
    stride = basis.n_groups * WIDTH
    for neighbour in range(WIDTH):
        w0, w1 = broadcast_wide(to_0, first + neighbour), broadcast_wide(to_1, first + neighbour)
        w2, w3 = broadcast_wide(to_2, first + neighbour), broadcast_wide(to_3, first + neighbour)
        row = rows[first + neighbour] * stride
        for at in range(0, stride, 2 * WIDTH):
            near = fma(load_two(table, row + stride + at), w1, mul(load_two(table, row + at), w0))
            far = fma(load_two(table, row + 3 * stride + at), w3, mul(load_two(table, row + 2 * stride + at), w2))
            store(out, at * WIDTH + neighbour * 2 * WIDTH, add(near, far))


@kernel
def contract_neighbours(shift: int, basis: Basis, work: Buffers) -> None:
    """Add radial functions times harmonics of eight neighbours to the coefficients of one species.

    ``work.pairwise`` is (species, lm, n_vectors, 8, 2): sums over every other neighbour.
    """
    values = work.radial
    degree, part = 0, 0
    for at in range(0, basis.n_groups * WIDTH * WIDTH, 2 * WIDTH * WIDTH):
        a, b = load_two(values, at), load_two(values, at + 2 * WIDTH)
        c, d = load_two(values, at + 4 * WIDTH), load_two(values, at + 6 * WIDTH)
        e, f = load_two(values, at + 8 * WIDTH), load_two(values, at + 10 * WIDTH)
        g, h = load_two(values, at + 12 * WIDTH), load_two(values, at + 14 * WIDTH)
        low = interleave_low(a, b), interleave_low(c, d), interleave_low(e, f), interleave_low(g, h)
        add_products(low, degree, part, shift, basis, work)
        degree, part = (degree, part + 1) if part + 1 < basis.n_vectors else (degree + 1, 0)
        if degree <= basis.l_max:
            high = interleave_high(a, b), interleave_high(c, d), interleave_high(e, f), interleave_high(g, h)
            add_products(high, degree, part, shift, basis, work)
        degree, part = (degree, part + 1) if part + 1 < basis.n_vectors else (degree + 1, 0)


@kernel
def add_products(functions: Any, degree: int, part: int, shift: int, basis: Basis, work: Buffers) -> None:
    """Add the products of eight neighbours' radial functions, of one group, with their harmonics of one degree."""
    y, pairwise = work.harmonics, work.pairwise
    first, second, third, fourth = functions
    for lm in range(degree * degree, (degree + 1) * (degree + 1)):
        target = shift + (lm * basis.n_vectors + part) * 2 * WIDTH
        source = lm * WIDTH
        total = fma(first, broadcast_two(y, source), load_two(pairwise, target))
        total = fma(second, broadcast_two(y, source + 2), total)
        total = fma(third, broadcast_two(y, source + 4), total)
        store(pairwise, target, fma(fourth, broadcast_two(y, source + 6), total))


@kernel
def expand_neighbourhood(n_places: int, basis: Basis, work: Buffers, coefficients: np.ndarray) -> None:
    """Write the expansion coefficients of a neighbourhood."""
    for place in range(len(work.pairwise)):
        work.pairwise[place] = 0
    size = (basis.l_max + 1) * (basis.l_max + 1) * basis.n_vectors * 2 * WIDTH
    kind = 0
    for first in range(0, n_places, WIDTH):
        while first >= work.ends[kind]:
            kind += 1
        write_harmonics(first, basis, work)
        write_radial(first, basis, work)
        contract_neighbours(kind * size, basis, work)
    for target in range(0, len(work.pairwise) // 2, WIDTH):
        store(coefficients, target, add_neighbours(load_two(work.pairwise, 2 * target)))


@kernel
def write_full_block(
    a: np.ndarray, shift_a: int, b: np.ndarray, shift_b: int, degree: int, basis: Basis, row: np.ndarray, at: int
) -> int:
    """Write the spectrum of two species at one degree, all n x n'; return where it ends in `row`.

    What a vector writes beyond n' = n_max, and rows beyond n = n_max, is overwritten by what follows.
    """
    n_max, stride = basis.n_max, basis.n_vectors * WIDTH
    first = degree * degree * stride
    for n in range(0, n_max, 8):
        for part in range(stride - WIDTH, -1, -WIDTH):
            p0, p1, p2, p3, p4, p5, p6, p7 = (zeros(a), zeros(a), zeros(a), zeros(a), zeros(a), zeros(a), zeros(a),
                                              zeros(a))  # fmt: skip
            for k in range(2 * degree + 1):
                other = load(b, shift_b + first + k * stride + part)
                one = shift_a + first + k * stride + n
                p0 = fma(other, broadcast(a, one), p0)
                p1 = fma(other, broadcast(a, one + 1), p1)
                p2 = fma(other, broadcast(a, one + 2), p2)
                p3 = fma(other, broadcast(a, one + 3), p3)
                p4 = fma(other, broadcast(a, one + 4), p4)
                p5 = fma(other, broadcast(a, one + 5), p5)
                p6 = fma(other, broadcast(a, one + 6), p6)
                p7 = fma(other, broadcast(a, one + 7), p7)
            target = at + n * n_max + part
            store(row, target, p0)
            store(row, target + n_max, p1)
            store(row, target + 2 * n_max, p2)
            store(row, target + 3 * n_max, p3)
            store(row, target + 4 * n_max, p4)
            store(row, target + 5 * n_max, p5)
            store(row, target + 6 * n_max, p6)
            store(row, target + 7 * n_max, p7)
    return at + n_max * n_max


@kernel
def write_half_block(a: np.ndarray, shift: int, degree: int, basis: Basis, row: np.ndarray, at: int) -> int:
    """Write the spectrum of one species at one degree, n' >= n; return where it ends in `row`."""
    n_max, stride = basis.n_max, basis.n_vectors * WIDTH
    first = shift + degree * degree * stride
    for n in range(0, n_max, 4):
        length = n_max - n
        for part in range((length - 1) // WIDTH * WIDTH, -1, -WIDTH):
            p0, p1, p2, p3 = zeros(a), zeros(a), zeros(a), zeros(a)
            for k in range(2 * degree + 1):
                one = first + k * stride + n
                other = one + part
                p0 = fma(load(a, other), broadcast(a, one), p0)
                p1 = fma(load(a, other + 1), broadcast(a, one + 1), p1)
                p2 = fma(load(a, other + 2), broadcast(a, one + 2), p2)
                p3 = fma(load(a, other + 3), broadcast(a, one + 3), p3)
            store(row, at + part, p0)
            if length > 1:
                store(row, at + part + length, p1)
            if length > 2:
                store(row, at + part + 2 * length - 1, p2)
            if length > 3:
                store(row, at + part + 3 * length - 3, p3)
        n_rows = min(4, length)
        at += n_rows * length - n_rows * (n_rows - 1) // 2
    return at


@kernel
def sum_species(coefficients: np.ndarray, basis: Basis, summed: np.ndarray) -> None:
    """Write the sum of the coefficients over species."""
    size = len(summed)
    for place in range(size):
        summed[place] = 0
    for kind in range(basis.n_species):
        for place in range(size):
            summed[place] += coefficients[kind * size + place]


@kernel
def write_spectrum(coefficients: np.ndarray, basis: Basis, mode: int, summed: np.ndarray, row: np.ndarray) -> None:
    """Write the power spectrum of coefficients in dscribe's order; vectors reach beyond the end of the features."""
    size = (basis.l_max + 1) * (basis.l_max + 1) * basis.n_vectors * WIDTH
    at = 0
    if mode == MU1NU1:
        sum_species(coefficients, basis, summed)
        for kind in range(basis.n_species):
            for degree in range(basis.l_max + 1):
                at = write_full_block(coefficients, kind * size, summed, 0, degree, basis, row, at)
        return
    for kind in range(basis.n_species):
        for degree in range(basis.l_max + 1):
            at = write_half_block(coefficients, kind * size, degree, basis, row, at)
        if mode == CROSSOVER:
            continue
        for other in range(kind + 1, basis.n_species):
            for degree in range(basis.l_max + 1):
                at = write_full_block(coefficients, kind * size, coefficients, other * size, degree, basis, row, at)


@kernel
def make_buffers(n_points: int, basis: Basis, like: np.ndarray) -> Buffers:
    """Return buffers for centres among a number of points, of the dtype of `like`."""
    n_points += WIDTH
    n_lm = (basis.l_max + 1) * (basis.l_max + 1)
    size = n_lm * basis.n_vectors * WIDTH
    n_places = n_points + basis.n_species * WIDTH
    return Buffers(
        np.empty(n_points, np.int32),
        np.empty(n_points, np.int32),
        np.empty(n_places, np.int32),
        np.empty(basis.n_species, np.int64),
        aligned_zeros(n_places, like),
        aligned_zeros(n_places, like),
        aligned_zeros(n_places, like),
        aligned_zeros(n_places, like),
        np.empty(n_places, np.int32),
        np.empty((4, n_places), like.dtype),
        aligned_zeros(n_lm * WIDTH, like),
        aligned_zeros(basis.n_groups * WIDTH * WIDTH, like),
        aligned_zeros(basis.n_species * 2 * size, like),
        aligned_zeros(size, like),
    )


@kernel
def describe_centre(
    centre: np.ndarray, grid: Grid, kinds: np.ndarray, point_weights: np.ndarray, basis: Basis, work: Buffers,
    coefficients: np.ndarray,
) -> int:  # fmt: skip
    """Write the expansion coefficients of a centre; return the end of its neighbours in the buffers."""
    n_places = gather_neighbours(centre, grid, kinds, basis, work)
    write_directions(n_places, basis, work)
    if len(point_weights):
        weigh_neighbours(n_places, point_weights, basis, work)
    expand_neighbourhood(n_places, basis, work, coefficients)
    return n_places


@kernel
def write_soap(
    grid: Grid, kinds: np.ndarray, point_weights: np.ndarray, basis: Basis, mode: int, average: int, out: np.ndarray
) -> None:
    """Write the power spectra of all centres of a structure, or their average.

    `kinds` are the species of the grid's points, int32, counted from 0 (all 0 for mu2), and `point_weights` their
    weights, float64; it is empty if neither they nor distances count. `out` is (centre, feature), or (1, feature) for
    an average.
    """
    n_centres, n_features = len(grid.positions), out.shape[1]
    size = (basis.l_max + 1) * (basis.l_max + 1) * basis.n_vectors * WIDTH
    work = make_buffers(len(kinds), basis, out)
    coefficients = aligned_zeros(basis.n_species * size + WIDTH, out)
    # Vectors are written whole and reach beyond a row's end, where the next row follows: only the last needs room.
    row = np.empty(n_features + 8 * basis.n_max + WIDTH, out.dtype)
    flat = out.reshape(-1)
    total = np.zeros(n_features if average == OUTER else 0, np.float64)
    mean = np.zeros(len(coefficients) if average == INNER else 0, np.float64)
    for centre in range(n_centres):
        describe_centre(grid.positions[centre], grid, kinds, point_weights, basis, work, coefficients)
        if average == INNER:
            for place in range(len(mean)):
                mean[place] += coefficients[place]
            if centre + 1 < n_centres:
                continue
            for place in range(len(mean)):
                coefficients[place] = mean[place] / n_centres
        in_place = average == EACH and centre * n_features + len(row) <= len(flat)
        # Called here alone: LLVM copies it, with all that it calls, to each place of a call.
        write_spectrum(coefficients, basis, mode, work.summed, flat[centre * n_features :] if in_place else row)
        if average == OUTER:
            for feature in range(n_features):
                total[feature] += row[feature]
        elif not in_place:
            start = 0 if average == INNER else centre * n_features
            for feature in range(n_features):
                flat[start + feature] = row[feature]
    if average == OUTER:
        for feature in range(n_features):
            flat[feature] = total[feature] / n_centres
