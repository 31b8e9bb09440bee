"""Batched model of a committee."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials.batches import NeighbourFinder, Neighbours
from daskpipe.potentials.evaluate import mixes_periodicity

if TYPE_CHECKING:
    from daskpipe.core.torch_sim import SimState


class CommitteeModel(ModelInterface):
    """Model of the mean of several batched models and of the disagreement of their forces.

    Parameters
    ----------
    members
        Batched models. Either all of them compute stresses or none does.
    device
        Device of the states.

    Attributes
    ----------
    failures
        After ``forward``: the reason for each system of that batch on which a member failed, by index of the system.
    """

    def __init__(self, members: Sequence[ModelInterface], device: torch.device) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.failures: dict[int, str] = {}
        self._device = device
        self._dtype = torch.float64
        self._compute_stress = all(member.compute_stress for member in members)
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"
        self.mixes_periodicity = all(mixes_periodicity(member) for member in members)
        n_members = Counter(_cutoff_of(member) for member in members)
        # Neighbours are searched once for all members of one cutoff.
        self._shared = {
            cutoff: NeighbourFinder(cutoff) for cutoff, n in n_members.items() if cutoff is not None and n > 1
        }

    @property
    def evaluated_by(self) -> str:
        """Return what evaluates the members, where they say so."""
        return " and ".join(sorted({getattr(member, "evaluated_by", "") for member in self.members} - {""}))

    def forward(self, state: SimState, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Compute mean energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        ``force_disagreement`` (system,), eV/Å, is the largest over atoms of the root of the variance of the members'
        forces, summed over components. The output has the state's dtype.
        """
        outputs = []
        self.failures = {}
        found: dict[float | None, Neighbours] = {cutoff: finder(state) for cutoff, finder in self._shared.items()}
        for member in self.members:
            shared = found.get(_cutoff_of(member))
            outputs.append(member(state) if shared is None else member(state, neighbours=shared))
            self.failures = getattr(member, "failures", {}) | self.failures
        names = ("energy", "forces", "stress") if self._compute_stress else ("energy", "forces")
        forces = torch.stack([item["forces"] for item in outputs])
        spread = forces.var(dim=0, correction=0).sum(dim=1).sqrt()
        # A maximum would ignore the NaN of a failed system.
        largest = torch.segment_reduce(spread.nan_to_num(), "max", lengths=state.n_atoms_per_system)
        unknown = torch.segment_reduce(spread, "sum", lengths=state.n_atoms_per_system).isnan()
        return {name: torch.stack([item[name] for item in outputs]).mean(dim=0) for name in names} | {
            "force_disagreement": torch.where(unknown, torch.nan, largest)
        }


def _cutoff_of(model: Any) -> float | None:
    """Return the cutoff of a model that can be given the neighbours of each atom; ``None`` if it can not."""
    finder = getattr(model, "find_neighbours", None)
    return finder.cutoff if isinstance(finder, NeighbourFinder) else None
