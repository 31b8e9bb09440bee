"""Labels of a frame: one method's, in eV and Å, or a refusal that lists what there is."""

from __future__ import annotations

from typing import Any

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.stress import voigt_6_to_full_3x3_stress

from daskpipe.stages.generate.checks import FrameError
from daskpipe.stages.generate.reading.labels import LabelKeys, Labels, left_out, read_labels

ENERGY = -3.25
FORCES = np.array([[0.5, -1, 2], [-0.5, 1, -2]])
STRESS = np.array([0.01, -0.02, 0.03, 0.004, -0.005, 0.006])
FAR = 999.0
"""Difference of the energies of two methods, eV."""


def crystal(info: dict[str, Any] | None = None, arrays: dict[str, Any] | None = None, **results: Any) -> Atoms:
    """Two atoms of copper in a cell without symmetry, with labels under any names."""
    atoms = bulk("Cu", cubic=True)[:2]
    atoms.set_cell([[3.6, 0.1, 0], [0, 3.8, 0.2], [0.3, 0, 4.1]])
    atoms.info |= info or {}
    for name, values in (arrays or {}).items():
        atoms.set_array(name, values)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def virial(atoms: Atoms) -> np.ndarray:
    return -voigt_6_to_full_3x3_stress(STRESS) * atoms.get_volume()


def labels_of(atoms: Atoms, **keys: Any) -> Labels:
    return read_labels(atoms, LabelKeys(**keys))


def refusal(atoms: Atoms, **keys: Any) -> FrameError:
    with pytest.raises(FrameError) as caught:
        labels_of(atoms, **keys)
    return caught.value


# --- families -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("energy", "forces", "stress"),
    [
        ("energy", "forces", "stress"),
        ("Energy", "Force", "STRESS"),
        ("REF_energy", "REF_forces", "REF_stress"),
        ("dft_energy", "dft_force", "dft_stress"),
        ("my-PBE_energy", "my-PBE_forces", "my-PBE_stress"),
    ],
)
def test_any_prefix_is_a_family(energy: str, forces: str, stress: str) -> None:
    atoms = crystal({energy: ENERGY, stress: STRESS}, {forces: FORCES})
    found = labels_of(atoms)
    assert found.results["energy"] == ENERGY
    assert found.results["forces"].tolist() == FORCES.tolist()
    assert found.results["stress"].tolist() == STRESS.tolist()
    assert left_out(atoms, [], found) == {}


def test_energy_of_one_method_and_forces_of_another_are_refused() -> None:
    atoms = crystal({"REF_energy": ENERGY}, {"REF_forces": FORCES}, energy=ENERGY - FAR)
    error = refusal(atoms)
    assert error.reason == "families"
    assert str(error) == (
        "labels of more than one method or a part of one: no prefix: energy; ref: REF_energy, REF_forces; REF_energy "
        "and energy differ. Choose with --energy, --forces, --stress, --virial"
    )
    found = labels_of(atoms, energy="REF_energy")
    assert (found.results["energy"], found.results["forces"].tolist()) == (ENERGY, FORCES.tolist())
    assert left_out(atoms, [], found) == {"energy": 1}
    mixed = labels_of(atoms, energy="energy", forces="REF_forces")  # the user says so
    assert mixed.results["energy"] == ENERGY - FAR
    assert "energy has no forces of its family; type --forces too" in str(refusal(atoms, energy="energy"))


@pytest.mark.parametrize(
    ("info", "arrays", "what"),
    [
        ({"a_energy": ENERGY}, {"b_forces": FORCES}, "no family has both energy and forces"),
        ({"a_energy": ENERGY, "b_energy": ENERGY + 1}, {}, "a_energy and b_energy differ"),
        (
            {"a_energy": ENERGY, "b_stress": STRESS},
            {"a_forces": FORCES},
            "b_stress belongs to a family that is not whole",
        ),
        ({"a_energy": ENERGY}, {"a_forces": FORCES, "b_forces": -FORCES}, "a_forces and b_forces differ"),
        ({"energy": ENERGY, "Energy": ENERGY + 1}, {"forces": FORCES}, "energy and Energy differ"),
    ],
)
def test_families_that_disagree_or_lack_something_are_refused(
    info: dict[str, Any], arrays: dict[str, Any], what: str
) -> None:
    error = refusal(crystal(info, arrays))
    assert error.reason == "families"
    assert f"; {what}. Choose with --energy" in str(error)
    assert all(key in str(error) for key in (*info, *arrays))


def test_families_that_agree_are_one() -> None:
    """As in the exports of daskpipe, where each label stands twice."""
    atoms = crystal({"REF_energy": ENERGY + 1e-9}, {"REF_forces": FORCES}, energy=ENERGY, forces=FORCES, stress=STRESS)
    found = labels_of(atoms)
    assert found.keys == ["energy", "forces", "stress"]
    assert left_out(atoms, [], found) == {}


@pytest.mark.parametrize(
    "key", ["have_energy", "free_energy", "kinetic_energy", "formation_energy", "max_force", "mean_stress"]
)
def test_other_quantities_are_no_methods(key: str) -> None:
    atoms = crystal({"energy": ENERGY, key: True if key == "have_energy" else 17.0}, {"forces": FORCES})
    found = labels_of(atoms)
    assert found.results["energy"] == ENERGY
    assert left_out(atoms, [], found) == {key: 1}
    if key in ("free_energy", "formation_energy"):
        assert labels_of(atoms, energy=key, forces="forces").results["energy"] == 17


def test_an_energy_alone_is_a_label() -> None:
    found = labels_of(crystal({"dft_energy": ENERGY}))
    assert found.results == {"energy": ENERGY}
    with_forces = crystal({"dft_energy": ENERGY}, {"dft_forces": FORCES})
    found = labels_of(with_forces, forces="none")
    assert found.results == {"energy": ENERGY}
    assert left_out(with_forces, [], found) == {"dft_forces": 1}


def test_labels_in_the_data_of_a_row() -> None:
    """A database keeps arrays in ``row.data``, which comes as ``info``."""
    found = labels_of(crystal({"energy": np.array([ENERGY]), "forces": FORCES.ravel()}))
    assert found.results["energy"] == ENERGY
    assert found.results["forces"].tolist() == FORCES.tolist()


@pytest.mark.parametrize(
    ("atoms", "keys", "reason", "evidence"),
    [
        (crystal({"E": 1.0}), {}, "no_energy", "no energy under energy, REF_energy or the like; the frame has no key"),
        (crystal(free_energy=1.0), {}, "no_energy", "the frame has free_energy; type --energy KEY"),
        (crystal({"energy_pbe": 1.0}), {}, "no_energy", "the frame has energy_pbe; type --energy KEY"),
        (
            crystal({"energy": 1.0}),
            {"energy": "dft"},
            "no_energy",
            "no energy under dft; the frame has: no prefix: energy",
        ),
        (crystal({"energy": 1.0}), {"forces": "f"}, "no_forces", "no forces under f; the frame has"),
        (crystal({"energy": "many"}), {}, "shape", "energy is 'many', which is no number"),
        (crystal({"energy": True}), {}, "shape", "energy is True, which is no number"),
        (crystal({"energy": [1.0, 2.0]}), {}, "shape", r"expected an array of shape \(\), received \(2,\)"),
        (crystal({"e_per_atom": 1.0}), {"energy": "e_per_atom"}, "shape", "is an energy an atom"),
        (crystal({"energy": np.nan}), {}, "not_finite", "1 of 1 energy not finite"),
        (crystal({"energy": 1.0}, {"forces": FORCES[:, :2]}), {}, "shape", r"of shape \(2, 3\), received \(2, 2\)"),
        (crystal({"energy": 1.0}, {"forces": np.full((2, 3), np.inf)}), {}, "not_finite", "6 of 6 forces not finite"),
        (crystal({"energy": 1.0}, {"forces": np.full((2, 3), "x")}), {}, "shape", "forces is .*, which is no number"),
    ],
)
def test_what_is_no_label(atoms: Atoms, keys: dict[str, str], reason: str, evidence: str) -> None:
    with pytest.raises(FrameError, match=evidence) as caught:
        labels_of(atoms, **keys)
    assert caught.value.reason == reason


# --- stress and virial --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["virial", "Virials", "dft_virial", "REF_virials"])
@pytest.mark.parametrize("shape", [(3, 3), (9,), (6,)])
def test_a_virial_is_minus_the_stress_times_the_volume(key: str, shape: tuple[int, ...]) -> None:
    atoms = crystal()
    values = virial(atoms) if shape != (6,) else -STRESS * atoms.get_volume()
    prefix = key[: -len("virials")] if key.endswith("s") else key[: -len("virial")]
    atoms = crystal({key: values.reshape(shape), f"{prefix}energy": ENERGY}, {f"{prefix}forces": FORCES})
    np.testing.assert_allclose(labels_of(atoms).results["stress"], STRESS, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("factor", "named"), [(-1.0, "-1 times"), (1 / ase.units.GPa, "160.2 times"), (1.1, "1.1 times")]
)
def test_a_stress_that_contradicts_the_virial_is_refused(factor: float, named: str) -> None:
    atoms = crystal()
    atoms.info |= {"energy": ENERGY, "virial": virial(atoms), "stress": factor * STRESS}
    error = refusal(atoms)
    assert error.reason == "stress"
    assert str(error).startswith(
        f"stress is {named} the stress of virial (minus the virial over the volume; -1: a sign"
    )
    np.testing.assert_allclose(labels_of(atoms, virial="virial").results["stress"], STRESS, atol=1e-12)
    np.testing.assert_allclose(labels_of(atoms, stress="stress").results["stress"], factor * STRESS, atol=1e-12)
    np.testing.assert_allclose(labels_of(atoms, stress="none").results["stress"], STRESS, atol=1e-12)
    assert "stress" not in labels_of(atoms, stress="none", virial="none").results


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ("None", {}),
        (np.full(6, np.nan), {}),
        (np.arange(5.0), {"a stress of 5 numbers, not 9 or 6": 1}),
        ("big", {"a stress that is no number": 1}),
        (np.array([1, 2, 3, 4, 5, np.nan]), {"a stress that is not finite": 1}),
    ],
)
def test_a_stress_that_cannot_be_read_is_missing_and_counted(value: Any, missing: dict[str, int]) -> None:
    atoms = crystal({"energy": ENERGY, "stress": value}, {"forces": FORCES})
    found = labels_of(atoms)
    assert set(found.results) == {"energy", "forces"}
    assert left_out(atoms, [], found) == missing


def test_a_virial_without_a_cell_is_missing_and_counted() -> None:
    atoms = crystal({"energy": ENERGY, "virial": np.eye(3)}, {"forces": FORCES})
    atoms.pbc = (True, True, False)
    found = labels_of(atoms)
    assert set(found.results) == {"energy", "forces"}
    assert left_out(atoms, [], found) == {"a virial without a cell that is periodic along all axes": 1}


# --- units --------------------------------------------------------------------------------------------

IN_EV = {
    "hartree": ase.units.Hartree, "Ha": ase.units.Hartree, "Rydberg": ase.units.Rydberg, "eV": 1.0, "meV": 1e-3,
    "kcal/mol": ase.units.kcal / ase.units.mol, "kJ/mol": ase.units.kJ / ase.units.mol, "kcal mol^-1": None,
}  # fmt: skip
IN_ANGSTROM = {"bohr": ase.units.Bohr, "Å": 1.0, "Ang": 1.0, "angstrom": 1.0, "A": 1.0}


@pytest.mark.parametrize("energy", IN_EV)
@pytest.mark.parametrize("length", IN_ANGSTROM)
def test_declared_units_are_converted(energy: str, length: str) -> None:
    factor = IN_EV[energy] or IN_EV["kcal/mol"]
    assert factor is not None
    per_length = factor / IN_ANGSTROM[length]
    info = {"energy": ENERGY / factor, "energy_unit": energy, "forces_unit": f"{energy}/{length}"}
    info |= {"stress": STRESS / ase.units.GPa, "stress_unit": "GPa"}
    atoms = crystal(info, {"forces": FORCES / per_length})
    found = labels_of(atoms)
    assert found.results["energy"] == pytest.approx(ENERGY, rel=1e-9)
    np.testing.assert_allclose(found.results["forces"], FORCES, rtol=1e-9)
    np.testing.assert_allclose(found.results["stress"], STRESS, rtol=1e-9)
    assert left_out(atoms, [], found) == {}


@pytest.mark.parametrize(
    "info",
    [
        {"REF_energy_unit": "hartree", "REF_forces_unit": "hartree/bohr"},
        {"unit_energy": "hartree", "units_forces": "hartree/bohr"},
        {"ENERGY_UNITS": "hartree", "FORCE_UNITS": "hartree/bohr"},
        {"units": {"energy": "hartree", "forces": "hartree/bohr"}},
        {"units": "hartree, hartree/bohr"},
    ],
)
def test_keys_that_declare_units(info: dict[str, Any]) -> None:
    atomic = {"REF_energy": ENERGY / ase.units.Hartree}
    forces = FORCES / (ase.units.Hartree / ase.units.Bohr)
    found = labels_of(crystal(atomic | info, {"REF_forces": forces}))
    assert found.results["energy"] == pytest.approx(ENERGY, rel=1e-9)
    np.testing.assert_allclose(found.results["forces"], FORCES, rtol=1e-9)


def test_typed_units_win_and_those_of_ase_need_not_be_typed() -> None:
    atoms = crystal({"energy": ENERGY / ase.units.Hartree, "energy_unit": "hartree"}, {"forces": FORCES})
    assert str(refusal(atoms)) == (
        "the unit of the energy is declared as 'hartree', and that of the forces is not: type it, e.g. --forces-unit "
        "hartree/bohr, or write it into the file as forces_unit"
    )
    found = labels_of(atoms, forces_unit="eV/Å")
    assert found.results["energy"] == pytest.approx(ENERGY, rel=1e-9)
    assert found.results["forces"].tolist() == FORCES.tolist()
    assert labels_of(atoms, energy_unit="eV").results["energy"] == ENERGY / ase.units.Hartree
    declared = crystal({"energy": ENERGY, "energy_unit": "eV"}, {"forces": FORCES})
    assert labels_of(declared).results["energy"] == ENERGY


def test_a_unit_of_a_key_that_is_typed() -> None:
    """SchNetPack's metadata name the units of properties such as ``energy_U0``."""
    atoms = crystal({"energy_U0": ENERGY / ase.units.Hartree, "energy_U0_unit": "Hartree"})
    assert labels_of(atoms, energy="energy_U0").results["energy"] == pytest.approx(ENERGY, rel=1e-9)


@pytest.mark.parametrize(
    ("info", "evidence"),
    [
        (
            {"energy_unit": "furlong"},
            "the unit of the energy is declared as 'furlong', which is not known; known: eV",
        ),
        ({"energy_unit": "eV/atom"}, "the unit of the energy is declared as 'eV/atom', which is not known"),
        ({"forces_unit": "eV"}, "the unit of the forces is declared as 'eV', which is not known"),
        ({"units": "strange"}, "the unit of the energy is declared as 'strange', which is not known"),
        ({"energy_unit": "eV", "Energy_Unit": "hartree"}, "two units of the energy: 'eV' and 'hartree'; leave one out"),
    ],
)
def test_units_that_are_not_understood_are_refused(info: dict[str, Any], evidence: str) -> None:
    error = refusal(crystal({"energy": ENERGY, **info}, {"forces": FORCES}))
    assert error.reason == "units"
    assert evidence in str(error)


def test_what_an_import_leaves_out_is_counted() -> None:
    atoms = crystal({"note": "x", "energy": ENERGY}, {"forces": FORCES, "site": np.array([1, 2])})
    atoms.set_tags([1, 2])
    atoms.set_velocities(np.ones((2, 3)))
    atoms.set_masses([63.0, 65.0])
    atoms.set_constraint(FixAtoms([0]))
    found = labels_of(atoms)
    assert left_out(atoms, [], found) == dict.fromkeys(
        ("note", "site", "tags", "velocities", "masses", "constraints"), 1
    )
    assert left_out(atoms, ["note", "site", "masses", "constraints"], found) == {"tags": 1, "velocities": 1}


def test_bad_magmoms_cost_no_frame() -> None:
    atoms = crystal(energy=ENERGY, forces=FORCES, magmoms=np.array([1.0, np.nan]))
    found = labels_of(atoms)
    assert set(found.results) == {"energy", "forces"}
    assert left_out(atoms, [], found) == {"magmoms that are not one finite number an atom": 1}
