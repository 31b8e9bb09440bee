"""Generate slabs: random alloys with low-index facets, and any plane and termination of any crystal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, product
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms, build
from pydantic import BeforeValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.alloys import LATTICE_CONSTANT, MAX_ELONGATION
from daskpipe.stages.generate.base import Base, count_base, draw_base, probe_base
from daskpipe.stages.generate.disorder import (
    apply_strain,
    choose_size,
    displace_apart,
    displace_atoms,
    draw_strain,
    mean_volume,
    missing_size_error,
    occupy_sites,
    strain_periodic,
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
    length_range,
)
from daskpipe.stages.generate.slabs import Miller, SlabChoice, distinct_millers, list_layers, list_slabs, smallest_slab

Facet = Literal["fcc111", "fcc100", "fcc110", "bcc110", "bcc100", "hcp0001"]
FACETS: tuple[Facet, ...] = ("fcc111", "fcc100", "fcc110", "bcc110", "bcc100", "hcp0001")
Size = tuple[int, int, int]
Thickness = Annotated[tuple[float, float], BeforeValidator(length_range)]

MIN_DISTANCE = 0.7
"""Shortest distance of two atoms of a slab of a crystal, as a fraction of the sum of their covalent radii."""


@dataclass(frozen=True, kw_only=True)
class Planes:
    """The planes of a crystal to cut along, and thickness (Å), number of atoms and cuts of slabs; see `surfaces`."""

    miller: tuple[Miller, ...] | None
    max_index: int
    thickness: tuple[float, float]
    n_atoms: tuple[int, int]
    whole_layers: bool


ADDED_PARAMETERS = ("fixed", "max_index", "miller", "of", "thickness", "whole_layers")
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""


def surfaces(
    *,
    rng: np.random.Generator,
    index: int = 0,
    elements: Composition | None = None,
    of: Base | None = None,
    n_atoms: CountRange,
    facets: Annotated[tuple[Facet, ...], NotEmpty] = FACETS,
    layers: CountRange = (3, 6),
    repeats: CountRange = (2, 6),
    vacuum: Vacuum = 12.0,
    strain: Strain = 0.03,
    rattle: Rattle = 0.1,
    miller: Annotated[tuple[Miller, ...], NotEmpty] | None = None,
    max_index: Annotated[int, Field(ge=1, le=4)] = 1,
    thickness: Thickness = (8.0, 15.0),
    fixed: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    whole_layers: bool = False,
) -> Iterator[Atoms | Rejection]:
    """Yield slabs: of random alloys of some elements, or cut out of any crystal.

    Slabs of `elements` have a random facet, size, composition, order of elements, strain in the plane and
    displacements. Slabs of a crystal (`of`) go through all planes and terminations. They consist of whole cells, so
    that they have its composition. Planes with high indices have steps. Polar surfaces are not reconstructed.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request. Crystals, planes and terminations are gone through in turn.
    of
        A crystal, in place of `elements`: a formula, a file, or a generator with its parameters.
    elements, n_atoms, rattle
        Fraction of each element, number of atoms, and standard deviation of displacements (Å), as in
        `daskpipe.stages.generate.params.AlloyParams`; fractions and number also as single values.
    facets
        Facets of `elements` to choose from.
    layers
        Of `elements`: number of atomic layers, or lowest and highest.
    repeats
        Of `elements`: number of surface cells along each side, or lowest and highest.
    vacuum
        Gap between the slab and its image along the third cell vector, Å.
    strain
        Largest normal strain and engineering shear strain in the plane, 1.
    miller
        Of a crystal: indices of planes, e.g. ``[[1, 1, 0], [2, 1, 1]]``. They count in the conventional cell if the
        crystal is given by a smaller one, else in its own cell.
    max_index
        Of a crystal, without `miller`: all planes with indices up to this one that symmetry tells apart.
    thickness
        Of a crystal: least and largest distance of the lowest and the highest atom, Å. Where spacings of the plane do
        not allow it, the least thickness above the first one.
    fixed
        Part of the thickness, from below, whose atoms are fixed (array ``fixed``).
    whole_layers
        Of a crystal that consists of layers: stacks of whole layers, from a single one on, cut where no bond is broken.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic along the first two cell vectors; the third is the normal and holds the vacuum.

    Raises
    ------
    ValueError
        When called, if no slab of a facet or of a plane has so many atoms, or if neither `elements` nor `of` is given.
    """
    if (elements is None) == (of is None):
        raise ValueError("give either elements, for slabs of alloys, or of, for slabs of a crystal; e.g. of: MgO")
    if of is not None:
        planes = Planes(
            miller=miller,
            max_index=max_index,
            thickness=thickness,
            n_atoms=count_range(n_atoms),
            whole_layers=whole_layers,
        )
        return crystal_slabs(rng, index, of, planes, vacuum=vacuum, strain=strain, rattle=rattle, fixed=fixed)
    if miller is not None:
        raise ValueError("miller applies to slabs of a crystal; give of in place of elements, or facets for alloys")
    assert elements is not None
    common = AlloyParams.from_user(elements, n_atoms, rattle)
    limits = common.n_atoms, count_range(layers), count_range(repeats)
    sizes = {facet: find_slab_sizes(facet, *limits) for facet in facets}
    return (fix_below(draw_surface(rng, common, sizes, vacuum, strain), fixed) for _ in count())


def crystal_slabs(
    rng: np.random.Generator,
    index: int,
    of: Base,
    planes: Planes,
    **sizes: float,
) -> Iterator[Atoms | Rejection]:
    """Yield slabs of crystals; see `surfaces`."""
    faults = [find_unsuited(crystal, planes) for crystal in probe_base(of)]
    if all(faults):
        raise ValueError(faults[0])
    each = count_base(of)
    return (
        draw_crystal_slab(rng, draw_base(of, rng=rng, index=index), index // each + attempt, planes, **sizes)
        for attempt in count()
    )


def find_unsuited(crystal: Atoms, planes: Planes) -> str | None:
    """Return why no slab can be cut out of a crystal; ``None`` if one can for each plane that was asked for."""
    formula = crystal.get_chemical_formula()
    if not crystal.pbc.all():
        return f"of: {formula} is not periodic along three axes; give a crystal"
    choices = find_choices(crystal, planes)
    if not choices:
        return (
            f"whole_layers: {formula} has no stack of whole layers of up to {planes.thickness[1]:g} Å; "
            "give another miller, a larger thickness, or whole_layers: false"
        )
    with_sizes = {choice.miller for choice in choices if choice.sizes}
    without = [choice for choice in choices if choice.miller not in with_sizes]
    if not without or (with_sizes and not planes.miller):
        return None
    least = min(without, key=lambda choice: smallest_slab(choice, planes.thickness[0]))
    n_least = smallest_slab(least, planes.thickness[0])
    return (
        f"n_atoms: no slab of {formula} along {least.miller} with a thickness of {planes.thickness[0]:g} Å or more has "
        f"{planes.n_atoms[0]} to {planes.n_atoms[1]} atoms; the smallest has {n_least}, and multiples are possible; "
        "change n_atoms or thickness"
    )


def find_choices(crystal: Atoms, planes: Planes) -> list[SlabChoice]:
    """Find the surfaces of a crystal; those without a possible size too."""
    millers = planes.miller or distinct_millers(crystal, planes.max_index)
    find = list_layers if planes.whole_layers else list_slabs
    return find(crystal, millers, planes.thickness, planes.n_atoms)


def draw_crystal_slab(
    rng: np.random.Generator,
    crystal: Atoms,
    number: int,
    planes: Planes,
    *,
    vacuum: float,
    strain: float,
    rattle: float,
    fixed: float,
) -> Atoms | Rejection:
    """Draw a slab with the surface of a number; see `surfaces`."""
    if unsuited := find_unsuited(crystal, planes):
        name = f"slab of {crystal.get_chemical_formula()}"
        return Rejection(stage="generate", structure=name, reason="unsuited", evidence=unsuited)
    choices = [choice for choice in find_choices(crystal, planes) if choice.sizes]
    choice = choices[number % len(choices)]
    slab = choice.build(choose_size(rng, choice.sizes))
    slab.center(vacuum=vacuum / 2, axis=2)
    fix_below(slab, fixed)
    strain_periodic(slab, draw_strain(rng, strain))
    displace_apart(rng, slab, rattle, MIN_DISTANCE)
    slab.info = {"system_type": "surface"}
    return slab


def fix_below(slab: Atoms, fixed: float) -> Atoms:
    """Fix the atoms in the lower part of a slab, in place, and return it; `fixed` is a fraction of its thickness."""
    if fixed:
        heights = slab.positions[:, 2] - slab.positions[:, 2].min()
        slab.set_array("fixed", np.repeat(heights[:, None] <= fixed * np.ptp(heights), 3, axis=1), bool, (3,))
    return slab


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
