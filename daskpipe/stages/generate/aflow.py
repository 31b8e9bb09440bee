"""Read the AFLOW prototypes of crystals that pymatgen ships as data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from ase import Atoms

from daskpipe.core.errors import ConfigError
from daskpipe.stages.generate.bonding import Pattern
from daskpipe.stages.generate.prototypes import PROTOTYPES, load_pattern

PLACES = ("prototypes/aflow_prototypes.json.gz", "aflow_prototypes.json")
"""Places of the file below `pymatgen/analysis`: of releases with the package `prototypes`, and of those before."""

MAX_ATOMS = 60
"""Largest primitive cell that is used; seven of the 288 are larger."""

REPLACED = {
    "A2B_tI12_141_e_a": "anatase",
    "A2B_oP24_61_2c_c": "brookite",
    "A2B_tP6_136_f_a": "rutile",
    "A2B_mP12_14_2e_e": "baddeleyite",
}
"""Prototypes taken from `daskpipe.stages.generate.prototypes`: anatase and brookite in pymatgen's file are not theirs
(Ti has four neighbours in the first; pymatgen 2026.10)."""

ADDED = {
    "cadmium_chloride": ("Cd", "Cl"),
    "bixbyite": ("Mn", "O"),
    "delafossite": ("Cu", "Al", "O"),
    "scheelite": ("Ca", "W", "O"),
    "double_perovskite": ("Ba", "Mg", "W", "O"),
    "vacancy_ordered_perovskite": ("K", "Pt", "Cl"),
    "thorium_chromium_silicide": ("Th", "Cr", "Si"),
    "garnet": ("Ca", "Al", "Si", "O"),
}
"""Common structure types that the 288 lack, from `daskpipe.stages.generate.prototypes`, with their parent compounds."""


@dataclass(frozen=True)
class Prototype:
    """A structure type, with the compound that it is named after.

    Parameters
    ----------
    label
        AFLOW's label (stoichiometry, Pearson symbol, space group, Wyckoff positions), or the name in `PROTOTYPES`.
    mineral
        Name of the mineral or phase; may be empty.
    space_group
        Number of the space group.
    parent
        Element of each kind of site in the compound.
    counts
        Number of sites of each kind in the primitive cell.
    cell
        Lattice vectors, fractional coordinates and kinds of the sites; ``None`` for those in `PROTOTYPES`.
    """

    label: str
    mineral: str
    space_group: int
    parent: tuple[str, ...]
    counts: tuple[int, ...]
    cell: tuple[Any, Any, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the mineral or phase, else the label."""
        return self.mineral or self.label

    @cached_property
    def pattern(self) -> Pattern:
        """The crystal without elements."""
        if self.cell is None:
            return load_pattern(self.label)
        lattice, positions, kinds = self.cell
        return Pattern.from_cell(Atoms(kinds, cell=lattice, scaled_positions=positions, pbc=True))


@cache
def read_prototypes() -> dict[tuple[int, ...], list[Prototype]]:
    """Return the prototypes by their stoichiometry, such as ``(1, 2)``: the reduced counts, sorted.

    pymatgen's file is read as data (Mehl et al., Comput. Mater. Sci. 136, S1, 2017; its matcher class is deprecated).

    Raises
    ------
    ConfigError
        If pymatgen has no such file.
    """
    by_counts: dict[tuple[int, ...], list[Prototype]] = {}
    for prototype in [_from_table(name, parent) for name, parent in ADDED.items()] + list(map(_from_entry, _load())):
        if sum(prototype.counts) <= MAX_ATOMS or prototype.cell is None:
            by_counts.setdefault(reduce_counts(prototype.counts), []).append(prototype)
    return by_counts


def reduce_counts(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return counts divided by their greatest common divisor, sorted.

    Examples
    --------
    >>> reduce_counts((8, 4))
    (1, 2)
    """
    from math import gcd

    divisor = gcd(*counts)
    return tuple(sorted(count // divisor for count in counts))


def _from_table(name: str, parent: tuple[str, ...], mineral: str = "") -> Prototype:
    numbers = load_pattern(name).cell.numbers.tolist()
    counts = tuple(numbers.count(kind) for kind in range(1, len(parent) + 1))
    return Prototype(name, mineral or name.replace("_", " "), PROTOTYPES[name].space_group, parent, counts)


def _from_entry(entry: Mapping[str, Any]) -> Prototype:
    label, mineral = entry["tags"]["aflow"], entry["tags"]["mineral"].strip()
    structure = entry["snl"]
    symbols = [site["species"][0]["element"] for site in structure["sites"]]
    parent = tuple(dict.fromkeys(symbols))
    if label in REPLACED:
        return _from_table(REPLACED[label], tuple(sorted(parent, key=symbols.count)), mineral)
    kinds = [parent.index(symbol) + 1 for symbol in symbols]
    space_group = next(int(part) for part in label.split("_")[2:] if part.isdigit())
    cell = (structure["lattice"]["matrix"], [site["abc"] for site in structure["sites"]], kinds)
    return Prototype(label, mineral, space_group, parent, tuple(map(symbols.count, parent)), cell)


def _load() -> list[dict[str, Any]]:
    folder = files("pymatgen.analysis")
    for place in PLACES:
        file = folder.joinpath(place)
        if file.is_file():
            data = file.read_bytes()
            entries: list[dict[str, Any]] = json.loads(gzip.decompress(data) if place.endswith(".gz") else data)
            return entries
    raise ConfigError("pymatgen has no AFLOW prototypes, which formula needs; pip install 'pymatgen>=2025.1'")
