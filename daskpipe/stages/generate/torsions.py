"""Make copies of a conformer whose torsions differ, without clashes and at a least distance from each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from ase.data import covalent_radii, vdw_radii

from daskpipe.stages.generate.extras import import_extra

LONGEST_BOND = 1.25
"""Longest bond, as a multiple of the sum of the covalent radii."""

CLASH_COVALENT, CLASH_VDW = 1.35, 0.6
"""Least distance of atoms three bonds apart and more: multiples of the sums of covalent and of van der Waals radii."""

TRIES_A_COPY = 4
"""Copies that are tried, at most, for each that is wanted."""


@dataclass(frozen=True, kw_only=True)
class Rotors:
    """Bonds of a molecule about which parts of it turn.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (atom,).
    bonded
        Whether a bond joins two atoms, bool, shape (atom, atom).
    axes
        The two atoms of each such bond, shape (rotor, 2), int64.
    moving
        Atoms that turn with each bond: the smaller part, shape (rotor, atom), bool.
    least
        Least distance of each pair of atoms in a copy, Å, shape (atom, atom).
    """

    numbers: np.ndarray
    bonded: np.ndarray
    axes: np.ndarray
    moving: np.ndarray
    least: np.ndarray

    @classmethod
    def from_mol(cls, mol: Any) -> Self:
        """Find the rotors of a `rdkit.Chem.Mol` with explicit hydrogens: single bonds that are in no ring."""
        chem = import_extra("rdkit.Chem")
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
        steps = chem.GetDistanceMatrix(mol)
        axes, moving = [], []
        for bond in mol.GetBonds():
            start, end = bond.GetBeginAtom(), bond.GetEndAtom()
            if (
                bond.GetBondType() != chem.BondType.SINGLE
                or bond.IsInRing()
                or 1 in (start.GetDegree(), end.GetDegree())
            ):
                continue
            ends = start.GetIdx(), end.GetIdx()
            part = steps[ends[0]] > steps[ends[1]]  # without the bond, no atom is as near to one end as to the other
            axes.append(ends)
            moving.append(part if 2 * part.sum() <= len(part) else ~part)
        radii, vdw = covalent_radii[numbers], find_vdw_radii(numbers)
        least = np.maximum(CLASH_COVALENT * np.add.outer(radii, radii), CLASH_VDW * np.add.outer(vdw, vdw))
        return cls(
            numbers=numbers,
            bonded=steps == 1,
            axes=np.array(axes, dtype=np.int64).reshape(-1, 2),
            moving=np.array(moving, dtype=bool).reshape(-1, len(numbers)),
            least=np.where(steps >= 3, least, 0.0),
        )

    def has_its_bonds(self, positions: np.ndarray) -> bool:
        """Return whether atoms that a bond joins, and no others, are as close as bonds are."""
        radii = covalent_radii[self.numbers]
        near = pair_distances(positions) < LONGEST_BOND * np.add.outer(radii, radii)
        np.fill_diagonal(near, val=False)
        return bool((near == self.bonded).all())

    def label_pairs(self) -> np.ndarray:
        """Return a number for the two elements of each pair of atoms, shape (pair,)."""
        i, j = np.triu_indices(len(self.numbers), 1)
        first, second = self.numbers[i], self.numbers[j]
        return np.asarray(128 * np.minimum(first, second) + np.maximum(first, second))


def find_vdw_radii(numbers: np.ndarray) -> np.ndarray:
    """Return the van der Waals radii of elements, Å; 2 Å where ASE's table has none."""
    return np.asarray(np.nan_to_num(vdw_radii[numbers], nan=2.0))


def pair_distances(positions: np.ndarray) -> np.ndarray:
    """Return the distances of all pairs of atoms, Å, shape (atom, atom)."""
    return np.asarray(np.linalg.norm(positions[:, None] - positions[None], axis=2))


def sort_distances(positions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the distances of all pairs of atoms, Å, sorted among the pairs of the same two elements.

    The root of the mean squared difference of two of these is a distance of conformers that does not change when a
    structure is moved, turned or mirrored, or when equal atoms are exchanged; no numbering of the atoms makes the
    differences of their distances smaller.

    Parameters
    ----------
    positions
        Å, shape (atom, 3).
    labels
        From `Rotors.label_pairs`.

    Examples
    --------
    >>> bent = np.array([[0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    >>> sort_distances(bent, np.array([1, 1, 1])).round(2).tolist()
    [1.0, 1.0, 1.41]
    """
    distances = pair_distances(positions)[np.triu_indices(len(positions), 1)]
    return np.asarray(distances[np.lexsort((distances, labels))])


def draw_copies(
    rng: np.random.Generator, positions: np.ndarray, rotors: Rotors, *, n: int, difference: float
) -> Iterator[np.ndarray]:
    """Yield the positions of copies with random torsions, each different from the conformer and from all others.

    Parameters
    ----------
    rng
        The structure's stream.
    positions
        The conformer, Å, shape (atom, 3).
    rotors
        Bonds to turn about.
    n
        Number of copies; fewer come if `TRIES_A_COPY` times as many tries give no more.
    difference
        Least difference of two copies, Å, as `sort_distances` says.
    """
    from daskpipe.stages.generate.torsion_kernels import turn_torsions

    n_rotors = len(rotors.axes)
    # Contacts that the conformer has already are no reason to refuse a turn.
    least = np.minimum(rotors.least, 0.99 * pair_distances(positions))
    labels = rotors.label_pairs()
    family = [sort_distances(positions, labels)]
    for _ in range(n * TRIES_A_COPY if n_rotors else 0):
        order, angles = rng.permutation(n_rotors), rng.uniform(0, 2 * np.pi, n_rotors)
        copy = np.empty_like(positions)
        turn_torsions(positions, rotors.axes, rotors.moving, order, angles, least, copy)
        distances = sort_distances(copy, labels)
        if all(np.sqrt(np.mean((distances - other) ** 2)) >= difference for other in family):
            family.append(distances)
            yield copy
            if len(family) > n:
                return
