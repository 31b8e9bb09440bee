"""Generate diamond, graphite, graphene and nanotubes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from math import gcd
from typing import Annotated, Literal

import numpy as np
from ase import Atoms
from ase.build import graphene, nanotube

from daskpipe.stages.generate.disorder import apply_strain, displace_atoms, missing_size_error
from daskpipe.stages.generate.params import CountRange, NotEmpty, Rattle, Strain, Vacuum, atomic_volume, count_range
from daskpipe.stages.generate.prototypes import load_pattern
from daskpipe.stages.generate.supercells import MAX_ELONGATION, draw_supercell, find_supercells

Kind = Literal["diamond", "graphite", "graphene", "nanotube"]
KINDS: tuple[Kind, ...] = ("diamond", "graphite", "graphene", "nanotube")

BOND = 1.421
"""Length of the bonds in graphite, Å."""

GRAPHITE_VOLUME = 8.80
"""Volume of an atom in graphite, Å^3 (2.461 and 6.708 Å)."""

MOST_CHIRAL = 12
"""Largest first index of a nanotube; the (12, 12) tube is 16 Å wide."""

AXES: dict[Kind, tuple[int, ...]] = {"diamond": (0, 1, 2), "graphite": (0, 1, 2), "graphene": (0, 1), "nanotube": (2,)}
"""Cartesian axes along which a structure is periodic."""


def covalent(
    *,
    rng: np.random.Generator,
    index: int,
    kinds: Annotated[tuple[Kind, ...], NotEmpty] = KINDS,
    element: Literal["C", "Si", "Ge", "Sn"] = "C",
    n_atoms: CountRange = (16, 100),
    vacuum: Vacuum = 12.0,
    strain: Strain = 0.02,
    rattle: Rattle = 0.05,
) -> Iterator[Atoms]:
    """Yield covalent networks: kind, size, strain along the periodic axes and displacements.

    Graphene and nanotubes are ASE's. A nanotube has any indices (n, m) from (3, 0) to (12, 12).

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: the kinds are gone through in turn.
    kinds
        Kinds to choose from.
    element
        Carbon; silicon, germanium and tin as diamond only.
    n_atoms
        Number of atoms, or lowest and highest.
    vacuum
        Gap between a sheet or tube and its image, Å.
    strain
        Largest normal strain and engineering shear strain, 1.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms
        Diamond and graphite are periodic along all axes, graphene along the first two, nanotubes along the third.

    Raises
    ------
    ValueError
        When called, if a kind has no structure of so many atoms, or is not one of the element.
    """
    limits = count_range(n_atoms)
    if element != "C" and (others := [kind for kind in kinds if kind != "diamond"]):
        raise ValueError(f"kinds: {element} has no {', '.join(others)}; give kinds: [diamond], or element: C")
    draws = [_prepare(kind, element, limits, vacuum) for kind in kinds]
    kind, draw = kinds[index % len(kinds)], draws[index % len(kinds)]
    return (_distort(rng, draw(rng), kind, strain, rattle) for _ in count())


def _prepare(
    kind: Kind, element: str, limits: tuple[int, int], vacuum: float
) -> Callable[[np.random.Generator], Atoms]:
    """Return the function that draws an ideal structure of a kind; sizes are checked before."""
    if kind in ("diamond", "graphite"):
        volume = atomic_volume(element) if kind == "diamond" else GRAPHITE_VOLUME
        crystal = load_pattern(kind).build([element], volume ** (1 / 3))
        supercells = find_supercells(kind, crystal, limits)
        return lambda rng: draw_supercell(rng, supercells)
    if kind == "graphene":
        sheets = _list_sheets(*limits)
        return lambda rng: _build_sheet(sheets[int(rng.integers(len(sheets)))], vacuum)
    tubes = _list_tubes(*limits)
    return lambda rng: _build_tube(tubes[int(rng.integers(len(tubes)))], vacuum)


def _distort(rng: np.random.Generator, atoms: Atoms, kind: Kind, max_strain: float, rattle: float) -> Atoms:
    apply_strain(rng, atoms, max_strain, axes=AXES[kind])
    displace_atoms(rng, atoms, rattle)
    atoms.info = {"system_type": {"graphene": "surface", "nanotube": "wire"}.get(kind, "crystal")}
    return atoms


@cache
def _list_sheets(low: int, high: int) -> list[tuple[int, int]]:
    """List the repeats of graphene's cell of two atoms with so many atoms."""
    repeats = [
        (i, j)
        for i in range(1, high // 2 + 1)
        for j in range(1, high // (2 * i) + 1)
        if low <= 2 * i * j and max(i, j) <= MAX_ELONGATION * min(i, j)
    ]
    if not repeats:
        raise missing_size_error("graphene", (low, high), [2 * i * i for i in range(1, high + 2)])
    return repeats


def _build_sheet(repeats: tuple[int, int], vacuum: float) -> Atoms:
    sheet = graphene("C2", a=BOND * 3**0.5, size=(*repeats, 1), vacuum=vacuum / 2)
    return Atoms(sheet.numbers, sheet.positions, cell=sheet.cell.array, pbc=(True, True, False))


def atoms_per_period(n: int, m: int) -> int:
    """Return the number of atoms in the period of a nanotube (Saito, Dresselhaus and Dresselhaus, 1998, eq. 3.9).

    Examples
    --------
    >>> atoms_per_period(5, 5), atoms_per_period(4, 2)
    (20, 56)
    """
    return 4 * (n * n + n * m + m * m) // gcd(2 * n + m, 2 * m + n)


@cache
def _list_tubes(low: int, high: int) -> list[tuple[int, int, int]]:
    """List indices and number of periods of the nanotubes with so many atoms."""
    periods = {(n, m): atoms_per_period(n, m) for n in range(3, MOST_CHIRAL + 1) for m in range(n + 1)}
    tubes = [
        (n, m, length)
        for (n, m), size in periods.items()
        for length in range(max(1, -(-low // size)), high // size + 1)
    ]
    if not tubes:
        raise missing_size_error("nanotube", (low, high), sorted(set(periods.values())))
    return tubes


def _build_tube(tube: tuple[int, int, int], vacuum: float) -> Atoms:
    made = nanotube(*tube, bond=BOND, symbol="C", vacuum=vacuum / 2)
    return Atoms(made.numbers, made.positions, cell=made.cell.array, pbc=(False, False, True))
