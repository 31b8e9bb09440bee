"""Kernels of the derivatives of all features by the positions of atoms.

The gradient of a neighbour's coefficients is ``G[l, n] T[l, m] + H[l, n] u Y[l, m]`` along each axis, with the radial
functions G and their slopes H, the slopes of the harmonics T, and the direction u. A change of the spectrum sums over m
a product with other coefficients c; with ``V[l, n] = sum_m c T`` and ``U[l, n] = sum_m c u Y``, its sides, it is
``G V + H U``, products of vectors. Only blocks with the neighbour's species change. All arithmetic is in float64.
"""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel
from daskpipe.core.neighbours_kernels import Grid
from daskpipe.core.simd import WIDTH, add, aligned_zeros, broadcast, fma, load, mul, store, sub
from daskpipe.stages.describe.soap.gradient_kernels import (
    Slopes,
    contract_harmonics,
    interpolate,
    make_slopes,
    write_slopes,
)
from daskpipe.stages.describe.soap.spectrum_kernels import (
    CROSSOVER,
    EACH,
    INNER,
    MU1NU1,
    Basis,
    Buffers,
    describe_centre,
    make_buffers,
    sum_species,
)

SIDES = 6
"""V and U along x, y and z."""


@kernel
def write_sides(
    place: int, a: np.ndarray, start: int, basis: Basis, work: Buffers, slopes: Slopes, out: np.ndarray, at: int
) -> None:
    """Write the sides of a neighbour and the coefficients from ``a[start]`` on, (degree, xyz, V or U, n)."""
    stride = basis.n_vectors * WIDTH
    to_x, to_y, to_z = broadcast(work.x, place), broadcast(work.y, place), broadcast(work.z, place)
    for degree in range(basis.l_max + 1):
        for number in range(basis.n_vectors):
            own, x, y, z = contract_harmonics(place, a, start, degree, number, basis, slopes)
            target = at + degree * SIDES * stride + number * WIDTH
            store(out, target, x)
            store(out, target + stride, mul(to_x, own))
            store(out, target + 2 * stride, y)
            store(out, target + 3 * stride, mul(to_y, own))
            store(out, target + 4 * stride, z)
            store(out, target + 5 * stride, mul(to_z, own))


@kernel
def write_half_change(
    parts: np.ndarray, radial: int, slope: int, side: int, basis: Basis, row: np.ndarray, at: int
) -> int:
    """Write the change of the spectrum of one species at one degree, n' >= n; return where it ends in `row`.

    `radial`, `slope` and `side` are where G, H and V (followed by U) start in `parts`.
    """
    other = side + basis.n_vectors * WIDTH
    for n in range(basis.n_max):
        g, h = broadcast(parts, radial + n), broadcast(parts, slope + n)
        v, u = broadcast(parts, side + n), broadcast(parts, other + n)
        for shift in range(n, basis.n_max, WIDTH):
            total = fma(h, load(parts, other + shift), mul(u, load(parts, slope + shift)))
            total = fma(v, load(parts, radial + shift), total)
            store(row, at + shift - n, fma(g, load(parts, side + shift), total))
        at += basis.n_max - n
    return at


@kernel
def write_full_change(
    parts: np.ndarray, left: int, right: int, left_slope: int, right_slope: int, basis: Basis, row: np.ndarray, at: int
) -> int:
    """Write the sum of two products of vectors, all n x n'; return where it ends in `row`."""
    for n in range(basis.n_max):
        one, two = broadcast(parts, left + n), broadcast(parts, left_slope + n)
        for shift in range(0, basis.n_max, WIDTH):
            total = mul(two, load(parts, right_slope + shift))
            store(row, at + shift, fma(one, load(parts, right + shift), total))
        at += basis.n_max
    return at


@kernel
def put_row(row: np.ndarray, length: int, factor: np.ndarray, fresh: bool, out: np.ndarray, start: int) -> None:
    """Write a multiple of the first items of `row` to `out` from `start` on, or add it where nothing is fresh.

    Memory that is read before it is written costs two page faults.
    """
    whole = length // WIDTH * WIDTH
    multiple = broadcast(factor, 0)
    for place in range(0, whole, WIDTH):
        product = mul(multiple, load(row, place))
        store(out, start + place, product if fresh else add(product, load(out, start + place)))
    for place in range(whole, length):
        out[start + place] = factor[0] * row[place] + (0.0 if fresh else out[start + place])


@kernel
def subtract_row(row: np.ndarray, length: int, factor: np.ndarray, out: np.ndarray, start: int) -> None:
    """Subtract a multiple of the first items of `row` from `out` from `start` on."""
    whole = length // WIDTH * WIDTH
    multiple = broadcast(factor, 0)
    for place in range(0, whole, WIDTH):
        store(out, start + place, sub(load(out, start + place), mul(multiple, load(row, place))))
    for place in range(whole, length):
        out[start + place] -= factor[0] * row[place]


@kernel
def write_parts(
    place: int, kind: int, coefficients: np.ndarray, basis: Basis, mode: int, work: Buffers, slopes: Slopes,
    parts: np.ndarray,
) -> None:  # fmt: skip
    """Write what the changes are products of: G and H of a neighbour, and its sides with each species.

    `kind` is the neighbour's species. Sides with the sum over species (for mu1nu1) come last.
    """
    values, steps = slopes.values.reshape(-1), slopes.slopes.reshape(-1)
    size, stride = len(work.summed), basis.n_vectors * WIDTH
    n_radial = (basis.l_max + 1) * stride
    for at in range(0, n_radial, WIDTH):
        store(parts, at, interpolate(values, place, at, basis, work))
        store(parts, n_radial + at, interpolate(steps, place, at, basis, work))
    at = 2 * n_radial
    for other in range(basis.n_species + (mode == MU1NU1)):
        if other == kind or mode != CROSSOVER:
            a = work.summed if other == basis.n_species else coefficients
            start = 0 if other == basis.n_species else other * size
            write_sides(place, a, start, basis, work, slopes, parts, at)
        at += SIDES * n_radial


@kernel
def put_changes(
    kind: int, parts: np.ndarray, basis: Basis, mode: int, factor: np.ndarray, fresh: bool, row: np.ndarray,
    out: np.ndarray, start: int, opposite: int, n_features: int,
) -> None:  # fmt: skip
    """Write or add the changes of all features where a neighbour moves along x, y and z.

    Parameters
    ----------
    kind, parts
        The neighbour's species, and its products as `write_parts` writes them.
    factor
        Multiplies the changes; its first item.
    fresh
        Whether the changes are written; else they are added.
    row
        Buffer for the features of two species.
    out, start, opposite, n_features
        From ``start + axis * n_features`` on there is a row for each axis, and from ``opposite`` on one from which the
        changes are subtracted; -1 for none.
    """
    stride, n_degrees = basis.n_vectors * WIDTH, basis.l_max + 1
    n_radial = n_degrees * stride
    at = 0
    for first in range(basis.n_species):
        for second in range(first, first + 1 if mode in (CROSSOVER, MU1NU1) else basis.n_species):
            # Features of mu1nu1 are of one species and the sum of all, which the neighbour changes, too.
            n_sums = 2 if mode == MU1NU1 and first == kind else 1
            alike = mode != MU1NU1 and first == second
            length = (basis.n_max * (basis.n_max + 1) // 2 if alike else basis.n_max * basis.n_max) * n_degrees
            for number in range(n_sums if kind in (first, second) or mode == MU1NU1 else 0):
                turned = number == 0 and (mode == MU1NU1 or second == kind)
                side = first if turned else second if mode != MU1NU1 else basis.n_species
                for axis in range(3):
                    end = 0
                    for degree in range(n_degrees):
                        radial, slope = degree * stride, n_radial + degree * stride
                        v = (2 + side * SIDES) * n_radial + (degree * SIDES + 2 * axis) * stride
                        u = v + stride
                        if alike:
                            end = write_half_change(parts, radial, slope, v, basis, row, end)
                        else:
                            left, right, left_slope, right_slope = radial, v, slope, u
                            if turned:
                                left, right, left_slope, right_slope = v, radial, u, slope
                            end = write_full_change(parts, left, right, left_slope, right_slope, basis, row, end)
                    if start >= 0:
                        put_row(row, end, factor, fresh and number == 0, out, start + axis * n_features + at)
                    if opposite >= 0:
                        subtract_row(row, end, factor, out, opposite + axis * n_features + at)
            at += length


@kernel
def write_mean_coefficients(
    grid: Grid, kinds: np.ndarray, point_weights: np.ndarray, basis: Basis, work: Buffers, coefficients: np.ndarray,
    mean: np.ndarray,
) -> None:  # fmt: skip
    """Write the mean of the coefficients of all centres."""
    n_centres = len(grid.positions)
    for centre in range(n_centres):
        describe_centre(grid.positions[centre], grid, kinds, point_weights, basis, work, coefficients)
        for place in range(len(mean)):
            mean[place] += coefficients[place]
    for place in range(len(mean)):
        mean[place] /= n_centres


@kernel
def write_derivatives(
    grid: Grid, kinds: np.ndarray, point_weights: np.ndarray, basis: Basis, mode: int, average: int,
    owners: np.ndarray, slots: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Write the derivatives of the features of all centres, or of their average.

    Parameters
    ----------
    grid, kinds, point_weights, basis, mode, average
        As in `spectrum_kernels.write_soap`.
    owners
        The atom that each centre moves with, shape (centre,), int64; -1 for none.
    slots
        The place of each atom in `out`, shape (atom,), int64; -1 for none.
    out
        Zeros, shape (centre, slot, xyz, feature), float64; one centre for an average.
    """
    n_centres, n_slots, n_features = len(owners), out.shape[1], out.shape[3]
    flat = out.reshape(-1)
    work = make_buffers(len(kinds), basis, out)
    slopes = make_slopes(work, basis)
    coefficients = aligned_zeros(basis.n_species * len(work.summed) + WIDTH, out)
    mean = aligned_zeros(len(coefficients), out)
    n_radial = (basis.l_max + 1) * basis.n_vectors * WIDTH
    parts = aligned_zeros((2 + (basis.n_species + 1) * SIDES) * n_radial + WIDTH, out)
    row = np.empty(basis.n_max * basis.n_max * (basis.l_max + 1) + WIDTH)
    factor = np.full(1, 1.0 if average == EACH else 1.0 / n_centres)
    written = np.full(n_slots, -1)
    if average == INNER:
        write_mean_coefficients(grid, kinds, point_weights, basis, work, coefficients, mean)
    for centre in range(n_centres):
        n_places = describe_centre(grid.positions[centre], grid, kinds, point_weights, basis, work, coefficients)
        write_slopes(n_places, point_weights, basis, work, slopes)
        fixed = mean if average == INNER else coefficients
        sum_species(fixed, basis, work.summed)
        start = centre * n_slots * 3 * n_features if average == EACH else 0
        owner = slots[owners[centre]] if owners[centre] >= 0 else -1
        first = 0
        for kind in range(basis.n_species):
            for place in range(first, work.ends[kind]):
                slot = slots[grid.atom_index[work.places[place]]]
                if slot == owner:
                    continue  # nothing moves, or both do
                target = start + slot * 3 * n_features if slot >= 0 else -1
                opposite = start + owner * 3 * n_features if owner >= 0 else -1
                fresh = average == EACH and slot >= 0 and written[slot] != centre
                if fresh:
                    written[slot] = centre
                write_parts(place, kind, fixed, basis, mode, work, slopes, parts)
                put_changes(kind, parts, basis, mode, factor, fresh, row, flat, target, opposite, n_features)
            first = (work.ends[kind] + WIDTH - 1) // WIDTH * WIDTH
