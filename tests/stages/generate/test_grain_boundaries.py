"""Grain boundaries: composition, coincidence, grains that are whole crystals, and what cannot be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from pydantic import ValidationError

from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.grain_boundaries import Wanted, grain_boundaries, join_grains, list_boundaries

TWIN = {"sigma": (3,), "axes": ((1, 1, 1),), "planes": ((1, 1, 1),)}


def draw(of: Any, index: int = 0, seed: int = 0, **params: Any) -> Atoms:
    given = {"n_atoms": (20, 120), "of": check_base(of), "sigma": (3, 5), "axes": ((0, 0, 1), (1, 1, 1)), **params}
    atoms = next(grain_boundaries(rng=np.random.default_rng(seed), index=index, **given))
    assert isinstance(atoms, Atoms)
    return atoms


@pytest.mark.slow
@pytest.mark.parametrize("formula", ["Cu", "NaCl"])
def test_boundaries_are_stoichiometric_dense_and_valid(formula: str) -> None:
    crystal = draw(formula, **TWIN, rattle=0, gap=(0, 0))  # a twin is as dense as the crystal, nearly
    volume = crystal.get_volume() / len(crystal)
    sizes = set()
    for index in range(8):
        atoms = draw(formula, index=index, seed=index)
        assert find_fault(atoms, Limits()) is None
        assert atoms.pbc.all()
        assert system_type(atoms) == "bulk"
        assert atoms.info["system_type"] == "grain_boundary"
        counts = Counter(atoms.symbols)
        assert len(set(counts.values())) == 1
        assert 0.9 < atoms.get_volume() / len(atoms) / volume < 1.35
        sizes.add(len(atoms))
    assert len(sizes) > 1


def test_a_coherent_twin_has_the_neighbours_of_copper() -> None:
    """A sigma 3 (111) boundary whose grains are not shifted is a stacking fault: each atom keeps twelve neighbours."""

    class Unmoved(np.random.Generator):
        def random(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros(args[0])

    (boundary,) = list_boundaries(bulk("Cu", a=3.61), Wanted((3,), ((1, 1, 1),), ((1, 1, 1),), (5, 7), 24))
    atoms = join_grains(Unmoved(np.random.PCG64(0)), boundary, 0.0, 0.0)
    assert isinstance(atoms, Atoms)
    assert np.bincount(neighbor_list("i", atoms, 1.2 * 3.61 / 2**0.5)).tolist() == [12] * 24
    assert atoms.get_volume() / 24 == pytest.approx(3.61**3 / 4, rel=1e-3)


def test_a_grain_is_as_thick_as_asked() -> None:
    for low, high in ((5.0, 8.0), (10.0, 14.0)):
        atoms = draw("Cu", thickness=(low, high), gap=(0, 0), rattle=0, **TWIN)
        height = atoms.get_volume() / np.linalg.norm(np.cross(*atoms.cell.array[:2]))
        assert low <= height / 2 <= high + 1.5  # the grains may have been moved apart


def test_another_seed_puts_the_grains_elsewhere() -> None:
    first, second = (draw("Cu", seed=seed, rattle=0) for seed in (0, 1))
    assert len(first) == len(second)
    assert np.abs(first.positions - second.positions).max() > 0.1


@pytest.mark.parametrize(
    ("of", "params", "message"),
    [
        (bulk("Mg"), {}, "of: Mg2 is hexagonal; grain boundaries are made of cubic crystals"),
        (molecule("H2O"), {}, "of: H2O is not periodic along three axes; give a crystal"),
        (bulk("Cu"), {"n_atoms": (3, 5)}, r"no grain boundary of Cu of 3 to 5 atoms; the nearest sizes are"),
        (bulk("Cu"), {"sigma": (3,), "axes": ((0, 0, 1),)}, r"Cu has no such boundary .* axis \[0, 0, 1\] sigma is 5"),
    ],
)
def test_impossible_boundaries_are_refused(of: Atoms, params: dict[str, Any], message: str, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "base.extxyz", of)
    with pytest.raises(ValueError, match=message):
        draw(str(tmp_path / "base.extxyz"), **params)


def test_an_even_sigma_is_none() -> None:
    with pytest.raises(
        ValidationError, match="sigma of a cubic crystal is an odd number of at least 3, e.g. 3, 5, 7 or 9; received 4"
    ):
        GENERATORS.check_params("grain_boundaries", {"of": "Cu", "n_atoms": 60, "sigma": [4]})
