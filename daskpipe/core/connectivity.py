"""Find neighbours, and the directions along which a structure is connected through its periodic boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.geometry import full_cell

if TYPE_CHECKING:
    from ase import Atoms

REACH = 2.5
"""Largest gap between two atoms in contact: their distance less the sum of their covalent radii, Å.

The layers of graphite (3.35 Å) and the molecules of a liquid are in contact; surfaces with 6 Å of vacuum between them
are not.
"""


def find_neighbours(atoms: Atoms, cutoff: float | np.ndarray, quantities: str) -> Any:
    """Return the pairs of atoms within a cutoff, images included, as `matscipy.neighbours.neighbour_list` does.

    Parameters
    ----------
    atoms
        Any structure; cell vectors along open axes may be zero.
    cutoff
        Largest distance, Å; or a radius for each atom, shape (atom,), where spheres that touch make a pair.
    quantities
        Letters as in matscipy: ``i`` and ``j`` atoms, ``d`` distances (Å), ``S`` lattice translations from i to j.

    Returns
    -------
    numpy.ndarray or tuple of numpy.ndarray
        One array a letter, one row a pair; each pair comes in both directions.

    Examples
    --------
    >>> from ase.build import bulk
    >>> len(find_neighbours(bulk("Cu", a=3.6), 2.6, "i"))
    12
    """
    from matscipy.neighbours import neighbour_list

    cell = full_cell(atoms)
    scaled = np.linalg.solve(cell.T, atoms.positions.T).T
    # A box around the atoms along open axes: the search sorts them into bins within the cell.
    origin = np.where(atoms.pbc, 0, scaled.min(axis=0))
    extent = np.where(atoms.pbc, 1, np.maximum(np.ptp(scaled, axis=0), 1))
    return neighbour_list(
        quantities,
        cutoff=cutoff,
        positions=atoms.positions,
        cell=cell * extent[:, None],
        pbc=atoms.pbc,
        cell_origin=origin @ cell,
    )


def periodic_directions(atoms: Atoms, reach: float = REACH) -> np.ndarray:
    """Return the directions along which matter is connected through the periodic boundaries.

    Two atoms are connected if they are closer than the sum of their covalent radii plus `reach`. A closed walk along
    such contacts that ends on another image of the atom it began with is a lattice translation; all of these, of all
    connected parts together, span the directions.

    Parameters
    ----------
    atoms
        At least one atom; the cell spans a volume along its periodic axes and may be zero along open ones.
    reach
        As `REACH`, Å.

    Returns
    -------
    numpy.ndarray
        Orthonormal rows, shape (n, 3): n is 0 for molecules and clusters, 1 for wires, 2 for slabs and sheets, 3 for
        bulk. Rows follow cell vectors as far as these lie in the span, so the first row of a slab lies along the
        first cell vector that is in its plane.

    Examples
    --------
    >>> from ase.build import bulk, fcc111, molecule
    >>> slab = fcc111("Cu", (1, 1, 3), vacuum=6.0, periodic=True)
    >>> [len(periodic_directions(atoms)) for atoms in (molecule("H2O"), slab, bulk("Cu"))]
    [0, 2, 3]
    """
    from ase.data import covalent_radii

    if not atoms.pbc.any():
        return np.zeros((0, 3))
    i, j, shift = find_neighbours(atoms, covalent_radii[atoms.numbers] + reach / 2, "ijS")
    home = _connected_images(len(atoms), i, j, shift)
    cycles = home[i] + shift - home[j]
    # A sum of few whole numbers: its rank is exact, and the cycles may be many.
    gram = (cycles.T @ cycles).astype(float)
    rank = int(np.linalg.matrix_rank(gram, hermitian=True))
    cell = full_cell(atoms)
    span = np.linalg.eigh(cell.T @ gram @ cell)[1][:, 3 - rank :].T
    return _align_basis(span, cell[atoms.pbc])


def _connected_images(n_atoms: int, i: np.ndarray, j: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return an image of each atom, in lattice translations, such that a walk along contacts never leaves them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    pairs, contact = np.unique(i.astype(np.int64) * n_atoms + j, return_index=True)
    i, j, shift = i[contact], j[contact], shift[contact]
    graph = coo_array((np.ones(len(pairs)), (i, j)), shape=(n_atoms, n_atoms))
    first = np.unique(connected_components(graph)[1], return_index=True)[1]
    # One more node is linked to an atom of each part, so that one search reaches all parts.
    i, j = np.append(i, np.full(len(first), n_atoms)), np.append(j, first)
    rooted = coo_array((np.ones(len(i)), (i, j)), shape=(n_atoms + 1, n_atoms + 1))
    order, before = breadth_first_order(rooted.tocsr(), n_atoms)
    inner = order[1:][before[order[1:]] < n_atoms]
    steps = shift[np.searchsorted(pairs, before[inner].astype(np.int64) * n_atoms + inner)]
    home = np.zeros((n_atoms, 3), dtype=np.int64)
    for atom, origin, step in zip(inner.tolist(), before[inner].tolist(), steps, strict=True):
        home[atom] = home[origin] + step
    return home


def _align_basis(span: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the rows of `span` that begins with those of `vectors` that lie in it."""
    inside = [vector for vector in vectors if _norm_of(vector - vector @ span.T @ span) < 1e-6 * _norm_of(vector)]
    basis = np.zeros((0, 3))
    for vector in [*inside, *span]:
        rest = vector - vector @ basis.T @ basis
        if len(basis) < len(span) and _norm_of(rest) > 1e-3 * _norm_of(vector):
            basis = np.vstack([basis, rest / _norm_of(rest)])
    return basis


def _norm_of(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
