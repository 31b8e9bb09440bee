"""Which ensemble suits a structure: what is connected through the periodic boundaries may be strained, vacuum not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.errors import ConfigError, unknown
from daskpipe.geometry import full_cell

if TYPE_CHECKING:
    from ase import Atoms

ENSEMBLES = (
    "nve", "nvt_langevin", "nvt_nose_hoover", "nvt_rescale",
    "npt_isotropic", "npt_anisotropic", "npt_triclinic", "npt_plane",
)  # fmt: skip

REACH = 2.5
"""How far apart two atoms may be beyond the sum of their covalent radii and still be in contact, Å.

The layers of graphite (3.35 Å) and the molecules of a liquid are; surfaces with 6 Å of vacuum between them are not.
"""

MODES = 6
"""Independent strains of a cell."""


def neighbours(atoms: Atoms, cutoff: float | np.ndarray, quantities: str) -> Any:
    """Return pairs of atoms within a cutoff, images included, as `matscipy.neighbours.neighbour_list` does.

    Parameters
    ----------
    atoms
        Any structure; cell vectors along open axes may be zero.
    cutoff
        Largest distance, Å; or a radius for each atom, shape (atom,), where spheres that touch make a pair.
    quantities
        As in matscipy: ``i`` and ``j`` atoms, ``d`` distances, ``S`` lattice translations from i to j.
    """
    from matscipy.neighbours import neighbour_list

    cell = full_cell(atoms)
    scaled = np.linalg.solve(cell.T, atoms.positions.T).T
    # A box around the atoms along open axes: the search sorts them into bins within the cell.
    origin = np.where(atoms.pbc, 0, scaled.min(axis=0))
    extent = np.where(atoms.pbc, 1, np.maximum(np.ptp(scaled, axis=0), 1))
    return neighbour_list(
        quantities,
        cutoff=cutoff,
        positions=atoms.positions,
        cell=cell * extent[:, None],
        pbc=atoms.pbc,
        cell_origin=origin @ cell,
    )


def periodic_directions(atoms: Atoms, reach: float = REACH) -> np.ndarray:
    """Return the directions along which matter is connected through the periodic boundaries.

    Two atoms are connected if they are closer than the sum of their covalent radii plus `reach`. A closed walk along
    such contacts that ends on another image of the atom it began with is a lattice translation; all of these, of all
    connected parts together, span the directions.

    Parameters
    ----------
    atoms
        At least one atom; the cell spans a volume along its periodic axes and may be zero along open ones.
    reach
        Å.

    Returns
    -------
    numpy.ndarray
        Orthonormal rows, shape (n, 3): n is 0 for molecules and clusters, 1 for wires, 2 for slabs and sheets, 3 for
        bulk. Rows follow cell vectors as far as these lie in the span, so the first row of a slab lies along the
        first cell vector that is in its plane.
    """
    from ase.data import covalent_radii

    i, j, shift = neighbours(atoms, covalent_radii[atoms.numbers] + reach / 2, "ijS")
    home = _images(len(atoms), i, j, shift)
    cycles = home[i] + shift - home[j]
    # A sum of few whole numbers: its rank is exact, and the cycles may be many.
    gram = (cycles.T @ cycles).astype(float)
    rank = int(np.linalg.matrix_rank(gram, hermitian=True))
    cell = full_cell(atoms)
    span = np.linalg.eigh(cell.T @ gram @ cell)[1][:, 3 - rank :].T
    return _along(span, cell[atoms.pbc])


def _images(n_atoms: int, i: np.ndarray, j: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return an image of each atom, lattice coordinates, such that connected atoms are reached by a walk in space."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    pairs, contact = np.unique(i.astype(np.int64) * n_atoms + j, return_index=True)
    i, j, shift = i[contact], j[contact], shift[contact]
    graph = coo_array((np.ones(len(pairs)), (i, j)), shape=(n_atoms, n_atoms))
    first = np.unique(connected_components(graph)[1], return_index=True)[1]
    # One more node holds on to an atom of each part, so that one walk reaches all.
    i, j = np.append(i, np.full(len(first), n_atoms)), np.append(j, first)
    rooted = coo_array((np.ones(len(i)), (i, j)), shape=(n_atoms + 1, n_atoms + 1))
    order, before = breadth_first_order(rooted.tocsr(), n_atoms)
    inner = order[1:][before[order[1:]] < n_atoms]
    steps = shift[np.searchsorted(pairs, before[inner].astype(np.int64) * n_atoms + inner)]
    home = np.zeros((n_atoms, 3), dtype=np.int64)
    for atom, origin, step in zip(inner.tolist(), before[inner].tolist(), steps, strict=True):
        home[atom] = home[origin] + step
    return home


def _along(span: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the rows of `span` that begins with those of `vectors` that lie in it."""
    inside = [vector for vector in vectors if np.linalg.norm(vector - vector @ span.T @ span) < 1e-6 * _norm(vector)]
    basis = np.zeros((0, 3))
    for vector in [*inside, *span]:
        rest = vector - vector @ basis.T @ basis
        if len(basis) < len(span) and _norm(rest) > 1e-3 * _norm(vector):
            basis = np.vstack([basis, rest / _norm(rest)])
    return basis


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def choose(atoms: Atoms, *, relax_plane: bool = False) -> str:
    """Return the ensemble that ``auto`` stands for.

    Parameters
    ----------
    atoms
        See `periodic_directions`.
    relax_plane
        Whether slabs may strain in their plane.

    Returns
    -------
    str
        ``npt_isotropic`` for bulk, ``npt_plane`` for slabs where `relax_plane`, else ``nvt_langevin``: so with fixed
        atoms, which a barostat would move.
    """
    if _n_fixed(atoms):
        return "nvt_langevin"
    n_directions = len(periodic_directions(atoms))
    if n_directions == 3:
        return "npt_isotropic"
    return "npt_plane" if n_directions == 2 and relax_plane else "nvt_langevin"


def has_barostat(ensemble: str) -> bool:
    """Whether the cell changes."""
    return ensemble.startswith("npt")


def has_pressure(ensemble: str) -> bool:
    """Whether the barostat is set to a pressure: in the plane of a slab there is nothing that presses."""
    return has_barostat(ensemble) and ensemble != "npt_plane"


def strain_modes(ensemble: str, atoms: Atoms) -> np.ndarray:
    """Return the strains of the cell that a barostat may use.

    Parameters
    ----------
    ensemble
        One of `ENSEMBLES`.
    atoms
        The structure; only ``npt_plane`` looks at it.

    Returns
    -------
    numpy.ndarray
        Symmetric matrices, orthonormal in the Frobenius product, shape (6, 3, 3); those not in use are zero.
        Isotropic: I / sqrt(3). Anisotropic: e_i e_i^T of the three Cartesian axes. Triclinic: these and
        (e_i e_j^T + e_j e_i^T) / sqrt(2). Plane: t t^T of the two directions of the slab. All zero at fixed volume.

    Raises
    ------
    ConfigError
        If the ensemble is not known, or ``npt_plane`` and the structure is no slab (see `refusal`).
    """
    _check_name(ensemble)
    modes = np.zeros((MODES, 3, 3))
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


def refusal(ensemble: str, atoms: Atoms) -> str | None:
    """Return why an ensemble that the user named cannot be run for a structure; ``None`` if it can.

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
        found = f"the structure is open along {open_axes}"
    else:
        found = f"matter is connected along {n_directions} of 3 directions and the barostat would close the vacuum"
    instead = "npt_plane or nvt_langevin" if n_directions == 2 else "nvt_langevin"
    return f"{ensemble} strains the whole cell, but {found}; give {instead}, or auto"


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
        raise ConfigError(unknown("ensemble", ensemble, list(ENSEMBLES)))
