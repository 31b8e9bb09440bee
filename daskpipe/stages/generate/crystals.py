"""Generate crystals of known structure types, with elements on their sites and supercells of a size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import product
from math import prod
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from pydantic import AfterValidator, BeforeValidator

from daskpipe.stages.generate.bonding import Pattern, fit_elements, guess_oxidation
from daskpipe.stages.generate.disorder import apply_strain, displace_atoms, occupy_sites
from daskpipe.stages.generate.params import (
    CountRange,
    NotEmpty,
    Rattle,
    Strain,
    check_composition,
    check_element,
    count_range,
)
from daskpipe.stages.generate.prototypes import PROTOTYPES, check_prototype, load_pattern
from daskpipe.stages.generate.supercells import Supercells, draw_supercell, find_supercells

type Choice = tuple[dict[str, tuple[float, float]], ...]
"""Range of the fraction of each element on each kind of site."""


def check_sites(value: Any) -> dict[str, Any]:
    """Return the elements of each site: a list of those to choose from, or a mapping of their fractions.

    Examples
    --------
    >>> check_sites({"A": ["Ca", "Sr"], "B": "Ti", "X": {"O": 1}})
    {'A': ['Ca', 'Sr'], 'B': ['Ti'], 'X': {'O': (1.0, 1.0)}}
    >>> check_sites(["Na", "Cl"])
    {'1': ['Na'], '2': ['Cl']}
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence):
        value = {str(number): each for number, each in enumerate(value, 1)}
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"expected elements by site, e.g. {{A: [Ca, Sr], B: Ti, X: O}}, received {value!r}")
    return {str(site): _check_site(each) for site, each in value.items()}


def _check_site(value: Any) -> list[str] | dict[str, tuple[float, float]]:
    if isinstance(value, str):
        return [check_element(value)]
    if isinstance(value, Mapping):
        return check_composition({check_element(symbol): fraction for symbol, fraction in value.items()})
    if isinstance(value, Sequence) and value:
        return [check_element(symbol) for symbol in value]
    raise ValueError(f"expected an element, a list of elements or their fractions, received {value!r}")


SiteElements = Annotated[
    dict[str, list[str] | dict[str, tuple[float, float]]],
    BeforeValidator(check_sites, json_schema_input_type=dict[str, Any] | list[Any] | str),
]
"""Elements of each kind of site: one, a list to choose from, or a mapping of fractions that share the site."""

PrototypeNames = Annotated[
    list[Annotated[str, AfterValidator(check_prototype)]],
    NotEmpty,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]),
]
"""Name of a structure type, or several."""


def crystals(
    *,
    rng: np.random.Generator,
    index: int,
    prototype: PrototypeNames,
    elements: SiteElements,
    n_atoms: CountRange,
    charge_balance: bool = False,
    strain: Strain = 0.02,
    rattle: Rattle = 0.05,
) -> Iterator[Atoms]:
    """Yield crystals of known structure types: supercell, elements on the sites, strain and displacements.

    The size of the cell follows from bond valences where the elements have oxidation states that balance, else from
    the volumes of the elements (`daskpipe.stages.generate.bonding.fit_elements`).

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: prototypes and elements are gone through in turn.
    prototype
        Structure type of `daskpipe.stages.generate.prototypes.PROTOTYPES`, or several with the same sites.
    elements
        Elements by site, such as ``{A: [Ca, Sr], B: Ti, X: O}``, or in the order of the sites. A list is to choose
        from; elements of a mapping share the site at random, by fractions as those of `alloys`.
    n_atoms
        Number of atoms, or lowest and highest.
    charge_balance
        Whether to keep only those elements whose common oxidation states sum to zero.
    strain
        Largest normal strain and engineering shear strain, 1.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms
        Periodic along all three axes.

    Raises
    ------
    ValueError
        When called, if the sites have other names, if no supercell has so many atoms or enough sites for the elements
        that share them, or if no choice of elements is neutral where that is asked for.
    """
    variants = _list_variants(json.dumps([prototype, elements, count_range(n_atoms), charge_balance]))
    return _draw_crystals(rng, variants, index % len(variants), strain, rattle)


def _draw_crystals(
    rng: np.random.Generator,
    variants: Sequence[tuple[str, Choice, Supercells]],
    first: int,
    max_strain: float,
    rattle: float,
) -> Iterator[Atoms]:
    """Draw crystals of the first variant, then of any, for there may be no room for the first one's elements."""
    number = first
    while True:
        yield _draw_crystal(rng, *variants[number], max_strain, rattle)
        number = int(rng.integers(len(variants)))


@lru_cache(maxsize=64)
def _list_variants(params: str) -> list[tuple[str, Choice, Supercells]]:
    """List structure types, elements on their sites and supercells, from parameters of `crystals` as JSON."""
    prototype, elements, n_atoms, charge_balance = json.loads(params)
    return [
        (name, choice, _supercells_with_room(name, tuple(n_atoms), _count_needed(choice)))
        for name in prototype
        for choice in _list_choices(name, elements, charge_balance=charge_balance)
    ]


def _list_choices(name: str, elements: Mapping[str, Any], *, charge_balance: bool) -> list[Choice]:
    """List the choices of elements for the sites of a structure type."""
    sites = list(PROTOTYPES[name].sites)
    if list(elements) == [str(number) for number in range(1, len(elements) + 1)] and len(elements) == len(sites):
        elements = dict(zip(sites, elements.values(), strict=True))
    if set(elements) != set(sites):
        received = "elements for " + ", ".join(elements)
        if set(elements) == {str(number) for number in range(1, len(elements) + 1)}:
            received = f"{len(elements)} elements"
        example = ", ".join(f"{site}: ..." for site in sites)
        raise ValueError(f"elements: {name} has the sites {', '.join(sites)}, received {received}; give {{{example}}}")
    options = [
        [{symbol: tuple(pair) for symbol, pair in each.items()}]
        if isinstance(each, Mapping)
        else [{symbol: (1.0, 1.0)} for symbol in each]
        for each in (elements[site] for site in sites)
    ]
    choices: list[Choice] = list(product(*options))
    distinct = [
        choice for choice in choices if len({symbol for each in choice for symbol in each}) == sum(map(len, choice))
    ]
    choices = distinct or choices
    if charge_balance:
        balanced = [choice for choice in choices if all(_oxidation(name, symbols) for symbols in product(*choice))]
        if not balanced:
            tried = ", ".join(_formula(name, next(product(*choice))) for choice in choices[:5])
            raise ValueError(
                f"elements: the common oxidation states of {tried} do not balance in {name}; give other elements, or "
                "set charge_balance: false"
            )
        return balanced
    return choices


@cache
def _find_supercells(name: str, n_atoms: tuple[int, int]) -> Supercells:
    return find_supercells(name, load_pattern(name).cell, n_atoms)


def _count_needed(choice: Choice) -> tuple[int, ...]:
    """Return how many elements must be on the sites of each kind."""
    return tuple(sum(low > 0 for low, _ in each.values()) for each in choice)


@cache
def _supercells_with_room(name: str, n_atoms: tuple[int, int], needed: tuple[int, ...]) -> Supercells:
    """Return the supercells with a site for each element that must be there."""
    supercells = _find_supercells(name, n_atoms)
    kinds = load_pattern(name).kinds
    fitting = {
        size: cells for size, cells in supercells.items() if (np.bincount(kinds) * size // len(kinds) >= needed).all()
    }
    if not fitting:
        per_site = np.bincount(kinds)
        least = len(kinds) * max(-(-want // int(have)) for want, have in zip(needed, per_site, strict=True))
        shared = ", ".join(f"{want} elements" for want in needed if want > 1)
        raise ValueError(
            f"n_atoms: a {name} of at most {max(supercells)} atoms has too few sites for {shared} on one kind of site; "
            f"raise n_atoms to {least} or more"
        )
    return fitting


def _draw_crystal(
    rng: np.random.Generator, name: str, choice: Choice, supercells: Supercells, max_strain: float, rattle: float
) -> Atoms:
    """Draw one crystal; see `crystals`."""
    atoms = draw_supercell(rng, supercells)
    kinds = atoms.numbers - 1
    shares = []
    for kind, ranges in enumerate(choice):
        sites = np.flatnonzero(kinds == kind)
        atoms.numbers[sites] = occupy_sites(rng, len(sites), ranges)
        present, counts = np.unique(atoms.numbers[sites], return_counts=True)
        shares.append({chemical_symbols[number]: n / len(sites) for number, n in zip(present, counts, strict=True)})
    scale = sum(
        prod(share[symbol] for share, symbol in zip(shares, symbols, strict=True)) * fit_scale(name, symbols)
        for symbols in product(*shares)
    )  # Vegard's rule
    atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
    apply_strain(rng, atoms, max_strain)
    displace_atoms(rng, atoms, rattle)
    atoms.info = {"system_type": "crystal"}
    return atoms


@cache
def fit_scale(name: str, symbols: tuple[str, ...]) -> float:
    """Return the length of a structure type with elements on its sites, in units of its pattern, Å."""
    return fit_elements(load_pattern(name), symbols, _oxidation(name, symbols)).scale


def _oxidation(name: str, symbols: Sequence[str]) -> dict[str, float]:
    return guess_oxidation(_formula(name, symbols))


def _formula(name: str, symbols: Sequence[str]) -> str:
    counts = _reduced_counts(load_pattern(name))
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in zip(symbols, counts, strict=True))


def _reduced_counts(pattern: Pattern) -> list[int]:
    counts = np.bincount(pattern.kinds)
    return [int(n) for n in counts // np.gcd.reduce(counts)]
