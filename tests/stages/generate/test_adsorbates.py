"""Molecules on slabs: number, distance, room, and what is kept of the slab."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, fcc111, molecule
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.adsorbates import adsorbates, find_sites, place_molecule, surface_atoms
from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits, find_fault

SLABS = {"generator": "surfaces", "elements": {"Cu": 0.5, "Pt": 0.5}, "n_atoms": [24, 60]}


def draw(of: Any = SLABS, seed: int = 0, n: int = 1, **params: Any) -> list[Atoms]:
    stream = adsorbates(rng=np.random.default_rng(seed), of=check_base(of), **{"names": ["CO"], **params})
    return [atoms for atoms in islice(stream, n) if isinstance(atoms, Atoms)]


def contact(atoms: Atoms, n_slab: int) -> tuple[float, float]:
    """Return the least distance of slab and adsorbates, and of adsorbates, in sums of radii, by ASE's list."""
    i, j, distance = neighbor_list("ijd", atoms, 6.0)
    ratio = distance / covalent_radii[atoms.numbers][[i, j]].sum(axis=0)
    mixed = (i < n_slab) != (j < n_slab)
    return float(ratio[mixed].min()), float(ratio[(i >= n_slab) & (j >= n_slab)].min(initial=9))


@pytest.mark.parametrize("gap", [(0.0, 0.0), (0.3, 0.3)])
def test_the_first_contact_has_the_distance_asked_for(gap: tuple[float, float]) -> None:
    slab = fcc111("Pt", (3, 3, 3), vacuum=8.0)
    sites = find_sites(slab, surface_atoms(slab))
    rng = np.random.default_rng(0)
    for kind in sites:
        added = place_molecule(rng, slab, molecule("CH3OH"), kind[0], gap[0])
        both = slab + added
        assert contact(both, len(slab))[0] == pytest.approx(1 + gap[0], abs=1e-6)


@pytest.mark.parametrize(
    ("slab", "n_sites"),
    [(fcc111("Cu", (2, 2, 3), vacuum=5), (4, 12, 8)), (fcc100("Cu", (2, 2, 3), vacuum=5), (4, None, None))],
)
def test_sites_of_a_flat_surface(slab: Atoms, n_sites: tuple[int | None, ...]) -> None:
    surface = surface_atoms(slab)
    assert sorted(surface.tolist()) == [8, 9, 10, 11]
    for places, expected in zip(find_sites(slab, surface), n_sites, strict=True):
        assert expected is None or len(places) == expected


@pytest.mark.parametrize("coverage", [(0.0, 0.0), (0.3, 0.3)])
def test_coverage_is_exact_and_nothing_overlaps(coverage: tuple[float, float]) -> None:
    for atoms in draw(SLABS, seed=3, n=4, names=["H"], coverage=coverage):
        n_added = int((atoms.numbers == 1).sum())
        n_slab = len(atoms) - n_added
        n_surface = len(surface_atoms(atoms[:n_slab]))
        assert n_added == max(1, round(coverage[0] * n_surface))
        mixed, between = contact(atoms, n_slab)
        assert mixed >= 0.99
        assert n_added == 1 or between >= 1.5
        assert find_fault(atoms, Limits()) is None
        assert atoms.info == {"system_type": "adsorbate"}


def test_slab_fixed_atoms_and_vacuum_are_kept(tmp_path: Path) -> None:
    slab = fcc111("Cu", (3, 3, 3), vacuum=6.0)
    slab.set_constraint(FixAtoms(mask=slab.positions[:, 2] < 7))
    ase.io.write(tmp_path / "slab.traj", slab)
    (atoms,) = draw(str(tmp_path / "slab.traj"), names=["CH4"])
    np.testing.assert_allclose(atoms.get_distances(0, range(27)), slab.get_distances(0, range(27)), atol=1e-4)
    assert atoms.arrays["fixed"][:9].all()
    assert not atoms.arrays["fixed"][9:].any()
    assert atoms.cell.array[2, 2] - np.ptp(atoms.positions[:, 2]) == pytest.approx(12.0)


def test_molecules_and_orientations_vary(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "slab.traj", fcc111("Cu", (3, 3, 3), vacuum=6.0))
    of = str(tmp_path / "slab.traj")
    formulas = [
        draw(of, index=index, names=["CO"], smiles=["CCO"], coverage=(0, 0))[0][27:].get_chemical_formula()
        for index in range(4)
    ]
    assert formulas == ["CO", "C2H6O"] * 2
    lowest = {atoms.symbols[27:][int(np.argmin(atoms.positions[27:, 2]))] for atoms in draw(of, n=12, coverage=(0, 0))}
    assert lowest == {"C", "O"}


def test_a_full_surface_is_rejected(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "slab.traj", fcc111("Cu", (2, 2, 3), vacuum=6.0))
    of = check_base(str(tmp_path / "slab.traj"))
    made = next(adsorbates(rng=np.random.default_rng(0), of=of, names=["C6H6"], coverage=(1.0, 1.0)))
    assert isinstance(made, Rejection)
    assert made.reason == "coverage"
    assert "lower coverage" in made.evidence


def test_what_is_no_slab_is_refused(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "cu.extxyz", bulk("Cu"))
    with pytest.raises(ValueError, match="Cu is not a slab that is periodic along its first two cell vectors"):
        draw(str(tmp_path / "cu.extxyz"))
    with pytest.raises(ValueError, match="no molecule: give names"):
        draw(names=None)
