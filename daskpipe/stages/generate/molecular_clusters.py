"""Generate dimers and clusters of molecules in random orientations, at distances that are scanned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated

import numpy as np
from ase import Atoms
from pydantic import Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.conformers import EmbedError, Smiles
from daskpipe.stages.generate.molecules import MoleculeName, draw_molecule
from daskpipe.stages.generate.params import CountRange, NotEmpty, Vacuum, count_range
from daskpipe.stages.generate.reading.left_out import NOTED
from daskpipe.stages.generate.torsions import find_vdw_radii

DIRECTIONS = 12
"""Directions that are tried for each molecule after the second; the one that brings it closest is taken."""

GOLDEN = (5**0.5 - 1) / 2

MOST_MOLECULES = 200

Contact = Annotated[float, Field(ge=0.6, le=10)]
"""Distance of two atoms as a multiple of the sum of their van der Waals radii."""


def molecular_clusters(
    *,
    rng: np.random.Generator,
    index: int,
    names: Annotated[list[MoleculeName], NotEmpty] | None = None,
    smiles: Annotated[list[Smiles], NotEmpty] | None = None,
    n_molecules: CountRange = (2, 6),
    distance: tuple[Contact, Contact] = (0.75, 1.5),
    vacuum: Vacuum = 10.0,
) -> Iterator[Atoms | Rejection]:
    """Yield clusters of molecules: random kinds, number, orientations and directions, without overlap.

    Each molecule approaches those before it along a random direction, until its closest contact with them is the
    distance of the cluster.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: distances are spread evenly over the requests (golden ratio).
    names
        Molecules by their names in `ase.collections.g2`.
    smiles
        Molecules and ions as SMILES; each cluster has new conformers.
    n_molecules
        Number of molecules, or lowest and highest; 2 scans dimers.
    distance
        Least and largest closest contact, as multiples of the sum of the van der Waals radii of the two atoms:
        hydrogen bonds are near 0.7, touching molecules near 1.
    vacuum
        Gap between the cluster and its image, had the cell one, Å.

    Yields
    ------
    ase.Atoms or Rejection
        Not periodic, in the middle of an orthogonal cell. The charge is the sum of those of the molecules; unpaired
        electrons are parallel.

    Raises
    ------
    ValueError
        When called, if there are no molecules, or for a range that is empty.
    """
    kinds = [("names", name) for name in names or []] + [("smiles", text) for text in smiles or []]
    low, high = count_range(n_molecules)
    if not kinds:
        raise ValueError("no molecules: give names or smiles, e.g. names: [H2O] or smiles: [CCO]")
    if low < 2 or high > MOST_MOLECULES:
        raise ValueError(f"n_molecules: {low} to {high}; give numbers within 2 and {MOST_MOLECULES}")
    if distance[0] > distance[1]:
        raise ValueError(f"distance: {distance[0]:g} to {distance[1]:g}; give the smaller one first")
    contact = distance[0] + (index * GOLDEN) % 1 * (distance[1] - distance[0])
    return (_draw_cluster(rng, kinds, (low, high), contact, vacuum) for _ in count())


def _draw_cluster(
    rng: np.random.Generator, kinds: list[tuple[str, str]], n_molecules: tuple[int, int], contact: float, vacuum: float
) -> Atoms | Rejection:
    n = int(rng.integers(n_molecules[0], n_molecules[1] + 1))
    chosen = [kinds[i] for i in rng.integers(len(kinds), size=n)]
    try:
        molecules = [draw_molecule(rng, *kind) for kind in chosen]
    except EmbedError as error:
        name = " + ".join(name for _, name in chosen)
        return Rejection(stage="generate", structure=name, reason="embedding", evidence=str(error))
    cluster = molecules[0].copy()
    for molecule in molecules[1:]:
        cluster += add_molecule(rng, cluster, molecule, contact, n_tries=1 if n == 2 else DIRECTIONS)
    cluster.center(vacuum=vacuum / 2)
    unpaired = sum(molecule.info["spin_multiplicity"] - 1 for molecule in molecules)
    cluster.info = {
        "system_type": "molecular_cluster",
        "charge": sum(molecule.info["charge"] for molecule in molecules),
        "spin_multiplicity": unpaired + 1,
    }
    if notes := {note for molecule in molecules for note in molecule.info.get(NOTED, ())}:
        cluster.info[NOTED] = tuple(sorted(notes))
    return cluster


def add_molecule(rng: np.random.Generator, cluster: Atoms, molecule: Atoms, contact: float, *, n_tries: int) -> Atoms:
    """Return a molecule, turned at random, that touches a cluster.

    Parameters
    ----------
    rng
        The structure's stream.
    cluster
        The atoms that are there.
    molecule
        The molecule to place; not changed.
    contact
        Closest contact of the two, as a multiple of the sum of van der Waals radii.
    n_tries
        Number of orientations and directions of which the one that brings it closest to the middle is taken.
    """
    from scipy.spatial.transform import Rotation

    least = contact * np.add.outer(find_vdw_radii(cluster.numbers), find_vdw_radii(molecule.numbers))
    middle = cluster.positions.mean(axis=0)
    best, placed = np.inf, molecule.positions
    for _ in range(n_tries):
        turned = Rotation.from_quat(rng.normal(size=4)).apply(molecule.positions - molecule.positions.mean(axis=0))
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        # Each pair (i, j) is exactly as far apart as it has to be at |gap + t direction| = least.
        gap = middle + turned[None] - cluster.positions[:, None]
        along = gap @ direction
        inner = along**2 - (gap**2).sum(axis=2) + least**2
        t = float(np.where(inner >= 0, -along + np.sqrt(np.maximum(inner, 0)), -np.inf).max())
        if t < best:
            best, placed = t, middle + turned + t * direction
    moved = molecule.copy()
    moved.positions = placed
    return moved
