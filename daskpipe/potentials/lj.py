"""Lennard-Jones, with the same parameters for all elements and ASE's smooth cutoff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    import torch

    from daskpipe.core.torch_sim import ModelInterface
    from daskpipe.potentials.batches import Neighbours

TRAITS = Traits(packages=("ase", "torch-sim-atomistic"))

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

ONSET = 0.66
"""Distance at which the cutoff function sets in, as a fraction of the cutoff: ASE's default."""


def lj(
    *, device: str, dtype: str, epsilon: Positive = 0.0104, sigma: Positive = 3.4, r_cut: Positive = 8.5
) -> Potential:
    """Lennard-Jones 12-6 that goes smoothly to zero between 0.66 `r_cut` and `r_cut`.

    Parameters
    ----------
    device, dtype
        Device and precision of the batched model; the ASE calculator runs on the CPU in float64.
    epsilon
        Depth of the well, eV. The defaults are argon's.
    sigma
        Distance at which the pair energy is zero, Å.
    r_cut
        Cutoff, Å.
    """
    from ase.calculators.lj import LennardJones

    def make_model(stress: bool) -> ModelInterface:
        import torch

        from daskpipe.potentials.batches import sum_segments
        from daskpipe.potentials.edge_model import EdgeModel

        def compute_interaction(
            edges: Neighbours, distances: torch.Tensor, _numbers: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            energies, slopes = smooth_pair(distances, epsilon, sigma, r_cut)
            return 0.5 * sum_segments(energies, edges.per_atom), slopes

        return EdgeModel(
            compute_interaction, r_cut, device=torch.device(device), dtype=getattr(torch, dtype), compute_stress=stress
        )

    calculator = LennardJones(epsilon=epsilon, sigma=sigma, rc=r_cut, ro=ONSET * r_cut, smooth=True)
    return Potential(calculator=calculator, model=make_model, cutoff=r_cut, knows_charge=False)


def identify(epsilon: float, sigma: float, r_cut: float) -> Identity:
    """Identify Lennard-Jones by its parameters."""
    return identity_of_package("Lennard-Jones", "ase", {"epsilon": epsilon, "sigma": sigma, "r_cut": r_cut})


def smooth_pair(
    distances: torch.Tensor, epsilon: float, sigma: float, r_cut: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute energies (eV) and slopes (eV/Å) of pairs below the cutoff from their distances (Å).

    The cutoff function is that of `ase.calculators.lj`, a cubic in the squared distance.
    """
    import torch

    r2, rc2, ro2 = distances * distances, r_cut * r_cut, ONSET * ONSET * r_cut * r_cut
    c2 = sigma * sigma / r2
    c6 = c2 * c2 * c2
    energies = 4 * epsilon * (c6 * c6 - c6)
    slopes = -24 * epsilon * (2 * c6 * c6 - c6) / distances
    width = (rc2 - ro2) * (rc2 - ro2) * (rc2 - ro2)
    left = rc2 - r2
    smooth = torch.where(r2 < ro2, 1.0, left * left * (rc2 + 2 * r2 - 3 * ro2) / width)
    bend = torch.where(r2 < ro2, 0.0, 12 * distances * left * (ro2 - r2) / width)
    return energies * smooth, slopes * smooth + energies * bend
