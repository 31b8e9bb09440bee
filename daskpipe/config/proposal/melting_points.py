"""Estimate melting points, which temperatures of exploration are shares of."""

from __future__ import annotations

from typing import NamedTuple

from daskpipe.config.proposal.systems import System

COMPOUNDS = {
    "MgO": 3125, "CaO": 2886, "SrO": 2804, "Al2O3": 2327, "TiO2": 2116, "ZrO2": 2983, "HfO2": 3073, "SiO2": 1986,
    "ZnO": 2247, "NiO": 2230, "CeO2": 2753, "Y2O3": 2712, "Fe2O3": 1838, "Fe3O4": 1870, "Cr2O3": 2603, "SrTiO3": 2353,
    "BaTiO3": 1898, "NaCl": 1074, "KCl": 1044, "KBr": 1007, "LiF": 1121, "NaF": 1269, "CaF2": 1691, "MgF2": 1536,
    "CsCl": 919, "AgCl": 728, "GaAs": 1511, "InP": 1335, "SiC": 3100, "MoS2": 1458, "PbTe": 1197, "TiC": 3340,
    "TiN": 3220,
}  # fmt: skip
"""Melting points of compounds at normal pressure, K, to some 30 K (CRC Handbook of Chemistry and Physics)."""

TYPICAL = (
    ({"O"}, 2000, "oxides"),
    ({"N"}, 2500, "nitrides"),
    ({"F"}, 1300, "fluorides"),
    ({"Cl", "Br", "I"}, 900, "halides"),
    ({"S", "Se", "Te"}, 1300, "chalcogenides"),
    ({"C", "B"}, 2800, "carbides and borides"),
)
"""Melting points, K, that compounds of an anion have by and large; the first that applies."""

OTHERS = 1300
"""Melting point, K, of compounds that `TYPICAL` does not name, as III-V semiconductors have it."""


class MeltingPoint(NamedTuple):
    """A melting point, K, and where it is from."""

    kelvin: float
    source: str


def estimate_melting_point(system: System) -> MeltingPoint:
    """Return the measured melting point of a crystal, or an estimate.

    Parameters
    ----------
    system
        A crystal. A formula of one element has the measured value, an alloy the mean of its elements, and a compound
        that is not listed the typical value of its anion.

    Examples
    --------
    >>> from daskpipe.config.proposal.systems import read_system
    >>> estimate_melting_point(read_system("Cu"))
    MeltingPoint(kelvin=1358.0, source='melting point of Cu')
    """
    if system.form == "formula" and (name := _reduce(system.text)) in _reduced_compounds():
        return MeltingPoint(float(_reduced_compounds()[name]), f"melting point of {system.text}")
    if len(system.symbols) == 1 or system.bonding == "metallic":
        return _average_elements(system)
    for anions, kelvin, words in TYPICAL:
        if anions & set(system.symbols):
            return MeltingPoint(
                float(kelvin), f"typical of {words}; the melting point of {system.text} is not known here"
            )
    return MeltingPoint(float(OTHERS), f"a guess: the melting point of {system.text} is not known here")


def _average_elements(system: System) -> MeltingPoint:
    """Return the mean of the measured melting points of the elements, by the fractions of a formula if it is one."""
    from pymatgen.core import Composition, Element

    if system.form == "formula":
        fractions = {str(symbol): share for symbol, share in Composition(system.text).fractional_composition.items()}
    else:
        fractions = {symbol: 1 / len(system.symbols) for symbol in system.symbols}
    known = {symbol: _kelvin(Element(symbol)) for symbol in fractions}
    known = {symbol: kelvin for symbol, kelvin in known.items() if kelvin}
    if not known:
        return MeltingPoint(float(OTHERS), f"a guess: no melting point of {', '.join(system.symbols)} is known here")
    weight = sum(fractions[symbol] for symbol in known)
    kelvin = sum(fractions[symbol] * value for symbol, value in known.items()) / weight
    what = f"melting point of {system.symbols[0]}" if len(fractions) == 1 else "mean of the elements' melting points"
    return MeltingPoint(float(round(kelvin)), what)


def _kelvin(element: object) -> float:
    """Return the melting point of a pymatgen element, K; 0 if there is none in its table."""
    value = getattr(element, "melting_point", None)
    return float(value) if isinstance(value, int | float) else 0.0


def _reduced_compounds() -> dict[str, int]:
    return {_reduce(formula): kelvin for formula, kelvin in COMPOUNDS.items()}


def _reduce(formula: str) -> str:
    """Return one spelling of a formula for all: reduced, elements in the order of the alphabet."""
    from pymatgen.core import Composition

    counts = Composition(formula).reduced_composition.get_el_amt_dict()
    return "".join(f"{symbol}{round(counts[symbol])}" for symbol in sorted(counts))
