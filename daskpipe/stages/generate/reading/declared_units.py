"""Read the units that files declare, and convert labels to eV and Å.

Known keys, in upper or lower case, are those such as ``energy_unit``, ``forces_units``, ``REF_energy_unit`` and
``unit_stress``, and ``units`` or ``unit`` with a unit, a style of LAMMPS (``metal``, ``real``) or a table of units. An
ASE database declares its units in its metadata, under the same keys or in SchNetPack's ``_property_unit_dict``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daskpipe.core.constants import BOHR, GPA, HARTREE, KCAL_PER_MOL, KJ_PER_MOL, RYDBERG
from daskpipe.stages.generate.checks import FrameError

ENERGIES = {
    "ev": 1.0, "electronvolt": 1.0, "mev": 1e-3, "kev": 1e3,
    "hartree": HARTREE, "hartrees": HARTREE, "ha": HARTREE, "eh": HARTREE, "e_h": HARTREE, "hartree_energy": HARTREE,
    "rydberg": RYDBERG, "ry": RYDBERG, "ryd": RYDBERG,
    "kcal/mol": KCAL_PER_MOL, "kcal_per_mol": KCAL_PER_MOL, "kcalmol": KCAL_PER_MOL,
    "kj/mol": KJ_PER_MOL, "kj_per_mol": KJ_PER_MOL, "kjmol": KJ_PER_MOL,
}  # fmt: skip
"""Units of energies in eV; names in lower case."""

LENGTHS = {
    "å": 1.0, "a": 1.0, "ang": 1.0, "angstrom": 1.0, "angstroms": 1.0, "ångström": 1.0, "ångstrom": 1.0,
    "bohr": BOHR, "bohrs": BOHR, "a0": BOHR, "a_0": BOHR, "nm": 10.0, "nanometer": 10.0,
}  # fmt: skip
"""Units of lengths in Å."""

PRESSURES = {
    "gpa": GPA, "mpa": 1e-3 * GPA, "pa": 1e-9 * GPA, "kbar": 0.1 * GPA, "kb": 0.1 * GPA, "bar": 1e-4 * GPA,
}  # fmt: skip
"""Units of pressures in eV/Å^3."""

ATOMIC = ("au", "a.u.", "a.u", "atomic", "atomic_units")
STYLES = {
    "metal": {"energy": "ev", "forces": "ev/å", "length": "å"},
    "ase": {"energy": "ev", "forces": "ev/å", "stress": "ev/å^3", "virial": "ev", "length": "å"},
    "real": {"energy": "kcal/mol", "forces": "kcal/mol/å", "length": "å"},
    "au": {
        "energy": "hartree", "forces": "hartree/bohr", "stress": "hartree/bohr^3", "virial": "hartree",
        "length": "bohr",
    },
}  # fmt: skip
"""Units that one name stands for."""

QUANTITIES = {
    "energy": "energy", "force": "forces", "forces": "forces", "stress": "stress", "virial": "virial",
    "virials": "virial", "length": "length", "distance": "length", "position": "length", "positions": "length",
    "pos": "length", "coordinate": "length", "coordinates": "length", "lattice": "length", "cell": "length",
}  # fmt: skip
"""Quantity that each word of a key stands for."""

OPTIONS = {"energy": "hartree", "forces": "hartree/bohr", "stress": "GPa", "virial": "hartree"}
"""Labels whose unit can be typed, with an example each."""

_WORDS = "|".join(sorted(QUANTITIES, key=len, reverse=True))
_KEY = re.compile(
    rf"(?P<family>.*?)_?(?P<word>{_WORDS})_?units?|units?_(?P<other>(?!cell|lattice)({_WORDS}))",
    re.IGNORECASE,  # unit_cell is no unit
)
_SUSPECT = re.compile(r"\b(kcal|kj|hartrees?|rydbergs?|bohrs?|mev|gpa|kbar)\b", re.IGNORECASE)


def find_units(
    info: Mapping[str, Any], labels: Mapping[str, str] | None = None, family: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Find the units that a frame declares, by quantity, and the keys that declare them.

    Parameters
    ----------
    info
        Keys and values of a frame.
    labels
        Keys of the labels by quantity: that of ``energy_U0`` is declared by ``energy_U0_unit``.
    family
        Prefix of the labels, in lower case, without the underscore: ``REF_energy_unit`` counts for ``ref`` alone.

    Raises
    ------
    FrameError
        If two keys declare different units for one quantity.
    """
    own: dict[str, str] = {}
    of_all: dict[str, str] = {}
    keys = []
    exact = {f"{key}_unit{plural}": quantity for quantity, key in (labels or {}).items() for plural in ("", "s")}
    for key, value in info.items():
        if key in exact:
            keys.append(key)
            own[exact[key]] = str(value)
        elif key.lower() in ("unit", "units"):
            keys.append(key)
            for quantity, unit in _units_of_all(value).items():
                of_all.setdefault(quantity, unit)
        elif match := _KEY.fullmatch(key):
            quantity = QUANTITIES[(match["word"] or match["other"]).lower()]
            prefix = (match["family"] or "").lower().strip("_-. ")
            if prefix not in ("", family):
                continue
            keys.append(key)
            unit = str(value)
            if own.setdefault(quantity, unit) != unit:
                raise FrameError("units", f"two units of the {quantity}: {own[quantity]!r} and {unit!r}; leave one out")
    return {**of_all, **own}, keys


def _units_of_all(value: Any) -> dict[str, str]:
    """Return the units that ``units=...`` declares, by quantity."""
    if isinstance(value, Mapping):
        named = {QUANTITIES.get(str(key).lower(), str(key)): str(unit) for key, unit in value.items()}
        return {quantity: unit for quantity, unit in named.items() if quantity in QUANTITIES.values()}
    name = _normalise_unit(str(value))
    if (style := "au" if name in ATOMIC else name) in STYLES:
        return dict(STYLES[style])
    units: dict[str, str] = {}
    for word in re.split(r"[,;\s]+", name):
        quantity = "energy" if word in ENERGIES else "length" if word in LENGTHS else "forces" if "/" in word else ""
        units.setdefault(quantity or "energy", word)  # a word that is no unit is refused where it is used
    return units


def metadata_units(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the units that the metadata of an ASE database declare, as keys that a row could have.

    Raises
    ------
    FrameError
        If they mention units in words that are not known.
    """
    declared: dict[str, Any] = {key: value for key, value in metadata.items() if _KEY.fullmatch(key)}
    declared |= {key: value for key, value in metadata.items() if key.lower() in ("unit", "units")}
    known = set(declared) | {"_property_unit_dict", "_distance_unit"}
    of_schnetpack = metadata.get("_property_unit_dict")
    if isinstance(of_schnetpack, Mapping):
        declared |= {f"{key}_unit": str(unit) for key, unit in of_schnetpack.items() if unit is not None}
    if metadata.get("_distance_unit"):
        declared["length_unit"] = str(metadata["_distance_unit"])
    texts = [str(value) for key, value in metadata.items() if key not in known and isinstance(value, str | dict)]
    if not declared and (match := _SUSPECT.search("\n".join(texts))):
        quantity = "length" if "bohr" in match[0].lower() else "stress" if match[0].lower() in PRESSURES else "energy"
        declared["units"] = {quantity: f"{match[0]} (a word of the metadata)"}
    return declared


def check_length(info: Mapping[str, Any]) -> None:
    """Refuse a frame that declares a unit of length other than Å."""
    unit = find_units(info)[0].get("length", "å")
    if LENGTHS.get(_normalise_unit(unit)) != 1:
        raise FrameError(
            "units", f"the unit of lengths is declared as {unit!r}; write lengths in Å, and declare no other"
        )


def label_factors(declared: Mapping[str, str], labels: Mapping[str, Any]) -> dict[str, float]:
    """Return the factors that convert labels to eV, eV/Å and eV/Å^3.

    Parameters
    ----------
    declared
        Units by quantity.
    labels
        The labels that are used, of ``energy``, ``forces``, ``stress`` and ``virial``.

    Raises
    ------
    FrameError
        If a unit is not known, or if one label has another unit than ASE's and the unit of a second is not declared.

    Examples
    --------
    >>> label_factors({"energy": "kcal/mol"}, {"energy": -1.0})["energy"].__round__(4)
    0.0434
    """
    factors = {name: _factor_of_unit(name, declared[name]) for name in labels if name in declared}
    other = {name for name, factor in factors.items() if factor != 1}
    if "energy" in other and "virial" in labels and "virial" not in factors and "stress" not in labels:
        factors["virial"] = factors["energy"]  # both are energies
    if other and (missing := [name for name in labels if name not in factors and name in OPTIONS]):
        first = min(other)
        options = " ".join(f"--{name}-unit {OPTIONS[name]}" for name in missing)
        raise FrameError(
            "units",
            f"the unit of the {first} is declared as {declared[first]!r}, and that of the {' and the '.join(missing)} "
            f"is not: type it, e.g. {options}, or write it into the file as {missing[0]}_unit",
        )
    return {name: factors.get(name, 1.0) for name in labels}


def _factor_of_unit(name: str, unit: str) -> float:
    text = _normalise_unit(unit)
    factor: float | None = None
    if text in ATOMIC:
        text = STYLES["au"][name]
    if name in ("energy", "virial"):
        factor = ENERGIES.get(text)
    elif name == "forces":
        energy, _, length = text.rpartition("/")
        if energy in ENERGIES and length in LENGTHS:
            factor = ENERGIES[energy] / LENGTHS[length]
    else:
        energy, _, volume = text.rpartition("/")
        factor = PRESSURES.get(text)
        if energy in ENERGIES and (length := re.sub(r"(\^|\*\*)?3$|³$", "", volume)) in LENGTHS and length != volume:
            factor = ENERGIES[energy] / LENGTHS[length] ** 3
    if factor is None:
        raise FrameError(
            "units",
            f"the unit of the {name} is declared as {unit[:60]!r}, which is not known; known: eV, meV, hartree, "
            f"rydberg, kcal/mol, kJ/mol, with /Å or /bohr for forces, and GPa, kbar, eV/Å^3 for the stress. Type "
            f"--{name}-unit UNIT",
        )
    return factor


def _normalise_unit(unit: str) -> str:
    """Return the name of a unit in one spelling: lower case, no blanks, ``/`` for a division."""
    text = unit.strip().lower().replace("\u212b", "å").replace("·", "*")
    text = re.sub(r"\s*(/|\bper\b)\s*", "/", text)
    text = re.sub(r"\s*\*?\s*\b(mol|ang|angstrom|bohr|a|å)\^?-1\b", r"/\1", text)
    return re.sub(r"\s+", " ", text).strip()
