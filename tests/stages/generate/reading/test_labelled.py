"""Frames with their labels, and what they descend from: the same rows for frame ranges of any size."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.stress import voigt_6_to_full_3x3_stress
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import NO_PARENT, from_atoms, structure_id
from daskpipe.core.variables import decode_names
from daskpipe.engine.units import Payload
from daskpipe.stages.generate.reading.labelled import cut_labelled_ranges, read_labelled
from daskpipe.stages.generate.reading.labels import LabelKeys
from daskpipe.store import arrange_and_write, open_dataset
from daskpipe.store.export import export

ANY_KEYS = LabelKeys()
EXACT_IN_TEXT = 2.0**-8
"""Multiples of it are written with eight decimals, as ASE does, and read back as the same number."""


def labels_of(atoms: Atoms) -> dict[str, Any]:
    atoms.calc = EMT()
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.cell.rank == 3:
        labels["stress"] = atoms.get_stress()
    return labels


def trajectory(seed: int, n: int, *, wrap: bool = False) -> list[Atoms]:
    """Frames of one seed: atoms tremble by less than 1 Å, and may cross the boundary."""
    rng = np.random.default_rng(seed)
    start = [bulk("Cu", cubic=True), fcc111("Ag", (1, 2, 3), vacuum=6.0), molecule("CH3CH2OH")][seed % 3]
    start.info = {}
    if seed % 3 == 2:
        start.numbers[:] = 29
        start.positions *= 2
    made = []
    for _ in range(n):
        atoms = start.copy()
        atoms.positions += rng.uniform(-0.15, 0.15, size=atoms.positions.shape)
        if wrap:
            atoms.wrap()
        atoms.positions = np.rint(atoms.positions / EXACT_IN_TEXT) * EXACT_IN_TEXT
        atoms.calc = SinglePointCalculator(atoms, **labels_of(atoms.copy()))
        made.append(atoms)
    return made


def write_db(path: Path, frames: Iterable[Atoms]) -> None:
    with connect(path) as database:
        gap = database.write(Atoms("H"))
        for atoms in frames:
            database.write(atoms, total_charge=int(atoms.info.get("charge", 0)))
        database.delete([gap])


WRITERS: dict[str, Callable[[Path, list[Atoms]], None]] = {
    "a.extxyz": lambda path, frames: ase.io.write(path, frames),
    "a.db": write_db,
    "a.aselmdb": write_db,
}


def read_all(path: Path, size: int, keys: LabelKeys = ANY_KEYS) -> list[Payload]:
    return [read_labelled(frame_range, keys, "PBE") for frame_range in cut_labelled_ranges(path, size)]


def rows(payloads: list[Payload], name: str) -> list[Any]:
    return [value for payload in payloads if payload.n_out for value in payload.arrays[name].tolist()]


def rejected(payloads: list[Payload]) -> list[tuple[str, str]]:
    return [(item.structure.rpartition("/")[2], item.reason) for payload in payloads for item in payload.rejected]


@pytest.mark.parametrize("name", WRITERS)
def test_labels_are_those_that_ase_wrote(name: str, tmp_path: Path) -> None:
    frames = trajectory(0, 3) + trajectory(1, 2) + trajectory(2, 2)
    frames[-1].info["charge"] = -1
    frames[0].calc.results["magmoms"] = np.arange(4.0)
    WRITERS[name](tmp_path / name, frames)
    (payload,) = read_all(tmp_path / name, 100)
    found = payload.arrays
    assert payload.rejected == []
    assert payload.n_out == len(frames)
    assert found["energy"].tolist() == [atoms.get_potential_energy() for atoms in frames]
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    assert np.allclose(found["forces"], forces, atol=1e-7)
    for stress, atoms in zip(found["stress"], frames, strict=True):
        assert np.isnan(stress).all() == ("stress" not in atoms.calc.results)
        assert np.isnan(stress).all() or np.allclose(stress, atoms.get_stress(), atol=1e-8)
    assert np.array_equal(found["magmoms"][:4], np.arange(4.0))
    assert np.isnan(found["magmoms"][4:]).all()
    assert found["charge"].tolist() == [0] * (len(frames) - 1) + [-1]
    assert set(found["label_method"]) == {"PBE"}
    assert set(found["label_status"]) == {"ok"}
    assert found["step"].tolist() == list(range(len(frames)))
    assert found["system_type"].tolist() == ["bulk"] * 3 + ["surface"] * 2 + ["cluster"] * 2
    # Computed moments tell the magnetic state that the label is of.
    frames[0].set_initial_magnetic_moments(np.arange(4.0))
    assert found["structure_id"].tolist() == [structure_id(atoms) for atoms in frames]


# --- descent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("wrap", [False, True])
def test_a_trajectory_is_not_torn_by_frame_ranges(name: str, wrap: bool, tmp_path: Path) -> None:
    lengths = [5, 1, 4, 3]
    runs = [trajectory(seed, n, wrap=wrap) for seed, n in enumerate(lengths)]
    frames = [atoms for run in runs for atoms in run]
    expected = [NO_PARENT if atoms is run[0] else structure_id(run[0]) for run in runs for atoms in run]
    WRITERS[name](tmp_path / name, frames)
    for size in range(1, len(frames) + 2):
        pieces = cut_labelled_ranges(tmp_path / name, size)
        assert len(pieces) == -(-len(frames) // size)
        payloads = [read_labelled(piece, ANY_KEYS, "PBE") for piece in reversed(pieces)][::-1]
        assert rows(payloads, "parent_id") == expected
        assert rows(payloads, "step") == list(range(len(frames)))


def test_what_begins_a_trajectory(tmp_path: Path) -> None:
    (start,) = trajectory(0, 1)
    moved, jumped, other, turned, open_ = (start.copy() for _ in range(5))
    moved.positions[2] += [0.0, 0.99, 0.0]
    jumped.positions[2] += [0.0, 2.00, 0.0]  # 1.01 farther than `moved`
    other.numbers[0] = 79
    turned = other[[3, 2, 1, 0]]
    open_ = turned.copy()
    open_.pbc = False
    frames = [start, moved, jumped, other, turned, open_]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, **labels_of(atoms.copy()))
    ase.io.write(tmp_path / "a.extxyz", frames)
    found = rows(read_all(tmp_path / "a.extxyz", 2), "parent_id")
    assert [parent != NO_PARENT for parent in found] == [False, True, False, False, False, False]


@settings(deadline=None, max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(["good", "bare", "garbled", "nan", "jump"]), min_size=1, max_size=10),
    size=st.integers(1, 4),
)
def test_bad_frames_change_no_descent(tmp_path_factory: pytest.TempPathFactory, kinds: list[str], size: int) -> None:
    """A frame that cannot be read, or has no labels, does not end a trajectory, whatever the frame ranges."""
    path, text = tmp_path_factory.getbasetemp() / "bad.extxyz", ""
    for number, (kind, atoms) in enumerate(zip(kinds, trajectory(0, len(kinds)), strict=True)):
        if kind == "bare":
            atoms.calc = None
        if kind == "nan":
            atoms.calc.results["energy"] = np.nan
        if kind == "jump":
            atoms.numbers[0] = 47 + number
        stream = io.StringIO()
        ase.io.write(stream, atoms, format="extxyz")
        text += stream.getvalue().replace("Cu ", "Cu x ") if kind == "garbled" else stream.getvalue()
    path.write_text(text)
    whole, pieces = read_all(path, 100), read_all(path, size)
    assert rows(pieces, "parent_id") == rows(whole, "parent_id")
    assert rejected(pieces) == rejected(whole)
    assert len(rows(pieces, "step")) == sum(kind in ("good", "jump") for kind in kinds)
    if "jump" not in kinds:
        readable = [kind for kind in kinds if kind != "garbled"]
        first = [NO_PARENT] if readable[:1] == ["good"] else []
        rest = [parent for parent in rows(pieces, "parent_id") if parent != NO_PARENT]
        assert rows(pieces, "parent_id") == first + rest
        assert len(set(rest)) <= 1


# --- keys -------------------------------------------------------------------------------------------


def mace_style(stress: Callable[[Atoms], dict[str, Any]]) -> Atoms:
    (atoms,) = trajectory(0, 1)
    atoms.info |= {"REF_energy": atoms.get_potential_energy(), **stress(atoms)}
    atoms.arrays["REF_forces"] = atoms.get_forces()
    wanted = atoms.get_stress()
    atoms.calc = None
    atoms.info["wanted"] = wanted
    return atoms


@pytest.mark.parametrize(
    ("stress", "keys"),
    [
        (lambda atoms: {"REF_stress": atoms.get_stress()}, {}),
        (lambda atoms: {"REF_stress": voigt_6_to_full_3x3_stress(atoms.get_stress())}, {}),
        (lambda atoms: {"REF_stress": voigt_6_to_full_3x3_stress(atoms.get_stress()).reshape(9)}, {}),
        (lambda atoms: {"REF_virials": -voigt_6_to_full_3x3_stress(atoms.get_stress()) * atoms.get_volume()}, {}),
        (lambda atoms: {"virials": -atoms.get_stress() * atoms.get_volume()}, {"virial": "virials"}),
        (
            lambda atoms: {"virial": -voigt_6_to_full_3x3_stress(atoms.get_stress()) * atoms.get_volume()},
            {"virial": "virial"},
        ),
    ],
    ids=["6", "3x3", "9", "REF_virials", "virials of 6", "virial"],
)
def test_keys_and_shapes_of_mace(
    stress: Callable[[Atoms], dict[str, Any]], keys: dict[str, str], tmp_path: Path
) -> None:
    atoms = mace_style(stress)
    ase.io.write(tmp_path / "a.extxyz", atoms)
    if keys:  # the virial of which method?
        (payload,) = read_all(tmp_path / "a.extxyz", 1)
        assert [item.reason for item in payload.rejected] == ["families"]
    (payload,) = read_all(tmp_path / "a.extxyz", 1, LabelKeys(**keys))
    assert payload.rejected == []
    assert payload.arrays["energy"][0] == pytest.approx(atoms.info["REF_energy"], abs=1e-8)
    assert np.allclose(payload.arrays["forces"], atoms.arrays["REF_forces"], atol=1e-7)
    assert np.abs(atoms.info["wanted"]).min() > 1e-6
    assert np.allclose(payload.arrays["stress"][0], atoms.info["wanted"], atol=1e-8)


def test_given_keys_are_the_only_ones(tmp_path: Path) -> None:
    frames = trajectory(0, 2)
    frames[1].info["dft_energy"] = -7.25
    frames[1].arrays["dft_forces"] = np.full((4, 3), 0.5)
    frames[1].info["dft_stress"] = np.arange(6.0)
    ase.io.write(tmp_path / "a.extxyz", frames)
    (payload,) = read_all(
        tmp_path / "a.extxyz", 9, LabelKeys(energy="dft_energy", forces="dft_forces", stress="dft_stress")
    )
    assert payload.arrays["energy"].tolist() == [-7.25]
    assert set(payload.arrays["forces"].ravel().tolist()) == {0.5}
    assert payload.arrays["stress"].tolist() == [list(range(6))]
    (item,) = payload.rejected
    assert (item.stage, item.reason, item.structure) == ("import", "no_energy", f"{tmp_path}/a.extxyz#0")
    assert "dft_energy" in item.evidence
    with pytest.raises(ValidationError, match="forcs"):
        LabelKeys(forcs="x")


def test_frames_that_cannot_be_used_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    def spoil(atoms: Atoms, **results: Any) -> Atoms:
        atoms.calc.results |= results
        return atoms

    good, no_energy, no_forces, inf, stress, words, spin, far = trajectory(0, 8)
    del no_energy.calc.results["energy"]
    no_forces.info["REF_energy"] = no_forces.calc.results.pop("energy")
    spoil(inf, forces=np.full((4, 3), np.inf))
    stress.calc.results.pop("stress")
    stress.info["REF_stress"] = np.arange(5.0)
    words.info["charge"] = "many"
    spin.info |= {"spin_multiplicity": 900}
    far.positions[0] = np.nan
    ase.io.write(tmp_path / "a.extxyz", [good, no_energy, no_forces, inf, stress, words, spin, far])
    with open(tmp_path / "a.extxyz", "a") as file:
        file.write("4\nthe end is missing\n")
    for size in (1, 3, 100):
        payloads = read_all(tmp_path / "a.extxyz", size)
        assert rows(payloads, "step") == [0]
        assert rejected(payloads) == [
            ("a.extxyz#1", "no_energy"), ("a.extxyz#2", "families"), ("a.extxyz#3", "not_finite"),
            ("a.extxyz#4", "families"), ("a.extxyz#5", "charge"), ("a.extxyz#6", "spin"), ("a.extxyz#7", "not_finite"),
            ("a.extxyz#8", "unreadable"),
        ]  # fmt: skip
        assert {item.stage for payload in payloads for item in payload.rejected} == {"import"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.extxyz", b"", "empty"),
        ("b.extxyz", b"\n\n", "empty"),
        ("a.db", b"no database, though it is called one", "unreadable"),
        ("a.aselmdb", b"no database either", "unreadable"),
        ("a.cif", b"data_x", "unknown_format"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (payload,) = read_all(tmp_path / name, 10)
    assert payload.n_out == 0
    assert rejected([payload]) == [(name, reason)]
    assert (tmp_path / name).read_bytes() == content


def test_a_method_is_one_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"label method 'PBE D3': use one word without white space"):
        read_labelled(cut_labelled_ranges(tmp_path / "x.extxyz", 1)[0], ANY_KEYS, "PBE D3")


# --- our own exports --------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "name"), [("extxyz", "x.extxyz"), ("ase-db", "x.db"), ("aselmdb", "x")])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_what_was_exported_comes_back(to: str, name: str, size: int, tmp_path: Path) -> None:
    structures = []
    for seed in range(3):
        run = trajectory(seed, 4)
        for number, atoms in enumerate(run):
            atoms.info |= {"system_type": f"kind{seed}", "generator": "1e5", "label_method": "EMT"}
            if number:
                atoms.info["parent_id"] = structure_id(run[0])
        structures += run
    structures[3].info |= {"charge": 1, "spin_multiplicity": 2}
    structures[5].set_initial_charges(np.linspace(-1, 1, len(structures[5])).astype("f4"))
    fractions = {"train": 0.4, "val": 0.3, "test": 0.3}
    arrange_and_write(
        from_atoms(structures), tmp_path / "d.zarr", seed=0, fractions=fractions, attrs={"dataset_key": "k1"}
    )
    export(tmp_path / "d.zarr", to, tmp_path / name)
    file = tmp_path / name / "data.0000.aselmdb" if to == "aselmdb" else tmp_path / name
    stored = open_dataset(tmp_path / "d.zarr").load()
    payloads = read_all(file, size)
    assert rejected(payloads) == []
    for key in ("structure_id", "parent_id", "numbers", "cell", "pbc", "charge", "spin_multiplicity", "energy"):
        assert rows(payloads, key) == stored[key].values.tolist(), key
    for key in ("system_type", "generator", "label_method", "split"):
        assert rows(payloads, key) == decode_names(stored[key]).tolist(), key
    for key in ("positions", "forces"):
        found = np.concatenate([payload.arrays[key] for payload in payloads])
        assert np.array_equal(found, stored[key].values), key
    for key in ("stress", "initial_charges"):
        known = [payload.arrays[key] for payload in payloads if key in payload.arrays]
        wanted = stored[key].values[~np.isnan(stored[key].values)]
        found = np.concatenate(known)
        assert np.array_equal(found[~np.isnan(found)], wanted), key
