"""Read the frames of extended XYZ and XYZ files, as bytes and as structures.

The parser follows ASE's conventions for the place of each value (``atoms.info``, ``atoms.arrays``, results of a
calculator, ``move_mask`` as a constraint), and differs from ASE's parser where users' files need it:

* ``Lattice``, ``Properties`` and ``pbc`` are known by their names in lower and upper case alike.
* ``pbc`` is three of ``T F true false 1 0``, or one for all axes, with or without blanks (``TTF``). Any other form is
  refused. Without ``pbc`` a structure with a ``Lattice`` is periodic along all axes, and one without it along none.
* A value that is no good label (``stress=None``, a stress of six numbers, a word among the forces) stays as it was
  written in ``info`` or ``arrays``: it never costs the geometry.
* A frame that leaves room for guesses is refused: a cell under another key, a Lattice that is not nine numbers, a
  line with more or fewer columns than Properties names, no column of positions.

Words of the comment without ``=`` are text, and stand together in ``info["comment"]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.stages.generate.checks import FrameError

if TYPE_CHECKING:
    from ase import Atoms

STRUCTURAL_KEYS = ("lattice", "properties", "pbc")
"""Keys of the comment that define the positions of atoms, in lower case."""

CELL_KEYS = (
    "cell", "box", "unit_cell", "unitcell", "cell_vectors", "cell_parameters", "cell_matrix", "lattice_vectors",
    "lattice_parameters", "lattice_matrix", "supercell", "tv",
)  # fmt: skip
"""Keys under which other programs write a cell, in lower case; none of them is part of extended XYZ."""

COLUMNS = {
    "species": "symbols", "symbols": "symbols", "symbol": "symbols", "element": "symbols", "elements": "symbols",
    "pos": "positions", "position": "positions", "positions": "positions",
    "z": "numbers", "numbers": "numbers", "atomic_numbers": "numbers",
    "move_mask": "move_mask",
}  # fmt: skip
"""Names of the columns for kind and position of an atom, in lower case, and ASE's names for them."""

ASE_NAMES = {"charge": "charges"}
"""ASE's names for other columns."""

PLAIN = (("symbols", "S", 1), ("positions", "R", 3))
"""Columns of a file that does not name them."""

BOOLEANS = {
    "T": True, "F": False, "t": True, "f": False, "true": True, "false": False, "True": True, "False": False,
    "TRUE": True, "FALSE": False,
}  # fmt: skip

CLOSING = {'"': '"', "'": "'", "{": "}", "[": "]"}
"""Character that ends a value which begins with the key."""

_KEY = re.compile(r"[A-Za-z_][\w.-]*\s*=")

Column = tuple[str, str, int]
"""Name, type (R, I, S or L) and number of columns."""


def xyz_frames(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the bytes of each frame of an extxyz or xyz file.

    Parameters
    ----------
    path
        The file.
    offset
        Byte at which a frame begins; this frame and all after it are yielded.

    Raises
    ------
    ValueError
        Where the file is broken.
    """
    with path.open("rb") as lines:
        lines.seek(offset)
        header = next(lines, b"")
        while header:
            if not header.strip():
                offset += len(header)
                header = next(lines, b"")
                continue
            if not header.strip().isdigit():
                received = header[:1000].decode("utf-8", errors="replace").strip()[:60]
                raise ValueError(f"expected a line with the number of atoms, received {received!r}")
            n_atoms = int(header)
            if n_atoms > (size := path.stat().st_size):
                raise ValueError(f"the file claims {n_atoms:.3g} atoms, and has {size} bytes")
            body = list(islice(lines, n_atoms + 1))
            if len(body) < n_atoms + 1:
                raise ValueError(f"the file ends after {max(len(body) - 1, 0)} of {n_atoms} atoms")
            following = next(lines, b"")
            while following.lstrip().startswith(b"VEC"):  # the cell, in ADF's dialect
                body.append(following)
                following = next(lines, b"")
            frame = b"".join([header, *body])
            yield offset, frame
            offset += len(frame)
            header = following


def parse_frame(frame: bytes) -> Atoms:
    """Parse a frame into a structure with all values that the frame holds.

    Parameters
    ----------
    frame
        From `xyz_frames`.

    Returns
    -------
    ase.Atoms
        Keys of the comment in ``info`` and columns in ``arrays``, under ASE's names; what is a result of ASE's, and
        is made of numbers in the shape of that result, in a calculator.

    Raises
    ------
    FrameError
        If the frame leaves open which structure it is.
    ValueError, KeyError
        If it cannot be read: numbers that are none, an unknown symbol (KeyError, as ASE).
    """
    from ase import Atoms

    header, comment, *lines = frame.decode("utf-8", errors="replace").split("\n")
    n_atoms = int(header)
    pairs, words = split_comment(comment)
    structural, info = _sort_keys(pairs, comment)
    cell, pbc = _cell_and_pbc(structural, info, lines[n_atoms:])
    if words:
        info["comment"] = " ".join([str(info.get("comment", "")), *words]).strip()
    arrays = _parse_columns(lines[:n_atoms], structural.get("properties"))
    symbols, numbers = arrays.pop("symbols", None), arrays.pop("numbers", None)
    atoms = Atoms(
        None if symbols is None else [str(symbol).capitalize() for symbol in symbols],
        numbers=numbers if symbols is None else None,
        positions=arrays.pop("positions"),
        charges=arrays.pop("initial_charges", None),
        cell=cell,
        pbc=pbc,
        info=info,
    )
    if numbers is not None and symbols is not None and not np.array_equal(atoms.numbers, numbers):
        first = int(np.flatnonzero(atoms.numbers != numbers)[0])
        raise FrameError(
            "unreadable", f"atom {first} is {str(symbols[first])!r} and has the atomic number {numbers[first]}"
        )
    _fix_atoms(atoms, arrays.pop("move_mask", None))
    _sort_results(atoms, arrays)
    return atoms


# --- the comment --------------------------------------------------------------------------------------


def split_comment(comment: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Split the comment of a frame into pairs of key and value, as they are written, and words without ``=``.

    A key or value that begins with ``"``, ``'``, ``{`` or ``[`` ends with its counterpart (brackets may be nested);
    a backslash keeps the character behind it. Blanks may stand around ``=``.
    """
    tokens: list[str | None] = []  # None for =
    position, n = 0, len(comment)
    while position < n:
        char = comment[position]
        if char.isspace():
            position += 1
        elif char == "=" and tokens and tokens[-1] is not None:
            tokens.append(None)
            position += 1
        elif tokens and tokens[-1] is None and comment[position - 1].isspace() and _KEY.match(comment, position):
            tokens.append("")  # a key without a value stands before the next key
        else:
            token, position = _read_token(comment, position, is_key=not (tokens and tokens[-1] is None))
            tokens.append(token)
    pairs, words, index = [], [], 0
    while index < len(tokens):
        key = tokens[index] or ""
        if index + 1 < len(tokens) and tokens[index + 1] is None:
            pairs.append((key, (tokens[index + 2] or "") if index + 2 < len(tokens) else ""))
            index += 3
        else:
            words.append(key)
            index += 1
    return pairs, words


def _read_token(text: str, start: int, *, is_key: bool) -> tuple[str, int]:
    """Return the key, word or value that begins at `start`, and where what follows begins."""
    opening = text[start]
    closing = CLOSING.get(opening)
    made: list[str] = []
    position, depth = start + (closing is not None), 1
    while position < len(text):
        char = text[position]
        if char == "\\" and position + 1 < len(text):
            made.append(text[position + 1])
            position += 2
            continue
        if closing is None:
            if char.isspace() or (char == "=" and is_key):
                return "".join(made), position
        else:
            depth += (char == opening and opening != closing) - (char == closing)
            if depth == 0:
                return "".join(made), position + 1
        made.append(char)
        position += 1
    return "".join(made), position


def parse_value(text: str) -> Any:
    """Return a value of the comment as ASE does: a number, an array, a truth or truths, JSON, or the text."""
    words = re.findall(r"[^\s,]+", text)
    for dtype in (int, float):
        try:
            numbers = np.array(words, dtype=dtype)
        except (ValueError, OverflowError):
            continue
        return numbers[0] if len(numbers) == 1 else numbers
    if words and all(word in BOOLEANS and word not in "tf" for word in words):
        truths = [BOOLEANS[word] for word in words]
        return truths[0] if len(truths) == 1 else truths
    if text.startswith("_JSON "):
        try:
            parsed = json.loads(text.removeprefix("_JSON "))
        except (ValueError, RecursionError):
            return text
        try:
            array = np.array(parsed)
        except ValueError:  # lists of unequal length
            return parsed
        return array if array.dtype.kind in "ifb" else parsed
    return text


def _sort_keys(pairs: Sequence[tuple[str, str]], comment: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Separate the structural keys, in lower case and as text, from the values of all others."""
    structural: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    for key, value in pairs:
        if (name := key.lower()) not in STRUCTURAL_KEYS:
            texts.setdefault(key, []).append(value)
        elif structural.setdefault(name, value) != value:
            raise FrameError("unreadable", f"the comment has two values for {name}: {structural[name]!r} and {value!r}")
    for match in re.finditer(rf"\b({'|'.join(STRUCTURAL_KEYS)})\s*=", comment, flags=re.IGNORECASE):
        if match[1].lower() not in structural:
            raise FrameError(
                "unreadable", f"{match[1]}= stands within another value of the comment; check its quotation marks"
            )
    info: dict[str, Any] = {}
    for key, values in texts.items():
        if len(set(values)) > 1:
            info[key] = " and ".join(values)  # no number: a label that is written twice is no label
        else:
            parsed: Any = values[0] if key.lower() == "uid" else parse_value(values[0])
            info[key] = parsed.reshape(3, 3).T if key in ("stress", "virial") and np.size(parsed) == 9 else parsed
    return structural, info


def parse_pbc(text: str) -> tuple[bool, bool, bool]:
    """Return the periodicity along the three cell vectors.

    Raises
    ------
    FrameError
        If the form is not known.
    """
    words = re.findall(r"[^\s,\[\]]+", text)
    if len(words) == 1 and re.fullmatch("[TFtf]{3}|[01]{3}", words[0]):
        words = list(words[0])
    known = {**BOOLEANS, "1": True, "0": False}
    if len(words) not in (1, 3) or any(word not in known for word in words):
        raise FrameError("pbc", f'pbc={text[:60]!r} is not understood; write three of T and F, e.g. pbc="T T F"')
    a, b, c = (known[word] for word in words * (3 // len(words)))
    return a, b, c


def _cell_and_pbc(
    structural: dict[str, str], info: dict[str, Any], vectors: Sequence[str]
) -> tuple[np.ndarray | None, Sequence[bool]]:
    """Return the cell, vectors as rows, and the periodicity."""
    pbc = parse_pbc(structural["pbc"]) if "pbc" in structural else None
    if rows := [line.split() for line in vectors if line.strip()]:
        in_order = [row[0] for row in rows] == ["VEC1", "VEC2", "VEC3"][: len(rows)] and len(rows) <= 3
        if "lattice" in structural or not in_order:
            raise FrameError("cell", "give the cell as VEC1, VEC2, VEC3 in that order, or as Lattice, not both")
        cell = np.zeros((3, 3))
        cell[: len(rows)] = np.array([row[1:] for row in rows], dtype=float)
        return cell, pbc or [number < len(rows) for number in range(3)]
    if "lattice" not in structural:
        if other := [key for key in info if key.lower() in CELL_KEYS and np.size(info[key]) in (3, 6, 9)]:
            raise FrameError(
                "cell", f'the comment has {other[0]!r} and no Lattice; write Lattice="ax ay az bx by bz cx cy cz"'
            )
        return None, pbc or (False, False, False)
    try:
        numbers = np.array(re.findall(r"[^\s,]+", structural["lattice"]), dtype=float)
    except ValueError:
        numbers = np.zeros(0)
    if numbers.size != 9:
        received = structural["lattice"][:60]
        raise FrameError("cell", f'Lattice={received!r}; write nine numbers: Lattice="ax ay az bx by bz cx cy cz"')
    return numbers.reshape(3, 3), pbc or (True, True, True)


# --- the columns --------------------------------------------------------------------------------------


def _parse_columns(lines: Sequence[str], properties: str | None) -> dict[str, np.ndarray]:
    """Return the columns under ASE's names; those of positions are always numbers."""
    columns = list(PLAIN) if properties is None else _parse_properties(properties)
    claimed = sum(count for *_, count in columns)
    rows = [line.split() for line in lines]
    for number, row in enumerate(rows):
        if len(row) < claimed or (properties is not None and len(row) > claimed):
            which = "the first atom" if number == 0 else f"atom {number}"
            wanted = f"{claimed} columns are needed" if properties is None else f"the comment claims {claimed} columns"
            raise FrameError("unreadable", f"{wanted}, and {which} has {len(row)}")
    if rows and properties is None and (n_more := min(map(len, rows)) - claimed) > 0:
        columns += [(f"column {claimed + number + 1}", "S", 1) for number in range(n_more)]
    arrays: dict[str, np.ndarray] = {}
    first = 0
    for name, kind, count in columns:
        words = [row[first] for row in rows] if count == 1 else [row[first : first + count] for row in rows]
        arrays[name] = _convert_words(words, name, kind) if rows else np.zeros((0, count)[: 1 + (count > 1)])
        first += count
    return arrays


def _parse_properties(text: str) -> list[Column]:
    fields = text.split(":")
    columns: list[Column] = []
    for name, kind, count in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if not name or kind.upper() not in ("R", "I", "S", "L") or not count.isdigit() or int(count) < 1:
            raise FrameError("unreadable", f"Properties={text[:200]!r}: {name}:{kind}:{count} is no NAME:R|I|S|L:COUNT")
        columns.append((COLUMNS.get(name.lower(), ASE_NAMES.get(name, name)), kind.upper(), int(count)))
    names = [name for name, *_ in columns]
    if len(fields) % 3 or len(set(names)) < len(names):
        raise FrameError("unreadable", f"Properties={text[:200]!r} is no list of NAME:TYPE:COUNT, each name once")
    if ("positions", 3) not in [(name, count) for name, _, count in columns] or not {"symbols", "numbers"} & set(names):
        raise FrameError("unreadable", f"Properties={text[:200]!r} lacks species:S:1 (or Z:I:1) or pos:R:3")
    return columns


def _convert_words(words: Sequence[Any], name: str, kind: str) -> np.ndarray:
    try:
        if kind == "L":
            known = {**BOOLEANS, "1": True, "0": False}
            return np.array([[known[word] for word in row] if isinstance(row, list) else known[row] for row in words])
        return np.array(words, dtype={"R": float, "I": int, "S": str}[kind])
    except (ValueError, KeyError, OverflowError) as error:
        if name in COLUMNS.values():
            raise ValueError(f"{name}: {error}") from error
        return np.array(words, dtype=str)  # no good label costs the geometry


def _fix_atoms(atoms: Atoms, move_mask: np.ndarray | None) -> None:
    """Fix the atoms that may not move, as ASE does."""
    from ase.constraints import FixAtoms, FixCartesian

    if move_mask is None:
        return
    free = move_mask.astype(bool)
    if free.ndim == 1:
        atoms.set_constraint(FixAtoms(mask=~free))
    elif free.shape[1] == 3:
        atoms.set_constraint([FixCartesian(index, mask=~row) for index, row in enumerate(free)])
    else:
        raise FrameError("unreadable", f"move_mask has {free.shape[1]} columns; give 1 or 3")


def _sort_results(atoms: Atoms, arrays: dict[str, np.ndarray]) -> None:
    """Move results with ASE's names and shapes into a calculator; all other values stay as they are written."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.outputs import all_outputs

    results: dict[str, Any] = {}
    for name, array in arrays.items():
        shape = getattr(all_outputs.get(name), "shapespec", ())
        n_columns = shape[1:] if shape[:1] == ("natoms",) else None
        if name in all_properties and array.dtype.kind in "if" and array.shape[1:] == n_columns:
            results[name] = array
        else:
            atoms.new_array(name, array)
    for name in [name for name in atoms.info if name in all_properties]:
        value, shape = np.asarray(atoms.info[name]), getattr(all_outputs.get(name), "shapespec", ())
        if name == "stress" and value.shape == (3, 3) and value.dtype.kind in "if":
            value = ((value + value.T) / 2)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if value.dtype.kind in "if" and value.shape == tuple(shape):
            del atoms.info[name]
            results[name] = value.item() if value.ndim == 0 else value
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
