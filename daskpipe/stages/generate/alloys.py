"""Generate random alloys on the lattices of metals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from math import ceil
from typing import Annotated, Literal

import numpy as np
from ase import Atoms
from ase.build import bulk
from pydantic import Field

from daskpipe.core.geometry import cell_widths
from daskpipe.stages.generate.disorder import (
    apply_strain,
    choose_size,
    displace_atoms,
    mean_volume,
    missing_size_error,
    occupy_sites,
)
from daskpipe.stages.generate.order import arrange_elements
from daskpipe.stages.generate.params import (
    SUM_TOLERANCE,
    AlloyParams,
    Composition,
    CountRange,
    NotEmpty,
    Rattle,
    Strain,
)
from daskpipe.stages.generate.repeats import repeat_cell

Lattice = Literal["fcc", "bcc", "hcp"]
Repeats = tuple[int, int, int]

MAX_ELONGATION = 2.0
"""Largest ratio of the widths of a supercell, so that images are about equally far in all directions."""

MAX_GRID = 10_000
"""Largest number of compositions on a grid."""

LATTICE_CONSTANT = {"fcc": 4 ** (1 / 3), "bcc": 2 ** (1 / 3), "hcp": 2 ** (1 / 6)}
"""Lattice constants for one cubic length unit an atom; hcp with the ideal c/a."""


ADDED_PARAMETERS = ("grid", "order", "short_range")
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""


def alloys(
    *,
    rng: np.random.Generator,
    index: int = 0,
    elements: Composition,
    n_atoms: CountRange,
    lattices: Annotated[tuple[Lattice, ...], NotEmpty] = ("fcc", "bcc", "hcp"),
    strain: Strain = 0.05,
    rattle: Rattle = 0.1,
    grid: Annotated[float, Field(gt=0, le=0.5)] | None = None,
    order: Literal["random", "sqs", "short_range"] = "random",
    short_range: Annotated[float, Field(ge=-1, le=1)] = -0.2,
) -> Iterator[Atoms]:
    """Yield bulk alloys: random lattice, supercell, composition, order of elements, strain and displacements.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: the compositions of a grid are gone through in turn.
    elements, n_atoms, rattle
        Fraction of each element, number of atoms, and standard deviation of displacements (Å), as in
        `daskpipe.stages.generate.params.AlloyParams`; fractions and number also as single values.
    lattices
        Lattices to choose from. The volume of an atom is the mean of its elements', on any of them.
    strain
        Largest normal strain and engineering shear strain, 1.
    grid
        Step of the fractions, such as 0.1: the compositions are those within the ranges whose fractions are multiples
        of it, instead of random ones. A cell comes as near to them as its number of atoms allows.
    order
        Order of the elements on the sites: ``random``; ``sqs``, whose pairs are as in an infinite random alloy up to
        the third neighbours; or ``short_range``, with the order that `short_range` says
        (`daskpipe.stages.generate.order.arrange_elements`).
    short_range
        Warren-Cowley parameter of nearest unlike pairs: below 0 unlike atoms attract, above they separate.

    Yields
    ------
    ase.Atoms
        Periodic along all three axes.

    Raises
    ------
    ValueError
        When called, if no supercell of a lattice has so many atoms and is less than twice as long as wide, or if no
        composition of the grid, or more than `MAX_GRID`, lie within the ranges.
    """
    common = AlloyParams.from_user(elements, n_atoms, rattle)
    sizes = {lattice: find_supercells(lattice, *common.n_atoms) for lattice in lattices}
    if grid is not None:
        compositions = list_grid(tuple(common.fractions.items()), grid)
        common = replace(common, fractions=compositions[index % len(compositions)])
    targets = {"random": None, "sqs": [0.0, 0.0, 0.0], "short_range": [short_range]}[order]
    return (draw_alloy(rng, common, sizes, strain, targets) for _ in count())


@cache
def list_grid(ranges: tuple[tuple[str, tuple[float, float]], ...], step: float) -> list[dict[str, tuple[float, float]]]:
    """List the compositions within ranges whose fractions are multiples of a step.

    Examples
    --------
    >>> grid = list_grid((("Cu", (0, 1)), ("Au", (0, 1))), 0.5)
    >>> [{symbol: low for symbol, (low, _) in fractions.items()} for fractions in grid]
    [{'Cu': 0.0, 'Au': 1.0}, {'Cu': 0.5, 'Au': 0.5}, {'Cu': 1.0, 'Au': 0.0}]
    """
    n_steps = round(1 / step)
    if abs(n_steps * step - 1) > SUM_TOLERANCE:
        raise ValueError(f"grid: {step:g} does not divide 1; give e.g. 0.1, 0.2 or 0.25")
    parts: list[tuple[int, ...]] = [()]
    for number, (_, (low, high)) in enumerate(ranges):
        allowed = range(ceil(low * n_steps - SUM_TOLERANCE), int(high * n_steps + SUM_TOLERANCE) + 1)
        is_last = number == len(ranges) - 1
        parts = [
            (*part, n)
            for part in parts
            for n in ([n_steps - sum(part)] if is_last else allowed)
            if n in allowed and sum(part) + n <= n_steps
        ]
        if len(parts) > MAX_GRID:
            raise ValueError(f"grid: more than {MAX_GRID} compositions; raise the step or narrow the fractions")
    if not parts:
        raise ValueError(f"grid: no composition within the fractions has multiples of {step:g}; lower it")
    symbols = [symbol for symbol, _ in ranges]
    return [{symbol: (n / n_steps, n / n_steps) for symbol, n in zip(symbols, part, strict=True)} for part in parts]


def draw_alloy(
    rng: np.random.Generator,
    common: AlloyParams,
    sizes: dict[Lattice, dict[int, list[tuple[int, Repeats]]]],
    max_strain: float,
    targets: list[float] | None = None,
) -> Atoms:
    """Draw one alloy; see `alloys`."""
    lattice = list(sizes)[rng.integers(len(sizes))]
    cell, repeats = choose_size(rng, sizes[lattice])
    atoms = repeat_cell(unit_cells(lattice)[cell], repeats)
    atoms.numbers = occupy_sites(rng, len(atoms), common.fractions)
    if targets is not None:
        arrange_elements(rng, atoms, targets)
    atoms.set_cell(atoms.cell.array * mean_volume(atoms.numbers) ** (1 / 3), scale_atoms=True)
    apply_strain(rng, atoms, max_strain)
    displace_atoms(rng, atoms, common.rattle)
    atoms.info = {"system_type": "alloy"}
    return atoms


@cache
def unit_cells(lattice: Lattice) -> tuple[Atoms, ...]:
    """Return primitive and conventional cells of a lattice with one cubic length unit an atom."""
    a = LATTICE_CONSTANT[lattice]
    kinds = ({}, {"cubic": True}, {"orthorhombic": True}) if lattice == "fcc" else ({}, {"orthorhombic": True})
    return tuple(bulk("X", lattice, a=a, covera=(8 / 3) ** 0.5 if lattice == "hcp" else None, **kind) for kind in kinds)


@cache
def find_supercells(lattice: Lattice, lowest: int, highest: int) -> dict[int, list[tuple[int, Repeats]]]:
    """Return the compact supercells of a lattice by their number of atoms, as (number of the cell, repeats)."""
    fitting = compact_supercells(lattice, lowest, highest)
    if not fitting:
        nearby = compact_supercells(lattice, 1, 2 * highest + 16)
        raise missing_size_error(f"compact supercell of {lattice}", (lowest, highest), list(nearby))
    return fitting


def compact_supercells(lattice: Lattice, lowest: int, highest: int) -> dict[int, list[tuple[int, Repeats]]]:
    """Return the supercells no longer than `MAX_ELONGATION` times their width, by number of atoms."""
    sizes: dict[int, list[tuple[int, Repeats]]] = {}
    for number, cell in enumerate(unit_cells(lattice)):
        width = cell_widths(cell.cell.array)
        # Repeats that keep the second and the third width within MAX_ELONGATION of the first.
        for i in range(1, highest // len(cell) + 1):
            length = i * width[0]
            near = [
                range(max(1, ceil(length / MAX_ELONGATION / width[k])), int(length * MAX_ELONGATION / width[k]) + 1)
                for k in (1, 2)
            ]
            for j in near[0]:
                if i * j * len(cell) > highest:
                    break
                for k in near[1]:
                    n_atoms = i * j * k * len(cell)
                    lengths = width * (i, j, k)
                    if lowest <= n_atoms <= highest and lengths.max() <= MAX_ELONGATION * lengths.min() + 1e-9:
                        sizes.setdefault(n_atoms, []).append((number, (i, j, k)))
    return sizes
