"""Frames with their labels, from extxyz, ASE's SQLite databases and fairchem's LMDB ones (``.aselmdb``).

What a frame is comes through the same door as all foreign structures (`daskpipe.generate.files`); here its energy,
forces and stress are taken as well, and what a frame descends from is worked out:

* A frame that daskpipe exported says it itself (``structure_id`` and ``parent_id``).
* Else, consecutive frames with the same atoms in the same order, none of which moved by 1 Å or more from the frame
  before, are one trajectory, and their parent is its first frame. So a split does not tear a trajectory apart. Frames
  that were thinned out until atoms jump farther, or shuffled, cannot be told from different systems.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from daskpipe.errors import ConfigError, Rejection
from daskpipe.generate.checks import check, system_type
from daskpipe.generate.files import FrameError, cleaned, rejection_of, xyz_frames
from daskpipe.generate.stretches import ANY, TEXTS, Stretch
from daskpipe.geometry import full_cell
from daskpipe.isolated import CONFIG_TYPE as ISOLATED_ATOM
from daskpipe.isolated import is_isolated
from daskpipe.shared_disk import raise_if_transient
from daskpipe.structures import NO_PARENT, from_atoms, round_positions, structure_id
from daskpipe.variables import FULL_TO_VOIGT
from daskpipe.work import Payload, arrays_of

if TYPE_CHECKING:
    from ase import Atoms

STAGE = "import"
"""What rejections are counted under, and the generator of frames that name none."""

DATABASES = (".db", ".aselmdb")

JUMP = 1.0
"""Distance, Å, that no atom moves between two frames of a trajectory: a thermal vibration is less, a bond is more."""

VIRIALS = ("REF_virials", "virials", "virial")
WORDS = ("system_type", "generator", "label_method", "split")
"""Facts that daskpipe's own exports carry."""

ID_DIGITS = 32

Build = Callable[[], "Atoms"]


class LabelKeys(BaseModel):
    """Where frames have their labels: keys of ``info``, of ``arrays``, or of ASE's calculator.

    Where no key is given, the calculator's results are taken (what ASE reads from ``energy``, ``forces`` and
    ``stress``), else MACE's ``REF_energy``, ``REF_forces`` and ``REF_stress``, else a stress from virials. Units are eV
    and Å.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: str | None = Field(default=None, description="Key of the energy, eV")
    forces: str | None = Field(default=None, description="Key of the forces, eV/Å")
    stress: str | None = Field(
        default=None, description="Key of the stress, eV/Å^3, 9 numbers or xx yy zz yz xz xy; positive under tension"
    )


@dataclass(frozen=True, kw_only=True)
class LabelledStretch(Stretch):
    """Frames of one file that are read by one task, and what they go on from.

    Parameters
    ----------
    parent
        First frame, as structure id in hex, of the trajectory that the first readable frame of the stretch goes on
        with; empty if it begins one or names its parent itself.
    """

    parent: str = ""


def labelled_stretches(path: Path, size: int) -> list[LabelledStretch]:
    """Cut a file into stretches of `size` frames; it is read through once, to see where trajectories begin.

    Parameters
    ----------
    path
        ``.extxyz``, ``.xyz``, ``.db`` or ``.aselmdb``.
    size
        Frames in a stretch.
    """
    begins, parents, n_frames, trajectory = [], [], 0, _Trajectory()
    try:
        for offset, build in _frames(path):
            if n_frames % size == 0:
                begins.append(offset)
                parents.append("")
                first = True
            n_frames += 1
            try:
                atoms, lineage = _structure(build())
            except Exception as error:  # which reading will explain
                raise_if_transient(error)
                continue
            parent = trajectory.parent_of(atoms, lineage)
            if first and lineage is None and parent != NO_PARENT:
                parents[-1] = parent.hex()
            first = False
    except Exception as error:  # from here on it cannot be read, which reading it will explain
        raise_if_transient(error)
    starts = range(0, max(n_frames, 1), size)
    return [
        LabelledStretch(
            path=str(path),
            first=start,
            n_frames=min(size, n_frames - start),
            offset=begins[number] if begins else 0,
            last=start == starts[-1],
            parent=parents[number] if parents else "",
        )
        for number, start in enumerate(starts)
    ]


def read_labelled(stretch: LabelledStretch, keys: LabelKeys, method: str) -> Payload:
    """Read the frames of a stretch with their labels into what a unit commits.

    Parameters
    ----------
    stretch
        From `labelled_stretches`.
    keys
        Where the labels stand.
    method
        What the rows say in ``label_method``, unless daskpipe exported them and they say it themselves.

    Returns
    -------
    Payload
        Rows with energy (eV), forces (eV/Å), where the frame has them stress (eV/Å^3) and magmoms, ``label_status`` ok,
        ``step`` the number of the frame in its file, and lineage. Frames that cannot be used are rejections of the
        stage ``import``: ``empty``, ``unreadable``, ``unknown_format``, ``unknown_element``, ``no_energy``,
        ``no_forces``, ``shape``, ``not_finite``, and whatever `daskpipe.generate.checks.check` finds.

    Raises
    ------
    ConfigError
        If the method is not one word.
    """
    check_method(method)
    good: list[Atoms] = []
    rejected: list[Rejection] = []
    for item in _read(stretch, keys, method):
        if isinstance(item, Rejection):
            rejected.append(replace(item, stage=STAGE))
        else:
            good.append(item)
    return Payload(arrays=arrays_of(from_atoms(good)), n_out=len(good), rejected=rejected)


def check_method(method: str) -> None:
    """Raise `ConfigError` if the name of a method is not one word."""
    if method.split() != [method]:
        raise ConfigError(f"label method {method!r}: use one word without white space, e.g. PBE-D3")


def _read(stretch: LabelledStretch, keys: LabelKeys, method: str) -> Iterator[Atoms | Rejection]:
    path, number = Path(stretch.path), stretch.first
    trajectory = _Trajectory(bytes.fromhex(stretch.parent))
    try:
        if path.stat().st_size == 0:
            raise FrameError("empty", "the file has no bytes")
        with closing(_frames(path, stretch.first, stretch.offset)) as frames:
            for number, (_, build) in enumerate(
                islice(frames, None if stretch.last else stretch.n_frames), start=stretch.first + 1
            ):
                yield _row(build, f"{stretch.path}#{number - 1}", number - 1, trajectory, keys, method)
        if number == 0:
            raise FrameError("empty", "the file holds no structure")
    except Exception as error:  # what is wrong with the file as a whole, or from here on
        yield rejection_of(error, f"{stretch.path}#{number}" if number else stretch.path)


def _row(
    build: Build, name: str, number: int, trajectory: _Trajectory, keys: LabelKeys, method: str
) -> Atoms | Rejection:
    from ase.calculators.singlepoint import SinglePointCalculator

    try:
        raw = build()
        atoms, lineage = _structure(raw)
        # Before the labels are looked at: a frame without them belongs to its trajectory all the same.
        parent = trajectory.parent_of(atoms, lineage)
        labels = _labels(raw, keys)
        facts = training_facts(raw)
    except Exception as error:  # a parser may raise anything when it meets foreign bytes
        return rejection_of(error, name)
    facts |= {"system_type": system_type(atoms), "generator": STAGE, "label_method": method}
    if is_isolated(atoms) and not atoms.info.get("charge"):
        facts.setdefault("config_type", atoms.info.get("config_type", ISOLATED_ATOM))
    if lineage is not None:
        facts |= {key: word for key in WORDS if (word := str(raw.info.get(key, ""))).split() == [word]}
    atoms.info |= {**facts, "parent_id": parent, "step": number, "label_status": "ok"}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


# --- frames -----------------------------------------------------------------------------------------


def _frames(path: Path, first: int = 0, offset: int = 0) -> Generator[tuple[int, Build]]:
    """Yield the byte that each frame begins at (0 in databases), and what builds it with all that is written in it."""
    if path.suffix.lower() in TEXTS:
        for begin, frame in xyz_frames(path, offset):
            yield begin, partial(_parse, frame)
    elif path.suffix.lower() in DATABASES:
        yield from islice(_rows(path), first, None)
    else:
        known = ", ".join(f"*{suffix}" for suffix in (*TEXTS, *DATABASES))
        raise FrameError("unknown_format", f"{path.name} is in no format that can hold labels; known names: {known}")


def _parse(frame: bytes) -> Atoms:
    from io import StringIO

    from ase.io.extxyz import read_xyz

    atoms: Atoms = next(read_xyz(StringIO(frame.decode("utf-8", errors="replace")), index=0))
    return atoms


def _rows(path: Path) -> Iterator[tuple[int, Build]]:
    """Rows of an ASE database, in the order of their ids."""
    from ase.db import connect

    if path.suffix.lower() == ".db":
        # ASE would add its tables to a database of another program.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]
        with connect(str(path), type="db", use_lock_file=False) as database:  # one connection, not one a row
            yield from ((0, partial(_whole, database, row_id)) for row_id in ids)
        return
    if find_spec("ase_db_backends") is None:
        raise FrameError("unreadable", "*.aselmdb needs ase-db-backends; type: pip install 'daskpipe[export]'")
    import lmdb

    lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()  # ASE's class would fail again when it goes
    database = connect(str(path), type="aselmdb", readonly=True)
    try:
        yield from ((0, partial(_whole, database, row_id)) for row_id in database.ids)
    finally:
        database.close()


def _whole(database: Any, row_id: int) -> Atoms:
    """Return the structure of a row with all that the row knows in ``info``."""
    row = database.get(id=row_id)
    atoms: Atoms = row.toatoms()
    atoms.info |= {**row.key_value_pairs, **row.data}
    return atoms


def _structure(raw: Atoms) -> tuple[Atoms, bytes | None]:
    """Return what daskpipe takes of a frame but its labels, and its parent if daskpipe wrote the frame.

    Raises
    ------
    FrameError
        If it cannot be used.
    """
    atoms = round_positions(cleaned(raw))
    if fault := check(atoms, ANY):
        raise FrameError(fault.reason, fault.evidence)
    known = _id(raw.info.get("structure_id"))
    return atoms, None if known is None else _id(raw.info.get("parent_id")) or NO_PARENT


def _id(text: Any) -> bytes | None:
    """Return an id as daskpipe's exports write it: hex after ``0x``; None for anything else."""
    digits = str(text).removeprefix("0x")
    try:
        return bytes.fromhex(digits) if len(digits) == ID_DIGITS else None
    except ValueError:
        return None


# --- labels -----------------------------------------------------------------------------------------


def _labels(raw: Atoms, keys: LabelKeys) -> dict[str, Any]:
    """Return the labels of a frame, under ASE's names and in ASE's order.

    Raises
    ------
    FrameError
        If energy or forces are missing, or one of them is no number.
    """
    results: Mapping[str, Any] = raw.calc.results if raw.calc is not None else {}
    written = {**raw.info, **raw.arrays}
    n_atoms = len(raw)

    def find(name: str, key: str | None) -> np.ndarray | None:
        places = ((written, key), (results, key)) if key else ((results, name), (written, f"REF_{name}"))
        found = next((place[key] for place, key in places if place.get(key) is not None), None)
        if found is None:
            return None
        try:
            return np.asarray(found, dtype=float)
        except (TypeError, ValueError) as error:
            raise FrameError("shape", f"the {name} is {str(found)[:60]!r}, which is no number") from error

    labels: dict[str, Any] = {}
    for name, key, shape in (("energy", keys.energy, ()), ("forces", keys.forces, (n_atoms, 3))):
        values = find(name, key)
        if values is None and name == "forces" and is_isolated(raw):
            values = np.zeros(shape)  # there is nothing that could pull
        if values is None:
            raise FrameError(f"no_{name}", f"no {name} under {key or f'{name} or REF_{name}'}; see label keys")
        labels[name] = _checked(name, values.reshape(()) if values.size == 1 and not shape else values, shape)
    stress = find("stress", keys.stress)
    if stress is None and keys.stress is None:
        virials = next((np.asarray(written[key], dtype=float) for key in VIRIALS if key in written), None)
        if virials is not None and raw.cell.rank == len(raw.cell):
            stress = -virials / raw.get_volume()
    if stress is not None and not np.isnan(stress).all():
        labels["stress"] = _checked("stress", _voigt(stress), (6,))
    if "magmoms" in results:
        labels["magmoms"] = _checked("magmoms", np.asarray(results["magmoms"], dtype=float), (n_atoms,))
    return labels


def training_facts(raw: Atoms) -> dict[str, Any]:
    """Return ``head`` and ``config_weight`` of a frame, where it has them.

    Raises
    ------
    FrameError
        If the weight is no number.
    """
    facts: dict[str, Any] = {}
    if word := " ".join(str(raw.info.get("head", "")).split()):
        facts["head"] = word
    if (weight := raw.info.get("config_weight")) is not None:
        try:
            facts["config_weight"] = float(weight)
        except (TypeError, ValueError):
            facts["config_weight"] = np.nan
        if not np.isfinite(facts["config_weight"]) or facts["config_weight"] < 0:
            raise FrameError("config_weight", f"config_weight is {str(weight)[:60]!r}; give a number from 0, or none")
    return facts


def _voigt(stress: np.ndarray) -> np.ndarray:
    if stress.size != 9:
        return stress.reshape(-1)
    full = stress.reshape(3, 3)
    return ((full + full.T) / 2).reshape(9)[list(FULL_TO_VOIGT)]


def _checked(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape != shape:
        raise FrameError("shape", f"{name}: expected an array of shape {shape}, received {values.shape}")
    if not np.isfinite(values).all():
        raise FrameError("not_finite", f"{np.count_nonzero(~np.isfinite(values))} of {values.size} {name} not finite")
    return values


# --- trajectories -----------------------------------------------------------------------------------


class _Trajectory:
    """The trajectory that the last frame belonged to.

    Parameters
    ----------
    first
        Its first frame, if the next one goes on with it for certain; empty if not.
    """

    def __init__(self, first: bytes = b"") -> None:
        self._first = first
        self._last: Atoms | None = None

    def parent_of(self, atoms: Atoms, lineage: bytes | None) -> bytes:
        """Return the parent of the next frame; zeros for one that begins a trajectory."""
        if lineage is not None:
            self._first, self._last = b"", None
            return lineage
        goes_on = bool(self._first) if self._last is None else _goes_on(self._last, atoms)
        self._last = atoms
        if goes_on:
            return self._first
        self._first = structure_id(atoms)
        return NO_PARENT


def _goes_on(before: Atoms, atoms: Atoms) -> bool:
    """Whether the atoms are those of the frame before, and none of them moved far, boundaries crossed or not."""
    if not (np.array_equal(before.numbers, atoms.numbers) and np.array_equal(before.pbc, atoms.pbc)):
        return False
    moved = atoms.positions - before.positions
    if atoms.pbc.any():
        cell = full_cell(atoms)
        turns = np.rint(np.linalg.solve(cell.T, moved.T).T)
        moved = moved - (turns * atoms.pbc) @ cell
    return bool((np.linalg.norm(moved, axis=1) < JUMP).all())
