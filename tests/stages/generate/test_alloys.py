"""Bulk alloys."""

from __future__ import annotations

from itertools import islice
from typing import Literal

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.geometry import cell_widths
from daskpipe.stages.generate.alloys import MAX_ELONGATION, Lattice, alloys, find_supercells, list_grid
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.order import list_shells, order_parameters

COORDINATION: dict[Lattice, int] = {"fcc": 12, "bcc": 8, "hcp": 12}
COPPER_NEIGHBOURS = 2.553
"""Å, in fcc copper."""


def draw(seed: int = 0, n: int = 1, **params: object) -> list[Atoms]:
    given = {"elements": {"Cu": (0, 1), "Ag": (0, 1), "Au": (0, 1)}, "n_atoms": (12, 32), **params}
    return list(islice(alloys(rng=np.random.default_rng(seed), **given), n))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    low=st.integers(4, 40),
    gold=st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
    lattice=st.sampled_from(sorted(COORDINATION)),
)
def test_size_and_composition_lie_in_their_ranges(
    seed: int, low: int, gold: tuple[float, float], lattice: Lattice
) -> None:
    high = 2 * low + 8
    (atoms,) = draw(seed, elements={"Cu": (0.0, 1.0), "Au": gold}, n_atoms=(low, high), lattices=[lattice])
    assert low <= len(atoms) <= high
    n_gold = np.count_nonzero(atoms.numbers == 79)
    assert gold[0] * len(atoms) - 1 <= n_gold <= gold[1] * len(atoms) + 1
    assert set(atoms.symbols) <= {"Cu", "Au"}
    assert atoms.pbc.all()
    assert atoms.info == {"system_type": "alloy"}
    assert find_fault(atoms, Limits()) is None


@pytest.mark.parametrize("lattice", sorted(COORDINATION))
def test_lattices_have_their_coordination(lattice: Lattice) -> None:
    for atoms in draw(n=20, elements={"Cu": 1.0}, lattices=[lattice], strain=0, rattle=0):
        distances = neighbor_list("d", atoms, 3.5)
        nearest = distances.min()
        assert np.count_nonzero(distances < nearest * 1.05) == COORDINATION[lattice] * len(atoms)
        if lattice != "bcc":
            assert nearest == pytest.approx(COPPER_NEIGHBOURS, rel=1e-3)


def test_volume_is_the_mean_of_the_elements() -> None:
    (atoms,) = draw(elements={"Cu": 0.5, "Au": 0.5}, n_atoms=16, strain=0)
    assert atoms.get_volume() / len(atoms) == pytest.approx((3.61**3 + 4.08**3) / 8)


def test_all_lattices_and_sizes_occur() -> None:
    found = draw(n=300, elements={"Cu": 1.0}, strain=0, rattle=0)
    assert {len(atoms) for atoms in found} == set(find_supercells("fcc", 12, 32)) | set(
        find_supercells("bcc", 12, 32)
    ) | set(find_supercells("hcp", 12, 32))


@pytest.mark.parametrize("lattice", sorted(COORDINATION))
def test_supercells_are_compact(lattice: Lattice) -> None:
    for atoms in draw(n=50, lattices=[lattice], n_atoms=(2, 120), strain=0):
        assert (
            np.ptp(cell_widths(atoms.cell.array)) <= (MAX_ELONGATION - 1) * cell_widths(atoms.cell.array).min() + 1e-6
        )


def test_same_stream_same_structures_and_other_stream_others() -> None:
    assert draw(1, n=3) == draw(1, n=3)
    assert draw(1)[0] != draw(2)[0]


def test_size_without_a_compact_supercell_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no compact supercell of hcp of 13 to 13 atoms; the nearest sizes are 8, 12, 16"
    ):
        draw(lattices=["hcp"], n_atoms=13)


def test_parameters_are_checked_when_called() -> None:
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        alloys(rng=np.random.default_rng(0), elements={"Cu": 0.5, "Au": 0.4}, n_atoms=8)


def test_grid_goes_through_all_compositions() -> None:
    grid = {"elements": {"Cu": (0.0, 1.0), "Ag": (0.0, 0.5), "Au": (0.25, 1.0)}, "n_atoms": 32, "grid": 0.25}
    drawn = [
        next(alloys(rng=np.random.default_rng(0), index=index, lattices=("fcc",), **grid))  # type: ignore[arg-type]
        for index in range(len(list_grid(tuple(grid["elements"].items()), 0.25)))  # type: ignore[attr-defined]
    ]
    counts = {tuple(np.count_nonzero(atoms.symbols == symbol) for symbol in ("Cu", "Ag", "Au")) for atoms in drawn}
    assert len(counts) == len(drawn) == 9
    assert all(number % 8 == 0 and gold >= 8 for number, _, gold in counts)


@pytest.mark.parametrize("order", ["sqs", "short_range"])
def test_order_keeps_composition_and_size(order: Literal["sqs", "short_range"]) -> None:
    given = {"elements": {"Cu": 0.5, "Au": 0.5}, "n_atoms": 32, "lattices": ["fcc"], "strain": 0, "rattle": 0}
    (atoms,) = draw(order=order, **given)
    parameter = order_parameters(atoms.numbers, list_shells(atoms, 1)[0])[0, 1]
    assert np.count_nonzero(atoms.symbols == "Au") == 16
    assert parameter == pytest.approx({"sqs": 0.0, "short_range": -0.2}[order], abs=0.05)


def test_all_metals_alloy() -> None:
    for symbol in ("Mn", "Ga", "In", "Sn", "Sb", "Bi", "Hg", "Pu"):
        (atoms,) = draw(elements={symbol: 0.5, "Cu": 0.5}, n_atoms=16)
        assert find_fault(atoms, Limits()) is None


@pytest.mark.parametrize(
    ("elements", "grid", "message"),
    [
        ({"Cu": (0.0, 1.0), "Au": (0.0, 1.0)}, 0.3, r"grid: 0.3 does not divide 1"),
        ({"Cu": (0.45, 0.48), "Au": (0.0, 1.0)}, 0.1, r"no composition within the fractions has multiples of 0.1"),
        (dict.fromkeys(("Cu", "Ag", "Au", "Pd", "Pt"), (0.0, 1.0)), 0.02, r"more than 10000 compositions"),
    ],
)
def test_grids_without_end_or_compositions_are_refused(
    elements: dict[str, tuple[float, float]], grid: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(elements=elements, grid=grid)
