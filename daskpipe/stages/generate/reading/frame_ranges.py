"""Cut the user's own trajectories into frame ranges that are read in parallel, and copy single frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.constraints import fixed_components, to_constraints
from daskpipe.core.errors import Rejection
from daskpipe.core.shared_disk import raise_if_transient
from daskpipe.core.structures import round_positions
from daskpipe.core.variables import ARRAY_KEYS
from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.reading.extxyz import xyz_frames
from daskpipe.stages.generate.reading.files import read_structures, reader_of, words_of

if TYPE_CHECKING:
    from ase import Atoms

TEXTS = (".extxyz", ".xyz")
"""Suffixes of files in which a frame is a block of lines."""

STAGE = "read"
"""Stage under which rejections are counted."""

ANY = Limits(max_atoms=10_000_000, min_distance=0)
"""Limits for frames that are only described: a teacher need not be able to compute them."""


@dataclass(frozen=True, kw_only=True)
class FrameRange:
    """Consecutive frames of one file, which one task reads.

    Parameters
    ----------
    path
        The file.
    first, n_frames
        Number of the first frame, from 0, and number of frames.
    offset
        Byte that the first frame begins at, in files of text.
    last
        Whether it ends the file. If so, bytes after its frames that cannot be read become a rejection.
    """

    path: str
    first: int
    n_frames: int
    offset: int = 0
    last: bool = False


def cut_frame_ranges(path: Path, size: int) -> list[FrameRange]:
    """Cut a file into ranges of `size` frames. A text file is read once for this.

    Parameters
    ----------
    path
        A file of a format that `daskpipe.stages.generate.reading.files` knows.
    size
        Frames in a range.
    """
    begins, n_frames = _find_offsets(path, size) if path.suffix.lower() in TEXTS else ([], _count_frames(path))
    starts = range(0, max(n_frames, 1), size)
    return [
        FrameRange(
            path=str(path),
            first=start,
            n_frames=min(size, n_frames - start),
            offset=begins[number] if begins else 0,
            last=start == starts[-1],
        )
        for number, start in enumerate(starts)
    ]


def _find_offsets(path: Path, size: int) -> tuple[list[int], int]:
    """Return the byte at which each `size`-th frame begins, and the number of complete frames."""
    begins, n_frames = [], 0
    try:
        for offset, _ in xyz_frames(path):
            if n_frames % size == 0:
                begins.append(offset)
            n_frames += 1
    except (OSError, ValueError) as error:  # reading the range will explain what is wrong from here on
        raise_if_transient(error)
    return begins, n_frames


def _count_frames(path: Path) -> int:
    """Count the frames of a file; 0 if it cannot be read. Reading it will explain why."""
    reader = reader_of(path)
    try:
        return sum(1 for _ in reader(path)) if reader else 0
    except Exception as error:  # a parser may raise anything for bytes of third parties
        raise_if_transient(error)
        return 0


def read_frame_range(frame_range: FrameRange) -> Iterator[Atoms | Rejection]:
    """Yield the structures of a frame range; ``info["step"]`` is the number of the frame in its file."""
    path = Path(frame_range.path)
    structures = read_structures(
        path,
        name=frame_range.path,
        first=frame_range.first,
        n_frames=None if frame_range.last else frame_range.n_frames,
        offset=frame_range.offset,
    )
    for number, item in enumerate(structures, start=frame_range.first):
        yield replace(item, stage=STAGE) if isinstance(item, Rejection) else _finish_frame(item, number)


def _finish_frame(atoms: Atoms, number: int) -> Atoms | Rejection:
    name = atoms.info.pop("name")
    # Descriptors do not depend on these, and they may be wrong. Moments distinguish magnetic states of one geometry.
    atoms.info.pop("spin_multiplicity", None)
    moments = atoms.arrays.get("initial_magmoms")
    for key in ARRAY_KEYS:
        atoms.arrays.pop(key, None)
    if moments is not None and moments.ndim == 1 and np.isfinite(moments).all():
        atoms.set_array("initial_magmoms", moments)
    round_positions(atoms)
    if fault := find_fault(atoms, ANY):
        return Rejection(stage=STAGE, structure=name, reason=fault.reason, evidence=fault.evidence)
    atoms.info |= {"step": number, "system_type": system_type(atoms)}
    return atoms


def copy_frames(picked: Iterable[tuple[str, Sequence[int]]], out: Path) -> None:
    """Copy frames of files to one extxyz file; those of extxyz and xyz files byte for byte.

    Parameters
    ----------
    picked
        Files, and the sorted numbers of the frames to copy from each.
    out
        The file to write.
    """
    from ase.io.extxyz import write_extxyz

    with out.open("wb") as file:
        for path, numbers in picked:
            if Path(path).suffix.lower() in TEXTS:
                wanted = set(numbers)
                for number, (_, frame) in enumerate(islice(xyz_frames(Path(path)), numbers[-1] + 1)):
                    if number in wanted:
                        file.write(frame if frame.endswith(b"\n") else frame + b"\n")
            else:
                for atoms in _read_whole_frames(Path(path), numbers):
                    text = StringIO()
                    write_extxyz(text, atoms)
                    file.write(text.getvalue().encode())


def _read_whole_frames(path: Path, numbers: Sequence[int]) -> Iterator[Atoms]:
    """Yield frames of a file that is not text, with their labels."""
    if path.suffix.lower() == ".db":
        from ase.db import connect

        database = connect(str(path), type="db", use_lock_file=False)
        ids = [row.id for row in database.select(columns=["id"], sort="id")]
        for number in numbers:
            row = database.get(id=ids[number])
            atoms = row.toatoms()
            atoms.info |= row.key_value_pairs | words_of(row.data)
            yield atoms
    elif path.suffix.lower() == ".traj":
        import ase.io

        with ase.io.Trajectory(path) as trajectory:
            for number in numbers:
                yield trajectory[number]
    elif reader := reader_of(path):
        built = list(reader(path))
        for number in numbers:
            yield _with_move_mask(built[number]())


def _with_move_mask(atoms: Atoms) -> Atoms:
    """Replace constraints, in place, by those that ASE writes as ``move_mask``; return the structure."""
    from ase.constraints import dict2constraint

    fixed = fixed_components(atoms)
    atoms.arrays.pop("fixed", None)
    atoms.set_constraint([] if fixed is None else [dict2constraint(item) for item in to_constraints(fixed)])
    return atoms
