"""Connect frames of one system that have no lineage by the positions of their atoms, in any order of the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daskpipe.core.geometry import complete_open_axes

IMPORTED = "import"
"""Generator of imported structures: only the structures themselves show which belong together."""

MOST_FRAMES, MOST_ATOMS = 1_024, 2**20
"""Most frames with the same atoms in the same order, and most atoms in them, that are all compared with each other."""

NEAREST = 16
"""Neighbours in feature space with which a frame is compared where there are more frames."""

JUMP = 1.0
"""Upper bound of the displacement of an atom between two connected frames, Å: more than a thermal vibration, less than
a bond."""

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
    """Connect imported frames of one system: two frames are connected if a chain of near frames links them.

    Frames are near if they have the same atoms in the same order and no atom moves by `JUMP`, after translation (in
    open directions also rotation) and strain are removed. The order of the frames and their files do not matter. Each
    frame is compared with all others of the same atoms; where these are more than `MOST_FRAMES`, with its `NEAREST`
    neighbours among them in feature space.

    Parameters
    ----------
    columns
        ``structure_id`` and, where the data has them, ``generator`` and ``features``; one row per structure.
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
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for row in imported.tolist():
        frame = frame_of(row)
        alike.setdefault((frame.numbers.tobytes(), frame.pbc.tobytes()), []).append(row)
    for members in alike.values():
        rows = np.array(members)
        if len(rows) <= MOST_FRAMES and len(rows) * len(frame_of(members[0]).numbers) <= MOST_ATOMS:
            component[rows] = rows[_connect_all([frame_of(row) for row in members])]
        else:
            component[rows] = rows[_connect_neighbours(columns.get("features"), rows, frame_of)]
    return component


def is_near(a: Frame, b: Frame) -> bool:
    """Return whether two frames have the same atoms in the same order, and no atom moves by `JUMP` between them."""
    if not (np.array_equal(a.numbers, b.numbers) and np.array_equal(a.pbc, b.pbc)):
        return False
    return bool(_AlikeFrames.from_frames([a, b]).find_near(0, np.array([1]))[0])


def _connect_all(frames: Sequence[Frame]) -> np.ndarray:
    """Return the first frame of the component of each frame, for frames with the same atoms, shape (frame,)."""
    alike, first = _AlikeFrames.from_frames(frames), np.full(len(frames), -1)
    for start in range(len(frames)):
        if first[start] >= 0:
            continue
        first[start], ahead = start, [start]
        while ahead and len(others := np.flatnonzero(first < 0)):
            reached = others[alike.find_near(ahead.pop(), others)]
            first[reached] = start
            ahead += reached.tolist()
    return first


@dataclass(frozen=True)
class _AlikeFrames:
    """Frames with the same atoms in the same order.

    Parameters
    ----------
    places
        Scaled positions, shape (frame, atom, 3); without periodic directions, positions relative to their centre, Å.
    cells
        Cells with unit normals along open directions, shape (frame, 3, 3), Å.
    pbc
        Periodic along each vector, shape (3,).
    """

    places: np.ndarray
    cells: np.ndarray
    pbc: np.ndarray

    @classmethod
    def from_frames(cls, frames: Sequence[Frame]) -> _AlikeFrames:
        pbc = frames[0].pbc.astype(bool)
        positions = np.stack([frame.positions for frame in frames]).astype(np.float64)
        if not pbc.any():
            return cls(positions - positions.mean(axis=1, keepdims=True), np.zeros((len(frames), 3, 3)), pbc)
        cells = np.stack([complete_open_axes(frame.cell, pbc) for frame in frames])
        flat = np.abs(np.linalg.det(cells)) < 1e-6
        cells[flat] = np.nan  # near no other frame
        places = np.full(positions.shape, np.nan)
        places[~flat] = positions[~flat] @ np.linalg.inv(cells[~flat])
        return cls(places, cells, pbc)

    def find_near(self, one: int, others: np.ndarray) -> np.ndarray:
        """Return which of some frames are near a frame, shape (frame,), bool."""
        if not self.pbc.any():
            return np.asarray(_superpose_frames(self.places[one], self.places[others]).max(axis=1, initial=0.0) < JUMP)
        if np.isnan(self.cells[one]).any():
            return np.zeros(len(others), dtype=np.bool_)
        strain = np.linalg.solve(self.cells[one], self.cells[others]) - np.eye(3)
        near: np.ndarray = np.abs(strain).max(axis=(1, 2)) <= MAX_STRAIN  # false for NaN
        scaled = self.places[others[near]] - self.places[one]
        scaled[:, :, self.pbc] -= np.rint(scaled[:, :, self.pbc])
        moved = scaled @ ((self.cells[one] + self.cells[others[near]]) / 2)
        moved -= moved.mean(axis=1, keepdims=True)
        near[near] = np.einsum("fax,fax->fa", moved, moved).max(axis=1, initial=0.0) < JUMP**2
        return near


def _connect_neighbours(features: np.ndarray | None, rows: np.ndarray, frame_of: Callable[[int], Frame]) -> np.ndarray:
    """Return the first frame of the component of each row, comparing neighbours in feature space, shape (row,)."""
    from scipy.cluster.hierarchy import DisjointSet

    first = np.arange(len(rows))
    described = np.flatnonzero(np.isfinite(features[rows]).all(axis=1)) if features is not None else first[:0]
    if features is None or len(described) < 2:
        return first
    components = DisjointSet(described.tolist())
    for one, other in _iter_nearest_pairs(features[rows[described]].astype(np.float64), described):
        # Frames that a chain already connects need no comparison.
        if not components.connected(one, other) and is_near(frame_of(int(rows[one])), frame_of(int(rows[other]))):
            components.merge(one, other)
    for members in components.subsets():
        first[list(members)] = min(members)
    return first


def _superpose_frames(a: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rotate `a` onto each of the other frames, and return the distances of the atoms, shape (frame, atom), Å.

    Positions are relative to the centre. Least-squares rotation by Kabsch, DOI 10.1107/S0567739476001873.
    """
    u, _, v = np.linalg.svd(a.T @ others)
    turn = np.repeat(np.eye(3)[None], len(others), axis=0)
    turn[:, 2, 2] = np.where(np.linalg.det(u @ v) < 0, -1, 1)
    return np.asarray(np.linalg.norm(a @ (u @ turn @ v) - others, axis=2))


def _iter_nearest_pairs(features: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of each row and its nearest neighbours, the closest pairs first."""
    from scipy.spatial import cKDTree

    k = min(NEAREST + 1, len(rows))
    distance, place = cKDTree(features).query(features, k=k)
    one, other, distances = np.repeat(np.arange(len(rows)), k), place.ravel(), distance.ravel()
    differ = one != other
    # Equally close pairs are sorted by row, so that the result does not depend on the tree.
    order = np.lexsort((rows[other[differ]], rows[one[differ]], distances[differ]))
    yield from zip(rows[one[differ]][order].tolist(), rows[other[differ]][order].tolist(), strict=True)
