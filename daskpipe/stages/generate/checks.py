"""Check whether a structure can be computed, and name the kind of system that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat

from daskpipe.core.connectivity import periodic_directions
from daskpipe.core.geometry import cell_widths, find_overlap, full_cell
from daskpipe.core.structures import total_charge
from daskpipe.core.validation import FrozenModel

if TYPE_CHECKING:
    from ase import Atoms

LAST_ELEMENT = 118

MIN_WIDTH = 0.5
"""Least distance between opposite faces of a cell along a periodic axis, Å. No bond is as short."""

MAX_COORDINATE = 1e6
"""Largest coordinate, Å: float32 resolves 0.06 Å there."""

NONMETALS = frozenset((1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 51, 52, 53, 54, 85, 86))
"""Atomic numbers of the elements that bind in molecules, metalloids among them."""


class Limits(FrozenModel):
    """Limits that a seed structure must satisfy."""

    max_atoms: int = Field(default=10_000, ge=1, description="Largest number of atoms of a structure")
    min_distance: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Least distance of two atoms, as a fraction of the sum of their covalent radii",
    )
    min_width: PositiveFloat | None = Field(
        default=None,
        description="Least distance of opposite faces of a cell along periodic axes, Å; null: 0.5. Give what the "
        "potential needs, e.g. twice a model's cutoff, or 12 for xtb",
    )


class Fault(NamedTuple):
    """Reason why a structure fails, as one word to count by, and the measured evidence."""

    reason: str
    evidence: str


class FrameError(Exception):
    """Raised for a structure that cannot be used; it has the reason to count it by."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(evidence)
        self.reason = reason


def find_fault(atoms: Atoms, limits: Limits) -> Fault | None:
    """Find the first fault of a structure.

    Parameters
    ----------
    atoms
        The structure; not changed.
    limits
        Largest size and least distance.

    Returns
    -------
    Fault or None
        ``None`` if it has none. Reasons, in the order of the checks: ``empty``, ``too_large``, ``unknown_element``,
        ``not_finite``, ``cell``, ``spin``, ``charge``, ``masses``, ``overlap``.
    """
    for test in (_check_size, _check_elements, _check_finite, _check_cell, _check_spin, _check_arrays):
        if fault := test(atoms, limits):
            return fault
    return _check_overlap(atoms, limits)


def _check_size(atoms: Atoms, limits: Limits) -> Fault | None:
    if len(atoms) == 0:
        return Fault("empty", "the structure has no atoms")
    if len(atoms) > limits.max_atoms:
        return Fault("too_large", f"{len(atoms)} atoms; the limit is max_atoms = {limits.max_atoms}")
    return None


def _check_elements(atoms: Atoms, limits: Limits) -> Fault | None:
    unknown = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers > LAST_ELEMENT))
    if unknown.size:
        first = unknown[0]
        return Fault("unknown_element", f"atom {first} has atomic number {atoms.numbers[first]}, which is no element")
    return None


def _check_finite(atoms: Atoms, limits: Limits) -> Fault | None:
    bad = np.flatnonzero(~(np.abs(atoms.positions) <= MAX_COORDINATE).all(axis=1))
    if bad.size:
        place = np.array2string(atoms.positions[bad[0]], precision=3)
        return Fault("not_finite", f"atom {bad[0]} is at {place} Å; coordinates must be within {MAX_COORDINATE:g} Å")
    if not (np.abs(atoms.cell.array) <= MAX_COORDINATE).all():
        return Fault("not_finite", f"the cell is {atoms.cell.array.tolist()} Å")
    return None


def _check_cell(atoms: Atoms, limits: Limits) -> Fault | None:
    if not atoms.pbc.any():
        return None
    if np.linalg.matrix_rank(atoms.cell.array[atoms.pbc]) < atoms.pbc.sum():
        return Fault("cell", f"periodic along {_name_axes(atoms.pbc)} but the cell vectors span nothing there")
    width = cell_widths(full_cell(atoms))[atoms.pbc].min()
    least = limits.min_width or MIN_WIDTH
    if width < least:
        return Fault("cell", f"the cell is {width:.3g} Å thin; the limit is {least:g} Å")
    return None


def _check_spin(atoms: Atoms, limits: Limits) -> Fault | None:
    multiplicity = atoms.info.get("spin_multiplicity")
    if not multiplicity or atoms.pbc.any():
        return None  # the electrons of a crystal's cell need not pair up within it
    electrons = int(atoms.numbers.sum()) - total_charge(atoms)
    if electrons < 0 or (electrons + multiplicity) % 2 == 0 or multiplicity > electrons + 1:
        return Fault("spin", f"{electrons} electrons cannot have spin multiplicity {multiplicity}")
    return None


def _check_arrays(atoms: Atoms, limits: Limits) -> Fault | None:
    for name, reason in (("initial_charges", "charge"), ("initial_magmoms", "spin"), ("masses", "masses")):
        values = atoms.arrays.get(name, np.zeros(len(atoms)))
        if values.ndim != 1:
            return Fault(reason, f"{name} are vectors of {values.shape[1]}; give one number an atom")
        if bad := np.flatnonzero(~np.isfinite(values)).tolist():
            return Fault(reason, f"{name} of atom {bad[0]} is {values[bad[0]]}; give one number for each atom, or none")
    if (light := np.flatnonzero(atoms.arrays.get("masses", np.ones(len(atoms))) <= 0)).size:
        given = atoms.arrays["masses"][light[0]]
        return Fault("masses", f"the mass of atom {light[0]} is {given:g}; give masses above 0 amu, or none")
    return None


def _check_overlap(atoms: Atoms, limits: Limits) -> Fault | None:
    evidence = find_overlap(atoms, limits.min_distance)
    return Fault("overlap", evidence) if evidence else None


def _name_axes(which: np.ndarray) -> str:
    return ", ".join(name for name, periodic in zip("abc", which, strict=True) if periodic)


def system_type(atoms: Atoms) -> str:
    """Return the kind of a structure whose ``info`` does not name it.

    Matter that is connected through the periodic boundaries along three directions is ``bulk``, along two a
    ``surface``, along one a ``wire``, however the cell vectors lie (`daskpipe.core.connectivity.periodic_directions`).
    What is not connected is a ``cluster`` if more than half of the atoms are metals, else a ``molecule``.
    """
    if n_directions := len(periodic_directions(atoms)):
        return ("wire", "surface", "bulk")[n_directions - 1]
    metals = ~np.isin(atoms.numbers, list(NONMETALS))
    return "cluster" if metals.mean() > 0.5 else "molecule"
