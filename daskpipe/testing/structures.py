"""Draw small structures, and list the equivalents that must have the same properties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

type Kind = Literal["bulk", "slab", "molecule"]

SHIFT = 20.0
"""Largest translation, Å: several cells."""

VISIBLE = 50.0
"""How many tolerances a property must change by when an atom is moved: one that never changes passes no kit."""


def draw_structure(kind: Kind, species: Sequence[str], rng: np.random.Generator) -> Atoms:
    """Draw a structure without symmetry, at the distances of a metal."""
    from ase import Atoms
    from ase.build import bulk, fcc111

    if kind == "bulk":
        atoms = bulk("Cu", "fcc", a=3.9, cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3))), scale_atoms=True)
    elif kind == "slab":
        atoms = fcc111("Cu", (1, 2, 3), a=3.9, vacuum=6.0, periodic=False)
    else:
        atoms = Atoms("Cu5", positions=2.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    atoms.rattle(0.12, rng=rng)
    symbols = rng.choice(list(species), len(atoms))
    symbols[: len(species)] = species[: len(symbols)]
    atoms.symbols[:] = [str(symbol) for symbol in rng.permutation(symbols)]
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def list_equivalents(atoms: Atoms, rng: np.random.Generator) -> list[tuple[str, Atoms, np.ndarray, np.ndarray]]:
    """List structures that are the same but for a change.

    Returns
    -------
    list of tuple
        Name of the change; the structure; the row of `atoms` that each of its atoms is, shape (atom,); its rotation,
        shape (3, 3).
    """
    from scipy.spatial.transform import Rotation

    unchanged, upright = np.arange(len(atoms)), np.eye(3)
    rotation = Rotation.random(rng=rng).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    moved = atoms.copy()
    moved.positions += rng.uniform(-SHIFT, SHIFT, 3)
    order = rng.permutation(len(atoms))
    equivalents = [
        ("a rotation", turned, unchanged, rotation),
        ("a translation", moved, unchanged, upright),
        ("a new order", atoms[order], order, upright),
    ]
    if atoms.pbc.any():
        wrapped = atoms.copy()
        wrapped.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
        equivalents.append(("moving atoms by lattice vectors", wrapped, unchanged, upright))
        times = np.where(atoms.pbc, [2, 1, 2], 1)
        equivalents.append(("a supercell", atoms.repeat(times), np.tile(unchanged, int(times.prod())), upright))
    return equivalents


def distort_structure(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Return another structure, with each atom moved by about half an ångström."""
    other = atoms.copy()
    other.positions += rng.normal(scale=0.3, size=other.positions.shape)
    return other


def measure_change(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected component."""
    assert values.shape == expected.shape, f"shape {values.shape}, not {expected.shape}"
    largest = float(np.abs(expected).max())
    return float(np.abs(values.astype(float) - expected).max()) / largest if largest else float(np.abs(values).max())
