"""Batches of systems of any periodicity: which axes are periodic, and who is whose neighbour.

torch-sim keeps one periodicity for all systems of a state. Here each system has its own, in the system extra
``periodic``; a state without it means ``state.pbc`` for all. Cell vectors along open axes may be zero or anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch_sim
from nvalchemiops.neighbors.neighbor_utils import NeighborOverflowError
from torch_sim.neighbors import alchemiops_nl_cell_list, alchemiops_nl_n2, torch_nl_linked_cell

from daskpipe.core import structures

if TYPE_CHECKING:
    from ase import Atoms

EDGE = 1e-3
"""Candidates are looked for beyond the cutoff by this factor: what lies within it is decided by one formula."""
SKIN = 0.6
"""Å by which the list of candidates reaches beyond the cutoff; it serves until atoms have moved half of it."""
LARGE = 256
"""Atoms of a system from which cells find neighbours faster than all pairs do, on one CPU core."""
FLAT = 1e-9
"""A cell whose volume is below this part of the product of its edges spans none."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Pairs of atoms closer than a cutoff, both directions of each, sorted by first atom, second atom and image.

    The order, and each number, are the same for a system in any batch. Components come before edges in the shapes:
    a row of one component lies together in memory.

    Parameters
    ----------
    first, second, system
        Shape (edge,), int64: rows of the two atoms and of their system in the batch.
    offsets
        Shape (3, edge), dtype of the state: how many cell vectors the second atom is moved by; for the positions as
        they are, wrapped or not.
    vectors
        Shape (3, edge), dtype of the state: from the first atom to the moved second one, Å.
    squares
        Shape (edge,), dtype of the state: their squared lengths, Å^2.
    per_atom
        Shape (atom,), int64: the number of edges of each first atom.
    """

    first: torch.Tensor
    second: torch.Tensor
    system: torch.Tensor
    offsets: torch.Tensor
    vectors: torch.Tensor
    squares: torch.Tensor
    per_atom: torch.Tensor


def make_state(atoms: Sequence[Atoms], device: torch.device, dtype: torch.dtype) -> torch_sim.SimState:
    """Put structures of any periodicities into one state.

    Parameters
    ----------
    atoms
        At least one; charge and spin are read from ``info`` (`daskpipe.core.structures`).
    device, dtype
        Of the state.

    Returns
    -------
    torch_sim.SimState
        With the system extras ``periodic`` (system, 3), ``charge`` and ``spin`` (system,).
    """
    pbc = torch.tensor(np.array([item.pbc for item in atoms]), device=device)
    sizes = torch.tensor([len(item) for item in atoms])

    def floats(values: list[np.ndarray]) -> torch.Tensor:
        return torch.tensor(np.concatenate(values), device=device, dtype=dtype)

    return torch_sim.SimState(
        positions=floats([item.positions for item in atoms]),
        masses=floats([item.get_masses() for item in atoms]),
        cell=floats([item.cell.array[None] for item in atoms]).mT.contiguous(),
        pbc=pbc.all(dim=0),
        atomic_numbers=torch.tensor(np.concatenate([item.numbers for item in atoms]), device=device),
        system_idx=torch.repeat_interleave(torch.arange(len(atoms)), sizes).to(device),
        _system_extras={
            "periodic": pbc,
            "charge": torch.tensor(
                [float(structures.total_charge(item)) for item in atoms], device=device, dtype=dtype
            ),
            "spin": torch.tensor(
                [float(structures.spin_multiplicity(item)) for item in atoms], device=device, dtype=dtype
            ),
        },
    )


def periodic_axes(state: torch_sim.SimState) -> torch.Tensor:
    """Say along which cell vectors each system is periodic, shape (system, 3), bool; none if they are not finite."""
    axes = getattr(state, "periodic", None)
    if axes is None:
        axes = state.pbc.expand(state.n_systems, 3)
    return axes.bool() & _finite_cells(state)[:, None]


def lost_systems(state: torch_sim.SimState) -> torch.Tensor:
    """Say which systems have a position or a cell that is not finite, shape (system,), bool."""
    strange = (~state.positions.isfinite()).any(dim=1).to(state.dtype)
    return (sum_segments(strange, state.n_atoms_per_system) > 0) | ~_finite_cells(state)


def _finite_cells(state: torch_sim.SimState) -> torch.Tensor:
    return state.row_vector_cell.isfinite().flatten(1).all(dim=1)


def find_neighbours(state: torch_sim.SimState, cutoff: float) -> Neighbours:
    """Find all pairs of atoms closer than a cutoff, images included.

    Parameters
    ----------
    state
        Systems of any periodicities; positions need not be wrapped, cells may be shorter than the cutoff.
    cutoff
        Å.

    Returns
    -------
    Neighbours
        An atom is no neighbour of itself, but its images are.
    """
    return _keep_within(_find_candidates(state, cutoff * (1 + EDGE)), state, cutoff)


class NeighbourFinder:
    """`find_neighbours` of one state after another, faster where they are steps of one trajectory.

    It keeps the pairs within the cutoff and a skin, and looks for them anew when atoms may have crossed the skin. What
    it returns does not depend on what it keeps.

    Parameters
    ----------
    cutoff, skin
        Å.
    """

    def __init__(self, cutoff: float, skin: float = SKIN) -> None:
        self.cutoff = cutoff
        self.skin = skin
        self._last: _Candidates | None = None

    def __call__(self, state: torch_sim.SimState) -> Neighbours:
        """Return what `find_neighbours` returns for a state."""
        if self._last is None or not self._serves(self._last, state):
            self._last = _find_candidates(state, self.cutoff + self.skin)
        return _keep_within(self._last, state, self.cutoff)

    def _serves(self, last: _Candidates, state: torch_sim.SimState) -> bool:
        """Whether no pair that was farther apart than cutoff and skin can be within the cutoff now."""
        axes = periodic_axes(state)
        if last.positions.dtype != state.dtype or not (
            torch.equal(last.system_idx, state.system_idx) and torch.equal(last.axes, axes)
        ):
            return False
        # Pair vectors are strained with the cells and changed by what the atoms move beyond that.
        cell = torch.where(axes[:, :, None], state.row_vector_cell, last.cell)
        strain = torch.linalg.solve_ex(last.cell, cell)[0]
        affine = (last.positions[:, :, None] * strain[state.system_idx]).sum(dim=1)
        moved = (state.positions - affine).square().sum(dim=1).amax().sqrt()
        shrink = (strain - torch.eye(3).to(strain)).square().sum(dim=(1, 2)).amax().sqrt()
        return bool((1 - shrink) * (self.cutoff + self.skin) - 2 * moved > self.cutoff * (1 + EDGE))


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Sorted pairs that may be neighbours, and the state that they were found in; names as in `Neighbours`."""

    first: torch.Tensor
    second: torch.Tensor
    system: torch.Tensor
    offsets: torch.Tensor
    positions: torch.Tensor
    cell: torch.Tensor
    axes: torch.Tensor
    system_idx: torch.Tensor


def _find_candidates(state: torch_sim.SimState, cutoff: float) -> _Candidates:
    axes = periodic_axes(state)
    cell = complete_cells(state.row_vector_cell, axes)
    # What is not finite belongs to systems that are lost; it must not disturb the others.
    positions, system_idx = torch.nan_to_num(state.positions, posinf=0.0, neginf=0.0), state.system_idx
    find = alchemiops_nl_cell_list if int(state.n_atoms_per_system.max()) > LARGE else alchemiops_nl_n2
    try:
        (first, second), system, offsets = find(positions, cell, axes, cutoff, system_idx)
    except NeighborOverflowError:  # denser than any matter that it expects
        reach = torch.tensor(cutoff).to(positions)
        (first, second), system, offsets = torch_nl_linked_cell(positions, cell, axes, reach, system_idx)
    order = _sorting_order(first, second, offsets.long(), state.n_atoms)
    return _Candidates(
        first=first.index_select(0, order),
        second=second.index_select(0, order),
        system=system.index_select(0, order),
        offsets=offsets.to(positions).index_select(0, order).T.contiguous(),
        positions=state.positions.clone(),
        cell=cell.clone(),
        axes=axes.clone(),
        system_idx=system_idx.clone(),
    )


def _sorting_order(first: torch.Tensor, second: torch.Tensor, images: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Permutation that sorts edges by first atom, second atom and image: one sort of one whole number an edge."""
    if not len(first):
        return first
    low, high = images.amin(dim=0), images.amax(dim=0)
    a, b, c = (images - low).unbind(dim=1)
    n_a, n_b, n_c = high - low + 1
    return torch.argsort((((first * n_atoms + second) * n_a + a) * n_b + b) * n_c + c)


def _keep_within(pairs: _Candidates, state: torch_sim.SimState, cutoff: float) -> Neighbours:
    """Candidates closer than the cutoff, by one formula whatever found them."""
    rows = complete_cells(state.row_vector_cell, pairs.axes).flatten(1).T.contiguous()
    cell = rows.index_select(1, pairs.system).unflatten(0, (3, 3))
    positions = state.positions.T.contiguous()
    a, b, c = pairs.offsets
    moved = a * cell[0] + b * cell[1] + c * cell[2]
    vectors = positions.index_select(1, pairs.second) - positions.index_select(1, pairs.first) + moved
    squares = dot_columns(vectors, vectors)
    inside = torch.nonzero(squares < cutoff * cutoff).squeeze(1)
    first = pairs.first.index_select(0, inside)
    return Neighbours(
        first=first,
        second=pairs.second.index_select(0, inside),
        system=pairs.system.index_select(0, inside),
        offsets=pairs.offsets.index_select(1, inside),
        vectors=vectors.index_select(1, inside),
        squares=squares.index_select(0, inside),
        per_atom=torch.bincount(first, minlength=state.n_atoms),
    )


def complete_cells(cell: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Replace cell vectors along open axes by unit vectors perpendicular to the periodic ones and to each other.

    Parameters
    ----------
    cell
        Shape (system, 3, 3), vectors in rows, Å.
    axes
        Shape (system, 3), bool: which are periodic.
    """
    if bool(axes.all()):
        return cell
    fixed = torch.where(axes[:, :, None], cell, 0.0)
    # The last rows span what the periodic vectors leave free.
    directions = torch.linalg.svd(fixed)[2]
    row = 3 - (~axes).flip(1).cumsum(1).flip(1)
    free = directions.gather(1, row.clamp(max=2)[:, :, None].expand(-1, -1, 3))
    return torch.where(axes[:, :, None], cell, free)


def cell_volumes(cell: torch.Tensor) -> torch.Tensor:
    """Volumes of cells (system, 3, 3), shape (system,), Å^3; NaN where the three vectors span none."""
    a, b, c = cell.unbind(dim=1)
    normal = torch.stack([b[:, i] * c[:, j] - b[:, j] * c[:, i] for i, j in ((1, 2), (2, 0), (0, 1))])
    volume = dot_columns(a.T, normal).abs()
    box = (dot_columns(a.T, a.T) * dot_columns(b.T, b.T) * dot_columns(c.T, c.T)).sqrt()
    return torch.where(volume > FLAT * box, volume, torch.nan)


def dot_columns(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Scalar products of columns of three, term by term: a reduction may round otherwise in another batch."""
    x, y, z = left * right
    return x + y + z


def sum_segments(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Add up consecutive values, each sum from its first to its last: the same bits in any company."""
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
