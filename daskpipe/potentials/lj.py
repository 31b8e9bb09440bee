"""Lennard-Jones, the same pair for all elements, with ASE's smooth cutoff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from daskpipe.potentials.potential import Identity, Potential, identity_of_version

if TYPE_CHECKING:
    import torch
    from torch_sim.models.interface import ModelInterface

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

ONSET = 0.66
"""Where the cutoff function sets in, as a fraction of the cutoff: ASE's default."""


def lj(
    *, device: str, dtype: str, epsilon: Positive = 0.0104, sigma: Positive = 3.4, r_cut: Positive = 8.5
) -> Potential:
    """Lennard-Jones 12-6 that goes smoothly to zero between 0.66 `r_cut` and `r_cut`.

    Parameters
    ----------
    device, dtype
        Of the batched model; the ASE calculator runs on the CPU in float64.
    epsilon
        Depth of the well, eV. The defaults are argon's.
    sigma
        Distance at which the pair energy is zero, Å.
    r_cut
        Cutoff, Å.
    """
    from ase.calculators.lj import LennardJones

    def model(stress: bool) -> ModelInterface:
        import torch
        from torch_sim.models.pair_potential import PairPotentialModel

        def pair(distance: torch.Tensor, _zi: torch.Tensor, _zj: torch.Tensor) -> torch.Tensor:
            return smooth_pair(distance, epsilon, sigma, r_cut)

        return PairPotentialModel(
            pair, cutoff=r_cut, device=torch.device(device), dtype=getattr(torch, dtype),
            compute_stress=stress, reduce_to_half_list=True,
        )  # fmt: skip

    calculator = LennardJones(epsilon=epsilon, sigma=sigma, rc=r_cut, ro=ONSET * r_cut, smooth=True)
    return Potential(calculator=calculator, model=model, cutoff=r_cut)


def identify(epsilon: float, sigma: float, r_cut: float) -> Identity:
    """Identity of Lennard-Jones: its parameters and the version of ASE."""
    return identity_of_version("Lennard-Jones", "ase", {"epsilon": epsilon, "sigma": sigma, "r_cut": r_cut})


def smooth_pair(distance: torch.Tensor, epsilon: float, sigma: float, r_cut: float) -> torch.Tensor:
    """Pair energies, eV, of distances, Å, with the cutoff function of `ase.calculators.lj` (in the squares)."""
    import torch

    r2, rc2, ro2 = distance**2, r_cut**2, (ONSET * r_cut) ** 2
    c6 = (sigma**2 / r2) ** 3
    smooth = (rc2 - r2) ** 2 * (rc2 + 2 * r2 - 3 * ro2) / (rc2 - ro2) ** 3
    cutoff = torch.where(r2 < ro2, torch.ones_like(r2), torch.where(r2 < rc2, smooth, torch.zeros_like(r2)))
    return 4 * epsilon * (c6**2 - c6) * cutoff
