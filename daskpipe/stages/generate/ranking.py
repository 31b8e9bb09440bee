"""Rank the structure types that a chemical formula is likely to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

import numpy as np
from ase import Atoms

from daskpipe.stages.generate.aflow import Prototype, read_prototypes, reduce_counts
from daskpipe.stages.generate.bonding import Fit, fit_elements, guess_oxidation

LEAST_CONTACT = 0.7
"""Least distance of two atoms, as a fraction of the sum of their covalent radii."""

PAULING = ((0.155, 2), (0.225, 3), (0.35, 4), (0.732, 6), (1.0, 8), (np.inf, 12))
"""Limits of the ratio of the radii of cation and anion, and the coordination below each (Pauling's first rule).

The limit of tetrahedra is 0.414 for hard spheres; aluminium in oxides, 0.38, prefers octahedra all the same."""

LABELS = """
A_cF4_225_a A_cI2_229_a A_hP2_194_c A_cF8_227_a A_hP4_194_bc A_hP4_194_ac A_hR2_166_c
AB_cF8_225_a_b AB_cP2_221_b_a AB_cF8_216_c_a AB_hP4_186_b_b AB_hP4_194_c_a AB_tP2_123_a_d AB_oC8_63_c_c AB_cP8_198_a_a
AB2_cF12_225_a_c rutile anatase baddeleyite AB2_hP3_164_a_d cadmium_chloride AB2_hP6_194_c_f AB2_cP12_205_a_c
AB2_hP12_194_f_ah A2B_cF24_227_d_a AB2_hP3_191_a_d AB2_tI6_139_a_e A2B_oP12_62_2c_c A2B_tI12_140_h_a AB2_hP6_194_c_ad
AB3_cP4_221_a_c AB3_cF16_225_a_bc A3B_hP8_194_h_c A3B_cP8_223_c_a A3B_tI8_139_bd_a AB3_oP16_62_c_cd AB3_hR8_148_c_f
A3B_cP4_221_d_a A3B_cI32_204_g_c A2B3_hR10_167_c_e A2B3_hR5_166_c_ac bixbyite AB5_hP6_191_a_cg A6B_cP7_221_f_a
A4B_tI10_139_de_a A12B_tI26_139_fij_a ABC_cF12_216_b_c_a ABC_tP6_129_c_a_c AB2C_cF16_225_a_c_b ABC2_hR4_166_a_b_c
ABC2_tI16_122_a_b_d ABC2_hP8_194_d_a_f AB3C_oP20_62_c_cd_a AB3C_cP5_221_a_c_b AB3C_hR10_148_c_f_c ABC3_hR10_161_a_a_b
ABC3_hR10_167_a_b_e A2BC4_cF56_227_d_a_e AB2C4_tI14_139_a_e_ce A4BC_tI24_141_h_b_a scheelite thorium_chromium_silicide
garnet double_perovskite vacancy_ordered_perovskite ABCD_tP8_129_c_b_a_c
"""

COMMON = frozenset(LABELS.split())
"""Structure types of some hundred compounds or more, of the most common in Pearson's Crystal Data."""

UNUSUAL = ("high", "theoretical", "clathrate", "superconductor", "bainite")
"""Words in the names of phases that pressure, heat or a calculation made."""

N_CHARGED = 16
"""Number of types, the best by all else, whose electrostatic energy is computed."""

OXIDE_SHIFT = 0.14
"""Crystal radii of cations minus their ionic radii, Å; that of anions is the opposite (Shannon)."""

HARD_ROW = 2
"""Last row of the periodic table whose anions are hard. Those below are polarised, as in layers (Fajans' rule)."""

SMALL = 6
"""Number of atoms up to which cells are equally simple."""

KNOWN = 0.1
"""Factor of the instability of a compound in the type that is named after it."""

METALLIC = 8
"""Least coordination number in metals."""

BODY_CENTRED = 9.5
"""Effective coordination number in bcc and CsCl, as `daskpipe.stages.generate.bonding.fit_elements` counts it."""

WEIGHTS = {
    "instability": 2.0,
    "coordination": 1.5,
    "rarity": 0.6,
    "likeness": 1.2,
    "contact": 4.0,
    "size": 0.1,
    "electrostatics": 4.0,
}
"""Weights of the parts of the score; see `Candidate`."""


@dataclass(frozen=True)
class Candidate:
    """A structure type with the elements of a formula on its sites.

    Parameters
    ----------
    prototype
        The structure type.
    symbols
        Element of each kind of site.
    fit
        Scale and bonds.
    penalties
        Parts of the score, all at least 0. ``instability`` of the bond valences. ``coordination`` other than the ratio
        of radii or the number of valence electrons ask for.
        ``rarity`` of the structure type. ``likeness``: distance of the elements from those of that compound on
        Pettifor's scale; half of it in metals, and for common types, which many kinds of compounds have. ``contact``
        of atoms that are too near. ``size``: logarithm of the number of atoms beyond `SMALL`. ``electrostatics``:
        energy of the point charges above the lowest of all types, as a fraction of it. The compound that a type is
        named after is known in it: coordination and size cost nothing there, and instability is counted by `KNOWN`.
    """

    prototype: Prototype
    symbols: tuple[str, ...]
    fit: Fit
    penalties: Mapping[str, float]

    @property
    def score(self) -> float:
        """Weighted sum of the penalties; the lowest is the most likely."""
        return sum(WEIGHTS[name] * value for name, value in self.penalties.items())

    @property
    def name(self) -> str:
        """Name of the structure type."""
        return self.prototype.name

    def build(self) -> Atoms:
        """Return the primitive cell."""
        return self.prototype.pattern.build(self.symbols, self.fit.scale)


@cache
def rank_candidates(formula: str) -> tuple[Candidate, ...]:
    """Return the structure types of the stoichiometry of a formula, the most likely first.

    Each structure type is there once, with its elements on the sites that suit them best. Those whose atoms would
    overlap are left out.

    Parameters
    ----------
    formula
        Chemical formula.

    Raises
    ------
    ValueError
        If no structure type has its stoichiometry.
    """
    from pymatgen.core import Composition, Element

    amounts = {str(symbol): round(n) for symbol, n in Composition(formula).reduced_composition.items()}
    oxidation = guess_oxidation(formula)
    prototypes = read_prototypes().get(reduce_counts(tuple(amounts.values())), [])
    best: list[Candidate] = []
    for prototype in prototypes:
        assigned = [_rate(prototype, symbols, oxidation) for symbols in _assignments(prototype, amounts)]
        fitting = [each for each in assigned if each.fit.contact >= LEAST_CONTACT]
        if fitting:
            best.append(min(fitting, key=lambda each: each.score))
    if not best:
        raise ValueError(
            f"formula: none of the known structure types has the stoichiometry of {formula}; "
            "use random_crystals, or give its crystal as a file"
        )
    best.sort(key=_order)
    anions = [symbol for symbol, charge in oxidation.items() if charge < 0]
    if anions and all(Element(symbol).row <= HARD_ROW for symbol in anions):
        best = _add_electrostatics(best[:N_CHARGED], oxidation) + best[N_CHARGED:]
    return tuple(sorted(best, key=_order))


def _order(candidate: Candidate) -> tuple[float, str]:
    return round(candidate.score, 9), candidate.prototype.label


def _add_electrostatics(candidates: Sequence[Candidate], oxidation: Mapping[str, float]) -> list[Candidate]:
    """Add what the point charges of the ions cost, by Ewald sums."""
    from pymatgen.analysis.ewald import EwaldSummation
    from pymatgen.io.ase import AseAtomsAdaptor

    energies = []
    for candidate in candidates:
        structure = AseAtomsAdaptor.get_structure(candidate.build())
        structure.add_oxidation_state_by_element(dict(oxidation))
        energies.append(EwaldSummation(structure, acc_factor=8.0).total_energy / len(structure))
    lowest = min(energies)
    return [
        replace(each, penalties={**each.penalties, "electrostatics": float(1 - energy / lowest)})
        for each, energy in zip(candidates, energies, strict=True)
    ]


def _assignments(prototype: Prototype, amounts: Mapping[str, int]) -> list[tuple[str, ...]]:
    """List the ways to put the elements on the kinds of sites that have their stoichiometry."""
    divisor = np.gcd.reduce(prototype.counts)
    return [
        symbols
        for symbols in permutations(amounts)
        if all(amounts[symbol] * divisor == count for symbol, count in zip(symbols, prototype.counts, strict=True))
    ]


def _rate(prototype: Prototype, symbols: tuple[str, ...], oxidation: Mapping[str, float]) -> Candidate:
    fit = fit_elements(prototype.pattern, symbols, oxidation)
    penalties = {
        "instability": fit.instability,
        "coordination": _coordination_penalty(symbols, fit, oxidation),
        "rarity": _rarity(prototype),
        "likeness": _unlikeness(symbols, prototype.parent)
        * (0.5 if prototype.label in COMMON else 1.0)
        * (1.0 if oxidation else 0.5),
        "contact": max(0.0, 0.85 - fit.contact) + _anion_overlap(prototype, symbols, fit, oxidation),
        "size": float(np.log(max(1.0, sum(prototype.counts) / SMALL))),
    }
    if symbols == prototype.parent:
        penalties |= {"coordination": 0.0, "size": 0.0, "instability": penalties["instability"] * KNOWN}
    return Candidate(prototype, symbols, fit, penalties)


def _rarity(prototype: Prototype) -> float:
    if any(word in prototype.mineral.lower() for word in UNUSUAL):
        return 2.0
    return 0.0 if prototype.label in COMMON else 1.0


def _unlikeness(symbols: Sequence[str], parent: Sequence[str]) -> float:
    """Return the mean distance of elements on Pettifor's scale (Solid State Commun. 51, 31, 1984), 0 to 1."""
    from pymatgen.core import Element

    steps = [abs(Element(a).mendeleev_no - Element(b).mendeleev_no) for a, b in zip(symbols, parent, strict=True)]
    return float(np.mean(steps)) / 103


def _coordination_penalty(symbols: Sequence[str], fit: Fit, oxidation: Mapping[str, float]) -> float:
    """Return how far the logarithms of coordination numbers are from those expected, root mean square."""
    expected = [_expected_coordination(symbol, symbols, oxidation) for symbol in symbols]
    pairs = [(n, want) for n, want in zip(fit.coordination, expected, strict=True) if want]
    if oxidation or METALLIC not in expected:
        off = [np.log(n / want) for n, want in pairs]
    elif _is_electron_compound(symbols):
        off = [np.log(n / BODY_CENTRED) for n, _ in pairs]
    else:
        off = [min(0.0, np.log(n / METALLIC)) for n, _ in pairs]
    return float(np.sqrt(np.mean(np.square(off)))) if off else 0.0


def _is_electron_compound(symbols: Sequence[str]) -> bool:
    """Return whether two metals have three electrons for two atoms, which favours CsCl (Hume-Rothery's rule)."""
    from pymatgen.core import Element

    groups = [int(Element(symbol).group) for symbol in symbols]
    if len(symbols) != 2 or any(group not in (2, *range(8, 15)) for group in groups):
        return False
    return sum(2 if group == 2 else max(0, group - 10) for group in groups) == 3


@cache
def _radius(symbol: str, charge: float) -> float:
    """Return the ionic radius, Å (Shannon, Acta Cryst. A32, 751, 1976), of the nearest charge that has one."""
    from pymatgen.core import Element

    radii = {state: radius for state, radius in Element(symbol).ionic_radii.items() if state * charge > 0}
    if radii:  # pymatgen lists crystal radii, which differ by 0.14 Å from the ionic radii that Pauling's rule is for
        return float(radii[min(radii, key=lambda state: abs(state - charge))]) - np.sign(charge) * OXIDE_SHIFT
    return float(Element(symbol).atomic_radius or 1.5)


def _expected_coordination(symbol: str, symbols: Sequence[str], oxidation: Mapping[str, float]) -> int:
    """Return the expected coordination number, the least one for metals; 0 for anions, which follow from cations."""
    from pymatgen.core import Element

    if not oxidation:
        element = Element(symbol)
        metallic = any(Element(each).is_metal for each in symbols)
        return METALLIC if metallic else max(1, min(4, 18 - int(element.group)))
    charge = oxidation[symbol]
    if charge < 0:
        return 0
    anions = [each for each in symbols if oxidation[each] < 0]
    anion = max(anions, key=lambda each: Element(each).X)
    electrons = [int(Element(each).group) % 10 for each in symbols]
    gap = Element(anion).X - Element(symbol).X
    if len(symbols) == 2 and charge == -oxidation[anion] and sum(electrons) == 8 and gap < LEAST_IONIC:
        return 4  # Grimm and Sommerfeld's rule: four electrons an atom
    ratio = _radius(symbol, charge) / _radius(anion, oxidation[anion])
    if ratio > LARGE and len(symbols) - len(anions) > 1:
        return 12
    return next(number for limit, number in PAULING if ratio < limit)


LARGE = 0.8
"""Ratio of radii above which the larger of several cations is in a hole of twelve anions, as in perovskite."""

LEAST_IONIC = 1.9
"""Difference of Pauling's electronegativities below which compounds of four electrons an atom are tetrahedral."""


def _anion_overlap(prototype: Prototype, symbols: Sequence[str], fit: Fit, oxidation: Mapping[str, float]) -> float:
    """Return by how much anions overlap beyond a quarter of their ionic diameters, 1."""
    pattern = prototype.pattern
    charges = np.array([oxidation.get(symbol, 0.0) for symbol in symbols])[pattern.kinds]
    both = (charges[pattern.first] < 0) & (charges[pattern.second] < 0)
    if not both.any():
        return 0.0
    radii = np.array([_radius(symbol, oxidation.get(symbol, 0.0) or 1) for symbol in symbols])[pattern.kinds]
    touching = fit.scale * pattern.distance[both] / (radii[pattern.first] + radii[pattern.second])[both]
    return float(max(0.0, 0.75 - touching.min()))
