"""Find oxidation states, and how large a crystal is and how well its bonds fit, from bond valences and radii."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from daskpipe.stages.generate.params import atomic_volume

SOFTNESS = 0.37
"""Universal parameter of bond valences, Å (Brown and Altermatt, Acta Cryst. B41, 244, 1985)."""

REACH = 2.0
"""Pairs are listed up to this multiple of the cube root of the volume of an atom: some 33 neighbours."""

LEAST_VALENCE = 0.25
"""Least sum of the bond valences of an ion, as a fraction of its charge, for which a crystal counts as ionic."""

LEAST_CONTACT = 0.65
"""Least distance of atoms in a crystal that is scaled to volumes, as a fraction of the sum of their covalent radii."""


@cache
def guess_oxidation(formula: str) -> dict[str, float]:
    """Return the most likely oxidation states of the elements of a formula, whose sum is zero.

    Parameters
    ----------
    formula
        Chemical formula.

    Returns
    -------
    dict
        State of each element, the mean where an element has several; empty for metals, elements, and formulas whose
        charges cannot balance. States and their frequencies are pymatgen's, from the ICSD.

    Examples
    --------
    >>> guess_oxidation("TiO2"), guess_oxidation("CuZn")
    ({'Ti': 4.0, 'O': -2.0}, {})
    """
    from pymatgen.core import Composition

    composition = Composition(formula).reduced_composition
    if len(composition) < 2 or all(element.is_metal for element in composition):
        return {}
    guesses = composition.oxi_state_guesses()
    return {str(symbol): float(state) for symbol, state in guesses[0].items()} if guesses else {}


@cache
def valence_distance(first: str, second: str) -> float:
    """Return the length of a bond of valence one, Å (O'Keeffe and Brese, J. Am. Chem. Soc. 113, 3226, 1991).

    For an element without parameters of theirs it is the sum of the covalent radii.
    """
    from pymatgen.analysis.bond_valence import BV_PARAMS
    from pymatgen.core import Element

    known = [BV_PARAMS[Element(symbol)] for symbol in (first, second) if Element(symbol) in BV_PARAMS]
    if len(known) < 2:
        return float(sum(covalent_radii[atomic_numbers[symbol]] for symbol in (first, second)))
    (r1, c1), (r2, c2) = ((each["r"], each["c"]) for each in known)
    return float(r1 + r2 - r1 * r2 * (c1**0.5 - c2**0.5) ** 2 / (c1 * r1 + c2 * r2))


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A crystal whose sites have no elements yet.

    Parameters
    ----------
    cell
        Primitive cell of one Å^3 an atom; atomic number 1 marks the sites of the first kind, 2 those of the second.
    first, second
        Indices of neighbours, each pair in both directions, shape (pair,).
    distance
        Distances of neighbours, Å, shape (pair,).
    """

    cell: Atoms
    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray

    @classmethod
    def from_cell(cls, cell: Atoms) -> Pattern:
        """List the neighbours in a cell, which is scaled to one Å^3 an atom."""
        from ase.neighborlist import neighbor_list

        cell = cell.copy()
        cell.set_cell(cell.cell.array * (len(cell) / cell.get_volume()) ** (1 / 3), scale_atoms=True)
        first, second, distance = neighbor_list("ijd", cell, REACH)
        return cls(cell=cell, first=first, second=second, distance=distance)

    @property
    def kinds(self) -> np.ndarray:
        """Kind of each site, from 0 on, shape (site,)."""
        return np.asarray(self.cell.numbers - 1)

    def build(self, symbols: Sequence[str], scale: float) -> Atoms:
        """Return the crystal with an element on each kind of site, `scale` times as long as the pattern."""
        atoms: Atoms = self.cell.copy()
        atoms.symbols = [symbols[kind] for kind in self.kinds]
        atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
        return atoms


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How elements fit into a pattern.

    Parameters
    ----------
    scale
        Length of the crystal in units of the pattern.
    instability
        Root mean square difference of the sums of bond valences from the oxidation states, divided by the root mean
        square of the states: the global instability index, 1. Zero without oxidation states.
    coordination
        Number of neighbours of each kind of site, effective where they are at several distances, shape (kind,).
        Only those of opposite charge count, if there are charges.
    contact
        Least distance over the sum of covalent radii, 1.
    """

    scale: float
    instability: float
    coordination: np.ndarray
    contact: float


def fit_elements(pattern: Pattern, symbols: Sequence[str], oxidation: Mapping[str, float]) -> Fit:
    """Scale a pattern to its elements and measure how well they fit.

    With oxidation states the bond valences of the cations sum to their charges. Without, the volume is the sum of the
    volumes of the elements, as in metals (Zen's rule).

    Parameters
    ----------
    pattern
        The crystal.
    symbols
        Element of each kind of site.
    oxidation
        Oxidation state of each element; empty for metals and elements.
    """
    kinds = pattern.kinds
    radii = np.array([covalent_radii[atomic_numbers[symbol]] for symbol in symbols])[kinds]
    touching = pattern.distance / (radii[pattern.first] + radii[pattern.second])
    charges = np.array([oxidation.get(symbol, 0.0) for symbol in symbols])[kinds]
    if not charges.any():
        return _fit_volume(pattern, symbols, touching.min())
    bonded = charges[pattern.first] * charges[pattern.second] < 0
    i, j, distance = pattern.first[bonded], pattern.second[bonded], pattern.distance[bonded]
    table = np.array([[valence_distance(a, b) for b in symbols] for a in symbols])
    lengths = table[kinds[i], kinds[j]]
    scale = _solve_scale(lengths, distance, 2 * charges[charges > 0].sum())
    valences = np.exp((lengths - scale * distance) / SOFTNESS)
    sums = np.bincount(i, valences, len(kinds))
    if (sums < LEAST_VALENCE * abs(charges)).any():  # a cation without anions around it, or the reverse
        return replace(_fit_volume(pattern, symbols, touching.min()), instability=1.0)
    squares = np.bincount(i, valences**2, len(kinds))
    off = np.sqrt(np.mean((sums - abs(charges)) ** 2) / np.mean(charges**2))
    coordination = _mean_by_kind(sums**2 / np.maximum(squares, 1e-12), kinds)
    return Fit(scale=scale, instability=float(off), coordination=coordination, contact=float(scale * touching.min()))


def _fit_volume(pattern: Pattern, symbols: Sequence[str], touching: float) -> Fit:
    """Scale a pattern to the volumes of its elements."""
    kinds = pattern.kinds
    scale = float(np.mean([atomic_volume(symbols[kind]) for kind in kinds]) ** (1 / 3))
    scale = max(scale, LEAST_CONTACT / touching)
    nearest = np.full(len(kinds), REACH)
    np.minimum.at(nearest, pattern.first, pattern.distance)
    # Hoppe's effective coordination number (Z. Kristallogr. 150, 23, 1979), with the nearest for the mean distance.
    weights = np.exp(1 - (pattern.distance / nearest[pattern.first]) ** 6)
    coordination = _mean_by_kind(np.bincount(pattern.first, weights, len(kinds)), kinds)
    return Fit(scale=scale, instability=0.0, coordination=coordination, contact=float(scale * touching))


def _solve_scale(lengths: np.ndarray, distance: np.ndarray, total: float) -> float:
    """Return the scale at which the bond valences, counted in both directions, sum to `total`, by bisection."""
    low, high = 0.5, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.exp((lengths - middle * distance) / SOFTNESS).sum() > total:
            low = middle
        else:
            high = middle
    return high


def _mean_by_kind(values: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(kinds, values) / np.bincount(kinds))
