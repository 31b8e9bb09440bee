"""Generate molecules on the surfaces of slabs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from pydantic import BeforeValidator

from daskpipe.core.connectivity import find_neighbours
from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.base import Base, copy_base, count_base, draw_base, probe_base
from daskpipe.stages.generate.conformers import Smiles
from daskpipe.stages.generate.disorder import find_close_atoms, spread_evenly
from daskpipe.stages.generate.molecules import MoleculeName, molecules
from daskpipe.stages.generate.params import NotEmpty, fraction_range

FractionRange = Annotated[tuple[float, float], BeforeValidator(fraction_range)]

TOP = 0.75
"""Distance in the plane, as a fraction of the sum of the covalent radii, within which an atom covers lower ones."""

MIN_DISTANCE = 0.75
"""Shortest distance of two atoms, as a fraction of the sum of their covalent radii, that an adsorbate may make."""

APART = 1.5
"""Shortest distance of atoms of two adsorbates, as a multiple of the sum of their covalent radii."""

TRIES = 40
"""Number of places that are tried, at most, for each molecule."""


def adsorbates(
    *,
    rng: np.random.Generator,
    index: int = 0,
    of: Base,
    names: Annotated[list[MoleculeName], NotEmpty] | None = None,
    smiles: Annotated[list[Smiles], NotEmpty] | None = None,
    coverage: FractionRange = (0.0, 0.25),
    gap: FractionRange = (0.0, 0.5),
) -> Iterator[Atoms | Rejection]:
    """Yield slabs with molecules on top of, between two, or in the hollow of three atoms of the surface.

    The sites are corners, midpoints of edges, and centres of the Delaunay triangles of the outermost atoms, as in
    pymatgen's AdsorbateSiteFinder (https://doi.org/10.1038/s41524-017-0017-z). Molecules have random orientations, and
    are lifted along the normal until the first contact with the slab has the distance asked for.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request. Slabs and molecules are gone through in turn, and `coverage` is spread evenly.
    of
        The slabs: a generator with its parameters, such as ``surfaces``, or a file.
    names, smiles
        Molecules, as in `daskpipe.stages.generate.molecules.molecules`; atoms too, such as ``H`` and ``O``.
    coverage
        Molecules for each atom of the surface, or lowest and highest; at least one molecule is put there.
    gap
        Distance of the closest atoms of slab and molecule beyond the sum of their covalent radii, as a fraction of it,
        or lowest and highest: 0 is a bond, 0.5 physisorption.

    Yields
    ------
    ase.Atoms or Rejection
        The slab, its fixed atoms and its vacuum, then the molecules, all of one kind. A rejection if the surface has no
        room for that many.

    Raises
    ------
    ValueError
        When called, if no molecule is given, or no structure is a slab with vacuum along its third cell vector.
    """
    listed: list[dict[str, Any]] = [
        *({"names": [name]} for name in names or ()),
        *({"smiles": [each]} for each in smiles or ()),
    ]
    if not listed:
        raise ValueError("no molecule: give names, e.g. [CO, H2O], or smiles, e.g. [CCO]")
    faults = [find_unsuited(slab) for slab in probe_base(of)]
    if all(faults):
        raise ValueError(faults[0])
    each = count_base(of)
    return (
        draw_adsorbates(
            rng,
            draw_base(of, rng=rng, index=index),
            next(molecules(rng=rng, rattle=0.0, **listed[(index // each + attempt) % len(listed)])),
            coverage=spread_evenly(rng, index, attempt, coverage),
            gap=gap,
        )
        for attempt in count()
    )


def find_unsuited(slab: Atoms) -> str | None:
    """Return why a structure cannot take adsorbates; ``None`` if it can."""
    if slab.pbc.tolist() == [True, True, False] and not np.abs(slab.cell.array[:2, 2]).max() > 1e-6:
        return None
    return (
        f"of: {slab.get_chemical_formula()} is not a slab that is periodic along its first two cell vectors, in x "
        "and y; give e.g. of: {generator: surfaces, of: MgO, n_atoms: [40, 100]}"
    )


def draw_adsorbates(
    rng: np.random.Generator,
    slab: Atoms,
    molecule: Atoms | Rejection,
    *,
    coverage: float,
    gap: tuple[float, float],
) -> Atoms | Rejection:
    """Put molecules on one slab; see `adsorbates`."""
    refuse = partial(Rejection, stage="generate", structure=f"adsorbates on {slab.get_chemical_formula()}")
    if unsuited := find_unsuited(slab):
        return refuse(reason="unsuited", evidence=unsuited)
    if isinstance(molecule, Rejection):
        return molecule
    atoms = copy_base(slab)
    surface = surface_atoms(slab)
    wanted = max(1, round(coverage * len(surface)))
    sites = find_sites(slab, surface)
    vacuum = max(float(slab.cell.array[2, 2] - np.ptp(slab.positions[:, 2])), 0.0)
    n_slab, placed = len(slab), 0
    for _ in range(TRIES * wanted):
        kind = sites[rng.integers(len(sites))]
        added = place_molecule(rng, slab, molecule, kind[rng.integers(len(kind))], rng.uniform(*gap))
        if _has_room(atoms, added, n_slab):
            atoms += added
            placed += 1
            if placed == wanted:
                break
    else:
        evidence = f"{placed} of {wanted} molecules found room in {TRIES * wanted} tries; lower coverage"
        return refuse(reason="coverage", evidence=evidence)
    if len(close := find_close_atoms(atoms, MIN_DISTANCE)) and close[-1] >= n_slab:
        return refuse(reason="overlap", evidence=f"atoms {close[-4:].tolist()} are too close to others")
    atoms.center(vacuum=vacuum / 2, axis=2)
    atoms.info = {"system_type": "adsorbate"}
    if charge := molecule.info.get("charge", 0):
        atoms.info["charge"] = int(charge) * placed
    return atoms


def surface_atoms(slab: Atoms) -> np.ndarray:
    """Return the indices of the outermost atoms of the upper side of a slab.

    An atom is outermost if no other one lies above it and closer to it, in the plane, than `TOP` times the sum of their
    covalent radii.
    """
    order = np.argsort(-slab.positions[:, 2], kind="stable")
    radii = covalent_radii[slab.numbers]
    chosen: list[int] = []
    for atom in order.tolist():
        if slab.positions[atom, 2] < slab.positions[order[0], 2] - 2 * radii[atom]:
            break
        offsets = slab.positions[chosen] - slab.positions[atom]
        offsets[:, 2] = 0
        lateral = np.linalg.norm(_shortest(offsets, slab), axis=1)
        if not (lateral < TOP * (radii[chosen] + radii[atom])).any():
            chosen.append(atom)
    return np.array(chosen)


def _shortest(offsets: np.ndarray, slab: Atoms) -> np.ndarray:
    from ase.geometry import find_mic

    return np.asarray(find_mic(offsets, slab.cell, slab.pbc)[0]) if len(offsets) else offsets


def find_sites(slab: Atoms, surface: np.ndarray) -> list[np.ndarray]:
    """Return the positions in the plane of the sites on, between two, and between three atoms of the surface, Å."""
    from scipy.spatial import Delaunay

    shifts = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)]) @ slab.cell.array[:2, :2]
    points = (slab.positions[surface, :2][None] + shifts[:, None]).reshape(-1, 2)
    corners = points[Delaunay(points).simplices]
    edges = corners[:, [[0, 1], [1, 2], [2, 0]]].mean(axis=2).reshape(-1, 2)
    return [_within_cell(places, slab) for places in (points, edges, corners.mean(axis=1))]


def _within_cell(places: np.ndarray, slab: Atoms) -> np.ndarray:
    scaled = np.linalg.solve(slab.cell.array[:2, :2].T, places.T).T
    inside = ((scaled > -1e-6) & (scaled < 1 - 1e-6)).all(axis=1)
    return np.unique(places[inside].round(6), axis=0)


def place_molecule(rng: np.random.Generator, slab: Atoms, molecule: Atoms, site: np.ndarray, gap: float) -> Atoms:
    """Return a molecule in a random orientation over a site, lifted until its contact with the slab has a gap.

    Parameters
    ----------
    rng
        The structure's stream.
    slab
        The slab; its normal is z.
    molecule
        The molecule.
    site
        Position in the plane, Å, shape (2,), which the lowest atom of the molecule takes.
    gap
        Smallest distance beyond the sum of the covalent radii, as a fraction of it, over all atoms of both.
    """
    from scipy.spatial.transform import Rotation

    added = Atoms(molecule.numbers, Rotation.random(random_state=rng).apply(molecule.positions))
    lowest = int(added.positions[:, 2].argmin())
    added.positions[:, :2] += site - added.positions[lowest, :2]
    lift_to_contact(added, slab, gap)
    return added


def lift_to_contact(added: Atoms, slab: Atoms, gap: float) -> None:
    """Move atoms along the normal of a slab, in place, until the first contact with it has a gap.

    The atoms may be as wide as the cell of the slab.
    """
    shifts = np.array([(i, j, 0) for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ slab.cell.array
    images = (slab.positions[None] + shifts[:, None]).reshape(-1, 3)
    radii = np.tile(covalent_radii[slab.numbers], len(shifts))
    contact = (1 + gap) * (covalent_radii[added.numbers][:, None] + radii)
    scaled = np.linalg.solve(slab.cell.array.T, added.positions.T).T
    scaled[:, 2] = 0
    within = added.positions - np.floor(scaled) @ slab.cell.array  # in the plane; in z the vector has no part
    lateral = np.linalg.norm(within[:, None, :2] - images[:, :2], axis=2)
    # Height over each atom of the slab at which each atom has the distance asked for.
    height = np.sqrt(np.maximum(contact**2 - lateral**2, 0)) + images[:, 2] - added.positions[:, None, 2]
    added.positions[:, 2] += height[lateral < contact].max()


def _has_room(atoms: Atoms, added: Atoms, n_slab: int) -> bool:
    """Return whether a molecule stays away from those that are there, and from its own images."""
    both = Atoms(cell=atoms.cell, pbc=atoms.pbc) + atoms[n_slab:] + added
    part = np.repeat([0, 1], [len(both) - len(added), len(added)])
    i, j, shift = find_neighbours(both, APART * covalent_radii[both.numbers], "ijS")
    return not ((part[i] != part[j]) | (shift != 0).any(axis=1) & (part[i] == 1)).any()
