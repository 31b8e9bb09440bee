"""Generate amorphous solids: atoms of a formula packed at random at a density, none too close."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers, covalent_radii
from ase.formula import Formula
from pydantic import AfterValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.liquids import GOLDEN, Density
from daskpipe.stages.generate.packing import AMU_PER_A3, PackingError, pack_box
from daskpipe.stages.generate.params import CountRange, check_element, count_range

MOST_FILLED = 0.55
"""Largest share of the volume inside spheres of the least distances; random packings of equal spheres end at 0.64."""


def check_formula(formula: str) -> str:
    """Return `formula` if it is a chemical formula with whole numbers, else raise ValueError with an example."""
    try:
        counts = Formula(formula).count()
    except ValueError as error:
        raise ValueError(f"formula {formula!r} cannot be read; give whole numbers, e.g. SiO2 or Cu50Zr50") from error
    if not counts:
        raise ValueError("an empty formula; give one, e.g. SiO2")
    for symbol in counts:
        check_element(symbol)
    return formula


ChemicalFormula = Annotated[str, AfterValidator(check_formula)]
"""A chemical formula with whole numbers."""

LeastDistance = Annotated[float, Field(ge=0.6, le=1.5)]
"""Least distance of two atoms as a multiple of the sum of their covalent radii."""


def amorphous(
    *,
    rng: np.random.Generator,
    index: int,
    formula: ChemicalFormula,
    density: Density,
    n_atoms: CountRange = (60, 150),
    min_distance: LeastDistance = 0.8,
) -> Iterator[Atoms | Rejection]:
    """Yield amorphous solids: atoms packed by packmol at random places of a periodic cubic box.

    They are where melting and quenching begins, not a relaxed glass: coordination numbers are those of a random
    packing.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: numbers of formula units are spread evenly over the requests (golden ratio).
    formula
        Chemical formula, e.g. ``SiO2``; the box has a whole number of them.
    density
        Mass density, g/cm^3, e.g. 2.2 of silica.
    n_atoms
        Number of atoms, or lowest and highest.
    min_distance
        Least distance of two atoms as a multiple of the sum of their covalent radii.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic along all three axes. A box that packmol does not fill is a rejection.

    Raises
    ------
    ValueError
        When called, if no number of formula units has so many atoms, or if the density is beyond packing.
    """
    import_extra("packmol")
    low, high = count_range(n_atoms)
    counts = {atomic_numbers[symbol]: n for symbol, n in Formula(check_formula(formula)).count().items()}
    size = sum(counts.values())
    first, last = -(-low // size), high // size
    if first > last:
        raise ValueError(
            f"n_atoms: no whole number of {formula} has {low} to {high} atoms; the nearest sizes are "
            f"{', '.join(str(n * size) for n in (last, first) if n)}"
        )
    mass = sum(n * atomic_masses[number] for number, n in counts.items())
    volume = float(mass) * AMU_PER_A3 / density
    radii = {number: min_distance * float(covalent_radii[number]) for number in counts}
    filled = sum(n * 4 / 3 * np.pi * radii[number] ** 3 for number, n in counts.items())
    if filled > MOST_FILLED * volume:
        raise ValueError(
            f"density: {density:g} g/cm^3 of {formula} is beyond packing: atoms {min_distance:g} covalent radii apart "
            f"would fill {filled / volume:.0%} of the volume, the limit is {MOST_FILLED:.0%}; give at most "
            f"{density * MOST_FILLED * volume / filled:.2f} g/cm^3, or lower min_distance"
        )
    units = first + int((index * GOLDEN) % 1 * (last - first + 1))
    numbered = {number: n * units for number, n in counts.items()}
    return (_draw_solid(rng, formula, numbered, radii, (units * volume) ** (1 / 3)) for _ in count())


def _draw_solid(
    rng: np.random.Generator, formula: str, counts: dict[int, int], radii: dict[int, float], length: float
) -> Atoms | Rejection:
    try:
        positions = pack_box(rng, [(Atoms([number]), n, radii[number]) for number, n in counts.items()], length)
    except PackingError as error:
        return Rejection(stage="generate", structure=formula, reason="packing", evidence=str(error))
    numbers = np.repeat(list(counts), list(counts.values()))
    return Atoms(numbers, positions, cell=[length] * 3, pbc=True, info={"system_type": "amorphous", "charge": 0})
