"""Generated dialects of users' files: each is read as what was written, or refused for the reason that it gives.

A seed draws a structure with labels and writes it in one of the ways that programs and people write it; nothing that
is read is compared with a second run of the reader, but with the numbers before they were written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.data import chemical_symbols

from daskpipe.core.constants import BOHR, GPA, HARTREE, KCAL_PER_MOL
from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.reading.files import read_structures
from daskpipe.stages.generate.reading.labelled import cut_labelled_ranges, read_labelled
from daskpipe.stages.generate.reading.labels import LabelKeys

N_EXTXYZ, N_POSCAR = 300, 80
DIGITS = 10
"""Written behind the point; what is compared is rounded to fewer."""

NEAR = {"energy": 1e-7, "forces": 1e-5, "stress": 1e-7, "positions": 1e-5, "cell": 1e-7}
"""Differences of printing, and of float32 for positions and forces."""

SYMBOLS = ("Cu", "Au", "O", "H", "In", "No")


@dataclass(kw_only=True)
class Truth:
    """What a file is about; `reason` is that of the refusal which is to be expected, by verb."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    keys: LabelKeys = field(default_factory=LabelKeys)
    reason: str | None = None
    import_reason: str | None = None


def draw(rng: np.random.Generator) -> Truth:
    """Draw a structure on a loose grid, so that no atoms overlap, with labels that mean nothing."""
    n = int(rng.integers(2, 8))
    cell = np.diag(rng.uniform(8, 9, 3)) + rng.uniform(-0.6, 0.6, (3, 3))
    grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
    scaled = (rng.permutation(grid)[:n] + rng.uniform(0.2, 0.4, (n, 3))) / 2
    stress = rng.normal(0, 0.05, 6)
    return Truth(
        numbers=np.array([chemical_symbols.index(symbol) for symbol in rng.choice(SYMBOLS, n)]),
        positions=scaled @ cell,
        cell=cell,
        pbc=[(True, True, True), (True, True, False), (False, True, True), (True, False, False)][rng.integers(4)],
        energy=float(rng.normal(-30, 10)),
        forces=rng.normal(0, 1, (n, 3)),
        stress=stress,
    )


def full(stress: np.ndarray) -> np.ndarray:
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def text_of(numbers: Any) -> list[str]:
    return [f"{number:.{DIGITS}f}" for number in np.ravel(numbers)]


def any_case(word: str, rng: np.random.Generator) -> str:
    return [word, word.lower(), word.upper(), word.capitalize()][rng.integers(4)]


def quoted(words: Sequence[str], rng: np.random.Generator) -> str:
    left, right = [('"', '"'), ("'", "'"), ("{", "}"), ("[", "]")][rng.integers(4)]
    return left + [" ", "  ", "\t", ", "][rng.integers(4)].join(words) + right


def write_pbc(truth: Truth, rng: np.random.Generator) -> str | None:
    """Return the value of pbc in one of its forms, None where the default says the same; some are not understood."""
    if rng.random() < 0.12:
        truth.reason = "pbc"
        return ["'p p f'", "xyz", "TF", '"T T"', '"2 1 1"', "yes", '"T T F F"', '""'][rng.integers(8)]
    if all(truth.pbc) and rng.random() < 0.4:
        return [None, "T", "1", "true"][rng.integers(4)]
    pairs = [("T", "F"), ("1", "0"), ("true", "false"), ("True", "False"), ("TRUE", "FALSE"), ("t", "f")]
    yes, no = pairs[rng.integers(len(pairs))]
    words = [yes if periodic else no for periodic in truth.pbc]
    if len(yes) == 1 and rng.random() < 0.4:
        joined = "".join(words)
        return joined if rng.random() < 0.5 else f'"{joined}"'
    return quoted(words, rng)


def write_labels(truth: Truth, rng: np.random.Generator) -> tuple[list[tuple[str, str]], list[tuple[str, np.ndarray]]]:
    """Return keys and columns of one or two families of labels; set what is to be expected of an import."""
    volume = abs(np.linalg.det(truth.cell))
    assert truth.stress is not None
    prefix = ["", "REF_", "dft_", "DFT_", "PBE-", "my_ref_", "corrected_"][rng.integers(7)]
    case = str if prefix else (lambda word: any_case(word, rng))
    names = {
        "energy": prefix + case("energy"),
        "forces": prefix + case(["forces", "force"][rng.integers(2)]),
        "stress": prefix + case("stress"),
        "virial": prefix + case(["virial", "virials"][rng.integers(2)]),
    }
    energy, forces, stress, virial = truth.energy, truth.forces, truth.stress, -truth.stress * volume
    units: list[tuple[str, str]] = []
    kind = ["none", "none", "none", "none", "both", "kcal", "half", "unknown"][rng.integers(8)]
    with_units: dict[str, str] = {}
    if kind in ("both", "half"):
        energy, forces, virial = energy / HARTREE, forces / (HARTREE / BOHR), virial / HARTREE
        with_units = {"energy": ["hartree", "Ha", "Hartree", "Eh"][rng.integers(4)], "forces": "Hartree/Bohr"}
        stress = stress / GPA
        with_units |= {"stress": "GPa", "virial": "hartree"}
    if kind == "kcal":
        energy, forces, stress = energy / KCAL_PER_MOL, forces / KCAL_PER_MOL, stress / (0.1 * GPA)
        virial = virial / KCAL_PER_MOL
        with_units = {"energy": "kcal/mol", "forces": "kcal/mol/Ang", "stress": "kbar", "virial": "kcal/mol"}
    if kind == "unknown":
        with_units = {"energy": "furlongs"}
        truth.import_reason = "units"
    keys = [(names["energy"], f"{energy:.{DIGITS}f}")]
    columns = [(names["forces"], forces)]
    form = ["stress", "virial", "both", "missing", "none", "five", "against"][rng.integers(7)]
    shape = [lambda six: six, full][rng.integers(2)]
    if form in ("stress", "both", "against"):
        keys.append((names["stress"], quoted(text_of(shape(stress)), rng)))
    if form in ("virial", "both", "against"):
        factor = -1 if form == "against" else 1
        keys.append((names["virial"], quoted(text_of(factor * shape(virial)), rng)))
        if form == "against" and truth.import_reason is None and all(truth.pbc):
            truth.import_reason = "stress"
    if form == "virial" and not all(truth.pbc):
        truth.stress = None
    if form in ("missing", "none", "five"):
        truth.stress = None
    if form in ("none", "five"):
        keys.append((names["stress"], "None" if form == "none" else '"1.0 2.0 3.0 4.0 5.0"'))
    if kind == "half":
        half = "energy" if rng.random() < 0.5 else "forces"
        with_units = {half: with_units[half]}
        truth.import_reason = "units"
    for name, unit in with_units.items():
        pattern = [f"{prefix}{name}_unit", f"{prefix}{name}_units", f"{name}_unit", f"{name.upper()}_UNIT"]
        units.append((pattern[rng.integers(4)], f'"{unit}"'))
    second = ["no", "no", "same", "other energy", "other forces", "energy alone", "forces alone"][rng.integers(7)]
    if second != "no" and kind == "none":
        other = "B3LYP_"
        far = 0.0 if second == "same" else 7.5
        if second != "forces alone":
            keys.append((f"{other}energy", f"{energy + far * (second != 'other forces'):.{DIGITS}f}"))
        if second != "energy alone":
            columns.append((f"{other}forces", forces + far * (second == "other forces")))
        refused = second in ("other energy", "other forces", "energy alone")
        if rng.random() < 0.5:  # the user chooses
            truth.keys = LabelKeys(energy=names["energy"], forces=names["forces"])
        elif refused:
            truth.import_reason = "families"
    return keys + units, columns


def write_extxyz(rng: np.random.Generator) -> tuple[str, Truth]:
    """Return a frame in some dialect, and what it says."""
    truth = draw(rng)
    keys: list[tuple[str, str]] = [(any_case("Lattice", rng), quoted(text_of(truth.cell), rng))]
    if rng.random() < 0.08:
        wrong = [quoted(text_of(truth.cell)[:6], rng), '"8 8 8"', "bcc"][rng.integers(3)]
        keys = [("Lattice", wrong)] if rng.random() < 0.5 else [("cell", quoted(text_of(truth.cell), rng))]
        truth.reason = "cell"
    if (pbc := write_pbc(truth, rng)) is not None:
        keys.append((any_case("pbc", rng), pbc))
    labels, columns = write_labels(truth, rng)
    keys += labels
    rows: list[tuple[str, str, list[list[str]]]] = []
    if rng.random() < 0.8:
        written = [any_case(chemical_symbols[number], rng) for number in truth.numbers.tolist()]
        rows.append((any_case("species", rng), "S", [[word] for word in written]))
    else:
        rows.append((any_case("Z", rng), "I", [[str(number)] for number in truth.numbers.tolist()]))
    rows.append((any_case("pos", rng), "R", [text_of(row) for row in truth.positions]))
    rows += [(name, "R", [text_of(row) for row in table]) for name, table in columns]
    if rng.random() < 0.5:
        rows.append(("site", "S", [["a"]] * len(truth.numbers)))
        rows.append(("move_flag", "L", [["T"]] * len(truth.numbers)))
    rows = [rows[index] for index in rng.permutation(len(rows))]
    properties = ":".join(f"{name}:{kind}:{len(table[0])}" for name, kind, table in rows)
    keys.append((any_case("Properties", rng), properties))
    notes = [("note", '"it\'s = fine"'), ("comment", "don't"), ("bonds", "[[1, 2], [3, 4]]"), ("t", "'say \"x\"'"),
             ("j", '"_JSON {\\"a\\": 1}"'), ("max_force", "0.25"), ("free_energy", "-1.5"),
             ("kinetic_energy", "3")]  # fmt: skip
    keys += [notes[index] for index in rng.permutation(len(notes))[: rng.integers(4)]]
    equals = ["=", "=", "=", " = "][rng.integers(4)]
    words = [f"{key}{equals}{value}" for key, value in (keys[index] for index in rng.permutation(len(keys)))]
    if rng.random() < 0.3:
        words.insert(int(rng.integers(len(words))), "converged")
    lines = [str(len(truth.numbers)), " ".join(words)]
    lines += ["  ".join(word for *_, table in rows for word in table[index]) for index in range(len(truth.numbers))]
    end = ["\n", "\r\n"][rng.integers(2)]
    return end.join(lines) + end, truth


def check_geometry(atoms: Atoms, truth: Truth) -> None:
    assert atoms.numbers.tolist() == truth.numbers.tolist()
    assert tuple(atoms.pbc.tolist()) == truth.pbc
    np.testing.assert_allclose(atoms.positions, truth.positions, rtol=0, atol=NEAR["positions"])
    np.testing.assert_allclose(atoms.cell.array, truth.cell, rtol=0, atol=NEAR["cell"])


@pytest.fixture(scope="module")
def outcomes() -> Counter[str]:
    """What became of the generated files, counted: a generator that only made refusals would show nothing."""
    return Counter()


@pytest.mark.parametrize("seed", range(N_EXTXYZ))
def test_any_dialect_of_extended_xyz(seed: int, tmp_path: Path, outcomes: Counter[str]) -> None:
    text, truth = write_extxyz(np.random.default_rng(seed))
    path = tmp_path / "a.xyz"
    path.write_bytes(text.encode())
    (item,) = read_structures(path, name="a.xyz")
    (frame_range,) = cut_labelled_ranges(path, 10)
    payload = read_labelled(frame_range, truth.keys, "PBE")
    if truth.reason is not None:
        assert isinstance(item, Rejection), text
        assert item.reason == truth.reason, (item.evidence, text)
        assert [rejection.reason for rejection in payload.rejected] == [truth.reason]
        outcomes["refused"] += 1
        return
    assert isinstance(item, Atoms), (item, text)
    check_geometry(item, truth)  # whatever the labels are
    if truth.import_reason is not None:
        assert [rejection.reason for rejection in payload.rejected] == [truth.import_reason], (payload.rejected, text)
        outcomes[truth.import_reason] += 1
        return
    assert payload.rejected == [], text
    found = payload.arrays
    assert found["energy"][0] == pytest.approx(truth.energy, abs=NEAR["energy"])
    np.testing.assert_allclose(found["forces"], truth.forces, rtol=0, atol=NEAR["forces"])
    if truth.stress is None:
        assert "stress" not in found, text
    else:
        np.testing.assert_allclose(found["stress"][0], truth.stress, rtol=0, atol=NEAR["stress"])
    outcomes["read"] += 1


def test_the_generator_makes_all_kinds(outcomes: Counter[str]) -> None:
    """Runs after the test above in the same process; with others its share of the seeds is too small to judge."""
    if sum(outcomes.values()) < N_EXTXYZ:
        pytest.skip("the dialects were not all read in this process")
    assert outcomes["read"] > 0.3 * N_EXTXYZ
    assert all(outcomes[reason] >= 5 for reason in ("refused", "families", "units", "stress")), outcomes


# --- POSCAR -------------------------------------------------------------------------------------------

FREE_TEXTS = (
    "In situ relaxed", "No comment", "Cu slab with O", "POSCAR Cu Au", "He said", "unknown system", "I", "Cu2Au",
    "CuAu", "Cu Au O H", "", "generated by ASE", "Co", "relaxed At 300 K", "Cu, Au", "Cu Au !", "cu au", "1 2",
)  # fmt: skip


def write_poscar(rng: np.random.Generator) -> tuple[str, Truth]:
    """Return a POSCAR in some dialect, and what it says."""
    truth = draw(rng)
    order = np.argsort(truth.numbers, kind="stable")
    truth.numbers, truth.positions, truth.pbc = truth.numbers[order], truth.positions[order], (True, True, True)
    species, counts = np.unique(truth.numbers, return_counts=True)
    symbols = [chemical_symbols[number] for number in species]
    amounts = "  ".join(map(str, counts)) + ["", " ! counts"][rng.integers(2)]
    scale, cell = [
        ("1.0", truth.cell),
        ("2.0", truth.cell / 2),
        (f"{-abs(np.linalg.det(truth.cell)):.10f}", truth.cell),
    ][rng.integers(3)]
    form = ["species", "species", "header", "free text", "mismatch", "labels"][rng.integers(6)]
    head = [FREE_TEXTS[rng.integers(len(FREE_TEXTS))]]
    middle = [" ".join(symbols), amounts]
    if form == "labels":
        middle[0] = " ".join(f"{symbol}{['_pv', '/6a2f546d', '_sv/ab12'][rng.integers(3)]}" for symbol in symbols)
    if form == "mismatch":
        middle[0] += " Zn"
        truth.reason = "unreadable"
    if form in ("header", "free text"):
        middle = [amounts]
    if form == "header":
        head = [" ".join(symbols)]
    elif form == "free text":
        words = head[0].split()
        if len(words) == len(symbols) and set(words) <= set(chemical_symbols[1:]):
            head = [f"{head[0]} text"]  # it would count
        truth.reason = "no_species"
    selective = rng.random() < 0.3
    cartesian = rng.random() < 0.3
    inside = truth.positions / (float(scale) if float(scale) > 0 else 1.0)
    rows = inside if cartesian else truth.positions @ np.linalg.inv(truth.cell)
    lines = [*head, scale, *(" ".join(text_of(row)) for row in cell), *middle]
    lines += ["Selective dynamics"] if selective else []
    lines.append((["Cartesian", "Kartesisch", "cart"] if cartesian else ["Direct", "direct", "Frac"])[rng.integers(3)])
    flags = [["T", "T", "T"], ["F", "F", "F"]]  # every second atom is fixed
    if selective and truth.reason is None and rng.random() < 0.3:
        flags = [["T", "F", "T"]] * 2
        truth.reason = "constraint"  # along a vector of a skew cell, which no component of the positions is
    lines += [" ".join(text_of(row) + flags[number % 2] * selective) for number, row in enumerate(rows)]
    if rng.random() < 0.3:
        lines += ["", *(" ".join(text_of(row)) for row in 0.01 * rows)]
    return "\n".join(lines) + "\n", truth


@pytest.mark.parametrize("seed", range(N_POSCAR))
def test_any_dialect_of_poscar(seed: int, tmp_path: Path) -> None:
    text, truth = write_poscar(np.random.default_rng(seed))
    (tmp_path / "POSCAR").write_text(text)
    (item,) = read_structures(tmp_path / "POSCAR", name="POSCAR")
    if truth.reason is not None:
        assert isinstance(item, Rejection), text
        assert item.reason == truth.reason, (item.evidence, text)
        if truth.reason == "no_species":
            assert "no line of species" in item.evidence
        return
    assert isinstance(item, Atoms), (item, text)
    check_geometry(item, truth)
    fixed = np.tile([[False], [True]], (len(item), 3))[: len(item)]
    assert np.array_equal(item.arrays.get("fixed", 0 * fixed), fixed if "Selective" in text else 0 * fixed)
