"""Cut slabs of any orientation and termination out of crystals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np
from ase import Atoms

from daskpipe.core.connectivity import find_neighbours, periodic_directions
from daskpipe.stages.generate.point_defects import SYMPREC, CrystalKey, crystal_of, key_of
from daskpipe.stages.generate.repeats import Repeats, find_repeats, repeat_cell

Miller = tuple[int, int, int]

SAME_PLANE = 0.3
"""Distance along the normal, Å, up to which atoms belong to one plane: those of a buckled layer do."""

BONDED = 0.6
"""Largest distance of bonded atoms less the sum of their covalent radii, Å. Layers of crystals are farther apart."""

PRECISION = 1e-6
"""Difference of lengths, Å, and of their squares, Å^2, that counts as none."""


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """A crystal turned so that a lattice plane is spanned by its first two cell vectors.

    Parameters
    ----------
    crystal
        Smallest cell with two vectors in the plane; the third one leads to the next equal plane. The normal is z.
    cuts
        Heights along z, Å, at which the crystal can be cut; each leaves another termination.
    spacing
        Height of the cell along z, Å.
    """

    crystal: Atoms
    cuts: tuple[float, ...]
    spacing: float


@dataclass(frozen=True, kw_only=True)
class SlabChoice:
    """One surface of a crystal, and the sizes that its slabs can have.

    Parameters
    ----------
    miller
        Indices of the plane.
    orientation
        The turned crystal.
    cut
        Height of the cut, Å.
    sizes
        Repeats of the cell of `orientation` by number of atoms.
    layers
        Whether the third of the repeats counts layers that bonds hold together, and not spacings.
    """

    miller: Miller
    orientation: Orientation
    cut: float
    sizes: dict[int, list[Repeats]]
    layers: bool = False

    def build(self, repeats: Repeats) -> Atoms:
        """Return a slab without vacuum, periodic in its plane only."""
        i, j, n = repeats
        cut = cut_layers if self.layers else cut_slab
        return repeat_cell(cut(self.orientation, self.cut, n), (i, j, 1))


def list_slabs(
    crystal: Atoms, millers: Sequence[Miller], thickness: tuple[float, float], n_atoms: tuple[int, int]
) -> list[SlabChoice]:
    """List the surfaces of a crystal, one for each plane and termination, whose slabs have sizes within limits.

    Parameters
    ----------
    crystal
        Periodic along all axes.
    millers
        Indices of the planes.
    thickness
        Least and largest thickness from the lowest to the highest atom, Å. Where no whole number of spacings lies
        between, the least thickness that exceeds the first one.
    n_atoms
        Lowest and highest number of atoms; ``sizes`` is empty where no slab has one of them.
    """
    return list(_list_slabs(key_of(crystal), as_millers(millers), tuple(thickness), tuple(n_atoms)))


def list_layers(
    crystal: Atoms, millers: Sequence[Miller], thickness: tuple[float, float], n_atoms: tuple[int, int]
) -> list[SlabChoice]:
    """List the stacks of whole layers of a crystal, one choice for each plane and number of layers.

    Parameters
    ----------
    crystal, millers, n_atoms
        As for `list_slabs`.
    thickness
        Least and largest thickness, Å, where a flat layer has none; a single layer may be thinner.

    Returns
    -------
    list of SlabChoice
        Those of planes between which no bond runs; the third of the repeats is the number of layers.
    """
    return list(_list_layers(key_of(crystal), as_millers(millers), tuple(thickness), tuple(n_atoms)))


@lru_cache(maxsize=64)
def _list_layers(
    key: CrystalKey, millers: tuple[Miller, ...], thickness: tuple[float, float], n_atoms: tuple[int, int]
) -> tuple[SlabChoice, ...]:
    choices = []
    for miller in millers:
        orientation = orient(crystal_of(key), miller)
        whole = [cut for cut in orientation.cuts if not count_broken_bonds(orientation.crystal, cut)]
        for cut in whole[:1]:  # the others begin the same stack at another layer
            if len(periodic_directions(cut_layers(orientation, cut, 1), BONDED)) < 2:
                continue  # chains or molecules, not layers
            most = max(1, count_spacings(orientation, cut, thickness[1])) * len(find_layers(orientation, cut, 1))
            for n_layers in range(1, most + 1):
                stack = cut_layers(orientation, cut, n_layers)
                height = float(np.ptp(stack.positions[:, 2]))
                if height > thickness[1] or (n_layers > 1 and height < thickness[0]):
                    continue
                repeats = find_repeats(orientation.crystal.cell.array, len(stack), n_atoms, axes=(0, 1))
                sizes = {n: [(i, j, n_layers) for i, j, _ in each] for n, each in repeats.items()}
                choices.append(SlabChoice(miller=miller, orientation=orientation, cut=cut, sizes=sizes, layers=True))
    return tuple(choices)


def cut_layers(orientation: Orientation, cut: float, n_layers: int) -> Atoms:
    """Return a stack of whole layers above a cut that breaks no bond, as `cut_slab` does."""
    n_spacings = -(-n_layers // len(find_layers(orientation, cut, 1)))
    layers = find_layers(orientation, cut, n_spacings)
    slab = cut_slab(orientation, cut, n_spacings)[np.sort(np.concatenate(layers[:n_layers]))]
    slab.cell[2] = [0, 0, np.ptp(slab.positions[:, 2]) or 1.0]
    return slab


def find_layers(orientation: Orientation, cut: float, n_spacings: int) -> list[np.ndarray]:
    """Return the atoms of each part of a slab that bonds hold together, from below."""
    from ase.data import covalent_radii
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    slab = cut_slab(orientation, cut, n_spacings)
    i, j = find_neighbours(slab, covalent_radii[slab.numbers] + BONDED / 2, "ij")
    n, part = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(len(slab), len(slab))))
    layers = [np.flatnonzero(part == number) for number in range(n)]
    return sorted(layers, key=lambda layer: float(slab.positions[layer, 2].mean()))


@lru_cache(maxsize=64)
def _list_slabs(
    key: CrystalKey, millers: tuple[Miller, ...], thickness: tuple[float, float], n_atoms: tuple[int, int]
) -> tuple[SlabChoice, ...]:
    choices = []
    for miller in millers:
        orientation = orient(crystal_of(key), miller)
        n_cell = len(orientation.crystal)
        for cut in orientation.cuts:
            fewest = count_spacings(orientation, cut, thickness[0])
            beyond = count_spacings(orientation, cut, thickness[1] + 2 * PRECISION)
            sizes: dict[int, list[Repeats]] = {}
            for n_spacings in range(fewest, max(beyond, fewest + 1)):
                if n_spacings * n_cell > n_atoms[1]:
                    break
                cell = orientation.crystal.cell.array
                for n, repeats in find_repeats(cell, n_cell * n_spacings, n_atoms, axes=(0, 1)).items():
                    sizes.setdefault(n, []).extend((i, j, n_spacings) for i, j, _ in repeats)
            choices.append(SlabChoice(miller=miller, orientation=orientation, cut=cut, sizes=sizes))
    return tuple(choices)


def smallest_slab(choice: SlabChoice, thickness: float) -> int:
    """Return the number of atoms of the smallest slab of a surface that is at least so thick, Å."""
    if choice.layers:
        return len(cut_layers(choice.orientation, choice.cut, 1))
    return count_spacings(choice.orientation, choice.cut, thickness) * len(choice.orientation.crystal)


def distinct_millers(crystal: Atoms, max_index: int) -> list[Miller]:
    """List the Miller indices up to a largest one, one of each set that the point group maps onto each other.

    Indices count in the conventional cell (`index_cell`), those of low sums first.
    """
    return list(_distinct_millers(key_of(crystal), max_index))


@lru_cache(maxsize=32)
def _distinct_millers(key: CrystalKey, max_index: int) -> tuple[Miller, ...]:
    import spglib

    lattice = index_cell(crystal_of(key))
    crystal = crystal_of(key)
    symmetry = spglib.get_symmetry_dataset(
        (crystal.cell.array, crystal.get_scaled_positions(), crystal.numbers), symprec=SYMPREC
    )
    rotations = np.eye(3)[None] if symmetry is None else symmetry.rotations
    # Fractional rotations of positions in the cell become those of plane normals, Cartesian.
    cell = crystal.cell.array
    turns = [cell.T @ rotation @ np.linalg.inv(cell.T) for rotation in rotations]
    span = range(-max_index, max_index + 1)
    distinct: list[Miller] = []
    seen: set[Miller] = set()
    indices = [hkl for hkl in product(span, span, span) if gcd(*hkl) == 1]
    for hkl in sorted(indices, key=lambda hkl: (sum(map(abs, hkl)), [-index for index in hkl])):
        if hkl in seen:
            continue
        distinct.append(hkl)
        normal = np.linalg.inv(lattice) @ hkl
        for turn in turns:
            image = np.rint(lattice @ turn @ normal).astype(int)
            seen |= {_to_miller(image), _to_miller(-image)}
    return tuple(distinct)


def index_cell(crystal: Atoms) -> np.ndarray:
    """Return the cell that Miller indices refer to, vectors as rows, Å.

    It is the conventional cell if the crystal is given by a smaller one, in its orientation; else the crystal's own.
    """
    import spglib

    cell = (crystal.cell.array, crystal.get_scaled_positions(), crystal.numbers)
    conventional = spglib.standardize_cell(cell, to_primitive=False, no_idealize=True, symprec=SYMPREC)
    if conventional is None or len(conventional[2]) <= len(crystal):
        return np.asarray(crystal.cell.array)
    return np.asarray(conventional[0])


def orient(crystal: Atoms, miller: Sequence[int]) -> Orientation:
    """Turn a crystal so that a lattice plane lies in the plane of its first two cell vectors.

    Parameters
    ----------
    crystal
        Periodic along all axes.
    miller
        Indices of the plane in the cell of `index_cell`.

    Raises
    ------
    ValueError
        If the indices are all zero.
    """
    if not any(miller):
        raise ValueError("miller: (0, 0, 0) is no plane; give e.g. [1, 1, 0]")
    return _orient(key_of(crystal), _to_miller(np.array(miller)))


@lru_cache(maxsize=128)
def _orient(key: CrystalKey, miller: Miller) -> Orientation:
    import spglib

    crystal = crystal_of(key)
    lattice = index_cell(crystal)
    cell = (crystal.cell.array, crystal.get_scaled_positions(), crystal.numbers)
    reduced = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=SYMPREC)
    if reduced is not None and len(reduced[2]) < len(crystal):
        crystal = Atoms(reduced[2], cell=reduced[0], scaled_positions=reduced[1], pbc=True)
    # The same plane in the primitive cell: its normal is given by indices along the reciprocal vectors.
    plane = crystal.cell.array @ np.linalg.inv(lattice) @ miller
    plane = np.rint(plane * 12).astype(int)  # fractions of conventional vectors are halves and thirds
    turned = _turn(crystal, plane_basis(plane // gcd(*plane.tolist())) @ crystal.cell.array)
    spacing = float(turned.cell.array[2, 2])
    return Orientation(crystal=turned, cuts=_find_cuts(turned, spacing), spacing=spacing)


def plane_basis(plane: np.ndarray) -> np.ndarray:
    """Return a lattice basis of whole numbers, the first two vectors of which lie in a plane, shape (3, 3).

    The third one leads to the next lattice plane. Its determinant is 1 or -1.

    Examples
    --------
    >>> basis = plane_basis(np.array([2, 1, 0]))
    >>> (basis @ [2, 1, 0]).tolist(), abs(round(float(np.linalg.det(basis))))
    ([0, 0, 1], 1)
    """
    basis = np.eye(3, dtype=int)
    heights = plane.copy()
    # Euclid's algorithm on the heights above the plane; the steps are taken by the vectors as well.
    while np.count_nonzero(heights) > 1:
        least = min(np.flatnonzero(heights), key=lambda row: abs(heights[row]))
        for row in range(3):
            if row != least:
                times = heights[row] // heights[least]
                heights[row] -= times * heights[least]
                basis[row] -= times * basis[least]
    above = int(np.flatnonzero(heights)[0])
    basis[above] *= heights[above]  # 1 or -1
    return np.asarray(basis[[row for row in range(3) if row != above] + [above]])


def _turn(crystal: Atoms, vectors: np.ndarray) -> Atoms:
    """Return a crystal in another cell of its lattice, turned so that the first vector is x and the second in x, y."""
    first, second, third = vectors
    while True:  # Gauss's reduction of the two vectors in the plane
        if first @ first > second @ second + PRECISION:
            first, second = second, first
        shorter = second - round(float(first @ second) / float(first @ first)) * first
        # In a hexagonal lattice two vectors are equally short, and rounding would choose the one, then the other.
        if shorter @ shorter > second @ second - PRECISION:
            break
        second = shorter
    if np.linalg.det([first, second, third]) < 0:
        second = -second
    cell = [first, second, shorten_third(first, second, third)]
    turned = Atoms(crystal.numbers, crystal.positions, cell=cell, pbc=True)
    turned.set_cell(turned.cell.standard_form()[0], scale_atoms=True)
    turned.wrap()
    return turned


def _find_cuts(atoms: Atoms, spacing: float) -> tuple[float, ...]:
    """Return the heights of the gaps between planes, one of each kind of plane sequence above it."""
    order = np.argsort(atoms.positions[:, 2] % spacing, kind="stable")
    heights = (atoms.positions[order, 2] % spacing).round(4)
    gaps = np.append(heights[1:], heights[0] + spacing) - heights
    ends = np.flatnonzero(gaps > SAME_PLANE)
    if not len(ends):
        return (0.0,)
    planes = [
        tuple(sorted(atoms.numbers[order[np.arange(start + 1, stop + 1) % len(atoms)]].tolist()))
        for start, stop in zip(np.concatenate([[ends[-1] - len(atoms)], ends[:-1]]), ends, strict=True)
    ]
    cuts: dict[tuple[object, ...], float] = {}
    for number, end in enumerate(ends):
        turned = np.roll(np.arange(len(ends)), -number - 1)
        sequence = tuple((planes[plane], round(float(gaps[ends[plane]]), 1)) for plane in turned)
        cuts.setdefault((round(float(gaps[end]), 1), sequence), float(heights[end] + gaps[end] / 2))
    return tuple(cuts.values())


def count_broken_bonds(crystal: Atoms, cut: float) -> int:
    """Return the number of bonds of a cell that a cut breaks.

    Parameters
    ----------
    crystal
        Turned as that of an `Orientation`: its first two vectors lie in the plane of the cut.
    cut
        Height, Å.
    """
    from ase.data import covalent_radii

    i, vectors = find_neighbours(crystal, covalent_radii[crystal.numbers] + BONDED / 2, "iD")
    spacing = crystal.cell.array[2, 2]
    below = np.floor((crystal.positions[i, 2] - cut) / spacing)
    return int((np.floor((crystal.positions[i, 2] + vectors[:, 2] - cut) / spacing) > below).sum())


def cut_slab(orientation: Orientation, cut: float, n_spacings: int) -> Atoms:
    """Return a slab of so many equal spacings, cut at a height, without vacuum; periodic in the plane only.

    Its composition is that of the crystal, for it consists of whole cells.
    """
    crystal = orientation.crystal.copy()
    crystal.positions[:, 2] -= cut
    scaled = crystal.get_scaled_positions()
    scaled[:, 2] %= 1
    scaled[scaled[:, 2] > 1 - 1e-6, 2] -= 1
    crystal.set_scaled_positions(scaled)
    slab = repeat_cell(crystal, (1, 1, n_spacings))
    slab.pbc = (True, True, False)
    slab.cell[2] = [0, 0, np.ptp(slab.positions[:, 2]) or 1.0]
    slab.wrap()  # in the plane, for the layers are shifted along it
    return slab


def count_spacings(orientation: Orientation, cut: float, thickness: float) -> int:
    """Return the least number of spacings of a slab that is at least so thick, Å, from lowest to highest atom."""
    one = float(np.ptp(cut_slab(orientation, cut, 1).positions[:, 2]))
    return max(1, int(np.ceil((thickness - one) / orientation.spacing - PRECISION)) + 1)


def as_millers(millers: Iterable[Sequence[int]]) -> tuple[Miller, ...]:
    """Return Miller indices, which a config gives as lists, as tuples that a cache can look up."""
    return tuple((h, k, l) for h, k, l in millers)  # noqa: E741


def shorten_third(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Return the third cell vector, moved by whole first and second ones to where it is shortest in their plane."""
    steps = np.linalg.lstsq(np.array([first, second]).T, third, rcond=None)[0]
    return np.asarray(third - np.rint(steps) @ [first, second])


def _to_miller(indices: np.ndarray) -> Miller:
    """Return indices without a common divisor."""
    h, k, l = (int(index) // gcd(*indices.tolist()) for index in indices)  # noqa: E741
    return h, k, l
