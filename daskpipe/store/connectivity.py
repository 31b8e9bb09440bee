"""Frames of one system without lineage: connected by where their atoms are, whatever order the frames come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

IMPORTED = "import"
"""Generator of structures that others have made: nothing but the structures says which belong together."""

NEAREST = 16
"""Neighbours in feature space, of the same composition, that a frame is compared with."""

JUMP = 1.0
"""Distance, Å, that no atom moves between two connected frames: a thermal vibration is less, a bond is more."""

MAX_STRAIN = 0.1
"""Largest component of the strain between the cells of two connected frames."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Geometry of one structure.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (atom,).
    positions
        Å, shape (atom, 3).
    cell
        Å, rows are vectors, shape (3, 3).
    pbc
        Periodic along each vector, shape (3,).
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


def connect_frames(columns: Mapping[str, np.ndarray], frame_of: Callable[[int], Frame]) -> np.ndarray:
    """Connect imported frames of one system: a chain of frames leads from one to the other, each near the next.

    Frames are near if they have the same atoms in the same order and no atom moves by `JUMP`, once translation (in
    open directions rotation, too) and strain are taken out. Each frame is compared with its `NEAREST` neighbours
    in feature space of the same composition, so that neither the order of the frames nor the file counts.

    Parameters
    ----------
    columns
        ``composition``, ``generator`` and ``features``, each with one row a structure.
    frame_of
        Returns the geometry of a row.

    Returns
    -------
    numpy.ndarray
        Number of each row's component, shape (row,), int64; -1 for rows that were not imported.
    """
    n_rows = len(columns["structure_id"])
    component = np.full(n_rows, -1, dtype=np.int64)
    if "generator" not in columns:
        return component
    imported = np.flatnonzero(columns["generator"] == IMPORTED)
    component[imported] = imported
    if "features" not in columns or len(imported) < 2:
        return component
    described = imported[np.isfinite(columns["features"][imported]).all(axis=1)]
    root = np.arange(n_rows)
    frames: dict[int, Frame] = {}
    for members in _by_composition(columns["composition"], described):
        frames.clear()  # only those of one composition are in memory
        for one, other in _nearest_pairs(columns["features"][members].astype(np.float64), members):
            a, b = _find_root(root, one), _find_root(root, other)
            if a == b:
                continue
            for row in (one, other):
                if row not in frames:
                    frames[row] = frame_of(row)
            if is_near(frames[one], frames[other]):
                root[max(a, b)] = min(a, b)
    for row in imported.tolist():
        component[row] = _find_root(root, row)
    return component


def is_near(a: Frame, b: Frame) -> bool:
    """Whether two frames have the same atoms in the same order, and none of them moves by `JUMP` between the two."""
    if not (np.array_equal(a.numbers, b.numbers) and np.array_equal(a.pbc, b.pbc)):
        return False
    pbc = a.pbc.astype(bool)
    if not pbc.any():
        return bool(_superposed(a.positions, b.positions).max(initial=0.0) < JUMP)
    before, after = _full_cell(a.cell, pbc), _full_cell(b.cell, pbc)
    if not (abs(np.linalg.det(before)) > 1e-6 and abs(np.linalg.det(after)) > 1e-6):
        return False
    if np.abs(np.linalg.solve(before, after) - np.eye(3)).max() > MAX_STRAIN:
        return False
    scaled = np.linalg.solve(after.T, b.positions.T).T - np.linalg.solve(before.T, a.positions.T).T
    scaled[:, pbc] -= np.rint(scaled[:, pbc])
    moved = scaled @ ((before + after) / 2)
    moved -= moved.mean(axis=0)
    return bool(np.linalg.norm(moved, axis=1).max(initial=0.0) < JUMP)


def _full_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    from ase.geometry import complete_cell

    return np.asarray(complete_cell(np.where(pbc[:, None], cell, 0)))


def _superposed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance of each atom after the least-squares rotation (Kabsch, DOI 10.1107/S0567739476001873), Å."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, _, v = np.linalg.svd(a.T @ b)
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v)) or 1.0])
    return np.asarray(np.linalg.norm(a @ u @ turn @ v - b, axis=1))


def _by_composition(composition: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each composition that has at least two."""
    order = rows[np.argsort(composition[rows], kind="stable")]
    for members in np.split(order, np.flatnonzero(composition[order][1:] != composition[order][:-1]) + 1):
        if len(members) > 1:
            yield members


def _nearest_pairs(features: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows, each with its nearest neighbours, the closest pairs first."""
    from scipy.spatial import cKDTree

    k = min(NEAREST + 1, len(rows))
    distance, place = cKDTree(features).query(features, k=k)
    one, other, far = np.repeat(np.arange(len(rows)), k), place.ravel(), distance.ravel()
    apart = one != other
    # Of equally close pairs those of lower rows come first: nothing depends on the tree.
    order = np.lexsort((rows[other[apart]], rows[one[apart]], far[apart]))
    yield from zip(rows[one[apart]][order].tolist(), rows[other[apart]][order].tolist(), strict=True)


def _find_root(root: np.ndarray, row: int) -> int:
    while root[row] != row:
        root[row] = root[root[row]]
        row = int(root[row])
    return row
