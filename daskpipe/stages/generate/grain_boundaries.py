"""Generate grain boundaries of cubic crystals: two grains of one crystal, turned against each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import count, product
from math import ceil, gcd
from typing import Annotated, Any, NamedTuple

import numpy as np
from ase import Atoms
from pydantic import AfterValidator, BeforeValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.adsorbates import FractionRange
from daskpipe.stages.generate.base import Base, count_base, draw_base, probe_base
from daskpipe.stages.generate.disorder import displace_apart, missing_size_error
from daskpipe.stages.generate.params import CountRange, NotEmpty, Rattle, count_range, length_range
from daskpipe.stages.generate.point_defects import SYMPREC, CrystalKey, crystal_of, key_of
from daskpipe.stages.generate.slabs import Miller, as_millers, shorten_third

MIN_DISTANCE = 0.65
"""Shortest distance of two atoms, as a fraction of the sum of their covalent radii."""

MAX_PLANE_INDEX = 2
"""Largest Miller index of the planes of tilt boundaries."""

MUCH = 8
"""Factor of the largest number of atoms up to which other sizes are looked for, to name them in an error."""

EDGE = 0.25
"""Part of the height of a cell, above and below, in which an atom of the other grain is an image."""

LIFT = 0.05
"""Step, Å, by which the grains are moved apart until no atoms of two grains are too close."""

MOST_LIFTED = 3.0
"""Largest distance, Å, by which they are moved apart."""


def _check_sigma(value: int) -> int:
    """Return an odd number of at least 3, which cubic coincidence lattices have, else raise ValueError."""
    if value < 3 or value % 2 == 0:
        raise ValueError(
            f"sigma of a cubic crystal is an odd number of at least 3, e.g. 3, 5, 7 or 9; received {value}"
        )
    return value


Thickness = Annotated[tuple[float, float], BeforeValidator(length_range)]
"""Least and largest thickness, Å."""

Sigma = Annotated[int, AfterValidator(_check_sigma), Field(le=99)]
"""Inverse density of the sites in which the lattices of two grains coincide."""


class Wanted(NamedTuple):
    """Boundaries to make: see `grain_boundaries`; `most` is the largest number of atoms."""

    sigma: tuple[int, ...]
    axes: tuple[Miller, ...]
    planes: tuple[Miller, ...] | None
    thickness: tuple[float, float]
    most: int


class Boundary(NamedTuple):
    """Two grains in a cell that is periodic along three axes, so that there are two equal boundaries.

    Parameters
    ----------
    atoms
        Both grains, and nothing known of them but numbers and positions. The first two cell vectors lie in the plane.
    upper
        Mask of the atoms of the upper grain, shape (atom,).
    name
        Axis, sigma and plane.
    """

    atoms: Atoms
    upper: np.ndarray
    name: str


def grain_boundaries(
    *,
    rng: np.random.Generator,
    index: int = 0,
    of: Base,
    n_atoms: CountRange,
    sigma: Annotated[tuple[Sigma, ...], NotEmpty] = (3, 5, 7, 9),
    axes: Annotated[tuple[Miller, ...], NotEmpty] = ((0, 0, 1), (1, 1, 0), (1, 1, 1)),
    planes: Annotated[tuple[Miller, ...], NotEmpty] | None = None,
    thickness: Thickness = (5.0, 12.0),
    gap: FractionRange = (0.0, 0.1),
    rattle: Rattle = 0.05,
) -> Iterator[Atoms | Rejection]:
    """Yield grain boundaries of cubic crystals, twist and tilt, with the grains at a random place in the plane.

    Coincidence lattices and cells are pymatgen's (``GrainBoundaryGenerator``; H. Zheng et al., Acta Mater. 186, 40,
    2020). The grains are whole, so that composition is kept: no atoms are removed, and grains that overlap are moved
    apart. Each cell holds two boundaries.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request. Crystals, boundaries and thicknesses are gone through in turn.
    of
        A cubic crystal: a formula, a file, or a generator with its parameters.
    n_atoms
        Number of atoms, or lowest and highest.
    sigma
        Inverse densities of coinciding sites.
    axes
        Indices of the axes about which the grains are turned against each other.
    planes
        Indices of the planes of the boundaries; by default that normal to the axis (twist), and those of indices up to
        2 that contain the axis (tilt).
    thickness
        Least and largest thickness of a grain, Å.
    gap
        Distance by which grains in contact are moved apart, as a fraction of the largest sum of two covalent radii, or
        lowest and highest.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic along all three axes. A rejection if the grains overlap wherever they are, or random crystals are not
        cubic.

    Raises
    ------
    ValueError
        When called, if the crystal is not cubic, or no boundary has so many atoms.
    """
    limits = count_range(n_atoms)
    low, high = thickness
    wanted = Wanted(
        tuple(sigma), as_millers(axes), None if planes is None else as_millers(planes), (low, high), limits[1]
    )
    faults = [find_unsuited(crystal, wanted, limits[0]) for crystal in probe_base(of)]
    if all(faults):
        raise ValueError(faults[0])
    each = count_base(of)

    def draw(attempt: int) -> Atoms | Rejection:
        crystal = draw_base(of, rng=rng, index=index)
        if unsuited := find_unsuited(crystal, wanted, limits[0]):
            return Rejection(stage="generate", structure="grain boundary", reason="unsuited", evidence=unsuited)
        fitting = [each for each in list_boundaries(crystal, wanted) if len(each.atoms) >= limits[0]]
        return join_grains(rng, fitting[(index // each + attempt) % len(fitting)], rng.uniform(*gap), rattle)

    return (draw(attempt) for attempt in count())


def find_unsuited(crystal: Atoms, wanted: Wanted, least: int) -> str | None:
    """Return why a crystal makes no grain boundary of at least so many atoms; ``None`` if it does."""
    formula = crystal.get_chemical_formula()
    if not crystal.pbc.all():
        return f"of: {formula} is not periodic along three axes; give a crystal"
    if (system := _crystal_system(key_of(crystal))) != "cubic":
        return f"of: {formula} is {system}; grain boundaries are made of cubic crystals"
    if any(len(each.atoms) >= least for each in list_boundaries(crystal, wanted)):
        return None
    larger = wanted._replace(most=MUCH * wanted.most)
    sizes = sorted({len(each.atoms) for each in list_boundaries(crystal, larger)})
    if not sizes:
        return (
            f"sigma, axes, planes: {formula} has no such boundary with grains of {wanted.thickness[0]:g} to "
            f"{wanted.thickness[1]:g} Å; for an axis [0, 0, 1] sigma is 5, 13, 17, ...; widen thickness or n_atoms"
        )
    return str(missing_size_error(f"grain boundary of {formula}", (least, wanted.most), sizes))


@lru_cache(maxsize=32)
def _crystal_system(key: CrystalKey) -> str:
    """Return the crystal system of a crystal in words."""
    import spglib

    crystal = crystal_of(key)
    cell = (crystal.cell.array, crystal.get_scaled_positions(), crystal.numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    number = 1 if dataset is None else int(dataset.number)
    ends = ((2, "triclinic"), (15, "monoclinic"), (74, "orthorhombic"), (142, "tetragonal"), (167, "trigonal"))
    return next((name for end, name in (*ends, (194, "hexagonal")) if number <= end), "cubic")


def list_boundaries(crystal: Atoms, wanted: Wanted) -> tuple[Boundary, ...]:
    """List the boundaries of a cubic crystal, those of fewer atoms first."""
    return _list_boundaries(key_of(crystal), wanted)


@lru_cache(maxsize=32)
def _list_boundaries(key: CrystalKey, wanted: Wanted) -> tuple[Boundary, ...]:
    import spglib
    from pymatgen.core.interface import GrainBoundaryGenerator
    from pymatgen.io.ase import AseAtomsAdaptor

    crystal = crystal_of(key)
    cell = (crystal.cell.array, crystal.get_scaled_positions(), crystal.numbers)
    standard = spglib.standardize_cell(cell, to_primitive=False, symprec=SYMPREC)
    assert standard is not None, "a cubic crystal has a conventional cell"
    lattice, places, numbers = standard
    conventional = Atoms(numbers, cell=lattice, scaled_positions=places, pbc=True)
    boundaries: list[Boundary] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of what `rm_ratio` and `normal` leave as it is
        generator = GrainBoundaryGenerator(AseAtomsAdaptor.get_structure(conventional))
        for axis in wanted.axes:
            angles = GrainBoundaryGenerator.enum_sigma_cubic(max(wanted.sigma), axis)
            for sigma, plane in product(wanted.sigma, _list_planes(axis) if wanted.planes is None else wanted.planes):
                if sigma not in angles:
                    continue
                name = f"{axis} sigma {sigma} {plane}"

                def build(
                    n_cells: int, axis: Miller = axis, angle: float = angles[sigma][0], plane: Miller = plane
                ) -> Any:
                    return generator.gb_from_parameters(axis, angle, expand_times=n_cells, plane=plane, rm_ratio=0.0)

                thin = _make_boundary(build(1), name)
                each = float(thin.atoms.cell.array[2, 2]) / 2
                fewest = ceil(wanted.thickness[0] / each)
                greatest = min(int(wanted.thickness[1] / each), wanted.most // len(thin.atoms))
                boundaries += [_make_boundary(build(n_cells), name) for n_cells in range(fewest, greatest + 1)]
    return tuple(sorted(boundaries, key=lambda each: len(each.atoms)))


def _list_planes(axis: Miller) -> list[Miller]:
    """Return the plane normal to an axis, and the planes of low indices that contain it, one of each opposite pair."""
    span = range(-MAX_PLANE_INDEX, MAX_PLANE_INDEX + 1)
    tilt = [
        (h, k, l)
        for h, k, l in product(span, span, span)  # noqa: E741
        if gcd(h, k, l) == 1 and (h, k, l) > (0, 0, 0) and np.dot((h, k, l), axis) == 0
    ]
    return [axis, *sorted(tilt, key=lambda hkl: (sum(map(abs, hkl)), hkl))]


def _make_boundary(made: Any, name: str) -> Boundary:
    """Return a grain boundary of pymatgen's in a short cell, whose first two vectors lie in the plane."""
    from ase.geometry import minkowski_reduce

    upper = np.array([str(label).startswith("top") for label in made.site_properties["grain_label"]])
    numbers = [site.specie.Z for site in made]
    # Atoms at the end of a grain may have been wrapped to the other side of the cell.
    places = np.array(made.frac_coords)
    heights = places[:, 2] % 1
    places[:, 2] = heights + np.where(upper & (heights < EDGE), 1, 0) - np.where(~upper & (heights > 1 - EDGE), 1, 0)
    atoms = Atoms(numbers, cell=made.lattice.matrix, scaled_positions=places, pbc=True)
    atoms.positions = places @ atoms.cell.array
    reduced, _ = minkowski_reduce(atoms.cell.array, pbc=(True, True, False))
    first, second, third = reduced
    if np.linalg.det(reduced) < 0:
        second = -second
    atoms.set_cell([first, second, shorten_third(first, second, third)])
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
    return Boundary(atoms=atoms, upper=upper, name=name)


def join_grains(rng: np.random.Generator, boundary: Boundary, gap: float, rattle: float) -> Atoms | Rejection:
    """Return a boundary with the upper grain at a random place in the plane, and both grains as near as they may be."""
    from ase.data import covalent_radii

    start = boundary.atoms
    shift = rng.random(2) @ start.cell.array[:2]
    beyond = gap * 2 * float(covalent_radii[start.numbers].max())
    for lift in np.arange(0.0, MOST_LIFTED, LIFT):
        apart = _move_apart(boundary, shift, lift)
        if not _grains_overlap(apart, boundary.upper):
            atoms = _move_apart(boundary, shift, lift + beyond)
            displace_apart(rng, atoms, rattle, MIN_DISTANCE)
            atoms.wrap()
            atoms.info = {"system_type": "grain_boundary"}
            return atoms
    evidence = f"{boundary.name}: the grains overlap even {MOST_LIFTED:g} Å apart"
    return Rejection(stage="generate", structure="grain boundary", reason="overlap", evidence=evidence)


def _move_apart(boundary: Boundary, shift: np.ndarray, lift: float) -> Atoms:
    """Return a boundary whose upper grain is shifted in the plane, and lifted from the lower one and its image."""
    atoms: Atoms = boundary.atoms.copy()
    atoms.positions[boundary.upper] += shift + lift * np.array([0.0, 0.0, 1.0])
    atoms.cell[2, 2] += 2 * lift
    return atoms


def _grains_overlap(atoms: Atoms, upper: np.ndarray) -> bool:
    """Return whether atoms of two grains are closer than `MIN_DISTANCE` allows."""
    from ase.data import covalent_radii

    from daskpipe.core.connectivity import find_neighbours

    i, j = find_neighbours(atoms, MIN_DISTANCE * covalent_radii[atoms.numbers], "ij")
    return bool((upper[i] != upper[j]).any())
