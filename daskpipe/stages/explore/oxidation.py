"""Oxidation states of atoms: given by the structure, by the user, or guessed from the composition."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.structures import total_charge

if TYPE_CHECKING:
    from ase import Atoms

UNBALANCED = 100.0
"""Penalty of an unbalanced charge; the most common state is worth 1, so that balance comes first."""

METALLIC = 0.5
"""Electrons a cation that no anion takes up; beyond this the cations count as a metal of state zero."""

DECIMALS = 6
"""Decimals that states are rounded to, so that the last bits of the solver do not matter."""


def oxidation_states(atoms: Atoms, given: Mapping[str, float]) -> np.ndarray:
    """Return the oxidation state of each atom.

    Parameters
    ----------
    atoms
        ``initial_charges`` are taken as they are if any of them is not zero.
    given
        States by symbol, e; empty for a guess.

    Returns
    -------
    numpy.ndarray
        e, shape (atom,). A guess gives all atoms of an element their mean state. It is zero in metals, alloys and
        molecules of non-metals.

    Raises
    ------
    ValueError
        If `given` is not empty and lacks a species of the structure.
    """
    charges = atoms.arrays.get("initial_charges", np.zeros(0))
    if charges.any():
        return np.array(charges, dtype=float)
    numbers, species, counts = np.unique(atoms.numbers, return_inverse=True, return_counts=True)
    if given:
        return _look_up_states(atoms, given)
    states = guess_states(tuple(numbers.tolist()), tuple(counts.tolist()), total_charge(atoms))
    return np.array(states)[species]


def _look_up_states(atoms: Atoms, given: Mapping[str, float]) -> np.ndarray:
    if missing := sorted(set(atoms.symbols) - given.keys()):
        raise ValueError(
            f"oxidation states are given for {', '.join(given)} and not for {', '.join(missing)}; "
            "give one for each element, or none at all to have them guessed"
        )
    return np.array([given[symbol] for symbol in atoms.symbols], dtype=float)


@lru_cache(maxsize=4096)
def guess_states(numbers: tuple[int, ...], counts: tuple[int, ...], total: int = 0) -> tuple[float, ...]:
    """Return the likeliest mean oxidation state of each element of a composition.

    Of all ways to share out an element's common states over its atoms, the one whose charges add up to `total` and
    whose states occur most often in the ICSD: what `pymatgen.core.Composition.oxi_state_guesses` ranks first, save that
    shares need not be whole atoms. That makes it a linear programme, whose cost does not grow with the cell; a search
    over whole atoms takes exponential time in cells that no common factor divides. Where no states balance, those that
    come closest are taken; and where anions leave more than half an electron a cation, as adsorbates and interstitial
    atoms do, the rest is a metal: the cations' states are zero.

    Parameters
    ----------
    numbers
        Atomic numbers, each once.
    counts
        Atoms of each.
    total
        Charge of the structure, e.

    Returns
    -------
    tuple of float
        e, in the order of `numbers`. All zero unless there are metals or metalloids together with non-metals.
    """
    from pymatgen.analysis.bond_valence import PRIOR_PROB
    from pymatgen.core import Element, Species
    from scipy.optimize import linprog

    elements = [Element.from_Z(number) for number in numbers]
    cations = [element.is_metal or element.is_metalloid for element in elements]
    anions = [not (cation or element.is_noble_gas) for cation, element in zip(cations, elements, strict=True)]
    if not (any(cations) and any(anions)):
        return (0.0,) * len(numbers)
    states = [element.icsd_oxidation_states or element.common_oxidation_states or (0,) for element in elements]
    owner = np.repeat(np.arange(len(elements)), [len(known) for known in states])
    state = np.concatenate(states).astype(float)
    seen = np.array([PRIOR_PROB.get(Species(elements[e].symbol, s), 0) for e, s in zip(owner, state, strict=True)])
    share = np.array(counts) / sum(counts)
    # The unknowns are the fraction of an element's atoms in each state, then the missing and the excess charge an atom.
    worth = np.append(share[owner] * seen / max(seen.max(), 1), [-UNBALANCED, -UNBALANCED])
    balance = np.append(share[owner] * state, [1.0, -1.0])
    parts = np.hstack([owner == np.arange(len(elements))[:, None], np.zeros((len(elements), 2))])
    solution = linprog(-worth, A_eq=np.vstack([balance, parts]), b_eq=[total / sum(counts), *np.ones(len(elements))])
    mean = np.bincount(owner, state * solution.x[:-2])
    if solution.x[-1] > METALLIC * share[mean > 0].sum():
        mean = np.minimum(mean, 0)
    return tuple((np.round(mean, DECIMALS) + 0.0).tolist())
