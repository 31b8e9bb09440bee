"""Build states of systems of any periodicity, and find the neighbours of their atoms.

torch-sim keeps one periodicity for all systems of a state. Here each system has its own, in the system extra
``periodic``; without this extra ``state.pbc`` holds for all. Cell vectors along open axes may have any value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from daskpipe.core import structures
from daskpipe.core.neighbours import find_pairs
from daskpipe.core.torch_sim import torch_sim

if TYPE_CHECKING:
    from ase import Atoms

EDGE = 1e-3
"""Part of the cutoff by which the search for candidates reaches beyond it, before one formula decides."""
SKIN = 0.6
"""Å by which the list of candidates reaches beyond the cutoff; the list holds until atoms have moved half of it."""
LARGE = 256
"""Atoms of a system above which a search by cells is faster than one over all pairs."""
FLAT = 1e-9
"""A cell whose volume is below this part of the product of its edges counts as flat."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Pairs of atoms closer than a cutoff, both directions of each, sorted by first atom, second atom and image.

    Order and numbers of a system are the same in any batch. Components come before edges in the shapes, so that a
    component is contiguous in memory.

    Parameters
    ----------
    first, second, system
        Shape (edge,), int64: rows of the two atoms and of their system in the batch.
    offsets
        Shape (3, edge), dtype of the state: number of cell vectors by which the second atom is moved, for positions
        as they are, wrapped or not.
    vectors
        Shape (3, edge), dtype of the state: from the first atom to the moved second one, Å.
    squares
        Shape (edge,), dtype of the state: their squared lengths, Å^2.
    per_atom
        Shape (atom,), int64: number of edges of each first atom.
    """

    first: torch.Tensor
    second: torch.Tensor
    system: torch.Tensor
    offsets: torch.Tensor
    vectors: torch.Tensor
    squares: torch.Tensor
    per_atom: torch.Tensor


def make_state(atoms: Sequence[Atoms], device: torch.device, dtype: torch.dtype) -> torch_sim.SimState:
    """Put structures of any periodicities into one torch-sim state.

    Parameters
    ----------
    atoms
        At least one; charge and spin are taken from ``info`` (`daskpipe.core.structures`).
    device, dtype
        Of the state.

    Returns
    -------
    torch_sim.SimState
        With the system extras ``periodic`` (system, 3), ``charge`` and ``spin`` (system,).

    Examples
    --------
    >>> from ase.build import bulk, molecule
    >>> state = make_state([bulk("Cu"), molecule("H2O")], torch.device("cpu"), torch.float64)
    >>> state.periodic.tolist()
    [[True, True, True], [False, False, False]]
    """
    pbc = torch.tensor(np.array([item.pbc for item in atoms]), device=device)
    sizes = torch.tensor([len(item) for item in atoms])

    def to_tensor(values: list[np.ndarray]) -> torch.Tensor:
        return torch.tensor(np.concatenate(values), device=device, dtype=dtype)

    return torch_sim.SimState(
        positions=to_tensor([item.positions for item in atoms]),
        masses=to_tensor([item.get_masses() for item in atoms]),
        cell=to_tensor([item.cell.array[None] for item in atoms]).mT.contiguous(),
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
    """Return the axes along which each system is periodic, shape (system, 3), bool; none if its cell is not finite."""
    axes = getattr(state, "periodic", None)
    if axes is None:
        axes = state.pbc.expand(state.n_systems, 3)
    return axes.bool() & _finite_cells(state)[:, None]


def lost_systems(state: torch_sim.SimState) -> torch.Tensor:
    """Return which systems have a position or a cell that is not finite, shape (system,), bool."""
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
        An atom is no neighbour of itself; its images may be.

    Examples
    --------
    >>> from ase.build import bulk
    >>> state = make_state([bulk("Cu", a=3.6)], torch.device("cpu"), torch.float64)
    >>> find_neighbours(state, cutoff=2.6).per_atom.tolist()
    [12]
    """
    return _keep_within(_find_candidates(state, cutoff * (1 + EDGE)), state, cutoff)


class NeighbourFinder:
    """Find the neighbours in one state after another, faster where the states are steps of one trajectory.

    It keeps the pairs within cutoff plus skin, and searches again when atoms may have crossed the skin. Results do not
    depend on what it keeps: they are those of `find_neighbours`.

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
        if self._last is None or not self._still_covers(self._last, state):
            self._last = _find_candidates(state, self.cutoff + self.skin)
        return _keep_within(self._last, state, self.cutoff)

    def _still_covers(self, last: _Candidates, state: torch_sim.SimState) -> bool:
        """Return whether pairs that were farther apart than cutoff plus skin are still beyond the cutoff."""
        axes = periodic_axes(state)
        if last.positions.dtype != state.dtype or not (
            torch.equal(last.system_idx, state.system_idx) and torch.equal(last.axes, axes)
        ):
            return False
        # The cell's strain and the atoms' motion beyond it both change pair vectors.
        cell = torch.where(axes[:, :, None], state.row_vector_cell, last.cell)
        strain = torch.linalg.solve_ex(last.cell, cell)[0]
        affine = (last.positions[:, :, None] * strain[state.system_idx]).sum(dim=1)
        moved = (state.positions - affine).square().sum(dim=1).amax().sqrt()
        shrink = (strain - torch.eye(3).to(strain)).square().sum(dim=(1, 2)).amax().sqrt()
        return bool((1 - shrink) * (self.cutoff + self.skin) - 2 * moved > self.cutoff * (1 + EDGE))


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Sorted pairs that may be neighbours, and the state of the search; names as in `Neighbours`."""

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
    # Numbers that are not finite belong to lost systems and must not disturb the others.
    positions, system_idx = torch.nan_to_num(state.positions, posinf=0.0, neginf=0.0), state.system_idx
    search = _search_on_cpu if positions.device.type == "cpu" else _search_on_gpu
    first, second, system, offsets = search(positions, cell, axes, cutoff, state)
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


def _search_on_cpu(
    positions: torch.Tensor, cell: torch.Tensor, axes: torch.Tensor, cutoff: float, state: torch_sim.SimState
) -> tuple[torch.Tensor, ...]:
    """Return the two atoms, the system and the offsets (pair, 3) of all pairs, in any order."""
    # Images of a flat cell have no end: they are left out. Such a system has no stress.
    flat = cell_volumes(cell).isnan()[:, None]
    cells = torch.where(flat[:, :, None], torch.eye(3).to(cell), cell)
    sizes = state.n_atoms_per_system
    atoms, n_pairs, offsets = find_pairs(
        positions.double().numpy(), sizes.numpy(), cells.double().numpy(), (axes & ~flat).numpy(), cutoff
    )
    system = torch.repeat_interleave(torch.arange(len(sizes)), torch.from_numpy(n_pairs))
    return torch.from_numpy(atoms[0]), torch.from_numpy(atoms[1]), system, torch.from_numpy(offsets)


def _search_on_gpu(
    positions: torch.Tensor, cell: torch.Tensor, axes: torch.Tensor, cutoff: float, state: torch_sim.SimState
) -> tuple[torch.Tensor, ...]:
    """Return what `_search_on_cpu` returns."""
    from nvalchemiops.neighbors.neighbor_utils import NeighborOverflowError

    searches = torch_sim.neighbors
    large = int(state.n_atoms_per_system.max()) > LARGE
    search = searches.alchemiops_nl_cell_list if large else searches.alchemiops_nl_n2
    try:
        (first, second), system, offsets = search(positions, cell, axes, cutoff, state.system_idx)
    except NeighborOverflowError:  # denser than the search expects any matter to be
        reach = torch.tensor(cutoff).to(positions)
        (first, second), system, offsets = searches.torch_nl_linked_cell(positions, cell, axes, reach, state.system_idx)
    return first, second, system, offsets


def _sorting_order(first: torch.Tensor, second: torch.Tensor, images: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Return the permutation that sorts edges by first atom, second atom and image, with one integer key an edge."""
    if not len(first):
        return first
    low, high = images.amin(dim=0), images.amax(dim=0)
    a, b, c = (images - low).unbind(dim=1)
    n_a, n_b, n_c = high - low + 1
    return torch.argsort((((first * n_atoms + second) * n_a + a) * n_b + b) * n_c + c)


def _keep_within(pairs: _Candidates, state: torch_sim.SimState, cutoff: float) -> Neighbours:
    """Keep the candidates closer than the cutoff, by one formula for all kinds of search."""
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
        Shape (system, 3), bool: which axes are periodic.
    """
    if bool(axes.all()):
        return cell
    fixed = torch.where(axes[:, :, None], cell, 0.0)
    # The last rows span the space that the periodic vectors leave free.
    directions = torch.linalg.svd(fixed)[2]
    row = 3 - (~axes).flip(1).cumsum(1).flip(1)
    free = directions.gather(1, row.clamp(max=2)[:, :, None].expand(-1, -1, 3))
    return torch.where(axes[:, :, None], cell, free)


def cell_volumes(cell: torch.Tensor) -> torch.Tensor:
    """Compute the volumes of cells (system, 3, 3), shape (system,), Å^3; NaN for flat cells."""
    a, b, c = cell.unbind(dim=1)
    normal = torch.stack([b[:, i] * c[:, j] - b[:, j] * c[:, i] for i, j in ((1, 2), (2, 0), (0, 1))])
    volume = dot_columns(a.T, normal).abs()
    box = (dot_columns(a.T, a.T) * dot_columns(b.T, b.T) * dot_columns(c.T, c.T)).sqrt()
    return torch.where(volume > FLAT * box, volume, torch.nan)


def dot_columns(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply columns of three term by term: a reduction may round differently in another batch."""
    x, y, z = left * right
    return x + y + z


def sum_segments(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Add up segments of consecutive values, each from first to last, with the same bits in any batch."""
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
