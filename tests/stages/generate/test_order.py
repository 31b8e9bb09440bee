"""Order of the elements on the sites of alloys."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from daskpipe.stages.generate.order import arrange_elements, list_shells, order_parameters

NEIGHBOURS = {"fcc": (12, 6), "bcc": (8, 6), "hcp": (12, 6)}
CONSTANT = {"fcc": 4.0, "bcc": 3.2, "hcp": 2.8}


def lattice(name: str, repeats: int) -> Atoms:
    ideal = {"covera": (8 / 3) ** 0.5} if name == "hcp" else {}
    cell: Atoms = bulk("Cu", name, a=CONSTANT[name], **ideal)
    return cell.repeat(repeats)


def half(atoms: Atoms) -> Atoms:
    atoms.numbers[: len(atoms) // 2] = 79
    return atoms


@pytest.mark.parametrize("name", sorted(NEIGHBOURS))
@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_shells_have_their_neighbours_also_in_small_cells(name: str, repeats: int) -> None:
    atoms = lattice(name, repeats)
    assert tuple(len(shell.first) / len(atoms) for shell in list_shells(atoms, 2)) == NEIGHBOURS[name]


@pytest.mark.parametrize("name", sorted(NEIGHBOURS))
def test_quasirandom_pairs_are_nearly_those_of_a_random_alloy(name: str) -> None:
    atoms = half(lattice(name, 4))
    arrange_elements(np.random.default_rng(0), atoms, [0.0, 0.0, 0.0])
    for shell in list_shells(atoms, 3):
        assert abs(order_parameters(atoms.numbers, shell)[0, 1]) < 0.05
    assert np.count_nonzero(atoms.numbers == 79) == len(atoms) // 2


@pytest.mark.parametrize("target", [-0.2, 0.2, 0.4])
def test_short_range_order_is_reached(target: float) -> None:
    atoms = half(lattice("fcc", 4))
    arrange_elements(np.random.default_rng(1), atoms, [target])
    assert order_parameters(atoms.numbers, list_shells(atoms, 1)[0])[0, 1] == pytest.approx(target, abs=0.05)


def test_sqsgenerator_counts_the_same_pairs() -> None:
    sqsgenerator = pytest.importorskip("sqsgenerator")
    cell = bulk("Cu", cubic=True).repeat(3)
    settings = {
        "structure": {
            "lattice": cell.cell.array.tolist(),
            "coords": cell.get_scaled_positions().tolist(),
            "species": ["Cu"] * len(cell),
        },
        "composition": {"Cu": 54, "Au": 54}, "iterations": 10, "seed": 1, "thread_config": 1, "shell_weights": {1: 1.0},
        "max_results_per_objective": 1,
    }  # fmt: skip
    best = sqsgenerator.optimize(sqsgenerator.parse_config(settings)).best()
    atoms = sqsgenerator.to_ase(best.structure())
    ours = order_parameters(atoms.numbers, list_shells(atoms, 1)[0])[0, 1]
    # sqsgenerator's objective is the sum over all pairs of species of the absolute parameters of the shell.
    assert best.objective == pytest.approx(abs(ours), abs=1e-6)


def test_one_element_is_left_alone() -> None:
    atoms = lattice("fcc", 2)
    arrange_elements(np.random.default_rng(0), atoms, [0.0])
    assert set(atoms.symbols) == {"Cu"}
