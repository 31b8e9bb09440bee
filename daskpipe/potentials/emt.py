"""Effective medium theory for Al, Cu, Ag, Au, Ni, Pd and Pt: cheap and smooth, for tests and first explorations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    import torch
    from ase.calculators.calculator import Calculator

    from daskpipe.core.torch_sim import ModelInterface
    from daskpipe.potentials.batches import Neighbours
    from daskpipe.potentials.edge_model import Interaction

TRAITS = Traits(packages=("ase", "torch-sim-atomistic"), trial="Cu")

ELEMENTS = frozenset({"Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"})
"""Without H, C, N and O, for which ASE has toy parameters "not for any serious use"."""


def emt(*, device: str, dtype: str) -> Potential:
    """Effective medium theory with ASE's parameters and cutoff. Source: Surf. Sci. 366, 394 (1996).

    Parameters
    ----------
    device, dtype
        Device and precision of the batched model; the ASE calculator runs on the CPU in float64.
    """
    from ase import Atoms

    def make_model(stress: bool) -> ModelInterface:
        import torch

        from daskpipe.potentials.edge_model import EdgeModel

        torch_device, torch_dtype = torch.device(device), getattr(torch, dtype)
        interaction, cutoff = _make_interaction(torch_device, torch_dtype)
        return EdgeModel(interaction, cutoff, device=torch_device, dtype=torch_dtype, compute_stress=stress)

    calculator = _make_calculator()
    calculator.initialize(Atoms())
    return Potential(
        calculator=calculator, model=make_model, elements=ELEMENTS, cutoff=calculator.rc_list, knows_charge=False
    )


def identify() -> Identity:
    """Identify EMT, which has no parameters."""
    return identity_of_package("EMT", "ase", {}, elements=ELEMENTS)


def _make_interaction(device: torch.device, dtype: torch.dtype) -> tuple[Interaction, float]:
    """Return EMT as an interaction of edges, and its cutoff in Å.

    Names and numbers are those of `ase.calculators.emt`.

    Sums over the neighbours of an atom give its density sigma1, which gives its energy through the radius ds of the
    neutral sphere; the rest is a sum of pairs.
    """
    import torch
    from ase import Atoms
    from ase.calculators.emt import EMT, beta

    from daskpipe.potentials.batches import sum_segments

    source = EMT()
    source.initialize(Atoms(sorted(ELEMENTS)))
    rc, acut = source.rc, source.acut
    kinds = torch.full((119,), -1)
    kinds[torch.as_tensor(source.par["Z"]).long()] = torch.arange(len(ELEMENTS))
    kinds = kinds.to(device)
    table = {name: torch.tensor(values, device=device, dtype=dtype) for name, values in source.par.items()}
    chi = torch.tensor(source.chi, device=device, dtype=dtype).flatten()

    def compute_interaction(
        edges: Neighbours, r: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind = kinds[numbers]
        one, other = kind.index_select(0, edges.first), kind.index_select(0, edges.second)
        ratio = chi.index_select(0, one * len(ELEMENTS) + other)
        (eta, eta_other), (kappa, kappa_other), (s0, s0_other), (half, half_other) = (
            (table[name].index_select(0, one), table[name].index_select(0, other))
            for name in ("eta2", "kappa", "s0", "neghalfv0overgamma2")
        )

        w = 1 / (1 + torch.exp(acut * (r - rc)))
        ratio_w, w_ratio = ratio * w, w / ratio
        bend = acut * (w - 1)
        # Contributions of the other atom to the sums of this one, and of this one to those of the other.
        taken = torch.exp(-eta_other * (r - beta * s0_other)) * ratio_w
        given = torch.exp(-eta * (r - beta * s0)) * w_ratio
        pair = half * torch.exp(-kappa_other * (r / beta - s0_other)) * ratio_w
        pair_other = half_other * torch.exp(-kappa * (r / beta - s0)) * w_ratio

        atom = {name: values[kind] for name, values in table.items()}
        alone = edges.per_atom == 0
        sigma1 = torch.where(alone, 1.0, sum_segments(taken, edges.per_atom))
        ds = -torch.log(sigma1 * atom["inv12gamma1"]) / (beta * atom["eta2"])
        near = atom["E0"] * torch.exp(-atom["lambda"] * ds)
        shift = 6 * atom["V0"] * torch.exp(-atom["kappa"] * ds)
        reduced = atom["lambda"] * ds
        sphere = torch.where(alone, 0.0, near * (1 + reduced) + shift)
        dsphere = (atom["lambda"] * reduced * near + atom["kappa"] * shift) / (beta * atom["eta2"] * sigma1)

        energies = sphere + 0.5 * sum_segments(pair + pair_other, edges.per_atom) - atom["E0"]
        slopes = (
            dsphere.index_select(0, edges.first) * taken * (bend - eta_other)
            + dsphere.index_select(0, edges.second) * given * (bend - eta)
            + pair * (bend - kappa_other / beta)
            + pair_other * (bend - kappa / beta)
        )
        return energies, slopes

    return compute_interaction, source.rc_list


def _make_calculator() -> Calculator:
    import numpy as np
    from ase import Atoms
    from ase.calculators.emt import EMT
    from matscipy.neighbours import neighbour_list

    from daskpipe.potentials.box import make_periodic

    class Neighbours:
        """Replacement for the part of ASE's `NeighborList` that EMT uses: five times as fast, and without memory."""

        def __init__(self, cutoff: float) -> None:
            self.cutoff = cutoff

        def update(self, atoms: Atoms) -> None:
            first, self.second, self.offset = neighbour_list("ijS", make_periodic(atoms, self.cutoff), self.cutoff)
            self.start = np.searchsorted(first, np.arange(len(atoms) + 1))

        def get_neighbors(self, atom: int) -> tuple[np.ndarray, np.ndarray]:
            rows = slice(self.start[atom], self.start[atom + 1])
            return self.second[rows], self.offset[rows]

    class FastEMT(EMT):
        def initialize(self, atoms: Atoms) -> None:
            super().initialize(atoms)
            self.nl = Neighbours(self.rc_list)

    return FastEMT()
