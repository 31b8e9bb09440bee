"""Measure distances in periodic, open and mixed structures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


def find_overlap(atoms: Atoms, min_distance: float) -> str | None:
    """Return a description of the worst overlap of two atoms, or of an atom and an image; ``None`` without one.

    Parameters
    ----------
    atoms
        Finite positions; the cell spans a volume along its periodic axes and may be zero along open ones.
    min_distance
        Shortest distance allowed, as a fraction of the sum of the two covalent radii.

    Examples
    --------
    >>> from ase import Atoms
    >>> find_overlap(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.1]]), min_distance=0.5)
    'atom 1 (H) is 0.100 Å from atom 0 (H); the limit is 0.310 Å, 0.5 of the sum of covalent radii'
    """
    from ase.data import covalent_radii
    from scipy.spatial import KDTree

    radii = min_distance * covalent_radii[atoms.numbers]
    cutoff = 2 * radii.max()
    if cutoff == 0:
        return None
    if atoms.pbc.all():
        # No packing of equal spheres is denser than fcc. This comes first, for it bounds the number of images below.
        volume = atoms.get_volume() / len(atoms)
        if volume < (2 * radii.min()) ** 3 / 2**0.5:
            return f"{volume:.3g} Å^3 an atom leaves no room for atoms {2 * radii.min():.2f} Å apart"
    owner, points = _with_images(atoms, cutoff)
    tree = KDTree(points)
    # Nearest neighbours first: where many atoms sit in one place, listing all pairs would not fit in memory.
    distance, nearest = tree.query(points[: len(atoms)], k=2, distance_upper_bound=2 * radii.min())
    if np.isfinite(distance[:, 1]).any():
        first = int(distance[:, 1].argmin())
        pairs = np.array([[first, nearest[first, nearest[first] != first][0]]])
    else:
        pairs = tree.query_pairs(cutoff, output_type="ndarray")
        pairs = pairs[pairs[:, 0] < len(atoms)]  # pairs are sorted: leaves out those of two images
    distances = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    least = radii[owner[pairs]].sum(axis=1)
    if not (distances < least).any():
        return None
    worst = int((distances / least).argmin())
    (i, j), symbols = owner[pairs[worst]], atoms.symbols
    other = f"its own image ({symbols[i]})" if i == j else f"atom {i} ({symbols[i]})"
    return (
        f"atom {j} ({symbols[j]}) is {distances[worst]:.3f} Å from {other}; the limit is {least[worst]:.3f} Å, "
        f"{min_distance:g} of the sum of covalent radii"
    )


def count_parts(atoms: Atoms, reach: float) -> int:
    """Count the parts of a structure that no chain of neighbours connects; see `label_parts`."""
    return int(label_parts(atoms, reach).max()) + 1


def label_parts(atoms: Atoms, reach: float) -> np.ndarray:
    """Return the number of the part that each atom belongs to; no chain of neighbours connects two parts.

    Parameters
    ----------
    atoms
        As in `find_overlap`.
    reach
        Longest distance of neighbours, as a multiple of the sum of the two covalent radii.

    Returns
    -------
    numpy.ndarray
        Shape (atom,), int32, counted from 0.

    Examples
    --------
    >>> from ase import Atoms
    >>> label_parts(Atoms("H2OHe", positions=[[0, 0, 1], [0, 0, 3], [0, 0, 2], [0, 0, 9]]), reach=1.2).tolist()
    [0, 0, 0, 1]
    """
    from ase.data import covalent_radii
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    radii = reach * covalent_radii[atoms.numbers]
    owner, points = _with_images(atoms, 2 * radii.max())
    pairs = KDTree(points).query_pairs(2 * radii.max(), output_type="ndarray")
    near = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) < radii[owner[pairs]].sum(axis=1)
    first, second = owner[pairs[near]].T
    links = coo_array((np.ones(len(first)), (first, second)), shape=(len(atoms), len(atoms)))
    return np.asarray(connected_components(links, directed=False)[1])


def nearest_neighbours(atoms: Atoms, cutoff: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest neighbour of each atom, images included.

    Parameters
    ----------
    atoms
        As in `find_overlap`.
    cutoff
        Longest distance, Å.

    Returns
    -------
    distances : numpy.ndarray
        Å, shape (atom,); infinite for an atom that has none.
    neighbours : numpy.ndarray
        Numbers of the neighbours, from 0, shape (atom,), int64; -1 where there is none.

    Examples
    --------
    >>> from ase import Atoms
    >>> nearest_neighbours(Atoms("HF", positions=[[0, 0, 0], [0, 0, 0.9]], cell=[0, 0, 2], pbc=(0, 0, 1)))
    (array([0.9, 0.9]), array([1, 0]))
    """
    from scipy.spatial import KDTree

    owner, points = _with_images(atoms, cutoff)
    distances, nearest = KDTree(points).query(points[: len(atoms)], k=2, distance_upper_bound=cutoff)
    return distances[:, 1], np.append(owner, -1)[nearest[:, 1]]


def center_in_box(atoms: Atoms, margin: float) -> Atoms:
    """Put a structure without a cell in the middle of an orthogonal one, in place, and return it.

    It does what `ase.Atoms.center` does, in a tenth of the time.

    Parameters
    ----------
    atoms
        Not periodic.
    margin
        Least distance of an atom from a face of the cell, Å.
    """
    low, high = atoms.positions.min(axis=0), atoms.positions.max(axis=0)
    atoms.positions += margin - low
    atoms.set_cell(high - low + 2 * margin)
    return atoms


def _with_images(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Return atoms and their periodic images within `cutoff` of the cell: index of the atom, and position, Å."""
    cell = full_cell(atoms)
    scaled = np.linalg.solve(cell.T, atoms.positions.T).T
    scaled[:, atoms.pbc] %= 1
    owner = np.arange(len(atoms))
    reach = cutoff / cell_widths(cell)
    for axis in np.flatnonzero(atoms.pbc):
        shifted = [(owner, scaled)]
        for shift in range(1, int(np.ceil(reach[axis])) + 1):
            for signed in (shift, -shift):
                moved = scaled + signed * np.eye(3)[axis]
                near = (moved[:, axis] >= -reach[axis]) & (moved[:, axis] <= 1 + reach[axis])
                shifted.append((owner[near], moved[near]))
        owner = np.concatenate([part[0] for part in shifted])
        scaled = np.concatenate([part[1] for part in shifted])
    return owner, scaled @ cell


def full_cell(atoms: Atoms) -> np.ndarray:
    """Return the cell of a structure, completed as `complete_open_axes` does."""
    return complete_open_axes(atoms.cell.array, atoms.pbc)


def complete_open_axes(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Return a cell whose vectors along open axes are unit normals of the periodic ones.

    Parameters
    ----------
    cell
        Vectors as rows, Å, shape (3, 3); those along open axes are ignored.
    pbc
        Periodic along each vector, bool, shape (3,).
    """
    from ase.geometry import complete_cell

    return np.asarray(complete_cell(np.where(pbc[:, None], cell, 0)))


def cell_widths(cell: np.ndarray) -> np.ndarray:
    """Return the distances between opposite faces of cells, shape (..., 3), in the unit of the cells.

    Examples
    --------
    >>> cell_widths(np.array([[3.0, 0, 0], [0, 4.0, 0], [5.0, 0, 5.0]])).round(3).tolist()
    [2.121, 4.0, 5.0]
    """
    return np.asarray(1 / np.linalg.norm(np.linalg.inv(cell), axis=-2))
