"""VASP's output, ASE's trajectories and databases as labelled frames: the numbers that they hold, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write
from ase.stress import voigt_6_to_full_3x3_stress

from daskpipe.core.errors import ConfigError
from daskpipe.engine.units import Payload
from daskpipe.pipeline.datasets import import_labelled
from daskpipe.stages.generate.reading.labelled import cut_labelled_ranges, find_labelled, read_labelled
from daskpipe.stages.generate.reading.labels import LabelKeys

NELM = 60
ENTROPY = 0.002
"""The free energy, which belongs to the forces, lies below the energy at sigma = 0 by it, eV."""

PRINTED = {"OUTCAR": 1e-5, "vasprun.xml": 1e-7, "a.traj": 1e-9, "a.db": 1e-9}
"""Differences of printing, Å, eV/Å and eV/Å^3; forces and positions are stored in float32 as well."""


def frames(n: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.numbers[3] = 79
        atoms.rattle(0.05, rng=rng)
        atoms.set_cell(atoms.cell.array + rng.uniform(-0.1, 0.1, (3, 3)), scale_atoms=True)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        made.append(atoms)
    return made


def numbers(row: Sequence[float] | np.ndarray, digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in row)


def outcar(structures: list[Atoms], unconverged: Sequence[int] = ()) -> str:
    """Return what ASE's reader looks for of an OUTCAR, as VASP 6 prints it."""
    text = " vasp.6.4.2\n POTCAR:    PAW_PBE Cu 22Jun2005\n POTCAR:    PAW_PBE Au 04Oct2007\n"
    text += " POTCAR:    PAW_PBE Cu 22Jun2005\n POTCAR:    PAW_PBE Au 04Oct2007\n"
    text += f"   ISPIN  =      1    spin polarized calculation?\n   ions per type =    3   1\n   NELM   =  {NELM};\n"
    for number, atoms in enumerate(structures):
        kbar = -voigt_6_to_full_3x3_stress(atoms.get_stress()) / (0.1 * ase.units.GPa)
        xx, yy, zz, xy, yz, zx = kbar[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
        text += f"--- Iteration {number + 1:4}(   1)  ---\n--- Iteration {number + 1:4}(   2)  ---\n"
        reached = "EDIFF was not reached (unconverged)" if number in unconverged else "EDIFF is reached"
        text += f"------------------------ aborting loop because {reached} ----------------------------------------\n"
        text += f"  in kB  {numbers([xx, yy, zz, xy, yz, zx], 5)}\n"
        text += "      direct lattice vectors                 reciprocal lattice vectors\n"
        text += "".join(f"  {numbers(row, 9)}  {numbers(row, 9)}\n" for row in atoms.cell.array)
        text += " POSITION                                       TOTAL-FORCE (eV/Angst)\n ---\n"
        for position, force in zip(atoms.positions, atoms.get_forces(), strict=True):
            text += f"  {numbers(position, 5)}  {numbers(force, 6)}\n"
        energy = atoms.get_potential_energy()
        text += "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ---\n"
        text += f"  free  energy   TOTEN  =  {energy - ENTROPY:.8f} eV\n\n"
        text += f"  energy  without entropy=  {energy:.8f}  energy(sigma->0) =  {energy:.8f}\n"
    return text


def vasprun(structures: list[Atoms], unconverged: Sequence[int] = ()) -> str:
    """Return what ASE's reader looks for of a vasprun.xml."""

    def table(name: str, rows: np.ndarray) -> str:
        return f'<varray name="{name}">' + "".join(f"<v>{numbers(row, 10)}</v>" for row in rows) + "</varray>"

    def structure(atoms: Atoms, name: str = "") -> str:
        inside = table("positions", atoms.get_scaled_positions(wrap=False))
        return f"<structure{name}><crystal>{table('basis', atoms.cell.array)}</crystal>{inside}</structure>"

    atoms = "".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in structures[0].symbols)
    text = '<?xml version="1.0"?><modeling><kpoints><varray name="kpointlist"><v>0 0 0</v></varray>'
    text += f'<varray name="weights"><v>1</v></varray></kpoints><parameters><i type="int" name="NELM">{NELM}</i>'
    text += f'</parameters><atominfo><array name="atoms"><set>{atoms}</set></array></atominfo>'
    text += structure(structures[0], ' name="initialpos"')
    for number, atoms_of_step in enumerate(structures):
        energy = atoms_of_step.get_potential_energy()
        energies = (
            f'<energy><i name="e_fr_energy">{energy - ENTROPY:.8f}</i><i name="e_0_energy">{energy:.8f}</i></energy>'
        )
        kbar = -voigt_6_to_full_3x3_stress(atoms_of_step.get_stress()) / (0.1 * ase.units.GPa)
        n_steps = NELM if number in unconverged else 5
        text += f"<calculation>{n_steps * f'<scstep>{energies}</scstep>'}{structure(atoms_of_step)}"
        text += table("forces", atoms_of_step.get_forces()) + table("stress", kbar) + energies + "</calculation>"
    return text + "</modeling>"


def write_db(path: Path, structures: list[Atoms]) -> None:
    with connect(path) as database:
        for atoms in structures:
            database.write(atoms)


WRITERS: dict[str, Callable[[Path, list[Atoms]], object]] = {
    "OUTCAR": lambda path, structures: path.write_text(outcar(structures)),
    "vasprun.xml": lambda path, structures: path.write_text(vasprun(structures)),
    "a.traj": lambda path, structures: write(path, structures),
    "a.db": write_db,
}


def read_all(path: Path, size: int = 100, **keys: Any) -> list[Payload]:
    return [read_labelled(piece, LabelKeys(**keys), "PBE") for piece in cut_labelled_ranges(path, size)]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [2, 100])
def test_labels_are_those_that_were_computed(name: str, size: int, tmp_path: Path) -> None:
    written = frames(5)
    WRITERS[name](tmp_path / name, written)
    payloads = read_all(tmp_path / name, size)
    assert [item for payload in payloads for item in payload.rejected] == []
    found = {key: np.concatenate([payload.arrays[key] for payload in payloads]) for key in payloads[0].arrays}
    near = {"rtol": 0, "atol": PRINTED[name] + 1e-7}
    assert found["numbers"].tolist() == [29, 29, 29, 79] * 5
    assert found["pbc"].all()
    assert found["step"].tolist() == list(range(5))
    np.testing.assert_allclose(found["positions"], np.concatenate([atoms.positions for atoms in written]), **near)
    np.testing.assert_allclose(found["cell"], [atoms.cell.array for atoms in written], **near)
    np.testing.assert_allclose(found["energy"], [atoms.get_potential_energy() for atoms in written], atol=1e-8)
    np.testing.assert_allclose(found["forces"], np.concatenate([atoms.get_forces() for atoms in written]), **near)
    np.testing.assert_allclose(found["stress"], [atoms.get_stress() for atoms in written], **near)


@pytest.mark.parametrize("name", ["OUTCAR", "vasprun.xml"])
def test_the_energy_of_the_forces_can_be_chosen(name: str, tmp_path: Path) -> None:
    written = frames(2)
    WRITERS[name](tmp_path / name, written)
    (payload,) = read_all(tmp_path / name, energy="free_energy", forces="forces")
    assert payload.arrays["energy"] == pytest.approx([atoms.get_potential_energy() - ENTROPY for atoms in written])


@pytest.mark.parametrize(("name", "text"), [("OUTCAR", outcar), ("vasprun.xml", vasprun)])
def test_steps_that_did_not_converge_are_refused(name: str, text: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text(frames(4), [1]))
    for size in (1, 100):
        payloads = read_all(tmp_path / name, size)
        assert [step for payload in payloads if payload.n_out for step in payload.arrays["step"]] == [0, 2, 3]
        (item,) = [item for payload in payloads for item in payload.rejected]
        assert (item.reason, item.structure) == ("unconverged", f"{tmp_path / name}#1")
        assert "the electrons did not converge in" in item.evidence


@pytest.mark.parametrize(("name", "text"), [("OUTCAR", outcar), ("vasprun.xml", vasprun)])
def test_a_run_that_was_killed_gives_the_steps_before(name: str, text: Callable[..., str], tmp_path: Path) -> None:
    whole = text(frames(3))
    last = "FREE ENERGIE" if name == "OUTCAR" else "<calculation>"
    (tmp_path / name).write_text(whole[: whole.rindex(last) + 20])
    (payload,) = read_all(tmp_path / name)
    assert payload.arrays["step"].tolist() == [0, 1]


def test_a_poscar_beside_an_outcar_is_not_read(tmp_path: Path) -> None:
    """ASE looks there for constraints, and fails where it cannot be read."""
    (tmp_path / "OUTCAR").write_text(outcar(frames(1)))
    (tmp_path / "POSCAR").write_text("no POSCAR at all\n")
    (payload,) = read_all(tmp_path / "OUTCAR")
    assert payload.n_out == 1


def test_of_outcar_and_vasprun_in_a_folder_one_is_read(tmp_path: Path) -> None:
    for name in ("one/OUTCAR", "one/vasprun.xml", "one/POSCAR", "one/INCAR", "two/OUTCAR", "two/a.traj", "b.extxyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found, strangers = find_labelled(["."], tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in found] == [
        "b.extxyz", "one/vasprun.xml", "two/OUTCAR", "two/a.traj"
    ]  # fmt: skip
    assert strangers == []
    message = (
        r"POSCAR holds no labels that can be read; give \*.extxyz, \*.xyz, \*.traj, \*.db, \*.aselmdb, OUTCAR\*, vasp"
    )
    with pytest.raises(ConfigError, match=message):
        import_labelled([str(tmp_path / "one" / "POSCAR")], tmp_path / "out.zarr", method="PBE")


@pytest.mark.parametrize("name", ["OUTCAR", "vasprun.xml", "a.traj"])
def test_garbage_is_a_rejection(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 20)
    (payload,) = read_all(tmp_path / name)
    assert [item.reason for item in payload.rejected] == ["unreadable"]


def test_what_a_trajectory_holds_besides_is_counted(tmp_path: Path) -> None:
    written = frames(2)
    for atoms in written:
        atoms.set_tags([1, 2, 3, 4])
        atoms.set_velocities(np.ones((4, 3)))
        atoms.info["note"] = "x"
    written[0].set_constraint(FixAtoms([0]))
    write(tmp_path / "a.traj", written)
    (payload,) = read_all(tmp_path / "a.traj")
    tallies = dict(payload.tallies)
    assert payload.arrays["fixed"].any(axis=1).tolist() == [True] + 7 * [False]  # carried, and so not left out
    assert tallies == {
        "labels/energy": 2, "labels/forces": 2, "labels/stress": 2, "from/energy, forces, stress": 2,
        "left_out/note": 2, "left_out/tags": 2, "left_out/velocities": 2,
    }  # fmt: skip


def test_a_receipt_stays_small(tmp_path: Path) -> None:
    written = frames(3)
    for number, atoms in enumerate(written):
        atoms.info |= {f"{name}_{'x' * 90}": 1 for name in range(number, number + 40)}
    write(tmp_path / "a.extxyz", written)
    (payload,) = read_all(tmp_path / "a.extxyz")
    names = [name for name in payload.tallies if name.startswith("left_out/")]
    assert len(names) == 13
    assert sum(payload.tallies[name] for name in names) == 3 * 40
    assert len(str(dict(payload.tallies))) < 1500


# --- units of databases -------------------------------------------------------------------------------

KCAL = ase.units.kcal / ase.units.mol


@pytest.mark.parametrize(
    "metadata",
    [
        {"energy_unit": "kcal/mol", "forces_unit": "kcal/mol/Å", "stress_unit": "eV/Å^3"},
        {"units": {"energy": "kcal/mol", "forces": "kcal/mol/Ang", "stress": "eV/Ang^3"}},
        {
            "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang", "stress": "eV/Ang^3"},
            "_distance_unit": "Ang",
        },
    ],
)
def test_metadata_of_a_database_declare_units(metadata: dict[str, Any], tmp_path: Path) -> None:
    (written,) = frames(1)
    energy, forces = written.get_potential_energy(), written.get_forces()
    written.calc.results |= {"energy": energy / KCAL, "forces": forces / KCAL}
    write_db(tmp_path / "a.db", [written])
    connect(tmp_path / "a.db").metadata = metadata
    (payload,) = read_all(tmp_path / "a.db")
    assert payload.rejected == []
    assert payload.arrays["energy"][0] == pytest.approx(energy)
    np.testing.assert_allclose(payload.arrays["forces"], forces, rtol=1e-5, atol=1e-7)
    assert not [name for name in payload.tallies if name.startswith("left_out/")]


@pytest.mark.parametrize(
    ("metadata", "evidence"),
    [
        ({"description": "energies in kcal/mol"}, "declared as 'kcal (a word of the metadata)', which is not known"),
        ({"energy_unit": "kcal/mol"}, "the unit of the energy is declared as 'kcal/mol', and that of the forces"),
        ({"_distance_unit": "Bohr"}, "the unit of lengths is declared as 'Bohr'; write lengths in Å"),
    ],
)
def test_metadata_that_are_not_understood_are_refused(metadata: dict[str, Any], evidence: str, tmp_path: Path) -> None:
    write_db(tmp_path / "a.db", frames(1))
    connect(tmp_path / "a.db").metadata = metadata
    (payload,) = read_all(tmp_path / "a.db")
    (item,) = payload.rejected
    assert item.reason == "units"
    assert evidence in item.evidence
    if "_distance_unit" not in metadata:
        (payload,) = read_all(tmp_path / "a.db", energy_unit="eV", forces_unit="eV/Å", stress_unit="eV/Å^3")
        assert payload.rejected == []


def test_labels_in_the_data_of_a_database(tmp_path: Path) -> None:
    (written,) = frames(1)
    results = written.calc.results
    written.calc = None
    with connect(tmp_path / "a.db") as database:
        database.write(written, data={"energy": np.array([results["energy"]]), "forces": results["forces"]})
    (payload,) = read_all(tmp_path / "a.db")
    assert payload.rejected == []
    assert payload.arrays["energy"][0] == pytest.approx(results["energy"])
    np.testing.assert_allclose(payload.arrays["forces"], results["forces"], rtol=1e-5, atol=1e-7)
