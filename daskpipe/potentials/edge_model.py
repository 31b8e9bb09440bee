"""torch-sim model of potentials that are functions of distances: LJ, EMT and the repulsion of nuclei."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials.batches import NeighbourFinder, Neighbours, cell_volumes, lost_systems, sum_segments

if TYPE_CHECKING:
    from daskpipe.core.torch_sim import SimState

type Interaction = Callable[[Neighbours, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Function of edges, distances (edge,) in Å and atomic numbers (atom,). It returns the energies of the atoms (atom,) in
eV and the slopes (edge,) of the total energy along each distance in eV/Å, both directions of a pair counted as one."""


VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
"""Index of each component of a stress in ASE's order xx yy zz yz xz xy."""


class EdgeModel(ModelInterface):
    """Model of energies, forces and stresses for batches of systems of any periodicities.

    In float64 on the CPU the numbers of a system are the same bits alone and in any batch, with or without stress, if
    those of the interaction are. An interaction may use sums, products, divisions, ``exp``, ``log``, ``sqrt`` and
    `daskpipe.potentials.batches.sum_segments`, but neither matrix products nor powers, whose rounding depends on the
    place in the batch.

    Parameters
    ----------
    interaction
        The potential.
    cutoff
        Å.
    device, dtype
        Device and precision of the computation. States may have another dtype.
    compute_stress
        Whether ``forward`` returns stresses.
    """

    mixes_periodicity = True
    """Each system of a batch may be periodic along axes of its own."""

    def __init__(
        self,
        interaction: Interaction,
        cutoff: float,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compute_stress: bool = False,
    ) -> None:
        super().__init__()
        self.interaction = interaction
        self.find_neighbours = NeighbourFinder(cutoff)
        self._device = device
        self._dtype = dtype
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"

    def forward(
        self, state: SimState, *, neighbours: Neighbours | None = None, **_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Compute energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        The output has the state's dtype. The stress is positive under tension, as in ASE; NaN where the cell has no
        volume. `neighbours` are those of ``find_neighbours``, where they are known already.
        """
        with torch.no_grad():
            edges = neighbours or self.find_neighbours(state)
            vectors = edges.vectors.to(self._dtype)
            distances = edges.squares.to(self._dtype).sqrt()
            energies, slopes = self.interaction(edges, distances, state.atomic_numbers)
            pulls = slopes / distances * vectors
            per_system = state.n_atoms_per_system
            out = {
                # Always in float64: differences of these sums decide which trial moves are accepted.
                "energy": sum_segments(energies.double(), per_system),
                "forces": torch.stack([sum_segments(pull, edges.per_atom) for pull in pulls], dim=1),
            }
            if self._compute_stress:
                # Half of it, because the list has each pair twice.
                out["stress"] = half_stress(state, edges, lambda i, j: vectors[i] * pulls[j])
            out["energy"] = torch.where(lost_systems(state), torch.nan, out["energy"])
        return {name: value.to(state.dtype) for name, value in out.items()}


def half_stress(state: SimState, edges: Neighbours, multiply: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
    """Compute half of the sums over edges of products of two components, over the volumes, shape (system, 3, 3).

    Parameters
    ----------
    state
        Systems; NaN where the cell of one has no volume.
    edges
        Edges of all systems.
    multiply
        Returns the products (edge,) of the components i and j, the same for j and i.
    """
    virials = [
        sum_segments(sum_segments(multiply(i, j), edges.per_atom), state.n_atoms_per_system)
        for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    ]
    stress = 0.5 * torch.stack(virials)[torch.tensor(VOIGT)] / cell_volumes(state.row_vector_cell)
    return stress.permute(2, 0, 1)
