"""Slabs of crystals: planes, terminations, thickness, composition, fixed atoms."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal

from daskpipe.stages.generate.base import check_base
from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.slabs import cut_slab, distinct_millers, orient
from daskpipe.stages.generate.surfaces import surfaces

ROCK_SALT = bulk("MgO", "rocksalt", a=4.21)
RUTILE = crystal(
    ["Ti", "O"], [(0, 0, 0), (0.3053, 0.3053, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
)
CALCITE = crystal(
    ["Ca", "C", "O"],
    [(0, 0, 0), (0, 0, 0.25), (0.2568, 0, 0.25)],
    spacegroup=167,
    cellpar=[4.99, 4.99, 17.06, 90, 90, 120],
)


def write(path: Path, atoms: Atoms) -> str:
    ase.io.write(path / "base.extxyz", atoms)
    return str(path / "base.extxyz")


def draw(of: Any, seed: int = 0, n: int = 1, **params: Any) -> list[Atoms]:
    given = {"n_atoms": (20, 120), "of": check_base(of), **params}
    stream = surfaces(rng=np.random.default_rng(seed), **given)
    return [atoms for atoms in islice(stream, n) if isinstance(atoms, Atoms)]


@pytest.mark.parametrize("structure", [bulk("Cu"), bulk("Fe", cubic=True), bulk("Mg"), ROCK_SALT, RUTILE])
@pytest.mark.parametrize("max_index", [1, 2])
def test_distinct_planes_are_as_many_as_pymatgen_counts(structure: Atoms, max_index: int) -> None:
    from pymatgen.core.surface import get_symmetrically_distinct_miller_indices
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    conventional = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(structure)).get_conventional_standard_structure()
    theirs = get_symmetrically_distinct_miller_indices(conventional, max_index)
    assert len(distinct_millers(structure, max_index)) == len(theirs)


def test_planes_of_a_trigonal_crystal_have_its_symmetry_not_that_of_its_lattice() -> None:
    """Calcite has three planes like (1, 0, 4), not six; pymatgen takes the symmetry of the empty hexagonal lattice."""
    millers = distinct_millers(CALCITE, 1)
    assert (1, 0, 1) in millers
    assert (1, 0, -1) in millers


@pytest.mark.parametrize(
    ("structure", "miller", "spacing", "n_terminations"),
    [
        (bulk("Cu", a=3.6), (1, 1, 1), 3.6 / 3**0.5, 1),
        (bulk("Cu", a=3.6), (2, 1, 0), 3.6 / 20**0.5, 1),
        (bulk("Si", a=5.43), (1, 1, 1), 5.43 / 3**0.5, 2),  # one or three bonds an atom are cut
        (ROCK_SALT, (1, 0, 0), 4.21 / 2, 1),
        (ROCK_SALT, (1, 1, 1), 4.21 / 3**0.5, 2),  # metal or oxygen on top
        (RUTILE, (1, 1, 0), 4.594 / 2**0.5, 3),
    ],
)
def test_spacings_and_terminations_are_the_known_ones(
    structure: Atoms, miller: tuple[int, int, int], spacing: float, n_terminations: int
) -> None:
    orientation = orient(structure, miller)
    assert orientation.spacing == pytest.approx(spacing)
    assert len(orientation.cuts) == n_terminations
    volume = orientation.crystal.get_volume() / len(orientation.crystal)
    assert volume == pytest.approx(structure.get_volume() / len(structure))
    turned = neighbor_list("d", orientation.crystal, 4.0)
    assert len(turned) / len(orientation.crystal) == len(neighbor_list("d", structure, 4.0)) / len(structure)


def test_slab_is_that_of_ase() -> None:
    theirs = fcc111("Cu", (1, 1, 4), a=3.6, vacuum=5.0)
    orientation = orient(bulk("Cu", a=3.6), (1, 1, 1))
    ours = cut_slab(orientation, orientation.cuts[0], 4)
    ours.center(vacuum=5.0, axis=2)
    for cutoff in (2.6, 3.7, 4.5):
        counts = [
            sorted(np.bincount(neighbor_list("i", slab, cutoff), minlength=4).tolist()) for slab in (ours, theirs)
        ]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("shift", [-1e-9, 1e-9, -1e-15, 1e-15])
def test_a_plane_with_two_equally_short_vectors_is_turned(shift: float) -> None:
    """With one rounding error or another, neither of the two may be exchanged for the other for ever."""
    hexagonal = Atoms("Mg", cell=[[3, 0, 0], [1.5 + shift, 3 * 0.75**0.5, 0], [0, 0, 5]], pbc=True)
    for vectors in ([0, 1], [1, 0]):
        cell = hexagonal.copy()
        cell.set_cell(hexagonal.cell.array[[*vectors, 2]])
        turned = orient(cell, (0, 0, 1)).crystal
        assert turned.cell.lengths() == pytest.approx([3, 3, 5])
        assert turned.cell.angles()[2] in (pytest.approx(60), pytest.approx(120))


@pytest.mark.parametrize("structure", [ROCK_SALT, RUTILE, CALCITE, bulk("Mg")])
def test_slabs_are_stoichiometric_thick_enough_and_valid(structure: Atoms, tmp_path: Path) -> None:
    of = write(tmp_path, structure)
    formula = Counter(structure.symbols)
    made = draw(of, n=12, thickness=(8, 14), rattle=0, vacuum=15.0, strain=0.0, n_atoms=(20, 200))
    assert len(made) == 12
    for atoms in made:
        counts = Counter(atoms.symbols)
        assert all(counts[symbol] * len(structure) == n * len(atoms) for symbol, n in formula.items())
        thickness = np.ptp(atoms.positions[:, 2])
        assert thickness >= 8 - 1e-6
        assert atoms.cell.array[2] == pytest.approx([0, 0, thickness + 15])
        assert atoms.pbc.tolist() == [True, True, False]
        assert 20 <= len(atoms) <= 200
        assert find_fault(atoms, Limits()) is None
        assert system_type(atoms) == "surface"


def test_requests_go_through_planes_and_terminations(tmp_path: Path) -> None:
    of = write(tmp_path, ROCK_SALT)
    areas = {
        round(float(np.linalg.norm(np.cross(*atoms.cell.array[:2]))) / len(atoms) * np.ptp(atoms.positions[:, 2]), 1)
        for index in range(4)
        for atoms in draw(of, index=index, rattle=0, strain=0, thickness=(8, 8))
    }
    assert len(areas) >= 3  # {100}, {110}, {111}


def test_lower_part_is_fixed_and_stays(tmp_path: Path) -> None:
    of = write(tmp_path, bulk("Cu"))
    (atoms,) = draw(of, miller=[(1, 1, 1)], fixed=0.5, rattle=0.2, strain=0)
    fixed = atoms.arrays["fixed"]
    assert fixed.shape == (len(atoms), 3)
    assert 0.2 < fixed.all(axis=1).mean() < 0.7
    heights = np.unique(atoms.positions[fixed[:, 0], 2].round(4))
    assert np.diff(heights) == pytest.approx(bulk("Cu").cell.lengths()[0] * (2 / 3) ** 0.5, abs=1e-3)
    (alloy,) = islice(surfaces(rng=np.random.default_rng(0), elements={"Cu": 1.0}, n_atoms=(20, 40), fixed=0.4), 1)
    assert isinstance(alloy, Atoms)
    assert alloy.arrays["fixed"].any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"n_atoms": (4, 9), "thickness": (40, 40)},
            r"no slab of MgO .* 40 Å or more has 4 to 9 atoms; the smallest has",
        ),
        ({"miller": [(0, 0, 0)]}, r"miller: \(0, 0, 0\) is no plane"),
        ({"elements": {"Cu": 1.0}}, "give either elements, for slabs of alloys, or of"),
    ],
)
def test_impossible_slabs_are_refused(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        draw(write(tmp_path, ROCK_SALT), **params)


def test_molecules_are_no_crystals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="H2O is not periodic along three axes; give a crystal"):
        draw(write(tmp_path, molecule("H2O")))
    with pytest.raises(ValueError, match="miller applies to slabs of a crystal"):
        surfaces(rng=np.random.default_rng(0), elements={"Cu": 1.0}, n_atoms=12, miller=((1, 1, 1),))


def molybdenite() -> Atoms:
    """2H MoS2 (Bronsema, Z. anorg. allg. Chem. 540, 15, 1986): two layers of 3.19 Å, 2.96 Å apart."""
    places = [(1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.6225)]
    return crystal(["Mo", "S"], places, spacegroup=194, cellpar=[3.161, 3.161, 12.295, 90, 90, 120])


def test_whole_layers_are_cut_one_by_one(tmp_path: Path) -> None:
    params = {"miller": [(0, 0, 1)], "whole_layers": True, "strain": 0, "rattle": 0}
    slabs = draw(write(tmp_path, molybdenite()), n=12, n_atoms=(6, 48), thickness=(2, 11), **params)
    assert {round(float(np.ptp(slab.positions[:, 2])), 1) for slab in slabs} == {3.1, 9.3}
    for slab in slabs:
        assert slab.pbc.tolist() == [True, True, False]
        counts = Counter(slab.symbols)
        assert counts["S"] == 2 * counts["Mo"]
        heights = {symbol: slab.positions[slab.symbols == symbol, 2] for symbol in counts}
        assert heights["S"].min() < heights["Mo"].min()
        assert heights["S"].max() > heights["Mo"].max()


def test_a_flat_layer_has_no_thickness_and_is_there(tmp_path: Path) -> None:
    params = {"miller": [(0, 0, 1)], "whole_layers": True, "strain": 0, "rattle": 0}
    sheets = crystal(
        ["B", "N"],
        [(1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.75)],
        spacegroup=194,
        cellpar=[2.504, 2.504, 6.66, 90, 90, 120],
    )
    slabs = draw(write(tmp_path, sheets), n=6, n_atoms=(8, 32), thickness=(2, 4), **params)
    assert {round(float(np.ptp(slab.positions[:, 2])), 2) for slab in slabs} == {0.0, 3.33}


@pytest.mark.parametrize(
    ("structure", "miller"), [(ROCK_SALT, (0, 0, 1)), (molybdenite(), (1, 0, 0))], ids=["no layers", "across layers"]
)
def test_what_has_no_whole_layers_is_refused(structure: Atoms, miller: tuple[int, int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whole_layers: .* has no stack of whole layers of up to 15 Å"):
        draw(write(tmp_path, structure), miller=[miller], whole_layers=True)
