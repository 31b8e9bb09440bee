"""Choice of the ensemble for a structure: a barostat may strain connected matter, and must not strain vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.connectivity import periodic_directions
from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.stages.explore.order import is_crystal

if TYPE_CHECKING:
    from ase import Atoms

ENSEMBLES = (
    "nve", "nvt_langevin", "nvt_nose_hoover", "nvt_rescale",
    "npt_isotropic", "npt_anisotropic", "npt_triclinic", "npt_plane",
)  # fmt: skip

N_STRAIN_MODES = 6
"""Number of independent strains of a cell."""


def choose_ensemble(atoms: Atoms, *, relax_plane: bool = False) -> str:
    """Choose the ensemble that ``auto`` stands for.

    Parameters
    ----------
    atoms
        See `daskpipe.core.connectivity.periodic_directions`.
    relax_plane
        Whether slabs may strain in their plane.

    Returns
    -------
    str
        For bulk ``npt_anisotropic`` if it is a crystal whose cell vectors lie along x, y and z, ``npt_triclinic`` if it
        is another crystal, and ``npt_isotropic`` if it is a liquid or a glass, which has no shape of its own.
        ``npt_plane`` for slabs where `relax_plane`, else ``nvt_langevin``: so with fixed atoms, which a barostat would
        move.
    """
    if _n_fixed(atoms):
        return "nvt_langevin"
    n_directions = len(periodic_directions(atoms))
    if n_directions == 3:
        if not is_crystal(atoms):
            return "npt_isotropic"
        return "npt_anisotropic" if _lies_along_axes(atoms) else "npt_triclinic"
    return "npt_plane" if n_directions == 2 and relax_plane else "nvt_langevin"


def _lies_along_axes(atoms: Atoms) -> bool:
    cell = np.abs(atoms.cell.array)
    return bool((cell.max(axis=1) > (1 - 1e-12) * np.linalg.norm(cell, axis=1)).all())


def has_barostat(ensemble: str) -> bool:
    """Return True if the ensemble changes the cell."""
    return ensemble.startswith("npt")


def has_pressure(ensemble: str) -> bool:
    """Return True if the barostat has a pressure; that of ``npt_plane`` has none."""
    return has_barostat(ensemble) and ensemble != "npt_plane"


def strain_modes(ensemble: str, atoms: Atoms) -> np.ndarray:
    """Return the strains of the cell that a barostat may use.

    Parameters
    ----------
    ensemble
        One of `ENSEMBLES`.
    atoms
        The structure; only used by ``npt_plane``.

    Returns
    -------
    numpy.ndarray
        Symmetric matrices, orthonormal in the Frobenius product, shape (6, 3, 3); those not in use are zero.
        Isotropic: I / sqrt(3). Anisotropic: e_i e_i^T of the three Cartesian axes. Triclinic: these and
        (e_i e_j^T + e_j e_i^T) / sqrt(2). Plane: t t^T of the two directions of the slab. All zero at fixed volume.

    Raises
    ------
    ConfigError
        If the ensemble is not known, or ``npt_plane`` and the structure is no slab (see `explain_refusal`).
    """
    _check_name(ensemble)
    modes = np.zeros((N_STRAIN_MODES, 3, 3))
    axes = np.eye(3)
    if ensemble == "npt_isotropic":
        modes[0] = axes / np.sqrt(3)
    if ensemble in ("npt_anisotropic", "npt_triclinic"):
        modes[:3] = [np.outer(axis, axis) for axis in axes]
    if ensemble == "npt_triclinic":
        for mode, (a, b) in enumerate(((1, 2), (0, 2), (0, 1)), start=3):
            modes[mode, [a, b], [b, a]] = 1 / np.sqrt(2)
    if ensemble == "npt_plane":
        directions = periodic_directions(atoms)
        if len(directions) != 2:
            raise ConfigError(_no_plane(len(directions)))
        modes[:2] = [np.outer(direction, direction) for direction in directions]
    return modes


def explain_refusal(ensemble: str, atoms: Atoms) -> str | None:
    """Explain why an ensemble cannot be run for a structure; ``None`` if it can.

    Raises
    ------
    ConfigError
        If the ensemble is not known.
    """
    _check_name(ensemble)
    if not has_barostat(ensemble):
        return None
    if n_fixed := _n_fixed(atoms):
        return f"{ensemble} strains the cell with all atoms in it, and {n_fixed} are fixed; give nvt_langevin, or auto"
    n_directions = len(periodic_directions(atoms))
    if ensemble == "npt_plane":
        return None if n_directions == 2 else _no_plane(n_directions)
    if n_directions == 3:
        return None
    if open_axes := ", ".join(name for name, closed in zip("abc", atoms.pbc, strict=True) if not closed):
        obstacle = f"the structure is open along {open_axes}"
    else:
        obstacle = f"matter is connected along {n_directions} of 3 directions and the barostat would close the vacuum"
    instead = "npt_plane or nvt_langevin" if n_directions == 2 else "nvt_langevin"
    return f"{ensemble} strains the whole cell, but {obstacle}; give {instead}, or auto"


def _n_fixed(atoms: Atoms) -> int:
    """Count the atoms that are fixed along any axis."""
    fixed = atoms.arrays.get("fixed")
    return 0 if fixed is None else int(fixed.any(axis=1).sum())


def _no_plane(n_directions: int) -> str:
    instead = "npt_isotropic" if n_directions == 3 else "nvt_langevin"
    return (
        f"npt_plane strains the two directions of a slab, but matter is connected along {n_directions} of 3; "
        f"give {instead}"
    )


def _check_name(ensemble: str) -> None:
    if ensemble not in ENSEMBLES:
        raise ConfigError(describe_unknown("ensemble", ensemble, list(ENSEMBLES)))
