"""The gate treats magnetic states of one geometry as different structures, and copies as duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from daskpipe.core.structures import from_atoms
from daskpipe.store import arrange_and_write
from daskpipe.store.quality.gate import judge

N = 6


@pytest.mark.parametrize(("second", "share"), [([2.2, -2.2], 0.0), ([2.2, 2.2], 0.5)], ids=["states", "copies"])
def test_duplicates(second: list[float], share: float, tmp_path: Path) -> None:
    frames = []
    for number in range(N):
        for moments, shift in (([2.2, 2.2], 0.0), (second, 0.3)):
            atoms = Atoms("Fe2", positions=[[0, 0, 0], [1.435] * 3], cell=[2.87 + 0.05 * number] * 3, pbc=True)
            atoms.positions += shift  # a motion of the whole, which ids see
            atoms.set_initial_magnetic_moments(moments)
            atoms.calc = SinglePointCalculator(atoms, energy=-8.0, forces=np.zeros((2, 3)))
            frames.append(atoms)
    arrange_and_write(
        from_atoms(frames), tmp_path / "a.zarr", seed=0, fractions={"train": 1.0}, attrs={"dataset_key": "iron"}
    )
    (check,) = [item for item in judge(tmp_path / "a.zarr").checks if item.name == "duplicates"]
    assert check.value == share
