"""Kernels of the neighbour search: periodic images sorted into a grid of bins, and the points around a centre.

Work and memory are linear in the number of atoms. Pairs are not kept: the neighbours of an atom are written when
they are needed (`write_neighbours`) and used while they are in the cache. Loops go over single numbers: expressions of
arrays compile several times as long.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from daskpipe.core.accelerate import kernel
from daskpipe.core.simd import WIDTH, append_where_within

BINS_PER_CUTOFF = 1.5
"""Bins along a cutoff, the fastest of 1 to 6: finer bins test fewer points in vain, but in shorter runs."""

BINS_PER_POINT = 8
"""Most bins a point, a bound for few atoms in much space."""


class Grid(NamedTuple):
    """A structure's atoms, and those of their images that lie within a cutoff of the box around the centres.

    Parameters
    ----------
    positions
        Centres, which are the atoms unless others are asked for, wrapped into the cell along its periodic vectors,
        shape (centre, xyz), float64, Å.
    points
        Atoms and images in order of their bins, shape (xyz, point), float64, Å.
    atom_index
        The atom that each point is an image of, shape (point,), int64.
    bin_ptr
        Points of bin i lie from ``bin_ptr[i]`` to ``bin_ptr[i + 1]``, shape (bin + 1,), int64; x runs fastest.
    low, edges
        Corner of the grid and size of a bin, shape (xyz,), Å.
    n_bins
        Bins along each axis, shape (xyz,), int64.
    cutoff
        Å.
    """

    positions: np.ndarray
    points: np.ndarray
    atom_index: np.ndarray
    bin_ptr: np.ndarray
    low: np.ndarray
    edges: np.ndarray
    n_bins: np.ndarray
    cutoff: float


@kernel
def wrap_points(
    positions: np.ndarray, cell: np.ndarray, inverse: np.ndarray, pbc: np.ndarray, out: np.ndarray, ends: np.ndarray
) -> None:
    """Wrap points into the cell along its periodic vectors.

    Writes the wrapped points and the range of their fractional coordinates, ``ends[low or high, k]``.
    """
    for k in range(3):
        ends[0, k], ends[1, k] = np.inf, -np.inf
    for point in range(len(positions)):
        for axis in range(3):
            out[point, axis] = positions[point, axis]
        for k in range(3):
            if not pbc[k]:
                continue
            fractional = 0.0
            for axis in range(3):
                fractional += positions[point, axis] * inverse[axis, k]
            shift = math.floor(fractional)
            fractional -= shift
            ends[0, k], ends[1, k] = min(ends[0, k], fractional), max(ends[1, k], fractional)
            for axis in range(3):
                out[point, axis] -= shift * cell[k, axis]


@kernel
def count_images(
    atom_ends: np.ndarray, centre_ends: np.ndarray, inverse: np.ndarray, pbc: np.ndarray, cutoff: float,
    spans: np.ndarray,
) -> None:  # fmt: skip
    """Write how many images to look at on either side along each cell vector; the ends are of `wrap_points`."""
    for k in range(3):
        # The height of the cell over the plane of the other two vectors is one over the inverse's column.
        per_height = math.sqrt(inverse[0, k] ** 2 + inverse[1, k] ** 2 + inverse[2, k] ** 2)
        apart = max(atom_ends[1, k] - centre_ends[0, k], centre_ends[1, k] - atom_ends[0, k])
        spans[k] = math.floor(apart + cutoff * per_height) if pbc[k] else 0


@kernel
def find_box(centres: np.ndarray, cutoff: float, box: np.ndarray) -> None:
    """Write the corners of the box that holds all neighbours of the centres, ``box[corner, axis]``."""
    for axis in range(3):
        box[0, axis], box[1, axis] = np.inf, -np.inf
    for centre in range(len(centres)):
        for axis in range(3):
            box[0, axis] = min(box[0, axis], centres[centre, axis] - cutoff)
            box[1, axis] = max(box[1, axis], centres[centre, axis] + cutoff)


@kernel
def write_images(
    positions: np.ndarray, cell: np.ndarray, spans: np.ndarray, box: np.ndarray, out_points: np.ndarray,
    out_atoms: np.ndarray,
) -> int:  # fmt: skip
    """Write all images of atoms that lie in the box, unless the arrays are empty; return their number."""
    n_points = 0
    writes = len(out_atoms) > 0
    for a in range(-spans[0], spans[0] + 1):
        for b in range(-spans[1], spans[1] + 1):
            for c in range(-spans[2], spans[2] + 1):
                shift_x = a * cell[0, 0] + b * cell[1, 0] + c * cell[2, 0]
                shift_y = a * cell[0, 1] + b * cell[1, 1] + c * cell[2, 1]
                shift_z = a * cell[0, 2] + b * cell[1, 2] + c * cell[2, 2]
                for atom in range(len(positions)):
                    x = positions[atom, 0] + shift_x
                    y = positions[atom, 1] + shift_y
                    z = positions[atom, 2] + shift_z
                    inside = box[0, 0] <= x <= box[1, 0] and box[0, 1] <= y <= box[1, 1]
                    if inside and box[0, 2] <= z <= box[1, 2]:
                        if writes:
                            out_points[0, n_points] = x
                            out_points[1, n_points] = y
                            out_points[2, n_points] = z
                            out_atoms[n_points] = atom
                        n_points += 1
    return n_points


@kernel
def find_bin(coordinate: float, low: float, edge: float, n_bins: int) -> int:
    """Return the bin of a coordinate along one axis."""
    return min(max(int((coordinate - low) / edge), 0), n_bins - 1)


@kernel
def sort_points(points: np.ndarray, atoms: np.ndarray, grid: Grid) -> None:
    """Fill a grid: its points, the atoms that they are images of, and the start of each bin."""
    low, edges, n_bins, bin_ptr = grid.low, grid.edges, grid.n_bins, grid.bin_ptr
    where = np.empty(len(atoms), np.int64)
    for number in range(len(bin_ptr)):
        bin_ptr[number] = 0
    for point in range(len(atoms)):
        i = find_bin(points[0, point], low[0], edges[0], n_bins[0])
        j = find_bin(points[1, point], low[1], edges[1], n_bins[1])
        k = find_bin(points[2, point], low[2], edges[2], n_bins[2])
        where[point] = (k * n_bins[1] + j) * n_bins[0] + i
        bin_ptr[where[point] + 1] += 1
    for number in range(1, len(bin_ptr)):
        bin_ptr[number] += bin_ptr[number - 1]
    free = np.empty(len(bin_ptr), np.int64)
    for number in range(len(bin_ptr)):
        free[number] = bin_ptr[number]
    for point in range(len(atoms)):
        target = free[where[point]]
        free[where[point]] += 1
        for axis in range(3):
            grid.points[axis, target] = points[axis, point]
        grid.atom_index[target] = atoms[point]


@kernel
def distance_to_bin(coordinate: float, low: float, edge: float, number: int) -> float:
    """Return the distance of a coordinate from a bin along one axis, 0 inside it."""
    left = low + number * edge
    return max(left - coordinate, coordinate - left - edge, 0.0)


@kernel
def write_neighbours(centre: np.ndarray, grid: Grid, out: np.ndarray) -> int:
    """Write the numbers of the points within the cutoff of a centre, which is included; return how many there are.

    `out` is int32 and has room for all points and a vector more.
    """
    points, bin_ptr, low, edges, n_bins = grid.points, grid.bin_ptr, grid.low, grid.edges, grid.n_bins
    cutoff, square = grid.cutoff, grid.cutoff * grid.cutoff
    x, y, z = centre[0], centre[1], centre[2]
    n_found = 0
    first_k, last_k = (
        find_bin(z - cutoff, low[2], edges[2], n_bins[2]),
        find_bin(z + cutoff, low[2], edges[2], n_bins[2]),
    )
    first_j, last_j = (
        find_bin(y - cutoff, low[1], edges[1], n_bins[1]),
        find_bin(y + cutoff, low[1], edges[1], n_bins[1]),
    )
    for k in range(first_k, last_k + 1):
        gap_z = distance_to_bin(z, low[2], edges[2], k)
        for j in range(first_j, last_j + 1):
            gap_y = distance_to_bin(y, low[1], edges[1], j)
            left = square - gap_z * gap_z - gap_y * gap_y
            if left < 0:
                continue
            reach = math.sqrt(left)
            row = (k * n_bins[1] + j) * n_bins[0]
            # Bins along x lie one after another: their points are one contiguous range.
            start = bin_ptr[row + find_bin(x - reach, low[0], edges[0], n_bins[0])]
            stop = bin_ptr[row + find_bin(x + reach, low[0], edges[0], n_bins[0]) + 1]
            whole = start + (stop - start) // WIDTH * WIDTH
            for point in range(start, whole, WIDTH):
                n_found = append_where_within(points, point, x, y, z, square, out, n_found)
            for point in range(whole, stop):
                dx, dy, dz = points[0, point] - x, points[1, point] - y, points[2, point] - z
                # Written always, kept where the count goes on: no branch to guess.
                out[n_found] = point
                n_found += dx * dx + dy * dy + dz * dz <= square
    return n_found


@kernel
def make_grid(positions: np.ndarray, cell: np.ndarray, inverse: np.ndarray, pbc: np.ndarray, cutoff: float) -> Grid:
    """Sort the atoms of a structure and their images into a grid around them; `inverse` is that of the cell."""
    wrapped, ends = np.empty((len(positions), 3)), np.empty((2, 3))
    wrap_points(positions, cell, inverse, pbc, wrapped, ends)
    return make_wrapped_grid(wrapped, ends, wrapped, ends, cell, inverse, pbc, cutoff)


@kernel
def make_grid_around(
    centres: np.ndarray, positions: np.ndarray, cell: np.ndarray, inverse: np.ndarray, pbc: np.ndarray, cutoff: float
) -> Grid:
    """Sort the atoms of a structure and their images into a grid around points, shape (centre, xyz)."""
    wrapped, ends = np.empty((len(positions), 3)), np.empty((2, 3))
    wrap_points(positions, cell, inverse, pbc, wrapped, ends)
    wrapped_centres, centre_ends = np.empty((len(centres), 3)), np.empty((2, 3))
    wrap_points(centres, cell, inverse, pbc, wrapped_centres, centre_ends)
    return make_wrapped_grid(wrapped, ends, wrapped_centres, centre_ends, cell, inverse, pbc, cutoff)


@kernel
def make_wrapped_grid(
    wrapped: np.ndarray, ends: np.ndarray, centres: np.ndarray, centre_ends: np.ndarray, cell: np.ndarray,
    inverse: np.ndarray, pbc: np.ndarray, cutoff: float,
) -> Grid:  # fmt: skip
    """Sort wrapped atoms and their images into a grid around wrapped centres."""
    spans, box = np.empty(3, np.int64), np.empty((2, 3))
    count_images(ends, centre_ends, inverse, pbc, cutoff, spans)
    find_box(centres, cutoff, box)
    n_points = write_images(wrapped, cell, spans, box, np.empty((3, 0)), np.empty(0, np.int64))
    points, owners = np.empty((3, n_points)), np.empty(n_points, np.int64)
    write_images(wrapped, cell, spans, box, points, owners)

    volume = (box[1, 0] - box[0, 0]) * (box[1, 1] - box[0, 1]) * (box[1, 2] - box[0, 2])
    edge = max(cutoff / BINS_PER_CUTOFF, np.cbrt(volume / (BINS_PER_POINT * max(n_points, 1))))
    low, edges, n_bins = np.empty(3), np.empty(3), np.empty(3, np.int64)
    for axis in range(3):
        length = box[1, axis] - box[0, axis]
        n_bins[axis] = max(1, int(length // edge))
        low[axis], edges[axis] = box[0, axis], length / n_bins[axis]
    bin_ptr = np.empty(n_bins[0] * n_bins[1] * n_bins[2] + 1, np.int64)
    grid = Grid(centres, np.empty((3, n_points)), np.empty(n_points, np.int64), bin_ptr, low, edges, n_bins, cutoff)
    sort_points(points, owners, grid)
    return grid


@kernel
def count_pairs(grid: Grid, found: np.ndarray) -> int:
    """Count the pairs of a grid; `found` is as `write_neighbours` wants it."""
    n_pairs = 0
    for atom in range(len(grid.positions)):
        n_pairs += write_neighbours(grid.positions[atom], grid, found) - 1  # without the atom itself
    return n_pairs


@kernel
def write_pairs(
    grid: Grid, positions: np.ndarray, inverse: np.ndarray, found: np.ndarray, start: int, atoms: np.ndarray,
    offsets: np.ndarray,
) -> None:  # fmt: skip
    """Write the pairs of a grid: rows of the two atoms, counted from `start`, and the cell vectors between them.

    The offsets are those between the atoms where they are in `positions`, which need not be wrapped.
    """
    n_pairs = 0
    offset = np.empty(3, np.int64)
    for first in range(len(positions)):
        for number in range(write_neighbours(grid.positions[first], grid, found)):
            point = found[number]
            second = grid.atom_index[point]
            for k in range(3):
                moved = 0.0
                for axis in range(3):
                    vector = grid.points[axis, point] - positions[second, axis]
                    moved += (vector - grid.positions[first, axis] + positions[first, axis]) * inverse[axis, k]
                offset[k] = round(moved)
            if second == first and offset[0] == 0 and offset[1] == 0 and offset[2] == 0:
                continue
            atoms[0, n_pairs], atoms[1, n_pairs] = start + first, start + second
            for k in range(3):
                offsets[n_pairs, k] = offset[k]
            n_pairs += 1


@kernel
def find_pairs_of_batch(
    positions: np.ndarray, sizes: np.ndarray, cells: np.ndarray, inverses: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of several structures; see `daskpipe.core.neighbours.find_pairs`."""
    room, n_pairs, start = max(1024, 64 * len(positions)), 0, 0
    atoms, offsets = np.empty((2, room), np.int64), np.empty((room, 3), np.int64)
    per_system = np.empty(len(sizes), np.int64)
    for system in range(len(sizes)):
        stop = start + sizes[system]
        own = positions[start:stop]
        grid = make_grid(own, cells[system], inverses[system], pbc[system], cutoff)
        found = np.empty(grid.points.shape[1] + WIDTH, np.int32)
        per_system[system] = count_pairs(grid, found)
        end = n_pairs + per_system[system]
        if end > room:
            room = max(end, 2 * room)
            more_atoms, more_offsets = np.empty((2, room), np.int64), np.empty((room, 3), np.int64)
            more_atoms[:, :n_pairs] = atoms[:, :n_pairs]
            more_offsets[:n_pairs] = offsets[:n_pairs]
            atoms, offsets = more_atoms, more_offsets
        write_pairs(grid, own, inverses[system], found, start, atoms[:, n_pairs:end], offsets[n_pairs:end])
        n_pairs, start = end, stop
    return atoms[:, :n_pairs].copy(), per_system, offsets[:n_pairs].copy()
