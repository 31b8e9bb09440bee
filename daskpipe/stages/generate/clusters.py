"""Generate random alloy nanoparticles: closed-shell shapes, and spheres of a crystal of any size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Annotated, Literal

import numpy as np
from ase import Atoms
from ase.cluster import Decahedron, Icosahedron, Octahedron

from daskpipe.core.geometry import cell_widths
from daskpipe.stages.generate.alloys import Lattice, unit_cells
from daskpipe.stages.generate.disorder import choose_size, displace_atoms, mean_volume, missing_size_error, occupy_sites
from daskpipe.stages.generate.params import AlloyParams, Composition, CountRange, NotEmpty, Rattle, Vacuum

Shape = Literal["icosahedron", "octahedron", "cuboctahedron", "decahedron", "sphere"]
SHAPES: tuple[Shape, ...] = ("icosahedron", "octahedron", "cuboctahedron", "decahedron", "sphere")
LATTICES: tuple[Lattice, ...] = ("fcc", "bcc", "hcp")

MAX_ELONGATION = 2.0
"""Largest ratio of the extents of a particle, which leaves out the rods and plates among the decahedra."""

UNIT = 4 ** (1 / 3)
"""Lattice constant of fcc with one cubic length unit an atom."""


def clusters(
    *,
    rng: np.random.Generator,
    elements: Composition,
    n_atoms: CountRange,
    shapes: Annotated[tuple[Shape, ...], NotEmpty] | None = None,
    vacuum: Vacuum = 10.0,
    rattle: Rattle = 0.1,
) -> Iterator[Atoms]:
    """Yield nanoparticles: random shape, size, composition, order of elements and displacements.

    Parameters
    ----------
    rng
        Stream of the structures.
    elements, n_atoms, rattle
        Fraction of each element, number of atoms, and standard deviation of displacements (Å), as in
        `daskpipe.stages.generate.params.AlloyParams`; fractions and number also as single values.
    shapes
        Shapes to choose from; by default those that have a size within `n_atoms`. An octahedron may be truncated. A
        sphere is the part of an fcc, bcc or hcp crystal nearest to a random point, and comes in every size: half of
        the particles, if it is among the shapes.
    vacuum
        Gap between the particle and its image, had the cell one, Å.

    Yields
    ------
    ase.Atoms
        Not periodic, in the middle of an orthogonal cell.

    Raises
    ------
    ValueError
        When called, if a shape that was asked for has no size within `n_atoms`.
    """
    common = AlloyParams.from_user(elements, n_atoms, rattle)
    limits = common.n_atoms
    fitting: dict[Shape, dict[int, list[np.ndarray]]] = {
        shape: closed_shell_sites(shape, *limits) for shape in shapes or SHAPES if shape != "sphere"
    }
    for shape, sizes in fitting.items():
        if shapes and not sizes:
            raise missing_size_error(shape, limits, list(closed_shell_sites(shape, 1, 8 * limits[1] + 100)))
    sized = {shape: sizes for shape, sizes in fitting.items() if sizes}
    spheres = 0.0 if "sphere" not in (shapes or SHAPES) else 0.5 if sized else 1.0
    return (draw_cluster(rng, common, spheres, sized, vacuum) for _ in count())


def draw_cluster(
    rng: np.random.Generator,
    common: AlloyParams,
    spheres: float,
    sized: dict[Shape, dict[int, list[np.ndarray]]],
    vacuum: float,
) -> Atoms:
    """Draw one nanoparticle, which is a sphere with probability `spheres`; see `clusters`."""
    if rng.random() < spheres:
        positions = cut_sphere(rng, int(rng.integers(common.n_atoms[0], common.n_atoms[1] + 1)))
    else:
        positions = choose_size(rng, sized[list(sized)[rng.integers(len(sized))]])
    numbers = occupy_sites(rng, len(positions), common.fractions)
    atoms = Atoms(numbers, positions * mean_volume(numbers) ** (1 / 3))
    displace_atoms(rng, atoms, common.rattle)
    atoms.center(vacuum=vacuum / 2)
    atoms.info = {"system_type": "cluster"}
    return atoms


def cut_sphere(rng: np.random.Generator, n_atoms: int) -> np.ndarray:
    """Return the `n_atoms` sites of a crystal nearest to a random point, shape (n_atoms, 3), one cubic unit an atom."""
    cell = unit_cells(LATTICES[rng.integers(len(LATTICES))])[-1]
    # The block contains the sphere and the nearest sites beyond it, for any centre in its middle cell.
    radius = (3 * n_atoms / (4 * np.pi)) ** (1 / 3) + 1.5
    repeats = 2 * np.ceil(radius / cell_widths(cell.cell.array)).astype(int) + 1
    centre = (repeats // 2 + rng.random(3)) @ cell.cell.array
    offsets: np.ndarray = cell.repeat(repeats).positions - centre
    nearest = np.argsort(np.linalg.norm(offsets, axis=1), kind="stable")[:n_atoms]
    return np.asarray(offsets[nearest])


@cache
def closed_shell_sites(shape: Shape, lowest: int, highest: int) -> dict[int, list[np.ndarray]]:
    """Return the sites of the closed shells of a shape by number of atoms, one cubic length unit an atom."""
    sites: dict[int, list[np.ndarray]] = {}
    for particle in closed_shells(shape, highest):
        extents = np.ptp(particle.positions, axis=0)
        if lowest <= len(particle) <= highest and extents.max() <= MAX_ELONGATION * extents.min():
            sites.setdefault(len(particle), []).append(particle.positions)
    return sites


def closed_shells(shape: Shape, highest: int) -> Iterator[Atoms]:
    """Yield the particles of a shape with up to `highest` atoms."""
    if shape == "icosahedron":
        for n_shells in count(2):
            particle = Icosahedron("Cu", n_shells, latticeconstant=UNIT)
            if len(particle) > highest:
                return
            yield particle
    elif shape == "decahedron":
        for p in count(2):
            for q in count(1):
                particle = Decahedron("Cu", p, q, 0, latticeconstant=UNIT)
                if len(particle) > highest:
                    break
                yield particle
            if q == 1:
                return
    else:
        for length in count(2):
            # Atoms of a whole octahedron minus those of six pyramids, both sums over square layers.
            whole = length * (2 * length**2 + 1) // 3
            sizes = {cut: whole - cut * (cut + 1) * (2 * cut + 1) for cut in range((length - 1) // 2 + 1)}
            if min(sizes.values()) > highest:
                return
            for cut, n_atoms in sizes.items():
                if n_atoms <= highest and (length == 2 * cut + 1) == (shape == "cuboctahedron"):
                    yield Octahedron("Cu", length, cut, latticeconstant=UNIT)
