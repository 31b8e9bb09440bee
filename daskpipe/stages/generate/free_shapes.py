"""Make the sites of particles of any number of atoms: cut spheres, Wulff polyhedra and random packings.

All have one cubic length unit an atom.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from daskpipe.core.geometry import cell_widths
from daskpipe.stages.generate.alloys import LATTICE_CONSTANT, Lattice, unit_cells
from daskpipe.stages.generate.repeats import repeat_cell

FreeShape = Literal["sphere", "wulff", "packed"]
LATTICES: tuple[Lattice, ...] = ("fcc", "bcc", "hcp")

HIGHEST_ENERGY = 1.35
"""Largest ratio of the surface energies of two facets of a Wulff polyhedron; those of metals reach 1.3."""

CONTACT = 2 ** (1 / 6)
"""Distance of nearest neighbours in fcc."""

STEPS = 80
"""Steps of `pack_spheres`: 60 leave distances of 0.8 `CONTACT` and more at 10 to 1,000 atoms."""


def cut_sphere(rng: np.random.Generator, n_atoms: int) -> np.ndarray:
    """Return the `n_atoms` sites of a crystal nearest to a random point, shape (n_atoms, 3)."""
    cell = unit_cells(LATTICES[rng.integers(len(LATTICES))])[-1]
    # The block contains the sphere and the nearest sites beyond it, for any centre in its middle cell.
    radius = (3 * n_atoms / (4 * np.pi)) ** (1 / 3) + 1.5
    repeats = 2 * np.ceil(radius / cell_widths(cell.cell.array)).astype(int) + 1
    centre = (repeats // 2 + rng.random(3)) @ cell.cell.array
    offsets = repeat_cell(cell, tuple(repeats.tolist())).positions - centre
    nearest = np.argsort(np.linalg.norm(offsets, axis=1), kind="stable")[:n_atoms]
    return np.asarray(offsets[nearest])


def cut_wulff(rng: np.random.Generator, n_atoms: int) -> np.ndarray:
    """Return the `n_atoms` sites of a crystal innermost in a Wulff polyhedron, shape (n_atoms, 3).

    A site belongs to the polyhedron of size h if its distance along the normal of each facet is at most h times the
    surface energy of the facet (Wulff, Z. Kristallogr. 34, 449, 1901), so sites sorted by h give every size. Lattice,
    relative surface energies of the low-index facets and the centre (an atom or a random point) are random.
    """
    lattice = LATTICES[rng.integers(len(LATTICES))]
    families = facet_normals(lattice)
    energies = rng.uniform(1, HIGHEST_ENERGY, len(families))
    normals = np.concatenate([normals / energy for normals, energy in zip(families, energies, strict=True)])
    cell = unit_cells(lattice)[-1]
    # No polyhedron of these facets reaches farther than 1.8 radii of the sphere of its volume.
    radius = 1.8 * (3 * n_atoms / (4 * np.pi)) ** (1 / 3) + 1.5
    repeats = 2 * np.ceil(radius / cell_widths(cell.cell.array)).astype(int) + 1
    centre = (repeats // 2 + rng.random(3) * rng.integers(2)) @ cell.cell.array
    offsets = repeat_cell(cell, tuple(repeats.tolist())).positions - centre
    return np.asarray(offsets[wulff_order(offsets, normals)[:n_atoms]])


def wulff_order(offsets: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return the order of sites from the innermost polyhedron outwards, shape (site,).

    Parameters
    ----------
    offsets
        Sites from the centre, shape (site, 3).
    normals
        Unit normals divided by the surface energies of their facets, shape (facet, 3).
    """
    # Rounded, and ties by distance: sites of one shell differ by the last bits.
    size = (offsets @ normals.T).max(axis=1).round(9)
    return np.lexsort((np.linalg.norm(offsets, axis=1).round(9), size))


@cache
def facet_normals(lattice: Lattice) -> tuple[np.ndarray, ...]:
    """Return the unit normals of the low-index facets of a lattice, one array for each family of facets."""
    if lattice != "hcp":
        signed = np.array(list(product((-1, 0, 1), repeat=3)), dtype=float)
        families = [signed[(signed**2).sum(axis=1) == square] for square in (1, 2, 3)]  # {100}, {110}, {111}
    else:
        a = LATTICE_CONSTANT["hcp"]
        c = a * (8 / 3) ** 0.5

        def prism(first: float, height: float) -> np.ndarray:
            angles = np.deg2rad(first + 60 * np.arange(6))
            return np.stack([np.cos(angles), np.sin(angles), np.full(6, height)], axis=1)

        steep = 3**0.5 * a / 2 / c  # of {10-11}: ratio of the reciprocal vectors
        families = [
            np.array([[0, 0, 1.0], [0, 0, -1.0]]),
            prism(30, 0),
            prism(0, 0),
            np.concatenate([prism(30, steep), prism(30, -steep)]),
        ]
    return tuple(family / np.linalg.norm(family, axis=1, keepdims=True) for family in families)


def pack_spheres(rng: np.random.Generator, n_atoms: int) -> np.ndarray:
    """Return a random dense packing of `n_atoms` sites in a ball, shape (n_atoms, 3).

    Random points in the ball push each other apart where they are closer than neighbours in fcc, and a weak force
    draws them to the centre during the first half of the steps.
    """
    from scipy.spatial import KDTree

    radius = (3 * n_atoms / (4 * np.pi)) ** (1 / 3)
    directions = rng.normal(size=(n_atoms, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sites = radius * rng.random((n_atoms, 1)) ** (1 / 3) * directions
    for step in range(STEPS):
        pairs = KDTree(sites).query_pairs(CONTACT, output_type="ndarray")
        offsets = sites[pairs[:, 0]] - sites[pairs[:, 1]]
        distance = np.linalg.norm(offsets, axis=1, keepdims=True)
        push = 0.35 * (CONTACT - distance) * offsets / np.maximum(distance, 1e-9)
        if step < STEPS // 2:
            sites *= 0.99
        np.add.at(sites, pairs[:, 0], push)
        np.add.at(sites, pairs[:, 1], -push)
    return np.asarray(sites)


FREE_SHAPES: dict[FreeShape, Callable[[np.random.Generator, int], np.ndarray]] = {
    "sphere": cut_sphere,
    "wulff": cut_wulff,
    "packed": pack_spheres,
}
"""Functions that return so many sites, by the name of their shape."""
