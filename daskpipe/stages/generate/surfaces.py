"""Generate random alloy slabs with low-index facets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count, product
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms, build

from daskpipe.stages.generate.alloys import LATTICE_CONSTANT, MAX_ELONGATION
from daskpipe.stages.generate.disorder import (
    apply_strain,
    choose_size,
    displace_atoms,
    mean_volume,
    missing_size_error,
    occupy_sites,
)
from daskpipe.stages.generate.params import (
    AlloyParams,
    Composition,
    CountRange,
    NotEmpty,
    Rattle,
    Strain,
    Vacuum,
    count_range,
)

Facet = Literal["fcc111", "fcc100", "fcc110", "bcc110", "bcc100", "hcp0001"]
FACETS: tuple[Facet, ...] = ("fcc111", "fcc100", "fcc110", "bcc110", "bcc100", "hcp0001")
Size = tuple[int, int, int]


def surfaces(
    *,
    rng: np.random.Generator,
    elements: Composition,
    n_atoms: CountRange,
    facets: Annotated[tuple[Facet, ...], NotEmpty] = FACETS,
    layers: CountRange = (3, 6),
    repeats: CountRange = (2, 6),
    vacuum: Vacuum = 12.0,
    strain: Strain = 0.03,
    rattle: Rattle = 0.1,
) -> Iterator[Atoms]:
    """Yield slabs: random facet, size, composition, order of elements, strain in the plane and displacements.

    Parameters
    ----------
    rng
        Stream of the structures.
    elements, n_atoms, rattle
        Fraction of each element, number of atoms, and standard deviation of displacements (Å), as in
        `daskpipe.stages.generate.params.AlloyParams`; fractions and number also as single values.
    facets
        Facets to choose from.
    layers
        Number of atomic layers, or lowest and highest.
    repeats
        Number of surface cells along each side, or lowest and highest.
    vacuum
        Gap between the slab and its image along the third cell vector, Å.
    strain
        Largest normal strain and engineering shear strain in the plane, 1.

    Yields
    ------
    ase.Atoms
        Periodic along the first two cell vectors; the third is the normal and holds the vacuum.

    Raises
    ------
    ValueError
        When called, if no slab of a facet has so many atoms.
    """
    common = AlloyParams.from_user(elements, n_atoms, rattle)
    limits = common.n_atoms, count_range(layers), count_range(repeats)
    sizes = {facet: find_slab_sizes(facet, *limits) for facet in facets}
    return (draw_surface(rng, common, sizes, vacuum, strain) for _ in count())


def draw_surface(
    rng: np.random.Generator,
    common: AlloyParams,
    sizes: dict[Facet, dict[int, list[Size]]],
    vacuum: float,
    max_strain: float,
) -> Atoms:
    """Draw one slab; see `surfaces`."""
    facet = list(sizes)[rng.integers(len(sizes))]
    size = choose_size(rng, sizes[facet])
    numbers = occupy_sites(rng, int(np.prod(size)), common.fractions)
    atoms = build_slab(facet, size, volume=mean_volume(numbers), vacuum=vacuum / 2)
    atoms.numbers = numbers
    atoms.pbc = (True, True, False)
    apply_strain(rng, atoms, max_strain, axes=(0, 1))
    displace_atoms(rng, atoms, common.rattle)
    atoms.info = {"system_type": "surface"}
    return atoms


def build_slab(facet: Facet, size: Size, *, volume: float, vacuum: float) -> Atoms:
    """Build a slab of dummy atoms, each of `volume` Å^3, with `vacuum` Å above and below."""
    options: dict[str, Any] = {"a": LATTICE_CONSTANT[facet[:3]] * volume ** (1 / 3)}
    if facet == "hcp0001":
        options["c"] = options["a"] * (8 / 3) ** 0.5
    slab: Atoms = getattr(build, facet)("X", size, vacuum=vacuum, **options)
    return slab


@cache
def find_slab_sizes(
    facet: Facet, n_atoms: tuple[int, int], layers: tuple[int, int], repeats: tuple[int, int]
) -> dict[int, list[Size]]:
    """Find the sizes of slabs by number of atoms, without those whose sides differ too much."""
    sides = build_slab(facet, (1, 1, 1), volume=1, vacuum=1).cell.lengths()[:2]
    sizes_by_count: dict[int, list[Size]] = {}
    side, depth = range(repeats[0], repeats[1] + 1), range(layers[0], layers[1] + 1)
    for size in product(side, side, depth):
        lengths = sides * size[:2]
        if lengths.max() <= MAX_ELONGATION * lengths.min() + 1e-9:
            sizes_by_count.setdefault(int(np.prod(size)), []).append(size)
    fitting = {n: sizes for n, sizes in sizes_by_count.items() if n_atoms[0] <= n <= n_atoms[1]}
    if not fitting:
        raise missing_size_error(f"{facet} slab with these layers and repeats", n_atoms, list(sizes_by_count))
    return fitting
