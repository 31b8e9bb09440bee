"""Vacant sites of a structure, and hops of atoms into them that obey detailed balance.

A trajectory has fixed sites: the places of the atoms at its start and the vacant sites among them. In whatever
configuration it is, each atom belongs to the site that is nearest; an atom may hop from a site that it has to itself to
one that is empty, if the two are as far apart as atoms of its kind are (cation and cation, not cation and anion). It
keeps its displacement from the site. The hops that are possible are a function of the configuration; one of them is
drawn, and the numbers of possible hops before and after enter Metropolis' rule (`HopSites.possible_hops`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.connectivity import find_neighbours
from daskpipe.core.geometry import cell_widths, full_cell

if TYPE_CHECKING:
    from ase import Atoms

RANGE = (0.8, 1.2)
"""Least and largest distance of two sites of a hop, in distances of like atoms."""

CLEARANCE = (0.93, 1.25)
"""Least and largest distance from a vacant site to the nearest atoms, in distances of nearest neighbours. The holes of
close-packed lattices lie at 0.71, those between the ions of rock salt at 0.87; a vacuum is wider."""

SHELL = 1.25
"""Reach of the atoms around a vacant site, in distances of nearest neighbours."""

CENTRINGS = 3
"""Times that a site is moved to the mean of the atoms around it: where these vibrate the emptiest point is off centre.
"""

SURROUNDED = 0.4
"""Longest mean of the directions to the atoms around a vacant site: above a surface all lie on one side, and it is 0.5
and more."""

SEARCH = (3.0, 6.0, 12.0, 24.0)
"""Radii of the search for neighbours, tried one after the other, Å."""


@dataclass(frozen=True, kw_only=True)
class HopSites:
    """Sites of a trajectory and the pairs of them that are a hop apart.

    Parameters
    ----------
    scaled
        Lattice coordinates of the sites in the full cell, shape (site, 3): those of the atoms, then the vacant ones.
    periodic
        1 along periodic axes and 0 along others, shape (3,).
    first, second, shift
        Sites of each pair, both directions of each, and the lattice translation of the second, shape (pair,),
        (pair,), (pair, 3).
    distance
        Å, at the start, shape (pair,).
    reach
        Least and largest distance of a hop of each atom, Å, shape (atom, 2).
    """

    scaled: np.ndarray
    periodic: np.ndarray
    first: np.ndarray
    second: np.ndarray
    shift: np.ndarray
    distance: np.ndarray
    reach: np.ndarray

    def assign_sites(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Return the site of each atom, the nearest one, shape (atom,).

        Parameters
        ----------
        positions
            Å, shape (atom, 3).
        cell
            Full cell, Å, shape (3, 3).
        """
        away = (positions @ np.linalg.inv(cell))[:, None] - self.scaled
        away -= np.rint(away) * self.periodic
        away = away @ cell
        return np.asarray(np.einsum("ijk,ijk->ij", away, away).argmin(axis=1))

    def possible_hops(self, site: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the possible hops: atoms and pairs of sites, each of shape (hop,).

        Parameters
        ----------
        site
            Site of each atom, from `of`.
        """
        n_on = np.bincount(site, minlength=len(self.scaled))
        owner = np.full(len(self.scaled), -1)
        owner[site] = np.arange(len(site))
        pairs = np.flatnonzero((n_on[self.first] == 1) & (n_on[self.second] == 0))
        atoms = owner[self.first[pairs]]
        low, high = self.reach[atoms].T
        fits = (self.distance[pairs] >= low) & (self.distance[pairs] <= high)
        return atoms[fits], pairs[fits]

    def hop_vector(self, pair: int, cell: np.ndarray) -> np.ndarray:
        """Return the displacement of a hop, Å, shape (3,)."""
        scaled = self.scaled[self.second[pair]] + self.shift[pair] - self.scaled[self.first[pair]]
        return np.asarray(scaled @ cell)


def hop_sites(atoms: Atoms, length: np.ndarray, movable: np.ndarray | None = None) -> HopSites | None:
    """Return the sites of a trajectory; ``None`` if no site is vacant.

    Parameters
    ----------
    atoms
        Geometry at the start.
    length
        Distance of like atoms, Å, shape (atom,); from `like_distances`.
    movable
        Which atoms may hop, bool, shape (atom,); by default all.
    """
    from ase import Atoms as Sites

    vacant = vacant_sites(atoms)
    if not len(vacant):
        return None
    positions = np.vstack([atoms.positions, vacant])
    sites = Sites(numbers=np.ones(len(positions)), positions=positions, cell=atoms.cell, pbc=atoms.pbc)
    first, second, distance, shift = find_neighbours(sites, RANGE[1] * float(length.max()), "ijdS")
    scaled = positions @ np.linalg.inv(full_cell(atoms))
    near = (distance >= RANGE[0] * length.min()) & (first != second)
    reach = np.outer(length, RANGE)
    if movable is not None:
        reach[~movable] = np.inf
    return HopSites(
        scaled=scaled,
        periodic=atoms.pbc.astype(float),
        first=first[near],
        second=second[near],
        shift=shift[near].astype(float),
        distance=distance[near],
        reach=reach,
    )


def like_distances(atoms: Atoms, states: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the hop length of each atom: the median distance, over its element, to the nearest atom of like charge.

    Parameters
    ----------
    atoms
        The structure; images count.
    states
        Oxidation states, e, shape (atom,).
    tolerance
        Largest difference of the states of like atoms, e.

    Returns
    -------
    numpy.ndarray
        Å, shape (atom,). Twice the covalent radius where there is no like atom within 24 Å.
    """
    from ase.data import covalent_radii

    length = np.full(len(atoms), np.nan)
    for cutoff in SEARCH:
        if not np.isnan(length).any():
            break
        i, j, distance = find_neighbours(atoms, cutoff, "ijd")
        like = np.abs(states[i] - states[j]) <= tolerance
        nearest = np.full(len(atoms), np.inf)
        np.minimum.at(nearest, i[like], distance[like])
        for number in np.unique(atoms.numbers[np.isnan(length)]):
            own = atoms.numbers == number
            # Neighbours farther away than those seen so far cannot change the median once it is finite.
            if np.isfinite(median := float(np.median(nearest[own]))):
                length[own] = median
    return np.where(np.isnan(length), 2 * covalent_radii[atoms.numbers], length)


def vacant_sites(atoms: Atoms) -> np.ndarray:
    """Return the sites where an atom is missing, Å, shape (site, 3).

    They are those vertices of the Voronoi cells of the atoms that lie about as far from the nearest atoms as atoms do,
    with atoms on all sides: in vacuum, and on surfaces, there are none. Of vertices closer than 0.6 distances of
    nearest neighbours the emptiest counts; the site is the mean of the atoms around it.

    Parameters
    ----------
    atoms
        The structure.
    """
    from scipy.spatial import KDTree, QhullError, Voronoi

    if len(atoms) < 5:
        return np.zeros((0, 3))
    spacing = _neighbour_spacing(atoms)
    cell, reach = full_cell(atoms), 2 * CLEARANCE[1] * SHELL * spacing
    most = np.where(atoms.pbc, np.ceil(reach / cell_widths(cell)), 0).astype(int)
    shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), axis=-1).reshape(-1, 3)
    inverse = np.linalg.inv(cell)
    wrapped = atoms.positions @ inverse
    wrapped[:, atoms.pbc] %= 1
    scaled = (wrapped[None] + shifts[:, None]).reshape(-1, 3)
    margin = reach / cell_widths(cell)
    near = ((scaled >= -margin) & (scaled <= 1 + margin) | ~atoms.pbc).all(axis=1)
    points = scaled[near] @ cell
    try:
        vertices = Voronoi(points).vertices
    except QhullError:  # all in one plane: nothing is surrounded
        return np.zeros((0, 3))
    inside = vertices @ inverse
    vertices = vertices[((inside >= -1e-9) & (inside < 1 - 1e-9) | ~atoms.pbc).all(axis=1)]
    tree = KDTree(points)
    clearance = tree.query(vertices)[0]
    low, high = (factor * spacing for factor in CLEARANCE)
    centres: list[np.ndarray] = []
    sites: list[np.ndarray] = []
    for number in np.argsort(-clearance, kind="stable"):
        if not low <= clearance[number] <= high:
            continue
        around = points[tree.query_ball_point(vertices[number], SHELL * max(spacing, clearance[number]))]
        if any(
            np.linalg.norm(_nearest_image(vertices[number] - one, cell, atoms.pbc)) < 0.6 * spacing for one in centres
        ):
            continue
        away = np.linalg.norm(around - vertices[number], axis=1)[:, None]
        if np.linalg.norm(((around - vertices[number]) / away).mean(axis=0)) > SURROUNDED:
            continue
        centres.append(vertices[number])
        site = vertices[number]
        for _ in range(CENTRINGS):
            site = points[tree.query_ball_point(site, SHELL * spacing)].mean(axis=0)
        sites.append(site)
    return np.array(sites).reshape(-1, 3)


def _neighbour_spacing(atoms: Atoms) -> float:
    """Return the median distance of an atom to its four nearest ones, Å: one alone is too near where atoms vibrate."""
    for cutoff in SEARCH:
        i, distance = find_neighbours(atoms, cutoff, "id")
        order = np.lexsort((distance, i))
        i, distance = i[order], distance[order]
        first = np.searchsorted(i, np.arange(len(atoms)))
        of_four = [distance[start : start + 4] for start in first]
        enough = np.bincount(i, minlength=len(atoms)) >= 4
        means = [each.mean() if full else np.inf for each, full in zip(of_four, enough.tolist(), strict=True)]
        if np.isfinite(median := float(np.median(means))):
            return median
    return SEARCH[-1]


def _nearest_image(vector: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    from ase.geometry import find_mic

    return np.asarray(find_mic(vector, cell, pbc)[0])
