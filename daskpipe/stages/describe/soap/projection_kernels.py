"""Kernels of the derivatives of a weighted sum of the features: backwards through the power spectrum.

The sum's derivative by the coefficients of a centre, here its field, is computed once for a centre. Each neighbour
then costs no more than its share of the coefficients. All arithmetic is in float64.
"""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel
from daskpipe.core.neighbours_kernels import Grid
from daskpipe.core.simd import WIDTH, aligned_zeros, broadcast, fma, load, store, zeros
from daskpipe.stages.describe.soap.derivative_kernels import write_mean_coefficients
from daskpipe.stages.describe.soap.gradient_kernels import (
    Slopes,
    contract_harmonics,
    interpolate,
    make_slopes,
    write_slopes,
)
from daskpipe.stages.describe.soap.spectrum_kernels import (
    CROSSOVER,
    INNER,
    MU1NU1,
    OUTER,
    Basis,
    Buffers,
    describe_centre,
    make_buffers,
    sum_species,
)


@kernel
def add_field(
    block: np.ndarray, coefficients: np.ndarray, start: int, degree: int, basis: Basis, fields: np.ndarray, target: int
) -> None:
    """Add the products of a matrix, ``block[n', n]``, with the coefficients n' of one species and degree."""
    stride = basis.n_vectors * WIDTH
    for lm in range(degree * degree, (degree + 1) * (degree + 1)):
        for part in range(0, stride, WIDTH):
            at = lm * stride + part
            total = load(fields, target + at)
            for n in range(basis.n_max):
                total = fma(load(block, n * stride + part), broadcast(coefficients, start + lm * stride + n), total)
            store(fields, target + at, total)


@kernel
def read_half_block(weights: np.ndarray, at: int, factor: float, basis: Basis, block: np.ndarray) -> int:
    """Write the weights of the features of one species at one degree as a matrix; return where they end."""
    stride = basis.n_vectors * WIDTH
    for n in range(basis.n_max):
        for other in range(n, basis.n_max):
            block[n * stride + other] = factor * weights[at]
            block[other * stride + n] = factor * weights[at]
            at += 1
        block[n * stride + n] *= 2
    return at


@kernel
def read_full_block(
    weights: np.ndarray, at: int, factor: float, basis: Basis, block: np.ndarray, turned: np.ndarray
) -> int:
    """Write the weights of the features of two species at one degree as matrices; return where they end."""
    stride = basis.n_vectors * WIDTH
    for n in range(basis.n_max):
        for other in range(basis.n_max):
            block[n * stride + other] = factor * weights[at]
            turned[other * stride + n] = factor * weights[at]
            at += 1
    return at


@kernel
def write_fields(
    coefficients: np.ndarray, weights: np.ndarray, factor: float, basis: Basis, mode: int, work: Buffers,
    blocks: np.ndarray, fields: np.ndarray,
) -> None:  # fmt: skip
    """Write the derivatives of the weighted sum of a centre's features by its coefficients, of the same shape.

    `blocks` is a buffer for two matrices; the end of `fields` is one for the sum over species.
    """
    size = len(work.summed)
    block, turned = blocks[0], blocks[1]
    for place in range(len(fields)):
        fields[place] = 0
    at, last = 0, basis.n_species * size
    if mode == MU1NU1:
        sum_species(coefficients, basis, work.summed)
    for first in range(basis.n_species):
        for degree in range(basis.l_max + 1):
            if mode == MU1NU1:
                at = read_full_block(weights, at, factor, basis, block, turned)
                add_field(turned, work.summed, 0, degree, basis, fields, first * size)
                add_field(block, coefficients, first * size, degree, basis, fields, last)
            else:
                at = read_half_block(weights, at, factor, basis, block)
                add_field(block, coefficients, first * size, degree, basis, fields, first * size)
        if mode in (CROSSOVER, MU1NU1):
            continue
        for second in range(first + 1, basis.n_species):
            for degree in range(basis.l_max + 1):
                at = read_full_block(weights, at, factor, basis, block, turned)
                add_field(turned, coefficients, second * size, degree, basis, fields, first * size)
                add_field(block, coefficients, first * size, degree, basis, fields, second * size)
    for place in range(last):
        fields[place] += fields[last + place % size]


@kernel
def project_neighbour(
    place: int, fields: np.ndarray, field: int, basis: Basis, work: Buffers, slopes: Slopes, sums: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Write the sum of the products of a field and the gradients of a neighbour's coefficients, (xyz,).

    `sums` is a buffer for four vectors.
    """
    values, steps = slopes.values.reshape(-1), slopes.slopes.reshape(-1)
    outwards, along_x, along_y, along_z = zeros(fields), zeros(fields), zeros(fields), zeros(fields)
    at = 0
    for degree in range(basis.l_max + 1):
        for number in range(basis.n_vectors):
            radial, slope = interpolate(values, place, at, basis, work), interpolate(steps, place, at, basis, work)
            at += WIDTH
            own, x, y, z = contract_harmonics(place, fields, field, degree, number, basis, slopes)
            outwards, along_x = fma(slope, own, outwards), fma(radial, x, along_x)
            along_y, along_z = fma(radial, y, along_y), fma(radial, z, along_z)
    store(sums, 0, outwards)
    store(sums, WIDTH, along_x)
    store(sums, 2 * WIDTH, along_y)
    store(sums, 3 * WIDTH, along_z)
    total = 0.0
    for item in range(WIDTH):
        total += sums[item]
    out[0], out[1], out[2] = total * work.x[place], total * work.y[place], total * work.z[place]
    for axis in range(3):
        for item in range(WIDTH):
            out[axis] += sums[(axis + 1) * WIDTH + item]


@kernel
def write_projection(
    grid: Grid, kinds: np.ndarray, point_weights: np.ndarray, basis: Basis, mode: int, average: int,
    weights: np.ndarray, owners: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Add the derivatives of the weighted sum of all features to `out`.

    Parameters
    ----------
    grid, kinds, point_weights, basis, mode, average
        As in `spectrum_kernels.write_soap`.
    weights
        Shape (centre, feature), float64; one centre for an average.
    owners
        The atom that each centre moves with, shape (centre,), int64; -1 for none.
    out
        Zeros, shape (atom, xyz), float64.
    """
    n_centres = len(owners)
    stride = basis.n_vectors * WIDTH
    size = (basis.l_max + 1) * (basis.l_max + 1) * stride
    work = make_buffers(len(kinds), basis, out)
    slopes = make_slopes(work, basis)
    coefficients = aligned_zeros(basis.n_species * size + WIDTH, out)
    fields = aligned_zeros((basis.n_species + 1) * size, out)
    blocks = np.zeros((2, basis.n_max * stride))
    sums, force = np.empty(4 * WIDTH), np.empty(3)
    inner = average == INNER
    mean = np.zeros(len(coefficients) if inner else 0)
    factor = 1.0 / n_centres if inner or average == OUTER else 1.0
    if inner:
        write_mean_coefficients(grid, kinds, point_weights, basis, work, coefficients, mean)
    for centre in range(n_centres):
        n_places = describe_centre(grid.positions[centre], grid, kinds, point_weights, basis, work, coefficients)
        if centre == 0 or not inner:
            own = weights[0] if len(weights) == 1 else weights[centre]
            write_fields(mean if inner else coefficients, own, factor, basis, mode, work, blocks, fields)
        write_slopes(n_places, point_weights, basis, work, slopes)
        first = 0
        for kind in range(basis.n_species):
            for place in range(first, work.ends[kind]):
                project_neighbour(place, fields, kind * size, basis, work, slopes, sums, force)
                atom = grid.atom_index[work.places[place]]
                for axis in range(3):
                    out[atom, axis] += force[axis]
                    if owners[centre] >= 0:
                        out[owners[centre], axis] -= force[axis]
            first = (work.ends[kind] + WIDTH - 1) // WIDTH * WIDTH
