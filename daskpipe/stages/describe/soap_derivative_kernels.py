"""Kernels of the derivatives of all features by the positions of atoms.

A neighbour changes the coefficients of its own species alone, so only blocks of the spectrum with this species are
computed. The gradients of all images of an atom are added up first. All arithmetic is in float64.
"""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel
from daskpipe.core.neighbours_kernels import Grid
from daskpipe.core.simd import WIDTH, broadcast, fma, load, store, zeros
from daskpipe.stages.describe.soap_gradient_kernels import add_gradients, make_slopes, write_slopes
from daskpipe.stages.describe.soap_kernels import (
    CROSSOVER,
    INNER,
    MU1NU1,
    OUTER,
    Basis,
    Buffers,
    aligned_zeros,
    describe_centre,
    make_buffers,
    write_full_block,
)


@kernel
def write_half_change(
    a: np.ndarray, shift: int, change: np.ndarray, start: int, degree: int, basis: Basis, row: np.ndarray, at: int
) -> int:
    """Write the change of the spectrum of one species at one degree, n' >= n; return where it ends in `row`."""
    n_max, stride = basis.n_max, basis.n_vectors * WIDTH
    first = degree * degree * stride
    for n in range(n_max):
        length = n_max - n
        for part in range((length - 1) // WIDTH * WIDTH, -1, -WIDTH):
            total = zeros(a)
            for k in range(2 * degree + 1):
                one = first + k * stride + n
                total = fma(load(a, shift + one + part), broadcast(change, start + one), total)
                total = fma(load(change, start + one + part), broadcast(a, shift + one), total)
            store(row, at + part, total)
        at += length
    return at


@kernel
def add_row(row: np.ndarray, length: int, factor: float, out: np.ndarray, start: int) -> None:
    """Add a multiple of the first items of `row` to `out` from `start` on."""
    for place in range(length):
        out[start + place] += factor * row[place]


@kernel
def add_full_change(
    a: np.ndarray, shift_a: int, b: np.ndarray, shift_b: int, basis: Basis, factor: float, row: np.ndarray,
    out: np.ndarray, start: int,
) -> None:  # fmt: skip
    """Add the spectrum of two arrays of coefficients, one of them a change, at all degrees."""
    end = 0
    for degree in range(basis.l_max + 1):
        end = write_full_block(a, shift_a, b, shift_b, degree, basis, row, end)
    add_row(row, end, factor, out, start)


@kernel
def add_changes(
    kind: int, change: np.ndarray, coefficients: np.ndarray, basis: Basis, mode: int, summed: np.ndarray,
    factor: float, row: np.ndarray, out: np.ndarray, start: int, n_features: int,
) -> None:  # fmt: skip
    """Add the changes of all features, along x, y and z, where the coefficients of one species change.

    Parameters
    ----------
    kind, change
        The species, and the change of its coefficients, flat from shape (xyz, lm, n_vectors, 8), axes apart by a
        vector more.
    coefficients, summed
        Of the centre, and their sum over species (for mu1nu1).
    factor
        Multiplies the changes.
    row
        Buffer for a block.
    out, start, n_features
        From ``start + axis * n_features`` on there is a row for each axis.
    """
    size = (basis.l_max + 1) * (basis.l_max + 1) * basis.n_vectors * WIDTH
    mixed = basis.n_max * basis.n_max * (basis.l_max + 1)
    alike = basis.n_max * (basis.n_max + 1) // 2 * (basis.l_max + 1)
    for axis in range(3):
        at, own = start + axis * n_features, axis * (size + WIDTH)
        for first in range(basis.n_species):
            if mode == MU1NU1:
                add_full_change(coefficients, first * size, change, own, basis, factor, row, out, at)
                if first == kind:
                    add_full_change(change, own, summed, 0, basis, factor, row, out, at)
                at += mixed
                continue
            if first == kind:
                end = 0
                for degree in range(basis.l_max + 1):
                    end = write_half_change(coefficients, first * size, change, own, degree, basis, row, end)
                add_row(row, end, factor, out, at)
            at += alike
            for second in range(first + 1, basis.n_species if mode != CROSSOVER else 0):
                if first == kind:
                    add_full_change(change, own, coefficients, second * size, basis, factor, row, out, at)
                elif second == kind:
                    add_full_change(coefficients, first * size, change, own, basis, factor, row, out, at)
                at += mixed


@kernel
def sum_species(coefficients: np.ndarray, basis: Basis, summed: np.ndarray) -> None:
    """Write the sum of the coefficients over species."""
    size = len(summed)
    for place in range(size):
        summed[place] = 0
        for kind in range(basis.n_species):
            summed[place] += coefficients[kind * size + place]


@kernel
def chain_images(first: int, end: int, grid: Grid, work: Buffers, heads: np.ndarray, following: np.ndarray) -> None:
    """Chain the neighbours that are images of one atom: the last is its head, and each is followed by another."""
    for place in range(first, end):
        atom = grid.atom_index[work.places[place]]
        following[place] = heads[atom]
        heads[atom] = place


@kernel
def write_derivatives(
    grid: Grid, kinds: np.ndarray, point_weights: np.ndarray, basis: Basis, mode: int, average: int,
    owners: np.ndarray, slots: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Add the derivatives of the features of all centres, or of their average, to `out`.

    Parameters
    ----------
    grid, kinds, point_weights, basis, mode, average
        As in `soap_kernels.write_soap`.
    owners
        The atom that each centre moves with, shape (centre,), int64; -1 for none.
    slots
        The place of each atom in `out`, shape (atom,), int64; -1 for none.
    out
        Zeros, shape (centre, slot, xyz, feature), float64; one centre for an average.
    """
    n_centres, n_slots, n_features = len(owners), out.shape[1], out.shape[3]
    flat = out.reshape(-1)
    size = (basis.l_max + 1) * (basis.l_max + 1) * basis.n_vectors * WIDTH
    shift = size + WIDTH
    work = make_buffers(len(kinds), basis, out)
    slopes = make_slopes(work, basis)
    coefficients = aligned_zeros(basis.n_species * size + WIDTH, out)
    change = aligned_zeros(3 * shift, out)
    row = np.empty(basis.n_max * basis.n_max * (basis.l_max + 1) + 8 * basis.n_max + WIDTH)
    heads, following = np.full(len(slots), -1), np.empty(len(work.places), np.int64)
    inner = average == INNER
    mean = np.zeros(len(coefficients) if inner else 0)
    changes = np.zeros((n_slots if inner else 0, basis.n_species, 3 * shift))
    factor = 1.0 if average != OUTER else 1.0 / n_centres
    for centre in range(n_centres):
        n_places = describe_centre(grid.positions[centre], grid, kinds, point_weights, basis, work, coefficients)
        write_slopes(n_places, point_weights, basis, work, slopes)
        sum_species(coefficients, basis, work.summed)
        for place in range(len(mean)):
            mean[place] += coefficients[place]
        start = 0 if average == OUTER else centre * n_slots * 3 * n_features
        owner = slots[owners[centre]] if owners[centre] >= 0 else -1
        first = 0
        for kind in range(basis.n_species):
            chain_images(first, work.ends[kind], grid, work, heads, following)
            for number in range(first, work.ends[kind] + (owner >= 0)):
                # After all neighbours comes the centre, which moves against all of them.
                is_centre = number == work.ends[kind]
                atom = -1 if is_centre else grid.atom_index[work.places[number]]
                place = first if is_centre else heads[atom]
                slot = owner if is_centre else slots[atom]
                if not is_centre:
                    if place < 0:
                        continue  # an image of an atom that was there
                    heads[atom] = -1
                    if slot < 0:
                        continue
                for item in range(len(change)):
                    change[item] = 0
                end = work.ends[kind] if is_centre else len(work.places)
                while 0 <= place < end:
                    add_gradients(place, shift, basis, work, slopes, change)
                    place = place + 1 if is_centre else following[place]
                sign = -factor if is_centre else factor
                if inner:
                    for item in range(len(change)):
                        changes[slot, kind, item] += sign * change[item]
                else:
                    target = start + slot * 3 * n_features
                    add_changes(
                        kind, change, coefficients, basis, mode, work.summed, sign, row, flat, target, n_features
                    )
            first = (work.ends[kind] + WIDTH - 1) // WIDTH * WIDTH
    if inner:
        for place in range(len(mean)):
            coefficients[place] = mean[place] / n_centres
        sum_species(coefficients, basis, work.summed)
        for slot in range(n_slots):
            for kind in range(basis.n_species):
                target = slot * 3 * n_features
                add_changes(
                    kind, changes[slot, kind], coefficients, basis, mode, work.summed, 1.0 / n_centres, row, flat,
                    target, n_features,
                )  # fmt: skip
