from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from daskpipe.potentials import make_periodic
from daskpipe.potentials.box import SLACK

CUTOFF = 5.0


def structure(kind: str, make) -> Atoms:
    if kind == "wire":
        atoms = make("cluster")
        atoms.set_cell([[3.0, 2.0, 5.0], [0, 0, 0], [0, 0, 0]])
        atoms.pbc = [True, False, False]
        return atoms
    atoms = make(kind.removesuffix("_on_its_side"))
    if kind.endswith("_on_its_side"):
        atoms.cell[[1, 2]] = atoms.cell[[2, 1]]
        atoms.pbc = [True, False, True]
    return atoms


@pytest.mark.parametrize("kind", ["alloy", "slab", "slab_on_its_side", "wire", "cluster"])
def test_a_box_adds_no_neighbours(kind: str, make) -> None:
    atoms = structure(kind, make)
    inside = make_periodic(atoms, CUTOFF)
    assert inside.pbc.all()
    expected = np.sort(neighbor_list("d", atoms, CUTOFF))
    assert len(expected) > 0
    np.testing.assert_allclose(np.sort(neighbor_list("d", inside, CUTOFF)), expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["alloy", "slab", "slab_on_its_side", "wire"])
def test_periodic_vectors_and_shape_stay(kind: str, make) -> None:
    atoms = structure(kind, make)
    before = atoms.copy()
    inside = make_periodic(atoms, CUTOFF)
    np.testing.assert_array_equal(inside.cell.array[atoms.pbc], atoms.cell.array[atoms.pbc])
    np.testing.assert_allclose(inside.get_all_distances(), atoms.get_all_distances(), atol=1e-9)
    np.testing.assert_array_equal(atoms.positions, before.positions)


def test_vacuum_is_measured_between_images(make) -> None:
    inside = make_periodic(make("cluster"), CUTOFF)
    np.testing.assert_allclose(inside.cell.lengths(), np.ptp(inside.positions, axis=0) + CUTOFF + SLACK)
    np.testing.assert_allclose(inside.positions.min(axis=0), (CUTOFF + SLACK) / 2)
