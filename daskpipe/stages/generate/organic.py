"""Generate random organic molecules that satisfy valence, and copies of them with other torsions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import Field

from daskpipe.core.errors import Rejection
from daskpipe.core.geometry import center_in_box
from daskpipe.stages.generate.conformers import UNRELAXED, EmbedError, charge_and_spin, embed_roughly, relax_molecule
from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.organic_graphs import SKELETON, TERMINAL, GrowthError, build_mol, grow_graph
from daskpipe.stages.generate.params import CountRange, Element, NotEmpty, Vacuum, count_range
from daskpipe.stages.generate.reading.left_out import NOTED
from daskpipe.stages.generate.torsions import Rotors, draw_copies

ELEMENTS = ("H", "C", "N", "O", "F", "Si", "P", "S", "Cl")

SMALLEST, LARGEST = 5, 250
"""Least and largest number of atoms: below five few molecules satisfy valence, above RDKit takes seconds for each."""

GOLDEN = (5**0.5 - 1) / 2

ITERATIONS = 20
"""Steps of relaxation: bonds and angles are right after them, torsions are changed anyway."""

REACH = 6.0
"""Distance, Å, beyond which atoms that no bond joins do not push each other while a molecule is relaxed."""

Copies = Annotated[int, Field(ge=0, le=1000)]
"""Number of copies of a conformer that differ in torsions."""

Difference = Annotated[float, Field(gt=0, le=5)]
"""Least difference of two conformers, Å."""


def organic(
    *,
    rng: np.random.Generator,
    index: int,
    n_atoms: CountRange = (10, 100),
    elements: Annotated[tuple[Element, ...], NotEmpty] = ELEMENTS,
    copies: Copies = 7,
    difference: Difference = 0.1,
    vacuum: Vacuum = 10.0,
) -> Iterator[Atoms | Rejection]:
    """Yield random organic molecules, each followed by copies of it with random torsions.

    A graph grows by atoms, functional groups and rings, with double bonds and rings closed at random, so that each atom
    has its valence and the number of atoms is exact; RDKit's sanitiser accepts it. Distance geometry gives
    coordinates, which MMFF94 or UFF relaxes for a few steps. Copies turn about the single bonds that are in no ring.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: numbers of atoms are spread evenly over the requests (golden ratio).
    n_atoms
        Number of atoms, hydrogens included, or lowest and highest; within 5 and 250.
    elements
        Elements to use: carbon and at least one of H, F, Cl, Br, I, and any of N, O, S, P, Si. Each molecule has
        carbon, a few of the other elements, and at most one halogen in number, so that over many molecules all
        elements have good shares.
    copies
        Number of copies of each molecule.
    difference
        Least difference of two conformers of a molecule: root mean square difference of their interatomic distances,
        sorted for each pair of elements, Å (`daskpipe.stages.generate.torsions.sort_distances`).
    vacuum
        Gap between the molecule and its image, had the cell one, Å.

    Yields
    ------
    ase.Atoms or Rejection
        Not periodic, in the middle of an orthogonal cell, neutral singlets. The bonds are those that interatomic
        distances suggest. A rigid molecule has fewer copies; the next molecule follows it.

    Raises
    ------
    ValueError
        When called, if the elements do not include carbon and one of valence one, or for a size out of range.
    """
    low, high = count_range(n_atoms)
    if unknown := [symbol for symbol in elements if symbol not in SKELETON | TERMINAL]:
        raise ValueError(f"elements: {', '.join(unknown)} not supported; choose from {', '.join(SKELETON | TERMINAL)}")
    if "C" not in elements or not set(elements) & set(TERMINAL):
        raise ValueError(
            f"elements: {', '.join(elements)} make no organic molecule; include C and one of {', '.join(TERMINAL)}"
        )
    if low < SMALLEST or high > LARGEST:
        raise ValueError(f"n_atoms: {low} to {high}; give numbers within {SMALLEST} and {LARGEST}")
    import_extra("rdkit")
    size = low + int((index * GOLDEN) % 1 * (high - low + 1))
    return _draw_families(rng, size, tuple(dict.fromkeys(elements)), copies, difference, vacuum)


def family_size(params: Mapping[str, Any]) -> int:
    """Return the number of structures of a family: a conformer and its copies.

    Examples
    --------
    >>> family_size({"copies": 7})
    8
    """
    return int(params["copies"]) + 1


def _draw_families(
    rng: np.random.Generator, size: int, elements: tuple[str, ...], copies: int, difference: float, vacuum: float
) -> Iterator[Atoms | Rejection]:
    while True:
        try:
            mol = embed_roughly(rng, build_mol(grow_graph(rng, size, elements)))
        except (GrowthError, EmbedError) as error:
            reason = "growth" if isinstance(error, GrowthError) else "embedding"
            yield Rejection(stage="generate", structure=f"organic of {size} atoms", reason=reason, evidence=str(error))
            continue
        info: dict[str, Any] = {"system_type": "molecule", **charge_and_spin(mol)}
        if not relax_molecule(mol, ITERATIONS, reach=REACH):
            info[NOTED] = (UNRELAXED,)
        rotors, positions = Rotors.from_mol(mol), mol.GetConformer().GetPositions()
        if not rotors.has_its_bonds(positions):
            yield Rejection(
                stage="generate",
                structure=f"organic of {size} atoms",
                reason="geometry",
                evidence="atoms that no bond joins are as close as bonded ones, or the other way round",
            )
            continue
        yield _place(rotors.numbers, positions, info, vacuum)
        for copy in draw_copies(rng, positions, rotors, n=copies, difference=difference):
            yield _place(rotors.numbers, copy, info, vacuum)


def _place(numbers: np.ndarray, positions: np.ndarray, info: Mapping[str, Any], vacuum: float) -> Atoms:
    return center_in_box(Atoms(numbers=numbers, positions=positions, info=dict(info)), vacuum / 2)
