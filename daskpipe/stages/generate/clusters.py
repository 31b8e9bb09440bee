"""Generate random alloy nanoparticles: closed-shell shapes, and spheres, Wulff polyhedra and packings of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count
from typing import Annotated, Literal

import numpy as np
from ase import Atoms
from ase.cluster import Decahedron, Icosahedron, Octahedron
from ase.data import atomic_numbers

from daskpipe.core.geometry import center_in_box
from daskpipe.stages.generate.disorder import choose_size, displace_atoms, mean_volume, missing_size_error, occupy_sites
from daskpipe.stages.generate.free_shapes import FREE_SHAPES, FreeShape
from daskpipe.stages.generate.params import AlloyParams, Composition, CountRange, NotEmpty, Rattle, Vacuum

Shape = Literal["icosahedron", "octahedron", "cuboctahedron", "decahedron", "sphere", "wulff", "packed"]
SHAPES: tuple[Shape, ...] = ("icosahedron", "octahedron", "cuboctahedron", "decahedron", "sphere")
"""Shapes that are chosen from by default."""

Order = Literal["random", "core_shell"]

MAX_ELONGATION = 2.0
"""Largest ratio of the extents of a particle, which leaves out the rods and plates among the decahedra."""

UNIT = 4 ** (1 / 3)
"""Lattice constant of fcc with one cubic length unit an atom."""


ADDED_PARAMETERS = ("order",)
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""


def clusters(
    *,
    rng: np.random.Generator,
    elements: Composition,
    n_atoms: CountRange,
    shapes: Annotated[tuple[Shape, ...], NotEmpty] | None = None,
    vacuum: Vacuum = 10.0,
    rattle: Rattle = 0.1,
    order: Order = "random",
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
        sphere is the part of an fcc, bcc or hcp crystal nearest to a random point, and comes in every size, as do
        ``wulff``, a polyhedron of these crystals with random surface energies of its facets, and ``packed``, a random
        dense packing, both only if asked for. Shapes of every size make half of the particles, if others fit too.
    vacuum
        Gap between the particle and its image, had the cell one, Å.
    order
        Order of the elements: ``core_shell`` puts the first one of `elements` inside and the others around it.

    Yields
    ------
    ase.Atoms
        Not periodic, in the middle of an orthogonal cell.

    Raises
    ------
    ValueError
        When called, if a shape that was asked for has no size within `n_atoms`, or there is no element for a shell.
    """
    common = AlloyParams.from_user(elements, n_atoms, rattle)
    limits = common.n_atoms
    if order == "core_shell" and len(common.fractions) < 2:
        raise ValueError("order: core_shell needs two elements; give another one, or leave it out")
    fitting: dict[Shape, dict[int, list[np.ndarray]]] = {
        shape: closed_shell_sites(shape, *limits) for shape in shapes or SHAPES if shape not in FREE_SHAPES
    }
    for shape, sizes in fitting.items():
        if shapes and not sizes:
            raise missing_size_error(shape, limits, list(closed_shell_sites(shape, 1, 8 * limits[1] + 100)))
    sized = {shape: sizes for shape, sizes in fitting.items() if sizes}
    free = [shape for shape in FREE_SHAPES if shape in (shapes or SHAPES)]
    return (draw_cluster(rng, common, free, sized, vacuum, order) for _ in count())


def draw_cluster(
    rng: np.random.Generator,
    common: AlloyParams,
    free: list[FreeShape],
    sized: dict[Shape, dict[int, list[np.ndarray]]],
    vacuum: float,
    order: Order,
) -> Atoms:
    """Draw one nanoparticle, of one of the shapes `free` of every size or `sized` of some; see `clusters`."""
    if rng.random() < (0.0 if not free else 0.5 if sized else 1.0):
        shape = free[rng.integers(len(free))] if len(free) > 1 else free[0]  # one shape costs no random number
        positions = FREE_SHAPES[shape](rng, int(rng.integers(common.n_atoms[0], common.n_atoms[1] + 1)))
    else:
        positions = choose_size(rng, sized[list(sized)[rng.integers(len(sized))]])
    numbers = occupy_sites(rng, len(positions), common.fractions)
    atoms = Atoms(numbers=numbers, positions=positions * mean_volume(numbers) ** (1 / 3))
    if order == "core_shell":
        order_shells(atoms, list(common.fractions))
    displace_atoms(rng, atoms, common.rattle)
    atoms.info = {"system_type": "cluster"}
    return center_in_box(atoms, vacuum / 2)


def order_shells(atoms: Atoms, symbols: Sequence[str]) -> None:
    """Sort the elements of a particle from its centre outwards, in place, in the order of `symbols`."""
    rank = {atomic_numbers[symbol]: number for number, symbol in enumerate(symbols)}
    outwards = np.argsort(np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1), kind="stable")
    atoms.numbers[outwards] = sorted(atoms.numbers.tolist(), key=rank.__getitem__)


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
