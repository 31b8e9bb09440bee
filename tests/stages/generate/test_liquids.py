"""Liquids in periodic boxes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daskpipe.core.connectivity import find_neighbours
from daskpipe.core.errors import Rejection
from daskpipe.core.geometry import label_parts
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate import liquids as module
from daskpipe.stages.generate.liquids import liquids, round_shares
from daskpipe.stages.generate.packing import PackingError, pack_box, vdw_volume


def draw(*, index: int = 0, seed: int = 0, **params: Any) -> Atoms:
    made = next(liquids(rng=np.random.default_rng(seed), index=index, **params))
    assert isinstance(made, Atoms), made
    return made


def density_of(atoms: Atoms) -> float:
    return float(atoms.get_masses().sum() / atoms.get_volume() * 1.66053907)


def test_mixture_has_whole_molecules_in_the_amounts_and_the_density() -> None:
    atoms = draw(names={"H2O": 3}, smiles={"CO": 1}, n_atoms=(60, 60), density=0.9)
    sizes = Counter(np.bincount(label_parts(atoms, 1.25)).tolist())
    assert sizes == {3: 12, 6: 4}
    assert density_of(atoms) == pytest.approx(0.9)
    assert atoms.pbc.all()
    assert atoms.info == {"system_type": "liquid", "charge": 0, "spin_multiplicity": 1}


def test_atoms_of_different_molecules_are_two_angstrom_apart_also_through_the_boundaries() -> None:
    atoms = draw(names={"H2O": 1}, n_atoms=(90, 90), density=1.0)
    parts = label_parts(atoms, 1.25)
    i, j, d = find_neighbours(atoms, 3.0, "ijd")
    apart = parts[i] != parts[j]
    assert apart.sum() > 50
    assert d[apart].min() > 1.98  # packmol's tolerance is 0.01 Å


def test_sizes_are_spread_over_requests() -> None:
    sizes = {len(draw(index=index, names={"H2O": 1}, n_atoms=(30, 60))) for index in range(8)}
    assert len(sizes) >= 6
    assert min(sizes) >= 30
    assert max(sizes) <= 60


@pytest.mark.parametrize(
    ("smiles", "measured"), [("CCO", 0.785), ("c1ccccc1", 0.873), ("CCCCCC", 0.655), ("CC#N", 0.776), ("O", 0.997)]
)
def test_default_density_is_near_that_at_room_temperature(smiles: str, measured: float) -> None:
    """Densities at 25 °C, CRC Handbook."""
    made = density_of(draw(smiles={smiles: 1}, n_atoms=(80, 140)))
    assert made == pytest.approx(measured, rel=0.1 if smiles != "O" else 0.18)


def test_ions_are_neutral_together() -> None:
    atoms = draw(smiles={"[Na+]": 1, "[Cl-]": 1, "O": 18}, n_atoms=(50, 130))
    counts = Counter(atoms.get_chemical_symbols())
    assert counts["Na"] == counts["Cl"] > 0
    assert atoms.info["charge"] == 0


def test_radicals_leave_the_spin_open() -> None:
    assert "spin_multiplicity" not in draw(names={"O2": 1}, n_atoms=(20, 20)).info


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no molecules: give names or smiles with amounts"),
        ({"names": {"H2O": 1}, "density": 3.0}, r"3 g/cm\^3 is beyond packing: .* give at most 1\.\d\d g/cm"),
        ({"names": {"H2O": 1}, "n_atoms": (4, 5)}, "no 4 to 5 atoms have at least one molecule each of H2O"),
        (
            {"names": {"H2O": 100, "CH4": 1}, "n_atoms": (30, 90)},
            "at least one molecule each of H2O, CH4 in these amounts",
        ),
        ({"smiles": {"[Na+]": 1, "O": 9}}, r"charges do not balance in any box of 90 to 210 atoms: \[Na\+\] \+1"),
        ({"smiles": {"CCCCCCCCCCCC": 1}, "n_atoms": (38, 38)}, "is shorter than CCCCCCCCCCCC, .* raise n_atoms"),
        ({"smiles": {"C1C#CC1": 1}}, "C1C#CC1: RDKit makes no coordinates"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_drawn(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        liquids(rng=np.random.default_rng(0), index=0, **params)


def test_unknown_molecules_are_refused_by_the_config() -> None:
    with pytest.raises(ValidationError, match="unknown molecule 'H3O'"):
        GENERATORS.check_params("liquids", {"names": {"H3O": 1}})
    with pytest.raises(ValidationError, match="is no valid SMILES"):
        GENERATORS.check_params("liquids", {"smiles": {"water": 1}})


def test_box_that_packmol_does_not_fill_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PACKING", 2.0)
    made = next(liquids(rng=np.random.default_rng(0), index=0, names={"CH4": 1}, n_atoms=(20, 20), density=1.2))
    assert isinstance(made, Rejection)
    assert made.reason == "packing"
    assert "in 20 loops; lower the density" in made.evidence


def test_packmol_draws_from_the_stream_alone() -> None:
    parts = [(Atoms("Ar"), 10, 1.5)]
    one, same, other = (pack_box(np.random.default_rng(seed), parts, 14.0) for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).all()
    with pytest.raises(PackingError, match="packmol fills no box of 5.00 Å in 20 loops; lower the density"):
        pack_box(np.random.default_rng(1), [(Atoms("Ar"), 12, 1.5)], 5.0)


def test_volume_of_spheres() -> None:
    one = vdw_volume(Atoms("Ar"))
    apart = vdw_volume(Atoms("Ar2", positions=[[0, 0, 0], [9, 0, 0]]))
    overlapping = vdw_volume(Atoms("Ar2", positions=[[0, 0, 0], [1, 0, 0]]))
    assert one == pytest.approx(4 / 3 * np.pi * 1.88**3, rel=0.03)
    assert apart == pytest.approx(2 * one, rel=0.03)
    assert one < overlapping < 1.6 * one


@given(n=st.integers(1, 300), amounts=st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_rounded_shares_have_the_sum(n: int, amounts: list[float]) -> None:
    shares = [amount / sum(amounts) for amount in amounts]
    counts = round_shares(n, shares)
    assert sum(counts) == n
    assert max(abs(count - n * share) for count, share in zip(counts, shares, strict=True)) < 1 + 1e-9
