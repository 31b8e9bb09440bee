"""Generate interfaces of two crystals whose surface lattices match."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count
from typing import Annotated, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from pydantic import BeforeValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.adsorbates import FractionRange, lift_to_contact
from daskpipe.stages.generate.base import Base, count_base, draw_base, probe_base
from daskpipe.stages.generate.disorder import displace_apart, missing_size_error
from daskpipe.stages.generate.params import CountRange, NotEmpty, Rattle, Vacuum, count_range, length_range
from daskpipe.stages.generate.point_defects import CrystalKey, crystal_of, key_of
from daskpipe.stages.generate.slabs import Miller, Orientation, count_spacings, cut_slab, distinct_millers, orient

MAX_AREA = 150.0
"""Largest area of an interface, Å^2."""

MIN_DISTANCE = 0.65
"""Shortest distance of two atoms after displacements, as a fraction of the sum of their covalent radii."""

ANGLE = 0.02
"""Largest difference of the cosines of the angles of two cells that match."""

MATCHES = 3
"""Number of matches of two planes that are kept, those with the smallest area."""


class Match(NamedTuple):
    """Two cut crystals, and whole-number matrices, shape (2, 2), that make cells of nearly the same shape of them."""

    orientations: tuple[Orientation, Orientation]
    cuts: tuple[float, float]
    cells: tuple[np.ndarray, np.ndarray]
    n_spacings: tuple[int, int]

    @property
    def n_atoms(self) -> int:
        """Number of atoms of the interface."""
        return sum(
            len(orientation.crystal) * n * abs(round(float(np.linalg.det(cell))))
            for orientation, n, cell in zip(self.orientations, self.n_spacings, self.cells, strict=True)
        )


def interfaces(
    *,
    rng: np.random.Generator,
    index: int = 0,
    of: Base,
    film: Base,
    n_atoms: CountRange,
    miller: Annotated[tuple[Miller, ...], NotEmpty] | None = None,
    film_miller: Annotated[tuple[Miller, ...], NotEmpty] | None = None,
    max_strain: Annotated[float, Field(gt=0, le=0.1)] = 0.04,
    thickness: Annotated[tuple[float, float], BeforeValidator(length_range)] = (6.0, 6.0),
    gap: FractionRange = (0.0, 0.2),
    vacuum: Vacuum = 12.0,
    rattle: Rattle = 0.05,
) -> Iterator[Atoms | Rejection]:
    """Yield a film of one crystal on a slab of another one, strained to the same cell in the plane.

    Cells of both are matched by the algorithm of Zur and McGill (https://doi.org/10.1063/1.333084); pymatgen has it
    too, but compiles it for 15 s in each process. Planes, terminations and thickness are those of
    `daskpipe.stages.generate.slabs`. The film lies at a random place in the plane.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request. Crystals, planes, terminations and matches are gone through in turn.
    of, film
        The two crystals: a formula, a file, or a generator with its parameters. The film carries the strain.
    n_atoms
        Number of atoms, or lowest and highest.
    miller, film_miller
        Indices of the planes, as in ``surfaces``; by default all with indices up to 1.
    max_strain
        Largest difference of the lengths of the cell vectors, 1.
    thickness
        Least thickness of the slab and of the film, Å.
    gap
        Shortest distance across the interface beyond the sum of the covalent radii, as a fraction of it, or lowest and
        highest.
    vacuum
        Gap between the film and the image of the slab, Å.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic along the first two cell vectors, the slab's atoms first. A rejection if random crystals do not match.

    Raises
    ------
    ValueError
        When called, if no planes of the crystals match, or no match has so many atoms.
    """
    limits = count_range(n_atoms)
    find = partial(find_matches, millers=(miller, film_miller), max_strain=max_strain, thickness=thickness)
    pairs = [(below, above) for below in probe_base(of) for above in probe_base(film)]
    faults = [find_unsuited(*pair, find(*pair), limits) for pair in pairs]
    if all(faults):
        raise ValueError(faults[0])
    each = count_base(of) * count_base(film)

    def draw(attempt: int) -> Atoms | Rejection:
        below = draw_base(of, rng=rng, index=index)
        above = draw_base(film, rng=rng, index=index // count_base(of))
        matches = find(below, above)
        if unsuited := find_unsuited(below, above, matches, limits):
            return Rejection(stage="generate", structure="interface", reason="unsuited", evidence=unsuited)
        fitting = [match for match in matches if limits[0] <= match.n_atoms <= limits[1]]
        atoms = join_slabs(rng, fitting[(index // each + attempt) % len(fitting)], rng.uniform(*gap), vacuum)
        displace_apart(rng, atoms, rattle, MIN_DISTANCE)
        return atoms

    return (draw(attempt) for attempt in count())


def find_unsuited(below: Atoms, above: Atoms, matches: list[Match], limits: tuple[int, int]) -> str | None:
    """Return why two crystals make no interface; ``None`` if they do."""
    names = f"{below.get_chemical_formula()} and {above.get_chemical_formula()}"
    if not (below.pbc.all() and above.pbc.all()):
        return f"of, film: {names} must both be periodic along three axes; give crystals"
    if not matches:
        return f"no planes of {names} match within {MAX_AREA:g} Å^2; raise max_strain or allow other planes"
    sizes = sorted({match.n_atoms for match in matches})
    if any(limits[0] <= size <= limits[1] for size in sizes):
        return None
    return str(missing_size_error(f"interface of {names}", limits, sizes))


def find_matches(
    below: Atoms,
    above: Atoms,
    *,
    millers: tuple[tuple[Miller, ...] | None, tuple[Miller, ...] | None],
    max_strain: float,
    thickness: tuple[float, float],
) -> list[Match]:
    """Find the matching planes of two crystals, one match for each termination and cell."""
    if not (below.pbc.all() and above.pbc.all()):
        return []
    planes = [
        tuple((h, k, m) for h, k, m in given or distinct_millers(atoms, 1))
        for given, atoms in zip(millers, (below, above), strict=True)
    ]
    return list(_find_matches(key_of(below), key_of(above), planes[0], planes[1], max_strain, thickness[0]))


@lru_cache(maxsize=32)
def _find_matches(
    below: CrystalKey,
    above: CrystalKey,
    planes: tuple[Miller, ...],
    film_planes: tuple[Miller, ...],
    max_strain: float,
    thickness: float,
) -> tuple[Match, ...]:
    made = []
    for plane in planes:
        for film_plane in film_planes:
            pair = orient(crystal_of(below), plane), orient(crystal_of(above), film_plane)
            for cells in match_cells(pair[0].crystal.cell.array[:2], pair[1].crystal.cell.array[:2], max_strain):
                for cut in pair[0].cuts:
                    for film_cut in pair[1].cuts:
                        n = count_spacings(pair[0], cut, thickness), count_spacings(pair[1], film_cut, thickness)
                        made.append(Match(pair, (cut, film_cut), cells, n))
    return tuple(made)


def match_cells(vectors: np.ndarray, film: np.ndarray, max_strain: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of whole-number matrices, shape (2, 2), that make nearly equal cells of two plane lattices.

    Parameters
    ----------
    vectors, film
        Vectors of the two lattices as rows, Å, shape (2, 3), in x and y.
    max_strain
        Largest difference of the lengths, 1.
    """
    area, area_film = (float(np.linalg.norm(np.cross(*pair))) for pair in (vectors, film))
    multiples = sorted(
        (n * area, n, m)
        for n in range(1, int(MAX_AREA / area) + 1)
        for m in range(1, int(MAX_AREA / area_film) + 1)
        if abs(m * area_film / (n * area) - 1) < 2 * max_strain
    )
    matches: list[tuple[np.ndarray, np.ndarray]] = []
    for _, n, m in multiples:
        below = [cell for cell in plane_supercells(n, vectors) if not _is_narrow(cell @ vectors)]
        above = [turned for cell in plane_supercells(m, film) for turned in _equal_cells(cell)]
        shapes = _shape_of(np.array(above) @ film)
        for cell in below:
            length, cosine = _shape_of((cell @ vectors)[None])
            fits = (np.abs(shapes[0] / length - 1) <= max_strain).all(axis=1) & (np.abs(shapes[1] - cosine) <= ANGLE)
            if fits.any():
                matches.append((cell, above[int(np.flatnonzero(fits)[0])]))
            if len(matches) == MATCHES:
                return matches
    return matches


def plane_supercells(multiple: int, vectors: np.ndarray) -> list[np.ndarray]:
    """Return all supercells of a plane lattice with a multiple of its area, reduced, as whole numbers, shape (2, 2).

    These are the Hermite normal forms of that determinant; their two vectors are then as short as they can be.
    """
    made = []
    for first in (number for number in range(1, multiple + 1) if multiple % number == 0):
        for shift in range(multiple // first):
            cell = np.array([[first, shift], [0, multiple // first]])
            while True:
                lengths = ((cell @ vectors) ** 2).sum(axis=1)
                if lengths[0] > lengths[1] + 1e-9:
                    cell = np.array([cell[1], -cell[0]])
                    lengths = lengths[::-1]
                times = round(float((cell @ vectors)[0] @ (cell @ vectors)[1] / lengths[0]))
                if times == 0:
                    break
                shorter = np.array([cell[0], cell[1] - times * cell[0]])
                if ((shorter[1] @ vectors) ** 2).sum() > lengths[1] - 1e-9:
                    break
                cell = shorter
            made.append(cell)
    return made


def _equal_cells(cell: np.ndarray) -> list[np.ndarray]:
    """Return other short cells of the same lattice with the same orientation."""
    pairs = [(cell[0], cell[1] + shift * cell[0]) for shift in (0, -1, 1)]
    return [np.array(pair) for first, second in pairs for pair in ((first, second), (second, -first))]


def _shape_of(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths, shape (cell, 2), and cosine of the angle, shape (cell,), of pairs of vectors."""
    lengths = np.linalg.norm(cells, axis=2)
    return lengths, (cells[:, 0] * cells[:, 1]).sum(axis=1) / lengths.prod(axis=1)


def _is_narrow(vectors: np.ndarray) -> bool:
    lengths = np.linalg.norm(vectors, axis=1)
    return bool(lengths.max() > 3 * lengths.min())


def join_slabs(rng: np.random.Generator, match: Match, gap: float, vacuum: float) -> Atoms:
    """Put the film of a match on its slab, at a random place, with a gap between the closest atoms."""
    slab, film = (
        make_supercell(cut_slab(orientation, cut, n), [[*cell[0], 0], [*cell[1], 0], [0, 0, 1]])
        for orientation, cut, n, cell in zip(match.orientations, match.cuts, match.n_spacings, match.cells, strict=True)
    )
    inner = film.positions[:, :2] @ np.linalg.inv(film.cell.array[:2, :2])
    film.positions[:, :2] = (inner + rng.random(2)) @ slab.cell.array[:2, :2]
    film.set_cell(slab.cell)
    lift_to_contact(film, slab, gap)
    atoms: Atoms = slab + film
    atoms.pbc = (True, True, False)
    atoms.wrap()
    atoms.center(vacuum=vacuum / 2, axis=2)
    atoms.info = {"system_type": "interface"}
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=atoms.info)
