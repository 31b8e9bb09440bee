"""Read frames with their labels: extxyz, ASE's trajectories and databases (also ``.aselmdb``), VASP's output.

The structure of a frame is read as that of all files (`generate.reading.files`). Here its energy, forces and
stress are read as well (`generate.reading.labels`), values that are not taken are counted, and the parent of
each frame is worked out:

* A frame that daskpipe exported names its parent (``structure_id`` and ``parent_id``).
* Else, consecutive frames with the same atoms in the same order, none of which moved by 1 Å or more from the frame
  before, are one trajectory, and their parent is its first frame. Where frames are shuffled, the store connects them
  (`daskpipe.store.connectivity`). So a split does not tear a trajectory apart. Frames that were thinned out until atoms
  jump farther cannot be told from different systems.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.errors import ConfigError, Rejection
from daskpipe.core.geometry import full_cell
from daskpipe.core.isolated_atoms import CONFIG_TYPE as ISOLATED_ATOM
from daskpipe.core.isolated_atoms import is_isolated
from daskpipe.core.shared_disk import raise_if_transient
from daskpipe.core.structures import NO_PARENT, from_atoms, round_positions, structure_id
from daskpipe.engine.rows import dataset_to_arrays
from daskpipe.engine.units import Payload
from daskpipe.stages.generate.checks import FrameError, find_fault, system_type
from daskpipe.stages.generate.reading.declared_units import metadata_units
from daskpipe.stages.generate.reading.extxyz import parse_frame, xyz_frames
from daskpipe.stages.generate.reading.files import clean_structure, find_files, rejection_of
from daskpipe.stages.generate.reading.frame_ranges import ANY, TEXTS, FrameRange
from daskpipe.stages.generate.reading.given_splits import split_of_frame
from daskpipe.stages.generate.reading.labels import LabelKeys, left_out, read_labels
from daskpipe.stages.generate.reading.left_out import (
    LEFT_OUT,
    MOST_CHARACTERS,
    shorten_tallies,
    taken_names,
    tally_names,
)
from daskpipe.stages.generate.reading.vasp import is_outcar, is_vasprun, outcar_frames, vasprun_frames

if TYPE_CHECKING:
    from ase import Atoms

STAGE = "import"
"""Stage under which rejections are counted, and the generator of frames that name none."""

DATABASES = (".db", ".aselmdb")
TRAJECTORIES = (".traj",)
KNOWN_NAMES = ", ".join([*(f"*{suffix}" for suffix in (*TEXTS, *TRAJECTORIES, *DATABASES)), "OUTCAR*", "vasprun*.xml"])
"""Files whose frames can have labels."""

JUMP = 1.0
"""Distance, Å, that no atom moves between two frames of a trajectory: vibrations are smaller, and bonds longer."""

WORDS = ("system_type", "generator", "label_method")
"""Keys of further facts in daskpipe's own exports."""

ID_DIGITS = 32

LABELS, FROM = "labels/", "from/"
"""Prefixes of the names of tallies, beside `LEFT_OUT`."""

Build = Callable[[], "Atoms"]


@dataclass(frozen=True, kw_only=True)
class LabelledFrameRange(FrameRange):
    """Consecutive labelled frames of one file, which one task reads, and the trajectory that they continue.

    Parameters
    ----------
    parent
        First frame, as structure id in hex, of the trajectory that the first readable frame of the range goes on
        with; empty if it begins one or names its parent itself.
    split
        Split that the name of the file gives; empty if it gives none.
    """

    parent: str = ""
    split: str = ""


def cut_labelled_ranges(path: Path, size: int, split: str = "") -> list[LabelledFrameRange]:
    """Cut a file into ranges of `size` frames; the file is read once, to see where trajectories begin.

    Parameters
    ----------
    path
        ``.extxyz``, ``.xyz``, ``.db`` or ``.aselmdb``.
    size
        Frames in a range.
    split
        Split that the name of the file gives.
    """
    begins, parents, n_frames, trajectory = [], [], 0, _Trajectory()
    try:
        for offset, build in _open_frames(path):
            if n_frames % size == 0:
                begins.append(offset)
                parents.append("")
                first = True
            n_frames += 1
            try:
                atoms, lineage = _clean_frame(build())
            except Exception as error:  # reading the range will explain it
                raise_if_transient(error)
                continue
            parent = trajectory.parent_of(atoms, lineage)
            if first and lineage is None and parent != NO_PARENT:
                parents[-1] = parent.hex()
            first = False
    except Exception as error:  # reading the range will explain what is wrong from here on
        raise_if_transient(error)
    starts = range(0, max(n_frames, 1), size)
    return [
        LabelledFrameRange(
            path=str(path),
            first=start,
            n_frames=min(size, n_frames - start),
            offset=begins[number] if begins else 0,
            last=start == starts[-1],
            parent=parents[number] if parents else "",
            split=split,
        )
        for number, start in enumerate(starts)
    ]


def read_labelled(frame_range: LabelledFrameRange, keys: LabelKeys, method: str) -> Payload:
    """Read the frames of a range with their labels into the payload of a unit.

    Parameters
    ----------
    frame_range
        From `cut_labelled_ranges`.
    keys
        Keys and units of the labels.
    method
        Value of ``label_method``, except for frames that daskpipe exported with a method.

    Returns
    -------
    Payload
        Rows with energy (eV), forces (eV/Å), where the frame has them stress (eV/Å^3) and magmoms, ``label_status`` ok,
        ``step`` the number of the frame in its file, and lineage. Frames that cannot be used are rejections of the
        stage ``import``: ``empty``, ``unreadable``, ``unknown_format``, ``unconverged``, those of
        `reading.files.read_structures`, `reading.labels.read_labels` and `generate.checks.find_fault`.
        Tallies count frames: ``labels/energy``, ``labels/forces``, ``labels/stress``; ``from/KEYS`` by the keys of
        their labels; ``left_out/NAME`` by what they hold and is not taken.

    Raises
    ------
    ConfigError
        If the method is not one word.
    """
    check_method(method)
    good: list[Atoms] = []
    rejected: list[Rejection] = []
    tallies: Counter[str] = Counter()
    for item in _read_rows(frame_range, keys, method):
        if isinstance(item, Rejection):
            rejected.append(replace(item, stage=STAGE))
        else:
            good.append(item[0])
            tallies += item[1]
    return Payload(
        arrays=dataset_to_arrays(from_atoms(good)),
        n_out=len(good),
        rejected=rejected,
        tallies=shorten_tallies(tallies),
    )


def label_report(tallies: Iterable[Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return the sums of the tallies of units that `read_labelled` made.

    Returns
    -------
    dict
        Frames with each label (``labels``), by the keys of their labels (``sources``), and by what they hold and is
        not taken (``left_out``), the most frequent first; empty if there are no tallies.
    """
    total = sum((Counter(counts) for counts in tallies), Counter())
    names = {"labels": LABELS, "sources": FROM, "left_out": LEFT_OUT}
    report = {
        kind: {name.removeprefix(prefix): n for name, n in total.most_common() if name.startswith(prefix)}
        for kind, prefix in names.items()
    }
    return report if total else {}


def check_method(method: str) -> None:
    """Raise `ConfigError` if the name of a method is not one word."""
    if method.split() != [method]:
        raise ConfigError(f"label method {method!r}: use one word without white space, e.g. PBE-D3")


def _read_rows(
    frame_range: LabelledFrameRange, keys: LabelKeys, method: str
) -> Iterator[tuple[Atoms, Counter[str]] | Rejection]:
    path, number = Path(frame_range.path), frame_range.first
    trajectory = _Trajectory(bytes.fromhex(frame_range.parent))
    try:
        if path.stat().st_size == 0:
            raise FrameError("empty", "the file has no bytes")
        with closing(_open_frames(path, frame_range.first, frame_range.offset)) as frames:
            for number, (_, build) in enumerate(
                islice(frames, None if frame_range.last else frame_range.n_frames), start=frame_range.first + 1
            ):
                item = _build_row(build, f"{frame_range.path}#{number - 1}", number - 1, trajectory, keys, method)
                if frame_range.split and not isinstance(item, Rejection):
                    item[0].info.setdefault("split", frame_range.split)
                yield item
        if number == 0:
            raise FrameError("empty", "the file holds no structure")
    except Exception as error:  # the file as a whole, or all of it from here on, cannot be read
        yield rejection_of(error, f"{frame_range.path}#{number}" if number else frame_range.path)


def _build_row(
    build: Build, name: str, number: int, trajectory: _Trajectory, keys: LabelKeys, method: str
) -> tuple[Atoms, Counter[str]] | Rejection:
    from ase.calculators.singlepoint import SinglePointCalculator

    try:
        raw = build()
        atoms, lineage = _clean_frame(raw)
        # Before its labels are read, since a frame without labels belongs to its trajectory too.
        parent = trajectory.parent_of(atoms, lineage)
        labels = read_labels(raw, keys)
        if is_isolated(raw):
            labels.results.setdefault("forces", np.zeros((1, 3)))  # there is nothing that could pull
        facts = training_facts(raw)
    except Exception as error:  # a parser may raise anything for bytes of third parties
        return rejection_of(error, name)
    facts |= {"system_type": system_type(atoms), "generator": STAGE, "label_method": method}
    if is_isolated(atoms) and not atoms.info.get("charge"):
        facts.setdefault("config_type", atoms.info.get("config_type", ISOLATED_ATOM))
    if lineage is not None:
        facts |= {key: word for key in WORDS if (word := str(raw.info.get(key, ""))).split() == [word]}
    if split := split_of_frame(raw.info):
        facts["split"] = split
    atoms.info |= {**facts, "parent_id": parent, "step": number, "label_status": "ok"}
    atoms.calc = SinglePointCalculator(atoms, **labels.results)
    names = [f"{LABELS}{label}" for label in labels.results]
    names.append(f"{FROM}{', '.join(labels.keys)}"[:MOST_CHARACTERS])
    # What has become a variable is in `atoms`, under its own name.
    names += tally_names(left_out(raw, taken_names(raw, atoms), labels))
    return atoms, Counter(names)


# --- frames -----------------------------------------------------------------------------------------


def _open_frames(path: Path, first: int = 0, offset: int = 0) -> Generator[tuple[int, Build]]:
    """Yield the byte at which each frame begins (0 in databases), and the function that builds the complete frame."""
    if path.suffix.lower() in TEXTS:
        for begin, frame in xyz_frames(path, offset):
            yield begin, partial(parse_frame, frame)
    elif path.suffix.lower() in DATABASES:
        yield from islice(_database_frames(path), first, None)
    elif path.suffix.lower() in TRAJECTORIES:
        yield from islice(_trajectory_frames(path), first, None)
    elif is_vasprun(path) or is_outcar(path):
        reader = vasprun_frames if is_vasprun(path) else outcar_frames
        yield from islice(((0, build) for build in reader(path)), first, None)
    else:
        raise FrameError(
            "unknown_format", f"{path.name} is in no format that can hold labels; known names: {KNOWN_NAMES}"
        )


def holds_labels(path: Path) -> bool:
    """Return whether the frames of a file can have labels, by its name."""
    return path.suffix.lower() in (*TEXTS, *TRAJECTORIES, *DATABASES) or is_vasprun(path) or is_outcar(path)


def find_labelled(paths: list[str], base_dir: Path) -> tuple[list[Path], list[Path]]:
    """Find the files that `paths` name, and list those among them that cannot hold labels.

    Parameters
    ----------
    paths, base_dir
        As `generate.reading.files.find_files` takes them. Of a folder only the files that can hold labels
        count; of an OUTCAR and a vasprun.xml in one folder the latter, for it has more digits of the same frames.

    Raises
    ------
    InputError
        As `daskpipe.stages.generate.reading.files.find_files`.
    """
    files = find_files(paths, base_dir, is_known=holds_labels, known=KNOWN_NAMES)
    folders = {file.parent for file in files if is_vasprun(file)}
    files = [file for file in files if not (is_outcar(file) and file.parent in folders)]
    return files, [file for file in files if not holds_labels(file)]


def _trajectory_frames(path: Path) -> Iterator[tuple[int, Build]]:
    """Yield the frames of an ASE trajectory with their results."""
    from ase.io.trajectory import TrajectoryReader

    with TrajectoryReader(path) as trajectory:
        yield from ((0, partial(trajectory.__getitem__, number)) for number in range(len(trajectory)))


def _database_frames(path: Path) -> Iterator[tuple[int, Build]]:
    """Yield the rows of an ASE database, in the order of their ids."""
    from ase.db import connect

    if path.suffix.lower() == ".db":
        # ASE would add its tables to a database of another program.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]
        with connect(str(path), type="db", use_lock_file=False) as database:  # one connection, not one a row
            units = metadata_units(database.metadata)
            yield from ((0, partial(_build_whole_frame, database, row_id, units)) for row_id in ids)
        return
    if find_spec("ase_db_backends") is None:
        raise FrameError("unreadable", "*.aselmdb needs ase-db-backends; type: pip install 'daskpipe[export]'")
    import lmdb

    lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()  # ASE's class would fail again when it goes
    database = connect(str(path), type="aselmdb", readonly=True)
    try:
        units = metadata_units(database.metadata)
        yield from ((0, partial(_build_whole_frame, database, row_id, units)) for row_id in database.ids)
    finally:
        database.close()


def _build_whole_frame(database: Any, row_id: int, units: Mapping[str, Any]) -> Atoms:
    """Return the structure of a row with all that the row, and the metadata of its units, say in ``info``."""
    row = database.get(id=row_id)
    atoms: Atoms = row.toatoms()
    atoms.info |= {**units, **row.key_value_pairs, **row.data}
    return atoms


def _clean_frame(raw: Atoms) -> tuple[Atoms, bytes | None]:
    """Return a clean copy of a frame without labels, and its parent if daskpipe wrote the frame.

    Raises
    ------
    FrameError
        If it cannot be used.
    """
    atoms = round_positions(clean_structure(raw))
    if fault := find_fault(atoms, ANY):
        raise FrameError(fault.reason, fault.evidence)
    known = _parse_id(raw.info.get("structure_id"))
    return atoms, None if known is None else _parse_id(raw.info.get("parent_id")) or NO_PARENT


def _parse_id(text: Any) -> bytes | None:
    """Return an id as daskpipe's exports write it: hex after ``0x``; None for anything else."""
    digits = str(text).removeprefix("0x")
    try:
        return bytes.fromhex(digits) if len(digits) == ID_DIGITS else None
    except ValueError:
        return None


# --- facts for training -----------------------------------------------------------------------------


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


# --- trajectories -----------------------------------------------------------------------------------


class _Trajectory:
    """Trajectory of the last frame.

    Parameters
    ----------
    first
        Its first frame, if the next frame certainly continues it; empty if not.
    """

    def __init__(self, first: bytes = b"") -> None:
        self._first = first
        self._last: Atoms | None = None

    def parent_of(self, atoms: Atoms, lineage: bytes | None) -> bytes:
        """Return the parent of the next frame; zeros for one that begins a trajectory."""
        if lineage is not None:
            self._first, self._last = b"", None
            return lineage
        continues = bool(self._first) if self._last is None else _continues_trajectory(self._last, atoms)
        self._last = atoms
        if continues:
            return self._first
        self._first = structure_id(atoms)
        return NO_PARENT


def _continues_trajectory(before: Atoms, atoms: Atoms) -> bool:
    """Return whether the atoms are those of the frame before and none moved far, also across boundaries."""
    if not (np.array_equal(before.numbers, atoms.numbers) and np.array_equal(before.pbc, atoms.pbc)):
        return False
    moved = atoms.positions - before.positions
    if atoms.pbc.any():
        cell = full_cell(atoms)
        turns = np.rint(np.linalg.solve(cell.T, moved.T).T)
        moved = moved - (turns * atoms.pbc) @ cell
    return bool((np.linalg.norm(moved, axis=1) < JUMP).all())
