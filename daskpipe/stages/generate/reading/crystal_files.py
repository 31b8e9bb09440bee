"""Read structures of CIF and POSCAR files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from daskpipe.stages.generate.checks import FrameError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.io.cif import CIFBlock

COORDINATES = (
    "_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z",
    "_atom_site_cartn_x", "_atom_site_cartn_y", "_atom_site_cartn_z",
)  # fmt: skip


def cif_frames(path: Path) -> Iterator[Callable[[], Atoms]]:
    """Yield functions that build the structures of a CIF, one for each block with coordinates."""
    from ase.io.cif import parse_cif

    for block in parse_cif(str(path)):
        # Journals put the text of the paper into blocks without coordinates.
        if "_atom_site_fract_x" in block or "_atom_site_cartn_x" in block:
            yield partial(_of_block, block)


def _of_block(block: CIFBlock) -> Atoms:
    from ase.spacegroup.spacegroup import SpacegroupError

    _check_sites(block)
    try:
        atoms: Atoms = block.get_atoms()
    except SpacegroupError as error:
        given = next((str(block[key]) for key in block if "space_group_name" in key or "it_number" in key), "none")
        raise FrameError(
            "unreadable",
            f"the space group is not known (received {given[:60]!r}): add the line _space_group_IT_number with its "
            "number, or the symmetry operations, or write the structure in P1",
        ) from error
    atoms.pbc = atoms.cell.rank == 3
    return atoms


def _check_sites(block: CIFBlock) -> None:
    """Refuse sites that are partly occupied or have no coordinates."""
    for key in COORDINATES:
        if unknown := [value for value in _read_column(block, key) if not isinstance(value, int | float)]:
            raise FrameError(
                "unreadable",
                f"{len(unknown)} of {len(_read_column(block, key))} sites have no number for {key} "
                f"(but {unknown[0]!r}); give a structure in which each site has its coordinates",
            )
    occupancies = _read_column(block, "_atom_site_occupancy")
    partly = [value for value in occupancies if isinstance(value, int | float) and value < 1]
    if partly:
        raise FrameError(
            "partial_occupancy",
            f"{len(partly)} of {len(occupancies)} sites are partly occupied, the least by {min(partly):g}; "
            "give an ordered structure",
        )


def _read_column(block: CIFBlock, key: str) -> Sequence[object]:
    values = block.get(key, [])
    return values if isinstance(values, list) else [values]


def poscar_frames(path: Path) -> Iterator[Callable[[], Atoms]]:
    """Yield the function that builds the structure of a POSCAR.

    The elements are those of the line of species. Where there is none (VASP 4), they are those of the header, if it is
    made of as many chemical symbols as there are counts and of nothing else; other headers are text, in which "In",
    "No" and "P" are words.
    """
    yield partial(_of_poscar, path)


def _of_poscar(path: Path) -> Atoms:
    from ase.io.vasp import read_vasp

    size = path.stat().st_size
    with path.open("rb") as lines:
        head = [line.decode("utf-8", errors="replace") for line in islice(lines, 7)]
    claimed = max((int(word) for line in head[5:] for word in line.split() if word.isdigit()), default=0)
    if claimed > size:  # the parser allocates memory for all of them
        raise ValueError(f"the file claims {claimed:.3g} atoms, and has {size} bytes")
    _check_species(head)
    atoms: Atoms = read_vasp(path)
    return atoms


def _check_species(head: Sequence[str]) -> None:
    """Refuse a POSCAR whose elements are not clear.

    Raises
    ------
    FrameError
        If there is no line of species, or another number of species than of counts.
    """
    from ase.data import chemical_symbols

    if len(head) < 7:
        raise FrameError("unreadable", f"the file ends after {len(head)} lines; a POSCAR has 8 and more")
    first, *_ = [*head[5].split(), ""]
    if re.fullmatch(r"\d+", first):
        n_species, words = len(_split_counts(head[5])), head[0].split()
        if len(words) != n_species or not set(words) <= set(chemical_symbols[1:]):
            example = " ".join(["Cu", "Au", "O", "H"][index % 4] for index in range(n_species))
            raise FrameError(
                "no_species",
                f"no line of species, and the header {head[0].strip()[:60]!r} is not made of {n_species} chemical "
                f"symbol{'s' * (n_species > 1)}; add one before the line of counts "
                f"{head[5].strip()[:60]!r}, e.g. {example!r}",
            )
        return
    species, counts = head[5].split("!")[0].split(), _split_counts(head[6])
    if len(species) != len(counts):
        raise FrameError(
            "unreadable", f"{len(species)} species ({head[5].strip()[:60]}) and {len(counts)} counts "
            f"({head[6].strip()[:60]}); give a count for each species"
        )  # fmt: skip


def _split_counts(line: str) -> list[str]:
    return line.split("!")[0].split()
