"""Neighbours in batches of any periodicities, against a slow loop; and that remembering them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from mixed_structures import random_structure
from reference.neighbours import neighbours as slow_neighbours

from daskpipe.potentials.batches import (
    NeighbourFinder,
    cell_volumes,
    complete_cells,
    find_neighbours,
    lost_systems,
    make_state,
    periodic_axes,
)

CPU = torch.device("cpu")
CUTOFF = 4.3


def state_of(structures: list[Atoms], dtype: torch.dtype = torch.float64):
    return make_state(structures, CPU, dtype)


def edges_of(found, structures: list[Atoms]) -> list[list[tuple[int, ...]]]:
    """Edges of each structure, numbered from its own first atom, in the order found."""
    start = np.cumsum([0, *map(len, structures)])
    out: list[list[tuple[int, ...]]] = [[] for _ in structures]
    columns = (found.first, found.second, found.system, found.offsets.T.long())
    for first, second, system, offset in zip(*(column.tolist() for column in columns), strict=True):
        out[system].append((first - start[system], second - start[system], *offset))
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_those_of_a_slow_loop_in_canonical_order(seed: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    structures = [random_structure(rng) for _ in range(8)]
    found = find_neighbours(state_of(structures, dtype), CUTOFF)
    expected = [slow_neighbours(atoms, CUTOFF) for atoms in structures]
    assert sum(map(len, expected)) > 100
    assert edges_of(found, structures) == expected
    lengths = found.vectors.square().sum(dim=0)
    torch.testing.assert_close(lengths, found.squares)
    assert torch.equal(found.per_atom, torch.bincount(found.first, minlength=sum(map(len, structures))))


def test_large_systems_take_the_other_search_and_give_the_same() -> None:
    large = bulk("Cu", cubic=True) * (4, 5, 4)
    large.rattle(0.1, seed=1)
    small = bulk("Cu", cubic=True)
    assert len(large) > 256
    structures = [small, large]
    found = edges_of(find_neighbours(state_of(structures), CUTOFF), structures)
    assert found[0] == slow_neighbours(small, CUTOFF)
    assert found[0] == edges_of(find_neighbours(state_of([small]), CUTOFF), [small])[0]
    row = [edge for edge in slow_neighbours(large[:40], 2.7)[:20] if not any(edge[2:])]
    assert row
    assert set(row) <= set(edges_of(find_neighbours(state_of([large]), 2.7), [large])[0])


def test_matter_denser_than_the_search_expects() -> None:
    dense = bulk("Cu", "fcc", a=1.3)
    found = find_neighbours(state_of([dense, bulk("Cu")]), CUTOFF)
    assert edges_of(found, [dense, bulk("Cu")])[0] == slow_neighbours(dense, CUTOFF)


def walk(rng: np.random.Generator, n_steps: int, step: float, strain: float):
    """States of one trajectory: atoms wander, cells are strained a little at each step."""
    structures = [random_structure(rng) for _ in range(5)]
    for _ in range(n_steps):
        for atoms in structures:
            deformation = np.eye(3) + rng.normal(scale=strain, size=(3, 3))
            atoms.set_cell(atoms.cell.array @ deformation)
            atoms.positions = atoms.positions @ deformation + rng.normal(scale=step, size=atoms.positions.shape)
        yield state_of(structures)


@pytest.mark.parametrize(
    ("step", "strain", "fewest", "most"), [(0.04, 0, 2, 10), (0.04, 1e-3, 2, 15), (0.4, 0, 40, 40)]
)
def test_a_finder_that_remembers_finds_the_same(step: float, strain: float, fewest: int, most: int) -> None:
    find = NeighbourFinder(CUTOFF)
    searches: list[object] = []
    for state in walk(np.random.default_rng(5), 40, step, strain):
        found, expected = find(state), find_neighbours(state, CUTOFF)
        for name in ("first", "second", "system", "offsets", "vectors", "squares", "per_atom"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        if not searches or searches[-1] is not find._last:
            searches.append(find._last)
    # Short steps are served by few searches; steps as long as the skin need one each.
    assert fewest <= len(searches) <= most


def test_a_finder_sees_that_the_batch_is_another(make) -> None:
    find = NeighbourFinder(CUTOFF)
    slab = make("slab")
    slab.set_cell(slab.cell.array + np.diag([0, 0, 3.0]))
    closed = slab.copy()
    closed.pbc = True
    for structures in ([slab], [closed], [slab, slab], [make("cluster")]):
        assert edges_of(find(state_of(structures)), structures) == [slow_neighbours(one, CUTOFF) for one in structures]


def test_a_state_that_says_nothing_has_one_periodicity_for_all() -> None:
    from daskpipe.core.torch_sim import torch_sim

    state = torch_sim.io.atoms_to_state([bulk("Cu"), bulk("Ag")], CPU, torch.float64)
    assert periodic_axes(state).tolist() == [[True] * 3] * 2


def test_a_batch_tells_periodicity_charge_and_spin(make) -> None:
    slab = make("slab")
    slab.info = {"charge": 1, "spin_multiplicity": 2}
    state = state_of([slab, bulk("Cu")])
    assert periodic_axes(state).tolist() == [[True, True, False], [True] * 3]
    assert state.charge.tolist() == [1, 0]
    assert state.spin.tolist() == [2, 2]
    np.testing.assert_array_equal(state.row_vector_cell[0].numpy(), slab.cell.array)


@pytest.mark.parametrize("pbc", [(1, 1, 0), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0)])
def test_completed_cells(pbc: tuple[int, int, int]) -> None:
    axes = torch.tensor([pbc], dtype=torch.bool)
    cell = torch.tensor(np.random.default_rng(1).normal(size=(1, 3, 3)))
    whole = complete_cells(cell, axes)[0]
    kept, free = whole[axes[0]], whole[~axes[0]]
    assert torch.equal(kept, cell[0][axes[0]])
    torch.testing.assert_close(free @ free.T, torch.eye(len(free), dtype=cell.dtype))
    torch.testing.assert_close(free @ kept.T, torch.zeros(len(free), len(kept), dtype=cell.dtype))


def test_volumes() -> None:
    open_slab = fcc111("Cu", (1, 1, 3), a=3.6)
    closed = fcc111("Cu", (1, 1, 3), a=3.6, vacuum=5.0)
    left_handed = bulk("Cu")
    left_handed.cell[[0, 1]] = left_handed.cell[[1, 0]]
    flat = bulk("Cu")
    flat.cell[2] = 0.3 * flat.cell[0] - 0.7 * flat.cell[1]
    found = cell_volumes(state_of([open_slab, closed, left_handed, flat]).row_vector_cell)
    np.testing.assert_allclose(found.numpy(), [np.nan, closed.get_volume(), bulk("Cu").get_volume(), np.nan])


def test_lost_systems_have_no_neighbours_and_leave_the_others_alone(make) -> None:
    structures = [make("alloy", seed) for seed in range(4)]
    whole = [edges_of(find_neighbours(state_of([atoms]), CUTOFF), [atoms])[0] for atoms in structures]
    state = state_of(structures)
    state.positions[len(structures[0])] = torch.nan
    state.cell[2] = torch.inf
    assert lost_systems(state).tolist() == [False, True, True, False]
    found = edges_of(find_neighbours(state, CUTOFF), structures)
    assert found[0] == whole[0]
    assert found[3] == whole[3]
