"""The kinds of structures that a config can be made of, and the source of each.

A new kind is one function and one line of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from daskpipe.config.proposal.systems import System
from daskpipe.core.connectivity import periodic_directions
from daskpipe.core.errors import ConfigError, describe_unknown

type Parameters = dict[str, Any]

SMALL, LARGE = 16, 56
"""Usual numbers of atoms of crystals and slabs: what a potential on a CPU moves through some hundred steps."""

ADSORBED = ("H", "O", "OH", "CO", "H2O")
"""Molecules on surfaces if none are named."""

LIQUID = (175, 200)
"""Atoms of a box of liquid: of water, the densest, 12 Å wide, which tight binding with one k-point needs."""

LIKELY = 5
"""Number of crystals of a formula among which one of layers is looked for."""

QUENCHED = 0.95
"""Density of a packed box over that of the crystal."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The systems of a config: crystals, and molecules."""

    crystals: tuple[System, ...]
    molecules: tuple[System, ...]

    @property
    def symbols(self) -> list[str]:
        """Elements of all systems, each once."""
        return list(dict.fromkeys(symbol for each in (*self.crystals, *self.molecules) for symbol in each.symbols))

    @property
    def named(self) -> Parameters:
        """Molecules as generators take them: ``names`` of ASE's set, and ``smiles``."""
        texts = {
            "names": [each.text for each in self.molecules if each.form == "molecule"],
            "smiles": [each.text for each in self.molecules if each.form == "smiles"],
        }
        return {key: value for key, value in texts.items() if value}


class Source(NamedTuple):
    """A source of a config: its name, a comment, and its keys."""

    name: str
    comment: str
    keys: Parameters


class Kind(NamedTuple):
    """A kind of structures.

    Parameters
    ----------
    make
        Returns the sources, none where the systems have no such structures.
    share
        Share of all structures, in the unit of the other kinds; ``None`` for a list that is taken whole.
    needs
        ``crystals`` or ``molecules``; what the systems must have.
    is_usual
        Tells whether it is taken if no kinds are named.
    """

    make: Callable[[Study], list[Source]]
    share: float | None
    needs: Literal["crystals", "molecules"]
    is_usual: Callable[[Study], bool]


def choose_kinds(study: Study, names: Sequence[str] | None) -> list[str]:
    """Return the names of the kinds to make: those that were typed, else the usual ones of the systems.

    Raises
    ------
    ConfigError
        For an unknown kind, or one that needs crystals or molecules where there are none.
    """
    if names is None:
        return [name for name, kind in KINDS.items() if getattr(study, kind.needs) and kind.is_usual(study)]
    for name in names:
        if name not in KINDS:
            raise ConfigError(describe_unknown("kind", name, list(KINDS)))
        if not getattr(study, KINDS[name].needs):
            what = "a crystal, e.g. MgO or my.cif" if KINDS[name].needs == "crystals" else "a molecule, e.g. CCO or H2O"
            raise ConfigError(f"kind {name!r} needs {what}; name one, or choose other --kinds")
    return list(dict.fromkeys(names))


def make_sources(study: Study, kinds: Sequence[str]) -> list[Source]:
    """Return the sources of kinds, with the share of each.

    Raises
    ------
    ConfigError
        If a kind has no structures for the systems.
    """
    sources: list[Source] = []
    for name in kinds:
        kind = KINDS[name]
        try:
            made = kind.make(study)
        except ValueError as error:
            raise ConfigError(f"kind {name!r}: {error}; choose other --kinds") from error
        for source in made:
            share = {} if kind.share is None else {"share": round(kind.share / len(made), 2)}
            sources.append(source._replace(keys={"generator": source.keys["generator"], **share, **source.keys}))
    return sources


# --- crystals -----------------------------------------------------------------------------------------


def _make_bulk(study: Study) -> list[Source]:
    return [_bulk(each, name) for each, name in _name_each(study.crystals, "bulk")]


def _bulk(system: System, name: str) -> Source:
    if system.form == "file":
        changed = {"generator": "perturb", "of": system.text, "kinds": ["rattle", "strain", "volume"]}
        return Source(name, "Your structures, displaced and strained.", changed)
    from daskpipe.stages.generate.formula import list_cells
    from daskpipe.stages.generate.ranking import rank_candidates

    first = 3
    names = "; ".join(candidate.name for candidate in rank_candidates(system.text)[:first])
    keys: Parameters = {"generator": "formula", "formula": system.text, "first": first, "n_atoms": _sizes(system)}
    try:
        list_cells(system.text, first, tuple(keys["n_atoms"]))
    except ValueError:
        del keys["n_atoms"]
    return Source(name, f"The likeliest crystals of the formula: {names}.", keys)


def _make_alloys(study: Study) -> list[Source]:
    metals = [each for each in study.crystals if each.bonding == "metallic"]
    symbols = list(dict.fromkeys(symbol for each in metals for symbol in each.symbols))
    if len(symbols) < 2:
        raise ValueError(f"an alloy needs two metals or more, and there is {', '.join(symbols) or 'none'}")
    keys = {"generator": "alloys", "elements": {symbol: [0, 1] for symbol in symbols}, "n_atoms": [SMALL, LARGE]}
    return [Source("alloys", "Random solutions of all compositions, on fcc, bcc and hcp lattices.", keys)]


def _make_defects(study: Study) -> list[Source]:
    return [
        Source(
            name,
            "Vacancies, interstitials and exchanged atoms, on sites that differ by symmetry.",
            {"generator": "defects", "of": each.text, "n_atoms": _sizes(each, least=24)},
        )
        for each, name in _name_each(study.crystals, "defects")
    ]


def _make_surfaces(study: Study) -> list[Source]:
    return [
        Source(name, "Slabs of low-index planes.", {"generator": "surfaces", **_slabs(each)})
        for each, name in _name_each(study.crystals, "surfaces")
    ]


def _slabs(system: System) -> Parameters:
    return {"of": system.text, "thickness": [5, 10], "n_atoms": [SMALL // 2, max(80, 3 * system.n_atoms)]}


def _make_clusters(study: Study) -> list[Source]:
    metals = [each for each in study.crystals if each.bonding == "metallic"]
    if not metals:
        raise ValueError("clusters are made of metals; there is none")
    symbols = list(dict.fromkeys(symbol for each in metals for symbol in each.symbols))
    elements = {symbol: [0, 1] for symbol in symbols} if len(symbols) > 1 else {symbols[0]: 1}
    keys = {"generator": "clusters", "elements": elements, "n_atoms": [13, LARGE]}
    return [Source("clusters", "Clusters of magic numbers and random shapes.", keys)]


def _make_amorphous(study: Study) -> list[Source]:
    sources = []
    for each, name in _name_each([crystal for crystal in study.crystals if crystal.form == "formula"], "amorphous"):
        density = round(QUENCHED * _density(each.text), 2)
        keys = {"generator": "amorphous", "formula": each.text, "density": density, "n_atoms": [48, 96]}
        comment = (
            f"Random packings at {QUENCHED:g} of the density of the likeliest crystal (g/cm^3), for melts and glasses."
        )
        sources.append(Source(name, comment, keys))
    if not sources:
        raise ValueError("an amorphous solid is made of a formula; give one, e.g. SiO2")
    return sources


def _make_layers(study: Study) -> list[Source]:
    return [_layers(each, name) for each, name in _name_each(study.crystals, "layers")]


def _layers(system: System, name: str) -> Source:
    keys: Parameters = {"n_atoms": [SMALL, LARGE]}
    if system.form == "formula" and system.symbols in (("C",), ("Si",), ("Ge",), ("Sn",)):
        keys = {"generator": "covalent", "kinds": ["graphene"], "element": system.symbols[0], **keys}
        return Source(name, "Single layers, flat or buckled, strained and displaced.", keys)
    keys = {"generator": "surfaces", "of": _layered(system), "miller": [[0, 0, 1]], "thickness": [2, 11], **keys}
    return Source(
        name,
        "Single layers and pairs of them, cut from the layered crystal.",
        {**keys, "whole_layers": True, "vacuum": 15},
    )


def _layered(system: System) -> str | Parameters:
    """Return a base whose crystal consists of layers.

    Raises
    ------
    ValueError
        If none of the likeliest crystals does.
    """
    if system.form == "file":
        return system.text
    from daskpipe.stages.generate.ranking import rank_candidates
    from daskpipe.stages.generate.slabs import BONDED

    likely = rank_candidates(system.text)[:LIKELY]
    for candidate in likely:
        if len(periodic_directions(candidate.build(), BONDED)) == 2:
            ideal = {"formula": system.text, "prototypes": [candidate.name], "strain": 0, "rattle": 0}
            return {"generator": "formula", **ideal}
    names = "; ".join(candidate.name for candidate in likely)
    raise ValueError(f"no likely crystal of {system.text} has layers ({names}); give a file of a layered crystal")


def _make_adsorbates(study: Study) -> list[Source]:
    named = study.named or {"names": list(ADSORBED)}
    return [
        Source(
            name,
            "Molecules on the sites of slabs.",
            {"generator": "adsorbates", "of": {"generator": "surfaces", **_slabs(each), "max_index": 1}, **named},
        )
        for each, name in _name_each(study.crystals, "adsorbates")
    ]


def _make_reference(study: Study) -> list[Source]:
    return [
        Source(
            name,
            "The crystal at volumes from 0.85 to 1.15 of its own: the equation of state.",
            {"generator": "reference", "of": each.text, "kinds": ["eos"]},
        )
        for each, name in _name_each(study.crystals, "reference")
    ]


# --- molecules ----------------------------------------------------------------------------------------


def _make_molecules(study: Study) -> list[Source]:
    sources = []
    if study.named:
        keys = {"generator": "molecules", **study.named, "rattle": 0.05}
        sources.append(Source("molecules", "Single molecules; each SMILES in new conformers.", keys))
    for each, name in _name_each([molecule for molecule in study.molecules if molecule.form == "file"], "displaced"):
        keys = {"generator": "perturb", "of": each.text, "kinds": ["rattle"]}
        sources.append(Source(name, "Your molecules, displaced.", keys))
    return sources


def _make_dimers(study: Study) -> list[Source]:
    keys = {"generator": "molecular_clusters", **_named_molecules(study), "n_molecules": [2, 4]}
    return [Source("dimers", "Two to four molecules, near and far, for the forces between them.", keys)]


def _make_liquid(study: Study) -> list[Source]:
    amounts = {key: dict.fromkeys(texts, 1) for key, texts in _named_molecules(study).items()}
    keys = {"generator": "liquids", **amounts, "n_atoms": list(LIQUID)}
    return [Source("liquid", "Periodic boxes of liquid. Few of them: a step of one takes seconds with xTB.", keys)]


def _named_molecules(study: Study) -> Parameters:
    """Return the molecules of the study that have a name or SMILES.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not study.named:
        raise ValueError("it is made of molecules that have a name or SMILES, not of files; give e.g. CCO")
    return study.named


# --- tools --------------------------------------------------------------------------------------------


def _name_each(systems: Sequence[System], kind: str) -> list[tuple[System, str]]:
    """Return each system with the name of its source: the kind, numbered where there are several."""
    names = [kind] if len(systems) == 1 else [f"{kind}_{number}" for number in range(1, len(systems) + 1)]
    return list(zip(systems, names, strict=True))


def _sizes(system: System, least: int = SMALL) -> list[int]:
    """Return lowest and highest number of atoms of supercells; those of a large cell hold at least two of it."""
    n = system.n_atoms or _cell_size(system.text)
    return [max(least, n), max(LARGE, 2 * n)]


def _cell_size(formula: str) -> int:
    """Return the number of atoms of the primitive cell of the likeliest crystal of a formula."""
    from daskpipe.stages.generate.ranking import rank_candidates

    return len(rank_candidates(formula)[0].build())


def _density(formula: str) -> float:
    """Return the density of the likeliest crystal of a formula, g/cm^3."""
    from ase.units import _amu

    from daskpipe.stages.generate.ranking import rank_candidates

    crystal = rank_candidates(formula)[0].build()
    return float(crystal.get_masses().sum() * _amu * 1e27 / crystal.get_volume())


def _is_bonded(study: Study) -> bool:
    return any(each.bonding != "molecular" for each in study.crystals)


def _is_metallic(study: Study) -> bool:
    return any(each.bonding == "metallic" for each in study.crystals)


def _is_alloy(study: Study) -> bool:
    return len({symbol for each in study.crystals if each.bonding == "metallic" for symbol in each.symbols}) > 1


def _is_mixed(study: Study) -> bool:
    return bool(study.crystals and study.molecules)


def _always(study: Study) -> bool:
    return True


def _on_request(study: Study) -> bool:
    return False


KINDS = {
    "bulk": Kind(_make_bulk, 4, "crystals", _always),
    "alloys": Kind(_make_alloys, 4, "crystals", _is_alloy),
    "defects": Kind(_make_defects, 2, "crystals", _is_bonded),
    "surfaces": Kind(_make_surfaces, 2, "crystals", _is_bonded),
    "clusters": Kind(_make_clusters, 2, "crystals", _is_metallic),
    "amorphous": Kind(_make_amorphous, 2, "crystals", _on_request),
    "2d": Kind(_make_layers, 4, "crystals", _on_request),
    "adsorbates": Kind(_make_adsorbates, 4, "crystals", _is_mixed),
    "molecules": Kind(_make_molecules, 4, "molecules", _always),
    "dimers": Kind(_make_dimers, 4, "molecules", lambda study: bool(study.named)),
    "liquid": Kind(_make_liquid, 0.5, "molecules", _on_request),
    "reference": Kind(_make_reference, None, "crystals", _is_bonded),
}
"""Kinds of structures by the words of ``--kinds``."""
