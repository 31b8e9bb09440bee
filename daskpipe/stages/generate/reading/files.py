"""Read the user's own structures from extxyz, xyz, CIF, POSCAR, ASE trajectories and ASE databases.

Files hold bytes of third parties. The name of a file decides its format. Parsers that never unpickle take numbers,
positions, cell, periodicity, charge and spin (of the structure and of its atoms), masses of isotopes, fixed atoms and
``config_type``. Calculators, tags and other notes are left out, and their names listed
(`daskpipe.stages.generate.reading.left_out`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase import Atoms

from daskpipe.core.constraints import from_constraints
from daskpipe.core.errors import InputError, Rejection
from daskpipe.core.registry import FolderName
from daskpipe.core.shared_disk import raise_if_transient
from daskpipe.core.structures import copy_arrays
from daskpipe.stages.generate.checks import FrameError
from daskpipe.stages.generate.params import NotEmpty
from daskpipe.stages.generate.reading.crystal_files import cif_frames, poscar_frames
from daskpipe.stages.generate.reading.declared_units import check_length, metadata_units
from daskpipe.stages.generate.reading.electrons import ElectronError, electrons_of, moments_of
from daskpipe.stages.generate.reading.extxyz import parse_frame, xyz_frames
from daskpipe.stages.generate.reading.left_out import NOTED, names_left_out, noted_names, taken_names

log = logging.getLogger(__name__)

TAKES_N = False
"""Files are read whole, so that a source of files has no number of structures."""

COVERED = {
    "energies", "fixed", "free_energy", "occupancy", "parameters", "spacegroup", "spacegroup_kinds", "stresses",
    "unit_cell",
}  # fmt: skip
"""Names that parsers give to what is taken, and results that belong to the energy and the stress."""

Frame = Callable[[], Atoms]
"""Function that builds one structure of a file; if it fails, the others are read all the same."""


def files(
    *, rng: np.random.Generator, paths: Annotated[list[str], NotEmpty], base_dir: FolderName = "."
) -> Iterator[Atoms | Rejection]:
    """Yield all structures of files.

    Parameters
    ----------
    rng
        Ignored: files are read as they are.
    paths
        Files. In a config also folders, which are searched to any depth, and globs (see `find_files`). The name decides
        the format: ``.extxyz`` and ``.xyz``, ``.cif``, ``POSCAR*``, ``CONTCAR*``, ``.poscar`` and ``.vasp``,
        ``.traj``, ``.db``.
    base_dir
        Folder that relative paths start from. Structures are named by path as given and frame, from 0:
        ``sub/frames.xyz#3``.

    Yields
    ------
    ase.Atoms or Rejection
        One for each frame, in order, as far as the file can be read: ``info`` holds ``name`` and, where the file gives
        them, ``charge`` and ``spin_multiplicity`` (see `generate.reading.electrons`), ``config_type`` and,
        under `daskpipe.stages.generate.reading.left_out.NOTED`, the names of what was not taken; the arrays
        ``initial_charges``, ``initial_magmoms`` and ``masses`` are kept, and constraints become the array ``fixed``.
        Reasons of rejection: ``unknown_format``, ``empty``, ``unreadable``, ``unknown_element``, ``partial_occupancy``,
        ``charge``, ``spin``, ``constraint``, ``masses``.
    """
    for path in paths:
        yield from read_structures(Path(base_dir) / path, name=path)


def read_structures(
    path: Path, *, name: str, first: int = 0, n_frames: int | None = None, offset: int = 0
) -> Iterator[Atoms | Rejection]:
    """Yield the structures of one file, or of a range of its frames that begins with frame `first` at byte `offset`.

    `files` describes the items, and `daskpipe.stages.generate.reading.frame_ranges` how a file is cut.
    """
    number = first
    try:
        for number, frame in enumerate(islice(_open_frames(path, first, offset), n_frames), start=first + 1):
            yield _build_structure(frame, f"{name}#{number - 1}")
        if number == 0:
            raise FrameError("empty", "the file holds no structure")
    except Exception as error:  # the file as a whole, or all of it from here on, cannot be read
        yield rejection_of(error, f"{name}#{number}" if number else name)


def _build_structure(frame: Frame, name: str) -> Atoms | Rejection:
    try:
        raw = frame()
        atoms = clean_structure(raw)
        names = names_left_out(raw, taken_names(raw, atoms) | COVERED)
    except Exception as error:  # a parser may raise anything for bytes of third parties
        return rejection_of(error, name)
    atoms.info["name"] = name
    if names:
        atoms.info[NOTED] = tuple(sorted(names))
    return atoms


def _open_frames(path: Path, first: int, offset: int) -> Iterator[Frame]:
    reader = reader_of(path)
    if reader is None:
        raise FrameError("unknown_format", f"{path.name} is in no known format; known names: {KNOWN_NAMES}")
    if path.stat().st_size == 0:
        raise FrameError("empty", "the file has no bytes")
    return _xyz_frames(path, offset) if reader is _xyz_frames else islice(reader(path), first, None)


def rejection_of(error: Exception, name: str) -> Rejection:
    """Turn an error of reading a structure into a rejection; raise it again if the disk is at fault."""
    raise_if_transient(error)
    if isinstance(error, FrameError):
        reason, evidence = error.reason, str(error)
    elif isinstance(error, KeyError) and re.fullmatch(r"\w{1,8}", str(error.args[0])):
        # ASE looks symbols up in a dict.
        reason, evidence = "unknown_element", f"{error.args[0]!r} is no chemical symbol"
    else:
        reason, evidence = (
            "unreadable",
            f"{type(error).__name__}: {str(error) or 'not in the format of its name'}"[:500],
        )
    return Rejection(stage="generate", structure=name, reason=reason, evidence=evidence)


def clean_structure(atoms: Atoms) -> Atoms:
    """Return a copy of a structure of a third party with only the facts that daskpipe takes."""
    try:
        info: dict[str, Any] = dict(electrons_of(atoms))
    except ElectronError as error:
        raise FrameError(error.reason, str(error)) from error
    if word := " ".join(str(atoms.info.get("config_type", "")).split()):
        info["config_type"] = word
    check_length(atoms.info)
    clean = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc, info=info)
    try:
        copy_arrays(atoms, clean)
    except ValueError as error:
        raise FrameError("constraint", str(error)) from error
    # A structure that daskpipe exported has its initial moments in the file; those of a teacher do not identify it.
    moments = moments_of(atoms)
    if moments is not None and "structure_id" not in atoms.info and not clean.has("initial_magmoms"):
        clean.set_array("initial_magmoms", moments, float, moments.shape[1:])
    return clean


def _xyz_frames(path: Path, offset: int = 0) -> Iterator[Frame]:
    """Yield the frames of an extxyz or xyz file; a broken one does not affect the others."""
    for _, frame in xyz_frames(path, offset):
        yield partial(parse_frame, frame)


def _trajectory_frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of an ASE trajectory from its container, without building constraints or calculators."""
    from ase.io import ulm

    with ulm.open(path) as items:
        if items.get_tag() != "ASE-Trajectory":
            raise ValueError(f"the file is tagged {items.get_tag()!r}, not 'ASE-Trajectory'")

        def build_frame(number: int) -> Atoms:
            item = items[number]
            # Numbers and periodicity stand in the first item unless they change.
            numbers, pbc = (item.get(key) if key in item else items.get(key) for key in ("numbers", "pbc"))
            atoms = Atoms(
                numbers, item.positions, cell=item.cell, pbc=pbc, info=item.get("info"), masses=item.get("masses"),
                charges=item.get("charges"), magmoms=item.get("magmoms"),
            )  # fmt: skip
            # Constraints stand where numbers do, as JSON.
            header = item if "numbers" in item else items
            results = item.calculator.keys() if "calculator" in item else ()
            held = {name: item.get(name) for name in ("momenta", "tags")}
            atoms.info[NOTED] = noted_names(held, set(results) - {"name"})
            return _mark_fixed_atoms(atoms, json.loads(header.get("constraints", "[]")))

        for number in range(len(items)):
            yield partial(build_frame, number)


def _database_frames(path: Path) -> Iterator[Frame]:
    """Yield the rows of an ASE database, in the order of their ids."""
    import sqlite3

    from ase.db import connect

    # ASE adds its tables to any database that it opens, also to one of another program.
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        ids = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]
    finally:
        connection.close()
    database = connect(str(path), type="db", use_lock_file=False)
    units = metadata_units(database.metadata)
    for row_id in ids:
        yield partial(_build_row, database, row_id, units)


def _lmdb_frames(path: Path) -> Iterator[Frame]:
    """Yield the rows of a fairchem database, in the order of their ids."""
    import lmdb
    from ase.db import connect

    # If opening fails, ASE's class raises again when it is deleted: so open a file that may be no database here first.
    lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()
    with connect(str(path), type="aselmdb", readonly=True) as database:
        units = metadata_units(database.metadata)
        for row_id in database.ids:
            yield partial(_build_row, database, row_id, units)


def _build_row(database: Any, row_id: int, units: Mapping[str, Any]) -> Atoms:
    from ase.calculators.calculator import all_properties

    row = database.get(id=row_id)
    info = {**units, **row.key_value_pairs, **words_of(row.data)}
    atoms = Atoms(
        row.numbers, row.positions, cell=row.cell, pbc=row.pbc, info=info,
        charges=row.get("initial_charges"), magmoms=row.get("initial_magmoms"), masses=row.get("masses"),
    )  # fmt: skip
    held = {name: row.get(name) for name in ("momenta", "tags")}
    results = [name for name in all_properties if name in row]
    atoms.info[NOTED] = noted_names(held, [*results, *(set(row.data) - set(info))])
    # ASE builds constraints by name, and of its own kinds alone.
    return _mark_fixed_atoms(atoms, [item.todict() for item in row.constraints])


def words_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the strings of a row's data, where daskpipe's exports put words that ASE would read as numbers."""
    return {key: value for key, value in data.items() if isinstance(value, str)}


def _mark_fixed_atoms(atoms: Atoms, constraints: list[dict[str, Any]]) -> Atoms:
    """Mark in place the atoms that constraints fix, and return the structure."""
    try:
        atoms.set_array("fixed", from_constraints(constraints, len(atoms), atoms.cell.array), bool, (3,))
    except ValueError as error:
        raise FrameError("constraint", str(error)) from error
    return atoms


READERS: dict[str, Callable[[Path], Iterator[Frame]]] = {
    ".extxyz": _xyz_frames,
    ".xyz": _xyz_frames,
    ".cif": cif_frames,
    ".poscar": poscar_frames,
    ".vasp": poscar_frames,
    ".traj": _trajectory_frames,
    ".db": _database_frames,
    ".aselmdb": _lmdb_frames,
}
KNOWN_NAMES = ", ".join(["POSCAR*", "CONTCAR*", *(f"*{suffix}" for suffix in READERS)])


def reader_of(path: Path) -> Callable[[Path], Iterator[Frame]] | None:
    """Return the reader for a file by its name; ``None`` if the name is not known."""
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()]
    return poscar_frames if path.name.startswith(("POSCAR", "CONTCAR")) else None


def find_files(
    paths: list[str],
    base_dir: Path,
    *,
    is_known: Callable[[Path], object] | None = None,
    known: str = KNOWN_NAMES,
) -> list[Path]:
    """Find the files that `paths` name, each once, in the order given, and by name within a folder or glob.

    Parameters
    ----------
    paths
        Files, folders and globs (``*``, ``?``, ``[...]``, ``**`` for any depth); ``~`` is the home folder. Folders
        are searched to any depth for files of known names, without hidden ones; the number of skipped files is
        logged. A file that is named, or matched by a glob, is taken whatever its name.
    base_dir
        Folder that relative paths start from.
    is_known, known
        Function that tells which files of a folder to take, by default `reader_of`, and the names for messages.

    Raises
    ------
    InputError
        If a path does not exist, a glob matches nothing, or a folder has no file of a known name.
    """
    files_by_target: dict[Path, Path] = {}
    for text in paths:
        path = base_dir / Path(text).expanduser()
        if path.exists():
            matches = [path]
        elif glob.has_magic(text):
            pattern = str(Path(text).expanduser())
            matches = [base_dir / match for match in sorted(glob.glob(pattern, root_dir=base_dir, recursive=True))]
            if not matches:
                raise InputError(f"paths: {text!r} matches no file in {base_dir}; check the pattern")
        else:
            raise InputError(f"paths: {text!r} does not exist in {base_dir}; give a file, a folder or a glob")
        files = [
            file
            for match in matches
            for file in (_walk_folder(match, is_known or reader_of) if match.is_dir() else [match])
        ]
        if not files:
            raise InputError(f"paths: {text!r} holds no file of a known name; known: {known}")
        if odd := [file for file in files if not file.is_file()]:
            raise InputError(f"paths: {odd[0]} is neither a file nor a folder; leave it out")
        files_by_target |= {file.resolve(): file for file in files if file.resolve() not in files_by_target}
    return list(files_by_target.values())


def _walk_folder(folder: Path, is_known: Callable[[Path], object]) -> list[Path]:
    """List the files of known names in a folder and below it, without hidden ones."""
    kept, skipped = [], 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        known = [path for path in visible if is_known(path) and path.is_file()]
        kept += known
        skipped += len(visible) - len(known)
    if skipped:
        log.info("%s: skipped %d files that are in no known format", folder, skipped)
    return kept


def expand_requests(params: dict[str, Any], n: int | None, base_dir: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the parameters of one request for each file, and the checksum of the file.

    Raises
    ------
    InputError
        If a path does not exist (see `find_files`) or a file cannot be opened.
    """
    base_dir = (base_dir / Path(params["base_dir"]).expanduser()).resolve()
    requests = []
    for path in find_files(params["paths"], base_dir):
        absolute = Path(os.path.abspath(path))
        name = absolute.relative_to(base_dir) if absolute.is_relative_to(base_dir) else absolute
        requests.append(({"paths": [name.as_posix()], "base_dir": str(base_dir)}, hash_file(path)))
    return requests


def hash_file(path: Path) -> str:
    """Return the BLAKE2b hash of a file, 32 hex digits.

    Raises
    ------
    InputError
        If it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
    except OSError as error:
        raise_if_transient(error)
        raise InputError(f"paths: {path} cannot be read: {error.strerror}; check its permissions") from error
