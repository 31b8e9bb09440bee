"""The torch-sim model of a potential that is written in distances: LJ, EMT, and the repulsion of nuclei."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch_sim.models.interface import ModelInterface

from daskpipe.potentials.batches import NeighbourFinder, Neighbours, cell_volumes, lost_systems, sum_segments

if TYPE_CHECKING:
    from torch_sim import SimState

type Interaction = Callable[[Neighbours, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From edges, distances (edge,) in Å and atomic numbers (atom,) to the energies of the atoms (atom,) in eV and the
slopes (edge,) of the total energy along each distance, both directions of a pair taken as one, in eV/Å."""


VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
"""Where the components of a stress stand in ASE's order xx yy zz yz xz xy."""


class EdgeModel(ModelInterface):
    """Energies, forces and stresses of a batch of systems of any periodicities.

    In float64 on the CPU the numbers of a system are the same bits alone and in any batch, with or without stress, if
    those of the interaction are: it may use sums, products, divisions, ``exp``, ``log``, ``sqrt`` and
    `daskpipe.potentials.batches.sum_segments`, but neither matrix products nor powers, whose rounding depends on the
    place in the batch.

    Parameters
    ----------
    interaction
        The potential.
    cutoff
        Å.
    device, dtype
        Where and in what it computes. States of another dtype are taken as well.
    compute_stress
        Whether ``forward`` returns stresses.
    """

    mixes_periodicity = True
    """Reads the periodicity of each system of a batch."""

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
        self.find = NeighbourFinder(cutoff)
        self._device = device
        self._dtype = dtype
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"

    def forward(self, state: SimState, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        The output has the state's dtype. The stress is positive under tension, as in ASE; NaN where the cell has no
        volume.
        """
        with torch.no_grad():
            edges = self.find(state)
            vectors = edges.vectors.to(self._dtype)
            distances = edges.squares.to(self._dtype).sqrt()
            energies, slopes = self.interaction(edges, distances, state.atomic_numbers)
            pulls = slopes / distances * vectors
            per_system = state.n_atoms_per_system
            out = {
                # In float64 in any case: trial moves are accepted by differences of these sums.
                "energy": sum_segments(energies.double(), per_system),
                "forces": torch.stack([sum_segments(pull, edges.per_atom) for pull in pulls], dim=1),
            }
            if self._compute_stress:
                virials = [
                    sum_segments(sum_segments(vectors[i] * pulls[j], edges.per_atom), per_system)
                    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
                ]
                # Half, as each pair stands in the list twice.
                stress = 0.5 * torch.stack(virials)[torch.tensor(VOIGT)] / cell_volumes(state.row_vector_cell)
                out["stress"] = stress.permute(2, 0, 1)
            out["energy"] = torch.where(lost_systems(state), torch.nan, out["energy"])
        return {name: value.to(state.dtype) for name, value in out.items()}
