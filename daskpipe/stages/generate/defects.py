"""Generate supercells of crystals with a point defect."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Annotated

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import get_distances

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.base import Base, copy_base, count_base, draw_base, probe_base
from daskpipe.stages.generate.disorder import choose_size, displace_apart, find_close_atoms, missing_size_error
from daskpipe.stages.generate.params import CountRange, Element, MinDistance, NotEmpty, Rattle, count_range
from daskpipe.stages.generate.point_defects import Defect, DefectKind, list_defects
from daskpipe.stages.generate.repeats import Repeats, find_repeats, repeat_cell

OWN_KINDS: tuple[DefectKind, ...] = ("vacancy", "interstitial", "antisite", "frenkel", "schottky")
"""Kinds that need no foreign element."""

MAX_UNIT = 12
"""Largest number of atoms of a formula unit that a Schottky defect removes."""

APART = 1.5
"""Least distance of vacancy and interstitial of a Frenkel pair, in sums of their covalent radii."""


def defects(
    *,
    rng: np.random.Generator,
    index: int = 0,
    of: Base,
    n_atoms: CountRange,
    kinds: Annotated[tuple[DefectKind, ...], NotEmpty] | None = None,
    dopants: tuple[Element, ...] = (),
    rattle: Rattle = 0.05,
    min_distance: MinDistance = 0.62,
) -> Iterator[Atoms | Rejection]:
    """Yield supercells with one point defect each, through all defects that symmetry tells apart.

    Distinct sites are those of spglib; empty sites are found by a Voronoi tessellation
    (`daskpipe.stages.generate.point_defects.find_empty_sites`). Defects are neutral, and not relaxed.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request. Crystals, kinds and distinct defects are gone through in turn.
    of
        The crystal: a formula, a file, or a generator with its parameters.
    n_atoms
        Number of atoms of the supercell with its defect, or lowest and highest.
    kinds
        Kinds of defects; by default all that the crystal has. ``frenkel`` moves an atom to an empty site away from its
        own, ``schottky`` removes one formula unit, ``substitution`` puts a dopant in place of an atom.
    dopants
        Foreign elements for ``substitution`` and ``interstitial``.
    rattle
        Standard deviation of displacements along each axis, Å.
    min_distance
        Shortest distance of two atoms, as a fraction of the sum of their covalent radii; empty sites that are smaller
        are left out.

    Yields
    ------
    ase.Atoms or Rejection
        Periodic, with system type ``defect``. A rejection if a random crystal has no defect of the kinds.

    Raises
    ------
    ValueError
        When called, if no crystal has a defect of a kind, or no supercell has so many atoms.
    """
    limits = count_range(n_atoms)
    if kinds and "substitution" in kinds and not dopants:
        raise ValueError("kinds: substitution needs foreign elements; give dopants, e.g. dopants: [Al]")
    chosen = kinds or ((*OWN_KINDS, "substitution") if dopants else OWN_KINDS)
    faults = [
        find_unsuited(crystal, chosen, kinds is not None, limits, min_distance, dopants) for crystal in probe_base(of)
    ]
    if all(faults):
        raise ValueError(faults[0])
    each = count_base(of)
    return (
        draw_defect(
            rng,
            draw_base(of, rng=rng, index=index),
            index // each + attempt,
            chosen,
            limits,
            rattle=rattle,
            min_distance=min_distance,
            dopants=dopants,
        )
        for attempt in count()
    )


def find_unsuited(
    crystal: Atoms,
    kinds: tuple[DefectKind, ...],
    all_of_them: bool,
    limits: tuple[int, int],
    min_distance: float,
    dopants: tuple[str, ...],
) -> str | None:
    """Return why defects cannot be made in a crystal; ``None`` if they can."""
    formula = crystal.get_chemical_formula()
    if not crystal.pbc.all():
        return f"of: {formula} is not periodic along three axes; give a crystal"
    present = [kind for kind in kinds if list_of_kind(crystal, kind, dopants, min_distance)]
    if (missing := [kind for kind in kinds if kind not in present]) and (all_of_them or not present):
        return f"kinds: {formula} has no {missing[0]} (min_distance {min_distance:g}); leave it out"
    if not any(find_sizes(crystal, kind, limits) for kind in present):
        kind = present[0]
        possible = find_sizes(crystal, kind, (1, 2 * (limits[1] + len(crystal))))
        sizes = [size + change_of(crystal, kind) for size in possible]
        return str(missing_size_error(f"supercell of {formula} with a defect", limits, sizes))
    return None


def list_of_kind(crystal: Atoms, kind: DefectKind, dopants: tuple[str, ...], min_distance: float) -> list[Defect]:
    """List the distinct defects of a kind, as `list_defects`; Schottky defects need a small formula unit."""
    if kind == "schottky" and not 2 <= len(np.unique(crystal.numbers)) <= formula_unit(crystal).sum() <= MAX_UNIT:
        return []
    return list_defects(crystal, kind, dopants, min_distance)


def formula_unit(crystal: Atoms) -> np.ndarray:
    """Return the number of atoms of each element, in the order of their numbers, in one formula unit."""
    counts = np.unique(crystal.numbers, return_counts=True)[1]
    return np.asarray(counts // np.gcd.reduce(counts))


def change_of(crystal: Atoms, kind: DefectKind) -> int:
    """Return by how many atoms a defect changes the number of a supercell."""
    return {"vacancy": -1, "interstitial": 1, "schottky": -int(formula_unit(crystal).sum())}.get(kind, 0)


def find_sizes(crystal: Atoms, kind: DefectKind, limits: tuple[int, int]) -> dict[int, list[Repeats]]:
    """Find the supercells, by number of atoms before the defect, that have a number within limits with it."""
    change = change_of(crystal, kind)
    least = max(limits[0] - change, 2, 2 - 2 * change)  # at least as many atoms stay as go
    return find_repeats(crystal.cell.array, len(crystal), (least, limits[1] - change))


def draw_defect(
    rng: np.random.Generator,
    crystal: Atoms,
    number: int,
    kinds: tuple[DefectKind, ...],
    limits: tuple[int, int],
    *,
    rattle: float,
    min_distance: float,
    dopants: tuple[str, ...],
) -> Atoms | Rejection:
    """Make the defect of a number in a crystal; see `defects`."""
    crystal = copy_base(crystal)
    refuse = partial(Rejection, stage="generate", structure=f"defect in {crystal.get_chemical_formula()}")
    if unsuited := find_unsuited(crystal, kinds, False, limits, min_distance, dopants):
        return refuse(reason="unsuited", evidence=unsuited)
    listed = {kind: list_of_kind(crystal, kind, dopants, min_distance) for kind in kinds}
    possible = [kind for kind in kinds if listed[kind] and find_sizes(crystal, kind, limits)]
    kind = possible[number % len(possible)]
    defect = listed[kind][number // len(possible) % len(listed[kind])]
    repeats = choose_size(rng, find_sizes(crystal, kind, limits))
    atoms = make_defect(rng, crystal, defect, repeats)
    if len(close := find_close_atoms(atoms, min_distance)):
        evidence = f"{kind}: atoms {close[:4].tolist()} are closer than min_distance {min_distance:g}"
        return refuse(reason="overlap", evidence=evidence)
    displace_apart(rng, atoms, rattle, min_distance)
    atoms.info = {"system_type": "defect"}
    return atoms


def make_defect(rng: np.random.Generator, crystal: Atoms, defect: Defect, repeats: Repeats) -> Atoms:
    """Return a supercell with one defect in its first cell; an added atom is the last one."""
    atoms = repeat_cell(crystal, repeats)
    if defect.kind == "schottky":
        del atoms[choose_formula_unit(rng, crystal, atoms, defect.site or 0)]
        return atoms
    if defect.place is not None:
        shifts = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), axis=-1).reshape(-1, 3)
        places = (defect.place + shifts) @ crystal.cell.array
        place = places[0]
        if defect.site is not None:
            place = choose_distant(rng, atoms, defect.site, places)
        atoms += Atoms([defect.number], [place])
    elif defect.number:
        for name in set(atoms.arrays) & {"masses", "initial_magmoms", "initial_charges"}:
            del atoms.arrays[name]  # those of the element that was there
        atoms.numbers[defect.site] = defect.number
    if defect.kind in ("vacancy", "frenkel"):
        del atoms[defect.site]
    return atoms


def choose_distant(rng: np.random.Generator, atoms: Atoms, site: int, places: np.ndarray) -> np.ndarray:
    """Draw one of some places that is not beside an atom; the farthest one if all are."""
    distance = get_distances(atoms.positions[site], places, cell=atoms.cell, pbc=True)[1][0]
    away = np.flatnonzero(distance > APART * 2 * covalent_radii[atoms.numbers[site]])
    return np.asarray(places[rng.choice(away) if len(away) else int(distance.argmax())])


def choose_formula_unit(rng: np.random.Generator, crystal: Atoms, atoms: Atoms, first: int) -> list[int]:
    """Draw the atoms of one formula unit, one of which is `first`."""
    chosen = [first]
    for number, wanted in zip(np.unique(crystal.numbers), formula_unit(crystal), strict=True):
        others = np.flatnonzero((atoms.numbers == number) & (np.arange(len(atoms)) != first))
        chosen += rng.choice(others, wanted - (number == atoms.numbers[first]), replace=False).tolist()
    return chosen
