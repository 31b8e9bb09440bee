"""Perturb structures of any source: displacements, strains, volumes, swaps of atoms, normal modes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms
from pydantic import BeforeValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.potentials import Failure
from daskpipe.stages.generate.base import Base, copy_base, count_base, draw_base, probe_base
from daskpipe.stages.generate.disorder import (
    displace_apart,
    draw_strain,
    find_close_atoms,
    spread_evenly,
    strain_periodic,
)
from daskpipe.stages.generate.normal_modes import PotentialChoice, displace_along_modes, find_modes
from daskpipe.stages.generate.params import MinDistance, NotEmpty, Rattle, Strain, factor_range

Kind = Literal["rattle", "strain", "volume", "swap", "modes"]
"""Kinds of perturbations, in the order in which they are applied: swap, volume, strain, modes, rattle."""

ADDED_PARAMETERS = ("potential", "temperature")
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""

ATTEMPTS = 10
"""Number of times that swaps and strains are drawn, at most, until no two atoms are too close."""

Factors = Annotated[tuple[float, float], BeforeValidator(factor_range)]


def perturb(
    *,
    rng: np.random.Generator,
    index: int = 0,
    of: Base,
    kinds: Annotated[tuple[Kind, ...], NotEmpty] = ("rattle",),
    rattle: Rattle = 0.1,
    strain: Strain = 0.05,
    volume: Factors = (0.9, 1.1),
    swaps: Annotated[float, Field(gt=0, le=1)] = 0.1,
    min_distance: MinDistance = 0.7,
    potential: PotentialChoice | None = None,
    temperature: Annotated[float, Field(gt=0, le=5000)] = 300.0,
) -> Iterator[Atoms | Rejection]:
    """Yield perturbed copies of the structures of another source.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request. Structures of a list are gone through in turn, and `volume` is spread evenly.
    of
        What to perturb: a formula, a file, or a generator with its parameters.
    kinds
        Perturbations, all of which each structure receives.
    rattle
        ``rattle``: standard deviation of displacements along each axis, Å. Fixed atoms stay.
    strain
        ``strain``: largest normal strain and engineering shear strain, 1. Only periodic directions are strained.
    volume
        ``volume``: a factor, or the lowest and the highest, of the volume; of the area of a slab, of the length of a
        wire.
    swaps
        ``swap``: fraction of the atoms that exchange places with an atom of another element; at least one pair does.
    min_distance
        Shortest distance of two atoms, as a fraction of the sum of their covalent radii.

    potential
        ``modes``: a cheap potential that knows the elements, by its name or as ``{name, params}``. Each structure that
        is perturbed costs six evaluations an atom, once.
    temperature
        ``modes``: temperature, K, at which a harmonic structure is displaced along its normal modes.

    Yields
    ------
    ase.Atoms or Rejection
        With the periodicity, the atoms, the charge and the kind of system of the structure perturbed. A rejection for
        a structure whose own atoms are closer than `min_distance`.

    Raises
    ------
    ValueError
        When called, if the perturbations apply to no structure.
    """
    if ("modes" in kinds) != (potential is not None):
        raise ValueError("kinds: modes needs a potential, and nothing else does; e.g. potential: xtb")
    faults = [find_unsuited(atoms, kinds) for atoms in probe_base(of)]
    if all(faults):
        raise ValueError(f"kinds: {faults[0]}")
    each = count_base(of)
    return (
        draw_perturbed(
            rng,
            draw_base(of, rng=rng, index=index),
            kinds,
            rattle=rattle,
            strain=strain,
            volume=spread_evenly(rng, index // each, number, volume),
            swaps=swaps,
            min_distance=min_distance,
            potential=potential,
            temperature=temperature,
        )
        for number in count()
    )


def find_unsuited(atoms: Atoms, kinds: tuple[Kind, ...]) -> str | None:
    """Return why a perturbation does not apply to a structure; ``None`` if all of them do."""
    formula = atoms.get_chemical_formula()
    periodic = sorted({"strain", "volume"} & set(kinds))
    if periodic and not atoms.pbc.any():
        return f"{periodic[0]} needs a periodic structure, {formula} is not; use rattle or swap"
    if "swap" in kinds and len(np.unique(atoms.numbers)) < 2:
        return f"swap needs two elements, {formula} has one; leave it out"
    if {"swap", "modes"} <= set(kinds):
        return "modes are those of the structure as it is; leave swap out, or use two sources"
    return None


def draw_perturbed(
    rng: np.random.Generator, base: Atoms, kinds: tuple[Kind, ...], *, min_distance: float, **sizes: Any
) -> Atoms | Rejection:
    """Perturb one structure; see `perturb`."""
    base = copy_base(base)
    refuse = partial(Rejection, stage="generate", structure=f"perturbed {base.get_chemical_formula()}")
    if unsuited := find_unsuited(base, kinds):
        return refuse(reason="unsuited", evidence=unsuited)
    if len(close := find_close_atoms(base, min_distance)):
        evidence = f"atoms {close[:4].tolist()} are closer than min_distance {min_distance:g} before any perturbation"
        return refuse(reason="overlap", evidence=evidence)
    modes = find_modes(base, sizes["potential"]) if "modes" in kinds else None
    if isinstance(modes, Failure):
        return refuse(reason=modes.reason, evidence=f"the potential of its modes: {modes.evidence}")
    for _ in range(ATTEMPTS):
        atoms = base.copy()
        if "swap" in kinds:
            swap_atoms(rng, atoms, sizes["swaps"])
        if "volume" in kinds:
            strain_periodic(atoms, (sizes["volume"] ** (1 / atoms.pbc.sum()) - 1) * np.eye(3))
        if "strain" in kinds:
            strain_periodic(atoms, draw_strain(rng, sizes["strain"]))
        if not len(close := find_close_atoms(atoms, min_distance)):
            break
    else:
        evidence = f"{ATTEMPTS} times atoms came closer than min_distance {min_distance:g}, last {close[:4].tolist()}"
        return refuse(reason="overlap", evidence=evidence)
    if modes is not None:
        displace_along_modes(rng, atoms, modes, sizes["temperature"], min_distance)
    if "rattle" in kinds:
        displace_apart(rng, atoms, sizes["rattle"], min_distance)
    return atoms


def swap_atoms(rng: np.random.Generator, atoms: Atoms, fraction: float) -> None:
    """Exchange the places of pairs of unlike atoms, in place, until `fraction` of the atoms have moved."""
    untouched = rng.permutation(len(atoms)).tolist()
    for _ in range(max(1, round(fraction * len(atoms) / 2))):
        first = untouched.pop()
        unlike = [atom for atom in untouched if atoms.numbers[atom] != atoms.numbers[first]]
        if not unlike:
            return
        second = unlike[-1]
        untouched.remove(second)
        atoms.positions[[first, second]] = atoms.positions[[second, first]]
