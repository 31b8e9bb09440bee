"""Cells of crystals: primitive, conventional, and repeated to a size."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from daskpipe.core.geometry import cell_widths
from daskpipe.stages.generate.disorder import choose_size, missing_size_error
from daskpipe.stages.generate.repeats import repeat_cell

MAX_ELONGATION = 2.0
"""Largest ratio of the widths of a supercell, where some supercell within the range has a lower one."""

SYMPREC = 1e-3
"""Tolerance of positions when cells are reduced, Å."""

Repeats = tuple[int, int, int]
Supercells = dict[int, list[tuple[Atoms, Repeats]]]
"""Cells and their repeats by number of atoms."""


def primitive_cell(atoms: Atoms) -> Atoms:
    """Return the primitive cell of a crystal, Niggli-reduced, so that its angles are near 90 degrees or 60."""
    import spglib

    primitive = _reduce(atoms, to_primitive=True)
    primitive.set_cell(spglib.niggli_reduce(primitive.cell.array), scale_atoms=False)
    primitive.wrap()
    return primitive


def conventional_cell(atoms: Atoms) -> Atoms:
    """Return the conventional cell of a crystal."""
    return _reduce(atoms, to_primitive=False)


def _reduce(atoms: Atoms, *, to_primitive: bool) -> Atoms:
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    standard = spglib.standardize_cell(cell, to_primitive=to_primitive, symprec=SYMPREC)
    if standard is None:
        raise ValueError(f"spglib finds no symmetry in {atoms.get_chemical_formula()}")
    lattice, positions, numbers = standard
    reduced = Atoms(numbers, cell=lattice, scaled_positions=positions, pbc=True)
    reduced.info = dict(atoms.info)
    return reduced


def find_supercells(what: str, crystal: Atoms, n_atoms: tuple[int, int]) -> Supercells:
    """Find the supercells of a crystal with a number of atoms within limits.

    Both the primitive and the conventional cell are repeated. Of one number of atoms those are kept whose widths differ
    by less than `MAX_ELONGATION`, or else those with the least elongation.

    Parameters
    ----------
    what
        Name of the crystal in the error.
    crystal
        Primitive cell.
    n_atoms
        Lowest and highest number of atoms.

    Raises
    ------
    ValueError
        If no supercell has so many atoms; the error names the nearest numbers.
    """
    low, high = n_atoms
    conventional = conventional_cell(crystal)
    cells = [crystal] if len(conventional) == len(crystal) else [crystal, conventional]
    smallest = len(crystal)
    if not low <= high // smallest * smallest:
        raise missing_size_error(
            f"supercell of {what}", n_atoms, [max(1, high // smallest) * smallest, (high // smallest + 1) * smallest]
        )
    by_size: dict[int, list[tuple[float, Atoms, Repeats]]] = {}
    for cell in cells:
        widths = cell_widths(cell.cell.array)
        for repeats in _list_repeats(high // len(cell)):
            size = len(cell) * int(np.prod(repeats))
            if size >= low:
                lengths = widths * repeats
                by_size.setdefault(size, []).append((float(lengths.max() / lengths.min()), cell, repeats))
    compact = {
        size: [(cell, repeats) for elongation, cell, repeats in listed if elongation <= MAX_ELONGATION + 1e-9]
        for size, listed in by_size.items()
    }
    if any(compact.values()):
        return {size: listed for size, listed in compact.items() if listed}
    _, cell, repeats = min((each for listed in by_size.values() for each in listed), key=lambda each: each[0])
    return {len(cell) * int(np.prod(repeats)): [(cell, repeats)]}


def _list_repeats(most: int) -> list[Repeats]:
    return [
        (i, j, k) for i in range(1, most + 1) for j in range(1, most // i + 1) for k in range(1, most // (i * j) + 1)
    ]


def draw_supercell(rng: np.random.Generator, supercells: Supercells) -> Atoms:
    """Draw a number of atoms, then a supercell of that many."""
    cell, repeats = choose_size(rng, supercells)
    return repeat_cell(cell, repeats)
