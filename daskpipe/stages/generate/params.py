"""Types of the generators' parameters, which check values and say what to type instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Self

from ase.data import atomic_names, chemical_symbols, reference_states
from pydantic import AfterValidator, BeforeValidator, Field

SUM_TOLERANCE = 1e-5
"""Largest difference of a sum of fractions from one; 1/3 typed with six digits passes."""

ATOMS_PER_CELL = {"sc": 1, "bcc": 2, "fcc": 4, "diamond": 8}
"""Atoms of the cubic cells for which ASE's table gives a lattice constant."""

MOLAR_VOLUMES = {
    "H": 11.42, "He": 21.0, "B": 4.39, "N": 13.54, "O": 17.36, "F": 11.2, "P": 17.02, "S": 15.53, "Cl": 17.39,
    "Mn": 7.35, "Ga": 11.8, "As": 12.95, "Se": 16.42, "Br": 19.78, "In": 15.76, "Sn": 16.29, "Sb": 18.19, "Te": 20.46,
    "I": 25.72, "Pm": 20.23, "Sm": 19.98, "Hg": 14.09, "Bi": 21.31, "Rn": 50.5, "Ra": 41.09, "Pa": 15.18, "U": 12.49,
    "Np": 11.59, "Pu": 12.29, "Am": 17.63, "Cm": 18.05, "Bk": 16.84, "Cf": 16.5, "Es": 28.52,
}  # fmt: skip
"""Molar volumes of the elements in other structures, cm^3/mol, of the condensed phase (M. Winter, WebElements)."""

MOLAR_TO_ATOMIC = 1 / 0.602214076
"""Volume of an atom, Å^3, for one cm^3/mol."""


def check_element(symbol: str) -> str:
    """Return `symbol` if it is a chemical symbol, else raise ValueError with the most similar one."""
    if symbol in chemical_symbols[1:]:
        return symbol
    if symbol.title() in atomic_names[1:]:
        near = [chemical_symbols[atomic_names.index(symbol.title())]]
    else:
        near = get_close_matches(symbol.capitalize(), chemical_symbols[1:], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Give a chemical symbol, e.g. 'Cu'."
    raise ValueError(f"unknown element {symbol!r}. {hint}")


def atomic_volume(symbol: str) -> float:
    """Return the volume of an atom in the ground state of its element, Å^3.

    From the lattice constants in ASE's `reference_states` where the ground state is fcc, bcc, hcp, simple cubic or
    diamond, else from `MOLAR_VOLUMES`.

    Raises
    ------
    ValueError
        If no volume was measured, as for astatine and the elements from fermium on.

    Examples
    --------
    >>> round(atomic_volume("Cu"), 2), round(atomic_volume("Mn"), 2)
    (11.76, 12.2)
    """
    state: dict[str, Any] = reference_states[chemical_symbols.index(check_element(symbol))] or {}
    lattice = state.get("symmetry")
    if lattice in ATOMS_PER_CELL:
        return float(state["a"]) ** 3 / ATOMS_PER_CELL[lattice]
    if lattice == "hcp" and "basis" not in state:  # Se and Te, which are not hcp, have a basis
        return float(state["a"]) ** 3 * float(state["c/a"]) * 3**0.5 / 4
    if symbol in MOLAR_VOLUMES:
        return MOLAR_VOLUMES[symbol] * MOLAR_TO_ATOMIC
    raise ValueError(
        f"element {symbol!r} has no reference volume: none was measured; give structures with {symbol} as files"
    )


def fraction_range(value: Any) -> tuple[float, float]:
    """Return a fraction, or lowest and highest fraction, as a pair."""
    pair = (value, value) if isinstance(value, int | float) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(x, int | float) for x in pair) or not 0 <= pair[0] <= pair[1] <= 1:
        raise ValueError(f"expected a fraction or [lowest, highest] within 0 and 1, received {value!r}")
    return float(pair[0]), float(pair[1])


def check_composition(elements: Mapping[str, float | tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Check the fractions of elements and return the range of each.

    Raises
    ------
    ValueError
        If no composition within the ranges sums to one, or if an element has no reference volume.

    Examples
    --------
    >>> check_composition({"Cu": 0.25, "Au": (0.5, 1.0)})
    {'Cu': (0.25, 0.25), 'Au': (0.5, 1.0)}
    """
    ranges = {symbol: fraction_range(value) for symbol, value in elements.items()}
    if not ranges:
        raise ValueError("no elements: give at least one, e.g. {Cu: [0, 1], Au: [0, 1]}")
    for symbol in ranges:
        atomic_volume(symbol)
    lowest = sum(low for low, _ in ranges.values())
    highest = sum(high for _, high in ranges.values())
    names = ", ".join(ranges)
    if all(low == high for low, high in ranges.values()) and abs(lowest - 1) > SUM_TOLERANCE:
        raise ValueError(f"fractions of {names} sum to {lowest:g}; they must sum to 1")
    if highest < 1 - SUM_TOLERANCE:
        raise ValueError(f"the highest fractions of {names} sum to {highest:g}; they must reach 1")
    if lowest > 1 + SUM_TOLERANCE:
        raise ValueError(f"the lowest fractions of {names} sum to {lowest:g}; they must not exceed 1")
    return ranges


def count_range(value: Any) -> tuple[int, int]:
    """Return a count, or lowest and highest count, as a pair."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(type(x) is int for x in pair) or not 1 <= pair[0] <= pair[1]:
        raise ValueError(f"expected a count or [lowest, highest] of at least 1, received {value!r}")
    return pair[0], pair[1]


def factor_range(value: Any) -> tuple[float, float]:
    """Return a factor, or lowest and highest factor, as a pair."""
    pair = (value, value) if isinstance(value, int | float) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(x, int | float) for x in pair) or not 0.5 <= pair[0] <= pair[1] <= 2:
        raise ValueError(f"expected a factor or [lowest, highest] within 0.5 and 2, received {value!r}")
    return float(pair[0]), float(pair[1])


def length_range(value: Any) -> tuple[float, float]:
    """Return a length, or lowest and highest length, Å, as a pair."""
    pair = (value, value) if isinstance(value, int | float) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(x, int | float) for x in pair) or not 0 < pair[0] <= pair[1] <= 1000:
        raise ValueError(f"expected a length in Å or [lowest, highest], received {value!r}")
    return float(pair[0]), float(pair[1])


def not_empty[T: (list[Any], tuple[Any, ...])](items: T) -> T:
    """Return `items` if there are any, else raise ValueError."""
    if not items:
        raise ValueError("give at least one, or leave it out")
    return items


NotEmpty = AfterValidator(not_empty)
"""Mark of a list that may be left out but not be empty."""

Element = Annotated[str, AfterValidator(check_element)]
"""A chemical symbol."""

Composition = Annotated[
    dict[Element, Annotated[float | tuple[float, float], BeforeValidator(fraction_range)]],
    AfterValidator(check_composition),
]
"""Fraction, or range of the fraction, of each element."""

CountRange = Annotated[int | tuple[int, int], BeforeValidator(count_range)]
"""A count, or the lowest and the highest."""

MinDistance = Annotated[float, Field(ge=0.6, le=1)]
"""Shortest distance of two atoms, as a fraction of the sum of their covalent radii; seeds need 0.6."""

Strain = Annotated[float, Field(ge=0, le=0.3)]
"""Largest component of a strain, 1."""

Rattle = Annotated[float, Field(ge=0, le=1)]
"""Standard deviation of displacements, Å."""

Vacuum = Annotated[float, Field(gt=0, le=100)]
"""Gap between a structure and its image in the next cell, Å."""


@dataclass(frozen=True, kw_only=True)
class AlloyParams:
    """Parameters that random alloys, clusters and surfaces share.

    Parameters
    ----------
    fractions
        Lowest and highest fraction of each element; compositions are uniform among those that sum to one.
    n_atoms
        Lowest and highest number of atoms.
    rattle
        Standard deviation of displacements along each axis, Å.
    """

    fractions: Mapping[str, tuple[float, float]]
    n_atoms: tuple[int, int]
    rattle: float

    @classmethod
    def from_user(
        cls,
        elements: Mapping[str, float | tuple[float, float]],
        n_atoms: int | tuple[int, int],
        rattle: float,
    ) -> Self:
        """Check what a user has typed.

        Raises
        ------
        ValueError
            For a composition or a number of atoms that cannot be used.
        """
        return cls(fractions=check_composition(elements), n_atoms=count_range(n_atoms), rattle=rattle)
