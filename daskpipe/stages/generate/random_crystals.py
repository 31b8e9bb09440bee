"""Generate random crystals with the symmetry of a space group, by PyXtal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from itertools import count
from math import ceil
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.formula import Formula
from daskpipe.stages.generate.params import CountRange, Element, NotEmpty, Rattle, count_range

TRIES = 3
"""Space groups, compatible with the composition, that are tried for one structure; each has 400 attempts of PyXtal."""

TOLERANCE = 1.4
"""Factor of PyXtal's least distances, which are half the sum of the covalent radii."""

ADDED_PARAMETERS = ("n_elements",)
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""

SpaceGroup = Annotated[int, Field(ge=1, le=230)]


def random_crystals(
    *,
    rng: np.random.Generator,
    index: int,
    formula: Formula | None = None,
    elements: Annotated[list[Element], NotEmpty] | None = None,
    n_atoms: CountRange = (2, 24),
    space_groups: Annotated[list[SpaceGroup], NotEmpty] | None = None,
    density: Annotated[float, Field(gt=0.2, le=3)] = 1.0,
    rattle: Rattle = 0.0,
    n_elements: CountRange | None = None,
) -> Iterator[Atoms | Rejection]:
    """Yield random crystals: space group, lattice, Wyckoff positions and coordinates.

    Method and program: PyXtal (Fredericks et al., Comput. Phys. Commun. 261, 107810, 2021). A structure may have more
    symmetry than its space group. Cells of up to some 24 atoms take tens of milliseconds, those of 60 five times that.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: the numbers of formula units, or of atoms, are gone through in turn.
    formula
        Chemical formula of all structures.
    elements
        Elements of structures with random compositions, instead of `formula`; each occurs in each structure, or as many
        of them, drawn at random, as `n_elements` says.
    n_atoms
        Number of atoms of the conventional cell, or lowest and highest.
    space_groups
        Numbers of the space groups to choose from; all but 1 by default.
    density
        Density relative to PyXtal's estimate, whose volumes lie between those of covalent and van der Waals spheres.
    rattle
        Standard deviation of displacements along each axis, Å.
    n_elements
        Number of the `elements` that a structure is made of, or lowest and highest. Structures of many elements take
        long: those of nine take seconds.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic along all three axes; a rejection where no space group gave a crystal without atoms too near.

    Raises
    ------
    ConfigError
        If PyXtal is not installed.
    ValueError
        When called, if neither or both of formula and elements are given, if no number of formula units has so many
        atoms, or if the composition goes with none of the space groups.
    """
    import_extra("pyxtal")
    if (formula is None) == (elements is None):
        raise ValueError("give either formula, e.g. TiO2, or elements, e.g. [Ti, O], and not both")
    low, high = count_range(n_atoms)
    groups = tuple(space_groups or range(2, 231))
    if formula is not None:
        unit = _read_formula(formula)
        size = sum(unit.values())
        units = list(range(ceil(low / size), high // size + 1))
        if not units:
            near = max(1, low // size)
            raise ValueError(
                f"n_atoms: {formula} has {size} atoms, so no cell has {low} to {high}; give e.g. {near * size}"
            )
        if space_groups and not any(_is_compatible(g, _times(unit, n)) for n in units for g in groups):
            raise ValueError(
                f"space_groups: {formula} in cells of {low} to {high} atoms goes with none of {list(groups)}: "
                "their sites hold other numbers of atoms; widen n_atoms or leave out space_groups"
            )
    if n_elements is not None and (elements is None or count_range(n_elements)[1] > len(set(elements))):
        raise ValueError(
            f"n_elements: there are {len(set(elements or []))} elements to choose from; give more elements"
        )
    if elements is not None:
        most = len(set(elements)) if n_elements is None else count_range(n_elements)[1]
        if high < most:
            raise ValueError(f"n_atoms: {most} elements need as many atoms; raise n_atoms from {high}")
    chosen = None if n_elements is None else count_range(n_elements)
    return (_draw(rng, index, formula, elements, (low, high), groups, density, rattle, chosen) for _ in count())


def _draw(
    rng: np.random.Generator,
    index: int,
    formula: str | None,
    elements: list[str] | None,
    limits: tuple[int, int],
    groups: tuple[int, ...],
    density: float,
    rattle: float,
    n_elements: tuple[int, int] | None,
) -> Atoms | Rejection:
    """Draw one crystal; see `random_crystals`."""
    if n_elements is not None:
        n_chosen = int(rng.integers(n_elements[0], n_elements[1] + 1))
        elements = [str(symbol) for symbol in rng.permutation(list(dict.fromkeys(elements or [])))[:n_chosen]]
    composition = _draw_composition(rng, index, formula, elements, limits)
    fitting = [int(group) for group in rng.permutation(groups)]
    tried = 0
    for group in fitting:
        if not _is_compatible(group, tuple(composition.values())):
            continue
        if atoms := _build(rng, group, composition, density):
            atoms.positions += rng.normal(scale=rattle, size=atoms.positions.shape)
            atoms.info = {"system_type": "crystal"}
            return atoms
        tried += 1
        if tried == TRIES:
            break
    name = "".join(f"{symbol}{n}" for symbol, n in composition.items())
    evidence = f"none of {tried} space groups that go with {name} gave a crystal without atoms too near; lower density"
    return Rejection(stage="generate", structure=name, reason="no_crystal", evidence=evidence)


def _draw_composition(
    rng: np.random.Generator, index: int, formula: str | None, elements: list[str] | None, limits: tuple[int, int]
) -> dict[str, int]:
    low, high = limits
    if formula is not None:
        unit = _read_formula(formula)
        size = sum(unit.values())
        units = range(ceil(low / size), high // size + 1)
        n_units = units[index % len(units)]
        return {symbol: n * n_units for symbol, n in unit.items()}
    symbols = list(dict.fromkeys(elements or []))
    sizes = range(max(low, len(symbols)), high + 1)
    extra = rng.multinomial(sizes[index % len(sizes)] - len(symbols), rng.dirichlet(np.ones(len(symbols))))
    return {symbol: 1 + int(n) for symbol, n in zip(symbols, extra, strict=True)}


def _build(rng: np.random.Generator, group: int, composition: dict[str, int], density: float) -> Atoms | None:
    """Return a crystal of a space group, or None if PyXtal finds no valid one in its own bounded tries."""
    crystal = import_extra("pyxtal").pyxtal()
    tolerance = _share_tolerances()
    own = np.random.default_rng(rng.integers(2**63))
    counts = list(composition.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyXtal warns when it raises the volume
        try:
            crystal.from_random(
                3, _group(group), list(composition), counts, 1.1 / density, tm=tolerance, random_state=own, max_count=1
            )
        except RuntimeError:  # no valid crystal in its 400 attempts, or no lattice of the volume
            return None
        atoms = crystal.to_ase(resort=True)
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=True)


@cache
def _share_tolerances() -> Any:
    """Return the least distances of atoms; let PyXtal use one table of its own, where it makes one for each check.

    A table takes 10 ms, and a crystal some twenty checks.
    """
    tolerance, operations = import_extra("pyxtal.tolerance"), import_extra("pyxtal.operations")
    operations.Tol_matrix = cache(tolerance.Tol_matrix)
    return tolerance.Tol_matrix(prototype="atomic", factor=TOLERANCE)


@cache
def _read_formula(formula: str) -> dict[str, int]:
    from pymatgen.core import Composition

    return {str(symbol): round(n) for symbol, n in Composition(formula).reduced_composition.items()}


def _times(unit: dict[str, int], n: int) -> tuple[int, ...]:
    return tuple(count * n for count in unit.values())


@cache
def _group(number: int) -> Any:
    return import_extra("pyxtal.symmetry").Group(number)


@cache
def _is_compatible(number: int, counts: tuple[int, ...]) -> bool:
    """Return whether the Wyckoff positions of a space group can hold so many atoms of each element."""
    return bool(_group(number).check_compatible(list(counts))[0])
