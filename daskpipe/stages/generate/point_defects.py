"""List the point defects of a crystal that its symmetry tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from daskpipe.core.geometry import cell_widths

DefectKind = Literal["vacancy", "interstitial", "antisite", "substitution", "frenkel", "schottky"]

SYMPREC = 0.01
"""Tolerance of symmetry, Å; displaced crystals have none, and all of their sites are distinct."""

SAME_SITE = 0.3
"""Distance, Å, below which two empty sites count as one."""

MARGIN = 6.0
"""Thickness of the shell of images around the cell that the Voronoi tessellation takes in, Å."""


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One point defect of a crystal.

    Parameters
    ----------
    kind
        Its name.
    site
        Atom of the cell that is removed, or whose element changes; None for an interstitial.
    number
        Atomic number of the atom that is put there, or at `place`; 0 for none.
    place
        Fractional coordinates of an atom that is added.
    """

    kind: DefectKind
    site: int | None = None
    number: int = 0
    place: tuple[float, float, float] | None = None


def list_defects(crystal: Atoms, kind: DefectKind, dopants: tuple[str, ...], min_distance: float) -> list[Defect]:
    """List the distinct defects of one kind.

    Parameters
    ----------
    crystal
        Periodic along all axes; its own cell is analysed, however small.
    kind
        Kind of defect. A vacancy is listed for each distinct site, an antisite for each distinct site and each other
        element of the crystal, a substitution for each distinct site and dopant, an interstitial for each distinct
        empty site and element (dopants included), a Frenkel pair for each distinct site and empty site. Schottky
        defects are told apart by their first vacancy.
    dopants
        Foreign elements.
    min_distance
        Shortest distance of an interstitial and an atom, as a fraction of the sum of the covalent radii.

    Returns
    -------
    list of Defect
        In the order of the sites; empty if the crystal has none.
    """
    sites = distinct_sites(crystal)
    own = np.unique(crystal.numbers).tolist()
    foreign = [atomic_numbers[symbol] for symbol in dopants if atomic_numbers[symbol] not in own]
    if kind in ("vacancy", "schottky"):
        return [Defect(kind=kind, site=site) for site in sites]
    if kind in ("antisite", "substitution"):
        others = own if kind == "antisite" else foreign
        return [
            Defect(kind=kind, site=site, number=number)
            for site in sites
            for number in others
            if number != crystal.numbers[site]
        ]
    places = find_empty_sites(crystal)
    room = measure_room(crystal, places, min_distance)
    empty = [
        (number, place)
        for place, radius in zip(places, room, strict=True)
        for number in (own + foreign if kind == "interstitial" else own)
        if min_distance * covalent_radii[number] <= radius
    ]
    if kind == "interstitial":
        return [Defect(kind=kind, number=number, place=place) for number, place in empty]
    return [
        Defect(kind=kind, site=site, number=number, place=place)
        for site in sites
        for number, place in empty
        if number == crystal.numbers[site]
    ]


def distinct_sites(crystal: Atoms) -> list[int]:
    """Return the first atom of each set of atoms that the space group maps onto each other."""
    return np.unique(_symmetry(key_of(crystal))[2]).tolist()


def find_empty_sites(crystal: Atoms) -> list[tuple[float, float, float]]:
    """Find the distinct places between the atoms of a crystal.

    Candidates are the corners of the Voronoi cells, and the midpoints of edges and the centres of faces of these cells:
    corners alone miss the octahedral site of bcc, which lies in the middle of a face. Places closer than `SAME_SITE`
    to each other, or that the space group maps onto each other, count once.

    Parameters
    ----------
    crystal
        Periodic along all axes.

    Returns
    -------
    list of tuple
        Fractional coordinates, those farthest from any atom first.
    """
    return list(_empty_sites(key_of(crystal)))


def measure_room(crystal: Atoms, places: Sequence[tuple[float, float, float]], min_distance: float) -> np.ndarray:
    """Return the radius left at places between atoms of `min_distance` times their radius, Å, shape (place,)."""
    if not places:
        return np.zeros(0)
    images, atom = _with_shell(crystal)
    distance = np.linalg.norm((np.array(places) @ crystal.cell.array)[:, None] - images, axis=2)
    return np.asarray((distance - min_distance * covalent_radii[crystal.numbers[atom]]).min(axis=1))


CrystalKey = tuple[bytes, bytes, bytes]


def key_of(crystal: Atoms) -> CrystalKey:
    """Return numbers, positions and cell of a crystal as bytes, which a cache can look up."""
    return crystal.numbers.astype("<i8").tobytes(), crystal.positions.tobytes(), crystal.cell.array.tobytes()


def crystal_of(key: CrystalKey) -> Atoms:
    """Return the crystal of a key of `key_of`."""
    numbers, positions, cell = np.frombuffer(key[0], "<i8"), np.frombuffer(key[1]), np.frombuffer(key[2])
    return Atoms(numbers, positions.reshape(-1, 3), cell=cell.reshape(3, 3), pbc=True)


@lru_cache(maxsize=32)
def _symmetry(key: CrystalKey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rotations and translations of the space group, fractional, and the equivalent atom of each."""
    import spglib

    crystal = crystal_of(key)
    cell = (crystal.cell.array, crystal.get_scaled_positions(), crystal.numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    if dataset is None:
        return np.eye(3)[None], np.zeros((1, 3)), np.arange(len(crystal))
    return dataset.rotations, dataset.translations, dataset.equivalent_atoms


@lru_cache(maxsize=32)
def _empty_sites(key: CrystalKey) -> tuple[tuple[float, float, float], ...]:
    from scipy.spatial import KDTree

    crystal = crystal_of(key)
    candidates = _voronoi_places(crystal)
    images, _ = _with_shell(crystal)
    distance = KDTree(images).query(candidates @ crystal.cell.array)[0].round(4)
    order = np.lexsort((*candidates.round(4).T[::-1], -distance))
    rotations, translations, _ = _symmetry(key)
    remaining = candidates[order]
    sites: list[tuple[float, float, float]] = []
    while len(remaining):
        place = remaining[0]
        sites.append((float(place[0]), float(place[1]), float(place[2])))
        orbit = (rotations @ place + translations) % 1
        near = np.zeros(len(remaining), dtype=bool)
        for member in np.unique(orbit.round(6), axis=0):
            offset = remaining - member
            offset -= np.rint(offset)
            near |= np.linalg.norm(offset @ crystal.cell.array, axis=1) < SAME_SITE
        near[0] = True
        remaining = remaining[~near]
    return tuple(sites)


def _voronoi_places(crystal: Atoms) -> np.ndarray:
    """Return corners, midpoints of edges and centres of faces of the Voronoi cells, fractional, within the cell."""
    from scipy.spatial import Voronoi

    tessellation = Voronoi(_with_shell(crystal)[0])
    corners = tessellation.vertices
    places = [corners]
    faces = [face for face in tessellation.ridge_vertices if -1 not in face]
    places.append(np.array([corners[face].mean(axis=0) for face in faces]))
    edges = np.unique(np.sort([pair for face in faces for pair in zip(face, face[1:] + face[:1], strict=True)]), axis=0)
    places.append(corners[edges].mean(axis=1))
    scaled = np.linalg.solve(crystal.cell.array.T, np.concatenate(places).T).T
    inside = ((scaled > -1e-6) & (scaled < 1 - 1e-6)).all(axis=1)
    return np.unique((scaled[inside] % 1).round(6) % 1, axis=0)


def _with_shell(crystal: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of the atoms and of their images within `MARGIN` of the cell, Å, and the atom of each image."""
    widths = cell_widths(crystal.cell.array)
    reach = np.ceil(MARGIN / widths).astype(int)
    shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    scaled = (crystal.get_scaled_positions()[None] + shifts[:, None]).reshape(-1, 3)
    margin = MARGIN / widths
    near = ((scaled >= -margin) & (scaled <= 1 + margin)).all(axis=1)
    return scaled[near] @ crystal.cell.array, np.tile(np.arange(len(crystal)), len(shifts))[near]
