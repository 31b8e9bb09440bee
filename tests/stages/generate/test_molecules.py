"""Molecules of the G2 set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.collections import g2
from pydantic import ValidationError

from daskpipe.core.structures import spin_multiplicity
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.molecules import expand_requests, molecules


def test_every_molecule_of_the_set_passes_the_checks() -> None:
    made = list(molecules(rng=np.random.default_rng(0), n_atoms=(1, 100), rattle=0))
    assert len(made) == len(g2.names) == 162
    for atoms in made:
        assert find_fault(atoms, Limits()) is None
        assert atoms.info["system_type"] == "molecule"
        assert not atoms.pbc.any()
        assert atoms.cell.rank == 3


@pytest.mark.parametrize(
    ("name", "multiplicity"), [("H2O", 1), ("O2", 3), ("OH", 2), ("CH2_s3B1d", 3), ("CH2_s1A1d", 1)]
)
def test_spin_is_that_of_the_ground_state(name: str, multiplicity: int) -> None:
    (atoms,) = molecules(rng=np.random.default_rng(0), names=[name])
    assert spin_multiplicity(atoms) == atoms.info["spin_multiplicity"] == multiplicity
    assert atoms.info["charge"] == 0


def test_elements_and_sizes_select() -> None:
    made = list(molecules(rng=np.random.default_rng(0), elements=["H", "O"], n_atoms=(3, 4)))
    assert sorted(str(atoms.symbols.formula.format("hill")) for atoms in made) == ["H2O", "H2O2", "O3"]


def test_names_are_taken_in_order_whatever_their_size() -> None:
    made = molecules(rng=np.random.default_rng(0), names=["O", "CH4", "O"])
    assert [len(atoms) for atoms in made] == [1, 5]


def test_rattle_moves_atoms_and_none_leaves_the_geometry() -> None:
    (still,) = molecules(rng=np.random.default_rng(0), names=["CH4"], rattle=0)
    (moved,) = molecules(rng=np.random.default_rng(0), names=["CH4"], rattle=0.05)
    reference = g2["CH4"].get_all_distances()
    np.testing.assert_allclose(still.get_all_distances(), reference)
    assert 1e-3 < np.abs(moved.get_all_distances() - reference).max() < 0.5


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(ValidationError, match=r"unknown molecule 'CH3CH3OH'\. Near: .*CH3CH2OH.* lists all 162"):
        GENERATORS.check_params("molecules", {"names": ["CH3CH3OH"]})


def test_expand_gives_one_request_a_molecule_and_goes_round() -> None:
    params = GENERATORS.check_params("molecules", {"names": ["H2O", "CH4"]})
    assert [item["names"] for item, _ in expand_requests(params, None, Path())] == [["H2O"], ["CH4"]]
    assert [item["names"] for item, _ in expand_requests(params, 1, Path())] == [["H2O"]]
    assert [item["names"] for item, _ in expand_requests(params, 5, Path())] == [
        ["H2O"],
        ["CH4"],
        ["H2O"],
        ["CH4"],
        ["H2O"],
    ]


def test_expand_refuses_copies_and_nothing() -> None:
    params = GENERATORS.check_params("molecules", {"names": ["H2O"], "rattle": 0})
    with pytest.raises(ValueError, match="n: 2 molecules were asked for and 1 match; lower n, or set rattle above 0"):
        expand_requests(params, 2, Path())
    with pytest.raises(ValueError, match=r"no molecule is left with elements \['Au'\]"):
        expand_requests(GENERATORS.check_params("molecules", {"elements": ["Au"]}), None, Path())
