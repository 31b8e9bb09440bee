"""Repulsion of nuclei at short range, for models that were not trained on such distances.

Source: Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Solids, Pergamon, New York 1985.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from ase import units
from ase.data import atomic_numbers, covalent_radii

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials.batches import Neighbours, sum_segments
from daskpipe.potentials.edge_model import EdgeModel
from daskpipe.potentials.evaluate import mixes_periodicity

if TYPE_CHECKING:
    from daskpipe.core.torch_sim import SimState

SCREENING = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))
"""Weights and decays of the universal screening function."""
LENGTH, POWER = 0.8854, 0.23
"""The screening length of a pair is LENGTH Bohr radii over the sum of both atomic numbers to the POWER."""

REACH = 0.7
"""Distance at which the repulsion ends, as a multiple of the sum of the two covalent radii.

Few bonds are as short. The shortest of the G2 set is that of CN (0.77), the shortest of 53 solids the vanadyl bond of
V2O5 (0.72; N2 0.77, W 0.85). Uranyl (0.68) and dimers such as Cr2 (0.60) lie within: `explore` refuses such seeds.
"""


def add_repulsion(model: ModelInterface, elements: Iterable[str] | None = None) -> ModelInterface:
    """Add the universal repulsion of nuclei to a model.

    The screened Coulomb energy of each pair, E = k Z Z' / r phi(r / a), is taken times 1 - 28 x^6 + 48 x^7 - 21 x^8
    with x = r / R, so that value, slope and curvature go to zero at R, `REACH` times the sum of the covalent radii:
    below equilibrium distances, so that the repulsion changes no equilibrium.

    Parameters
    ----------
    model
        A batched model, such as `daskpipe.potentials.batched_model` returns.
    elements
        Symbols of all elements that systems may hold, which bounds the distance of the search for pairs; ``None`` for
        any.

    Returns
    -------
    ModelInterface
        Model that adds the repulsion to ``energy``, ``forces`` and ``stress``, and leaves all else that the model
        returns. The repulsion is computed in float64.
    """
    numbers = [atomic_numbers[symbol] for symbol in elements] if elements is not None else range(len(covalent_radii))
    reach = 2 * REACH * max(float(covalent_radii[number]) for number in numbers)
    return RepulsiveModel(model, reach)


class RepulsiveModel(ModelInterface):
    """Model with the repulsion of nuclei added; see `add_repulsion`.

    Attributes
    ----------
    model
        Model without repulsion.
    failures
        The failures of that model.
    """

    def __init__(self, model: ModelInterface, reach: float) -> None:
        super().__init__()
        self.model = model
        self._device, self._dtype = model.device, model.dtype
        self._compute_stress, self._compute_forces = model.compute_stress, True
        self._memory_scales_with = model.memory_scales_with
        self.mixes_periodicity = mixes_periodicity(model)
        self.wall = EdgeModel(
            make_repulsion(model.device), reach, device=model.device, dtype=torch.float64,
            compute_stress=model.compute_stress,
        )  # fmt: skip

    @property
    def failures(self) -> dict[int, str]:
        """Reason for each system of the last batch that has no results."""
        return getattr(self.model, "failures", {})

    @property
    def evaluated_by(self) -> str:
        """Return what evaluates the model without repulsion, where it says so."""
        return getattr(self.model, "evaluated_by", "")

    def forward(self, state: SimState, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the model's output with the repulsion added to energy, forces and stress."""
        out = self.model(state, **kwargs)
        return out | {name: out[name] + value for name, value in self.wall(state).items()}


def make_repulsion(device: torch.device) -> Any:
    """Build the repulsion as an `daskpipe.potentials.edge_model.Interaction` in float64."""
    radii = torch.tensor(REACH * covalent_radii, device=device, dtype=torch.float64)
    # A table, since a power of a tensor may round differently at another place of a batch.
    powers = torch.tensor([number**POWER for number in range(len(covalent_radii))], device=device, dtype=torch.float64)

    def compute_interaction(
        edges: Neighbours, r: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        one, other = numbers[edges.first], numbers[edges.second]
        inverse_length = (powers[one] + powers[other]) / (LENGTH * units.Bohr)
        charge = units.Hartree * units.Bohr * (one * other).double()
        screening, decay = torch.zeros_like(r), torch.zeros_like(r)
        for weight, rate in SCREENING:
            part = weight * torch.exp(-rate * inverse_length * r)
            screening = screening + part
            decay = decay - rate * inverse_length * part
        energy = charge * screening / r
        slope = charge * decay / r - energy / r

        x = (r / (radii[one] + radii[other])).clamp(max=1.0)
        x5 = x * x * x * x * x
        smooth = 1 - x5 * x * (28 - 48 * x + 21 * x * x)
        bend = -168 * x5 * (1 - x) * (1 - x) / (radii[one] + radii[other])
        return 0.5 * sum_segments(energy * smooth, edges.per_atom), slope * smooth + energy * bend

    return compute_interaction
