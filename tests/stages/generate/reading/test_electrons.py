"""Charge and spin of users' structures: keys, sums over atoms, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from daskpipe.core.errors import Rejection
from daskpipe.core.structures import structure_id
from daskpipe.stages.generate.checks import Limits
from daskpipe.stages.generate.reading.electrons import CHARGE_KEYS, SPIN_KEYS, ElectronError, electrons_of
from daskpipe.stages.generate.reading.files import files
from daskpipe.stages.generate.stage import Request, _finish_structure

REQUEST = Request(source="mine", generator="plugin", index=0)
HYDROXIDE = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.97]])
IRON = Atoms("Fe2", positions=[[0, 0, 0], [1.435] * 3], cell=[2.87] * 3, pbc=True)


def read(path: Path) -> list[Atoms | Rejection]:
    return list(files(rng=np.random.default_rng(0), paths=[str(path)]))


def magnetic(moments: list[float]) -> Atoms:
    atoms = IRON.copy()
    atoms.set_initial_magnetic_moments(moments)
    return atoms


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"charge": -1}, {"charge": -1}),
        ({"net_charge": -1.0}, {"charge": -1}),
        ({"total_charge": 2, "net_charge": 2}, {"charge": 2}),
        ({"total_spin": 3}, {"spin_multiplicity": 3}),
        ({"uhf": 2}, {"spin_multiplicity": 3}),
        ({"uhf": 0}, {"spin_multiplicity": 1}),
        ({"uhf": 1, "spin": 2, "multiplicity": 2}, {"spin_multiplicity": 2}),
        ({"total_spin": 0}, {}),
        ({"spin": 0, "uhf": 2}, {"spin_multiplicity": 3}),
    ],
)
def test_keys_of_other_programs_are_read(info: dict[str, float], expected: dict[str, int]) -> None:
    assert electrons_of(Atoms("O2", info=info)) == expected


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"charge": 0.5}, "charge is 0.5; it must be a whole number"),
        ({"net_charge": -0.5}, "net_charge is -0.5; it must be a whole number"),
        ({"charge": True}, "charge is True; it must be a whole number"),
        ({"uhf": "two"}, "uhf is 'two'; it must be a whole number"),
        (
            {"charge": 0, "net_charge": -1},
            "two keys of the charge disagree: charge gives 0, net_charge gives -1; leave",
        ),
        ({"spin": 1, "uhf": 2}, "two keys of the spin multiplicity disagree: spin gives 1, uhf gives 3"),
        ({"uhf": -3}, "spin multiplicity -2; it must lie within 1 and 127"),
        ({"net_charge": 200}, "total charge 200 e; it must lie within -127 and 127"),
    ],
)
def test_what_is_no_charge_or_spin_is_refused(info: dict[str, object], message: str) -> None:
    with pytest.raises(ElectronError, match=message):
        electrons_of(Atoms("O2", info=info))


def test_charges_of_atoms_sum_to_the_charge_of_an_ion(tmp_path: Path) -> None:
    path = tmp_path / "hydroxide.xyz"
    path.write_text(
        '2\nProperties=species:S:1:pos:R:3:initial_charges:R:1 pbc="F F F"\nO 0 0 0 -1.2\nH 0 0 0.97 0.2\n'
        '2\nProperties=species:S:1:pos:R:3:charges:R:1 pbc="F F F"\nO 0 0 0 -1.23\nH 0 0 0.97 0.2\n'
        '2\nProperties=species:S:1:pos:R:3:initial_charges:R:1 pbc="F F F"\nO 0 0 0 -0.7\nH 0 0 0.97 0.2\n'
        '2\nProperties=species:S:1:pos:R:3:initial_charges:R:1 charge=0 pbc="F F F"\nO 0 0 0 -0.7\nH 0 0 0.97 0.2\n'
    )
    exact, rounded, fraction, told = read(path)
    assert [exact.info["charge"], rounded.info["charge"], told.info["charge"]] == [-1, -1, 0]
    assert (fraction.reason, fraction.evidence) == (
        "charge",
        "the charges of the atoms sum to -0.5 e, which is no whole number; give the total charge, e.g. total_charge=0",
    )
    neutral = HYDROXIDE.copy()
    assert structure_id(exact) != structure_id(neutral)


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_oxygen_with_moments_stays_a_triplet(name: str, tmp_path: Path) -> None:
    oxygen = molecule("O2")
    assert oxygen.get_initial_magnetic_moments().tolist() == [1, 1]
    write(tmp_path / name, oxygen)
    (found,) = read(tmp_path / name)
    assert found.info["spin_multiplicity"] == 3
    assert _finish_structure(oxygen, REQUEST, Limits()).info["spin_multiplicity"] == 3
    oxygen.info["spin_multiplicity"] = 1  # singlet oxygen, said so
    assert _finish_structure(oxygen, REQUEST, Limits()).info["spin_multiplicity"] == 1


def test_moments_that_electrons_cannot_have_are_refused() -> None:
    oxygen = molecule("O2")
    oxygen.set_initial_magnetic_moments([0.7, 0.8])
    with pytest.raises(ElectronError, match=r"moments sum to 1.5 .*16 electrons cannot have; .*spin_multiplicity=1"):
        electrons_of(oxygen)
    oxygen.info["charge"] = 1
    oxygen.set_initial_magnetic_moments([1, 1])
    with pytest.raises(ElectronError, match=r"moments sum to 2 .*15 electrons cannot have; .*spin_multiplicity=2"):
        electrons_of(oxygen)


def test_computed_moments_of_an_approximate_method_refuse_nothing() -> None:
    oxygen = Atoms("O2", positions=[[0, 0, 0], [0, 0, 1.2]])
    for moments, expected in (([0.7, 0.8], {}), ([0.97, 0.98], {"spin_multiplicity": 3})):
        oxygen.calc = SinglePointCalculator(oxygen, magmoms=np.array(moments))
        assert electrons_of(oxygen) == expected


def test_moments_of_a_crystal_make_no_multiplicity() -> None:
    assert electrons_of(magnetic([2.2, 2.2])) == {}


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_magnetic_states_of_one_geometry_are_two_structures(name: str, tmp_path: Path) -> None:
    states = [magnetic([2.2, 2.2]), magnetic([2.2, -2.2]), magnetic([0, 0]), IRON]
    write(tmp_path / name, states)
    ids = [structure_id(atoms) for atoms in read(tmp_path / name)]
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]


@pytest.mark.parametrize(
    ("change", "reason", "evidence"),
    [
        (lambda atoms: atoms.info.update(charge=0.5), "charge", "charge is 0.5; it must be a whole number"),
        (lambda atoms: atoms.info.update(spin_multiplicity=2.5), "spin", "spin_multiplicity is 2.5; it must be"),
        (
            lambda atoms: atoms.set_masses([-1, 1]),
            "masses",
            "the mass of atom 0 is -1; give masses above 0 amu, or none",
        ),
        (
            lambda atoms: atoms.set_masses([np.nan, 1]),
            "masses",
            "masses of atom 0 is nan; give one number for each atom",
        ),
    ],
)
def test_what_generators_say_is_not_cut(change, reason: str, evidence: str) -> None:
    atoms = HYDROXIDE.copy()
    change(atoms)
    found = _finish_structure(atoms, REQUEST, Limits())
    assert isinstance(found, Rejection)
    assert found.reason == reason
    assert evidence in found.evidence


def test_a_fraction_is_no_charge_of_an_id() -> None:
    with pytest.raises(ValueError, match="charge is 0.5; it must be a whole number"):
        structure_id(Atoms("H", info={"charge": 0.5}))


@pytest.mark.parametrize("seed", range(200))
def test_any_way_to_say_charge_and_spin(seed: int, tmp_path: Path) -> None:
    """Write what is true in a random way, and read it from a file."""
    rng = np.random.default_rng(seed)
    charge = int(rng.integers(-2, 3))
    atoms = molecule(str(rng.choice(["H2O", "O2", "CH3", "NO", "C2H4"])))
    atoms.set_initial_magnetic_moments(None)
    n_electrons = int(atoms.numbers.sum()) - charge
    unpaired = n_electrons % 2 + 2 * int(rng.integers(0, 2))
    words, arrays = [], {}
    if rng.random() < 0.5:
        words += [f"{key}={charge}" for key in rng.permutation(CHARGE_KEYS)[: rng.integers(1, 4)]]
    elif charge or rng.random() < 0.5:
        arrays["initial_charges"] = rng.normal(scale=0.4, size=len(atoms))
        arrays["initial_charges"] += (charge - arrays["initial_charges"].sum()) / len(atoms)
    said = rng.random()
    if said < 0.4:
        words += [f"{key}={unpaired + 1}" for key in rng.permutation(SPIN_KEYS)[: rng.integers(1, 4)]]
    elif said < 0.6:
        words.append(f"uhf={unpaired}")
    elif unpaired and said < 0.9:
        arrays["initial_magmoms"] = rng.normal(scale=0.4, size=len(atoms))
        arrays["initial_magmoms"] += (unpaired * rng.choice([-1, 1]) - arrays["initial_magmoms"].sum()) / len(atoms)
    else:
        unpaired = -1  # nothing is said
    columns = "".join(f":{name}:R:1" for name in arrays)
    rows = [
        " ".join([symbol, *(f"{number:.6f}" for number in (*position, *(values[row] for values in arrays.values())))])
        for row, (symbol, position) in enumerate(zip(atoms.symbols, atoms.positions, strict=True))
    ]
    comment = f'Properties=species:S:1:pos:R:3{columns} {" ".join(words)} pbc="F F F"'
    (tmp_path / "a.xyz").write_text("\n".join([str(len(atoms)), comment, *rows, ""]))
    (found,) = read(tmp_path / "a.xyz")
    assert isinstance(found, Atoms), (found, comment)
    assert found.info.get("charge", 0) == charge, comment
    assert found.info.get("spin_multiplicity", 0) == unpaired + 1, comment
