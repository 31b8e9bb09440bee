"""The pairs that `daskpipe.core.neighbours` finds are those of matscipy."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from matscipy.neighbours import neighbour_list

from daskpipe.core.neighbours import find_pairs, neighbour_grid
from daskpipe.core.neighbours_kernels import write_neighbours
from daskpipe.core.simd import WIDTH

CUTOFF = 4.3


def unwrapped(atoms: Atoms, seed: int) -> Atoms:
    """Displace the atoms, each by some cell vectors too."""
    rng = np.random.default_rng(seed)
    atoms.rattle(0.2, seed=seed)
    atoms.positions += rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
    return atoms


def structures() -> list[Atoms]:
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    wire = bulk("Cu", cubic=True)
    wire.pbc = (False, True, False)
    sheared = bulk("Si").repeat((1, 2, 1))
    sheared.set_cell(sheared.cell.array + np.array([[0, 0, 0], [3.0, 0, 0], [0, 1.0, 0]]), scale_atoms=True)
    ethanol = molecule("CH3CH2OH", cell=np.eye(3))
    return [unwrapped(atoms, seed) for seed, atoms in enumerate([bulk("Cu"), slab, wire, sheared, ethanol, Atoms("H")])]


def pairs_of_matscipy(atoms: Atoms) -> list[tuple[int, ...]]:
    cell = atoms.cell.array.copy() if atoms.pbc.any() else np.eye(3)
    origin = np.zeros(3)
    # A box around the atoms along open axes.
    for axis in np.flatnonzero(~atoms.pbc):
        cell[axis] *= 60 / np.linalg.norm(cell[axis])
        origin -= cell[axis] / 2
    i, j, shift = neighbour_list(
        "ijS", positions=atoms.positions, cell=cell, pbc=atoms.pbc, cutoff=CUTOFF, cell_origin=origin
    )
    return sorted(zip(i.tolist(), j.tolist(), *shift.T.tolist(), strict=True))


def test_pairs_of_a_batch_are_those_of_matscipy() -> None:
    batch = [*structures(), *structures()[::-1]]
    cells = np.array([atoms.cell.array if atoms.pbc.any() else np.eye(3) for atoms in batch])
    sizes = np.array([len(atoms) for atoms in batch])
    pbc = np.array([atoms.pbc for atoms in batch])
    atoms, n_pairs, offsets = find_pairs(np.concatenate([item.positions for item in batch]), sizes, cells, pbc, CUTOFF)
    assert n_pairs.sum() == atoms.shape[1] == len(offsets)
    assert (np.diff(atoms[0]) >= 0).all()
    start, first = 0, 0
    for item, n in zip(batch, n_pairs.tolist(), strict=True):
        rows = slice(start, start + n)
        found = zip(*(atoms[:, rows] - first).tolist(), *offsets[rows].T.tolist(), strict=True)
        assert sorted(found) == pairs_of_matscipy(item), item
        start, first = start + n, first + len(item)


def test_a_cell_that_spans_nothing_is_refused() -> None:
    flat = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]])
    with pytest.raises(np.linalg.LinAlgError, match="Singular matrix"):
        find_pairs(np.zeros((1, 3)), np.array([1]), flat[None], np.ones((1, 3), dtype=bool), CUTOFF)


@pytest.mark.parametrize("periodic", [False, True])
def test_points_around_any_centre_are_those_of_all_images(periodic: bool) -> None:
    rng = np.random.default_rng(0)
    atoms = Atoms("Cu5", scaled_positions=rng.random((5, 3)), cell=[[3, 0, 0], [1, 4, 0], [0, -1, 9]], pbc=[1, 1, 0])
    centres = rng.uniform(-6, 12, (20, 3))
    cutoff, n_images = 4.0, 20
    images = [
        atoms.positions + a * atoms.cell.array[0] + b * atoms.cell.array[1]
        for a in range(-n_images, n_images + 1)
        for b in range(-n_images, n_images + 1)
    ]
    points = np.concatenate(images) if periodic else atoms.positions
    expected = [np.sort(distances[distances <= cutoff]) for distances in _distances(points, centres)]
    grid = neighbour_grid(atoms, cutoff, centres=centres, periodic=periodic)
    found = np.empty(grid.points.shape[1] + WIDTH, np.int32)
    for centre, wanted in zip(grid.positions, expected, strict=True):
        numbers = found[: write_neighbours(centre, grid, found)]
        received = np.linalg.norm(grid.points[:, numbers].T - centre, axis=1)
        np.testing.assert_allclose(np.sort(received), wanted, atol=1e-10)
    assert sum(map(len, expected)) > (20 if periodic else 2)


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points - centres[:, None], axis=2)
