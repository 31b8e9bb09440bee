"""Turn ASE's constraints and selective dynamics into one array of fixed Cartesian components, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

CARRIED = ("FixAtoms", "FixCartesian", "FixScaled", "FixedPlane", "FixedLine")
"""Names of the constraints that fix an atom along some directions; these are kept."""

NEEDLESS = ("FixCom",)
"""Names of the constraints that exploration meets without help: no thermostat moves the centre of mass."""

ALIGNED = 1e-3
"""Largest component of a direction, as a fraction of its length, that counts as zero."""

ADVICE = "Write a move_mask (T or F for x, y and z of each atom) in its place, or leave the constraint out"


def fixed_components(atoms: Atoms) -> np.ndarray | None:
    """Return the fixed Cartesian components of the atoms of a structure.

    Parameters
    ----------
    atoms
        With ASE's constraints, or the array ``fixed``, bool, shape (atom,) or (atom, 3); both add up.

    Returns
    -------
    numpy.ndarray or None
        bool, shape (atom, 3); None if nothing is fixed.

    Raises
    ------
    ValueError
        If a constraint does anything but fix Cartesian components of atoms.
    """
    fixed = from_constraints([item.todict() for item in atoms.constraints], len(atoms), atoms.cell.array)
    given = atoms.arrays.get("fixed")
    if given is not None and given.dtype == bool and given.shape in ((len(atoms),), (len(atoms), 3)):
        fixed |= given.reshape(len(atoms), -1)
    return fixed if fixed.any() else None


def from_constraints(constraints: Sequence[Mapping[str, Any]], n_atoms: int, cell: np.ndarray) -> np.ndarray:
    """Return the components that constraints fix, bool, shape (atom, 3).

    Parameters
    ----------
    constraints
        As ``todict()`` of ASE's constraints gives them. No object is built from them, so files of others are safe.
    n_atoms
        Number of atoms.
    cell
        Vectors as rows, Å, shape (3, 3): the axes of ``FixScaled``, which is VASP's selective dynamics.

    Raises
    ------
    ValueError
        If a constraint does anything but fix Cartesian components of atoms.
    """
    fixed = np.zeros((n_atoms, 3), dtype=bool)
    for constraint in constraints:
        try:
            name, kwargs = constraint["name"], constraint["kwargs"]
            if name in NEEDLESS:
                continue
            if name not in CARRIED:
                raise ValueError(f"the constraint {str(name)[:60]} cannot be kept, only {', '.join(CARRIED)}. {ADVICE}")
            atoms = np.atleast_1d(np.asarray(kwargs["indices"] if "indices" in kwargs else kwargs["a"], dtype=int))
            fixed[atoms] |= _fixed_axes(name, kwargs, cell)
        except (KeyError, TypeError, IndexError) as error:  # a file may say anything
            raise ValueError(
                f"the constraint {str(constraint)[:100]} is damaged ({type(error).__name__}: {error}). {ADVICE}"
            ) from error
    return fixed


def to_constraints(fixed: np.ndarray) -> list[dict[str, Any]]:
    """Return ASE constraints, as their ``todict()`` gives them, that fix components of atoms.

    Parameters
    ----------
    fixed
        bool, shape (atom, 3).

    Examples
    --------
    >>> to_constraints(np.array([[True, True, True], [False, False, False]]))
    [{'name': 'FixAtoms', 'kwargs': {'indices': [0]}}]
    """
    whole = np.flatnonzero(fixed.all(axis=1))
    constraints: list[dict[str, Any]] = []
    if len(whole):
        constraints.append({"name": "FixAtoms", "kwargs": {"indices": whole.tolist()}})
    for mask in np.unique(fixed[fixed.any(axis=1) & ~fixed.all(axis=1)], axis=0):
        rows = np.flatnonzero((fixed == mask).all(axis=1))
        constraints.append({"name": "FixCartesian", "kwargs": {"a": rows.tolist(), "mask": mask.tolist()}})
    return constraints


def _fixed_axes(name: str, kwargs: Mapping[str, Any], cell: np.ndarray) -> np.ndarray:
    """Return the Cartesian components that one constraint fixes, bool, shape (3,)."""
    if name == "FixAtoms":
        return np.ones(3, dtype=bool)
    if name == "FixCartesian":
        return np.asarray(kwargs["mask"], dtype=bool)
    if name == "FixScaled":
        mask = np.asarray(kwargs["mask"], dtype=bool)
        if mask.all():
            return mask
        # A fixed lattice coordinate allows no motion along the normal of the other two vectors.
        normals = np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]])[mask]
    else:
        normals = np.atleast_2d(np.asarray(kwargs["direction"], dtype=float))
    if len(normals) == 0:
        return np.zeros(3, dtype=bool)
    projector = np.linalg.pinv(normals) @ normals
    if name == "FixedLine":
        projector = np.eye(3) - projector
    components = np.rint(np.diagonal(projector)).astype(bool)
    if np.abs(projector - np.diag(components)).max() > ALIGNED:
        raise ValueError(
            f"{name} fixes atoms along {np.round(normals, 3).tolist()}, which is none of x, y and z; only these can be "
            f"kept. {ADVICE}"
        )
    return components
