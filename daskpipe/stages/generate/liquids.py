"""Generate liquids: mixtures of molecules packed at a density into a periodic box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Annotated

import numpy as np
from ase import Atoms
from pydantic import Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.conformers import EmbedError, Smiles
from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.molecules import MoleculeName, draw_molecule
from daskpipe.stages.generate.packing import AMU_PER_A3, PackingError, pack_box, vdw_volume
from daskpipe.stages.generate.params import CountRange, count_range
from daskpipe.stages.generate.reading.left_out import NOTED

PACKING = 0.55
"""Share of the volume inside van der Waals spheres in a liquid whose density is not given.

At their densities at 25 °C it is 0.52 in hexane, 0.53 in acetonitrile and chloroform, 0.55 in ethanol, 0.57 in
benzene, 0.61 in DMSO and 0.65 in water.
"""

MOST_PACKING = 0.75
"""The largest share that is tried: that of the densest molecular crystals. Packmol fails from 0.7 on for some."""

GAP = 2.0
"""Least distance of atoms of two molecules, Å."""

GOLDEN = (5**0.5 - 1) / 2

Amount = Annotated[float, Field(gt=0)]
"""Amount of a kind of molecule in a mixture, in any unit: amounts are compared."""

Density = Annotated[float, Field(gt=0, le=30)]
"""Mass density, g/cm^3."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of molecule in a mixture: what is known of it before anything is drawn."""

    source: str
    name: str
    share: float
    n_atoms: int
    charge: int
    n_unpaired: int
    mass: float
    volume: float
    extent: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Number of molecules of each kind in one box, and the edge of the box, Å."""

    counts: tuple[int, ...]
    length: float


def liquids(
    *,
    rng: np.random.Generator,
    index: int,
    names: dict[MoleculeName, Amount] | None = None,
    smiles: dict[Smiles, Amount] | None = None,
    n_atoms: CountRange = (90, 210),
    density: Density | None = None,
) -> Iterator[Atoms | Rejection]:
    """Yield liquids: molecules of one or more kinds, packed by packmol into a periodic cubic box.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: numbers of atoms are spread evenly over the requests (golden ratio).
    names
        Amount of each molecule of `ase.collections.g2`, in any unit: ``{H2O: 3, CH3OH: 1}``.
    smiles
        Amount of each molecule or ion given as SMILES. Each box has a new conformer of each kind.
    n_atoms
        Number of atoms, or lowest and highest. Amounts are rounded to whole molecules by the largest remainder.
    density
        Mass density, g/cm^3. By default the one at which 55 % of the volume is inside van der Waals spheres, which is
        that of most organic liquids within 10 %, and 16 % below that of water.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic along all three axes, neutral. Atoms of two molecules are at least 2 Å apart. A box that packmol does
        not fill is a rejection.

    Raises
    ------
    ValueError
        When called: without molecules, if the amounts cannot be met by so many atoms, if charges cannot balance, if
        the density is beyond packing, or if a molecule is longer than the box.
    """
    import_extra("packmol")
    amounts = [("names", *item) for item in (names or {}).items()]
    amounts += [("smiles", *item) for item in (smiles or {}).items()]
    if not amounts:
        raise ValueError("no molecules: give names or smiles with amounts, e.g. smiles: {O: 3, CCO: 1}")
    total = sum(amount for *_, amount in amounts)
    kinds = [measure_kind(source, name, amount / total) for source, name, amount in amounts]
    recipes = list_recipes(kinds, count_range(n_atoms), density)
    recipe = recipes[int((index * GOLDEN) % 1 * len(recipes))]
    return (_draw_liquid(rng, kinds, recipe) for _ in count())


@lru_cache(maxsize=256)
def measure_kind(source: str, name: str, share: float) -> Kind:
    """Return what is known of a kind of molecule, from one conformer of it.

    Raises
    ------
    ValueError
        If it has no geometry.
    """
    try:
        atoms = draw_molecule(np.random.default_rng(0), source, name)
    except EmbedError as error:
        raise ValueError(f"{name}: {error}") from error
    return Kind(
        source=source,
        name=name,
        share=share,
        n_atoms=len(atoms),
        charge=atoms.info["charge"],
        n_unpaired=atoms.info["spin_multiplicity"] - 1,
        mass=float(atoms.get_masses().sum()),
        volume=vdw_volume(atoms),
        extent=float(atoms.get_all_distances().max()) + GAP,
    )


def list_recipes(kinds: list[Kind], n_atoms: tuple[int, int], density: float | None) -> list[Recipe]:
    """Return the boxes that meet a request, by their number of molecules.

    Raises
    ------
    ValueError
        As `liquids`.
    """
    low, high = n_atoms
    names = ", ".join(kind.name for kind in kinds)
    fitting = []
    for n_molecules in range(1, high + 1):
        counts = round_shares(n_molecules, [kind.share for kind in kinds])
        if min(counts) and low <= sum(n * kind.n_atoms for n, kind in zip(counts, kinds, strict=True)) <= high:
            fitting.append(counts)
    if not fitting:
        raise ValueError(
            f"n_atoms: no {low} to {high} atoms have at least one molecule each of {names} in these amounts; "
            "raise or widen n_atoms, or make the amounts more equal"
        )
    neutral = [counts for counts in fitting if not sum(n * k.charge for n, k in zip(counts, kinds, strict=True))]
    if not neutral:
        charges = ", ".join(f"{kind.name} {kind.charge:+d}" for kind in kinds if kind.charge)
        raise ValueError(
            f"charges do not balance in any box of {low} to {high} atoms: {charges}; give amounts of ions that are "
            "neutral together, e.g. {'[Na+]': 1, '[Cl-]': 1}, or widen n_atoms"
        )
    recipes = []
    for counts in neutral:
        filled = sum(n * kind.volume for n, kind in zip(counts, kinds, strict=True))
        mass = sum(n * kind.mass for n, kind in zip(counts, kinds, strict=True))
        volume = mass * AMU_PER_A3 / density if density else filled / PACKING
        if filled > MOST_PACKING * volume:
            most = mass * AMU_PER_A3 * MOST_PACKING / filled
            raise ValueError(
                f"density: {density:g} g/cm^3 is beyond packing: van der Waals spheres would fill "
                f"{filled / volume:.0%} of the volume, crystals reach {MOST_PACKING:.0%}; "
                f"give at most {most:.2f} g/cm^3"
            )
        recipes.append(Recipe(counts=counts, length=volume ** (1 / 3)))
    longest = max(kinds, key=lambda kind: kind.extent)
    wide = [recipe for recipe in recipes if recipe.length >= longest.extent]
    if not wide:
        raise ValueError(
            f"n_atoms: a box of {recipes[-1].length:.1f} Å is shorter than {longest.name}, {longest.extent:.1f} Å with "
            "its gap; raise n_atoms"
        )
    return wide


def round_shares(n: int, shares: list[float]) -> tuple[int, ...]:
    """Return whole numbers with the sum `n`, nearest to shares of it, by the method of the largest remainder.

    Examples
    --------
    >>> round_shares(10, [2 / 3, 1 / 3])
    (7, 3)
    """
    counts = [int(n * share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: counts[i] - n * shares[i])
    for i in order[: n - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def _draw_liquid(rng: np.random.Generator, kinds: list[Kind], recipe: Recipe) -> Atoms | Rejection:
    name = " + ".join(f"{n} {kind.name}" for n, kind in zip(recipe.counts, kinds, strict=True))
    try:
        molecules = [draw_molecule(rng, kind.source, kind.name) for kind in kinds]
        parts = [(molecule, n, GAP / 2) for molecule, n in zip(molecules, recipe.counts, strict=True)]
        positions = pack_box(rng, parts, recipe.length)
    except (EmbedError, PackingError) as error:
        reason = "packing" if isinstance(error, PackingError) else "embedding"
        return Rejection(stage="generate", structure=name, reason=reason, evidence=str(error))
    numbers = np.concatenate([np.tile(molecule.numbers, n) for molecule, n, _ in parts])
    liquid = Atoms(numbers, positions, cell=[recipe.length] * 3, pbc=True)
    liquid.info = {"system_type": "liquid", "charge": 0, **_spin_of(kinds)}
    if notes := {note for molecule in molecules for note in molecule.info.get(NOTED, ())}:
        liquid.info[NOTED] = tuple(sorted(notes))
    return liquid


def _spin_of(kinds: list[Kind]) -> Mapping[str, int]:
    """Return a singlet for molecules without unpaired electrons; how those of radicals couple is not known."""
    return {} if any(kind.n_unpaired for kind in kinds) else {"spin_multiplicity": 1}
