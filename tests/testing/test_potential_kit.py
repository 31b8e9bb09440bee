"""The kit for potentials names what is wrong: one that keeps its promises, broken in one way at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials import POTENTIALS, Evaluation, Identity, Potential, batched_model, build_potential
from daskpipe.potentials.batches import make_state
from daskpipe.potentials.evaluate import calculator_of
from daskpipe.potentials.results import checked_results
from daskpipe.testing import Kind, check_potential
from daskpipe.testing.structures import draw_structure

K = 0.01
"""Strength of what a fault adds, eV, eV/Å or eV/Å^2."""


class Faulty(ModelInterface):
    """Lennard-Jones, right but for one fault."""

    def __init__(self, fault: str, stress: bool) -> None:
        super().__init__()
        self.fault = fault
        self.right = batched_model(
            build_potential("lj", {"epsilon": 0.3, "sigma": 2.4, "r_cut": 5.5}, "cpu", "float64"), stress=stress
        )
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress, self._compute_forces = stress, True

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        out = self.right(state)
        r, n_atoms = state.positions, state.n_atoms_per_system.tolist()
        blocks, forces = r.split(n_atoms), out["forces"].split(n_atoms)
        if self.fault == "float32":
            out["energy"] = out["energy"].float()
        elif self.fault == "no forces":
            del out["forces"]
        elif self.fault == "flat forces":
            out["forces"] = out["forces"].flatten()
        elif self.fault == "silent":
            out = {name: 0 * value for name, value in out.items()}
        elif self.fault == "writes":
            state.positions += 1.0
        elif self.fault == "unasked stress":
            out["stress"] = torch.zeros(len(n_atoms), 3, 3, dtype=torch.float64)
        elif self.fault == "company":
            out["energy"] = out["energy"] + K * len(n_atoms)
        elif self.fault == "wrong forces":
            out["forces"] = 1.01 * out["forces"]
        elif self.fault == "wrong stress":
            out = {name: 1.1 * value if name == "stress" else value for name, value in out.items()}
        elif self.fault == "stress of nothing":
            out = {name: value.nan_to_num() for name, value in out.items()}
        elif self.fault == "size":
            out["energy"] = out["energy"] + K * state.n_atoms_per_system**2
        else:
            wells = [self.well(block) for block in blocks]
            out["energy"] = out["energy"] + torch.stack([energy for energy, _ in wells])
            out["forces"] = torch.cat([force + more for force, (_, more) in zip(forces, wells, strict=True)])
        return out

    def well(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy and forces of a field that has one symmetry less."""
        r = r.clone().requires_grad_(True)
        centre = r.mean(dim=0)
        energy = {
            "none": 0 * r.sum(),
            "turns": K * (r - centre)[:, 2].square().sum(),
            "moves": K * r.square().sum(),
            "counts": K * (r[0] - centre).square().sum(),
            "open": K * (r - centre).square().sum(),
        }[self.fault]
        (slope,) = torch.autograd.grad(energy, r)
        return energy.detach(), -slope


def faulty(*, device: str, dtype: str, fault: str) -> Potential:
    """Potential whose calculator says what its model says, unless that is the fault."""
    inner = "none" if fault in ("calculator", "charge") else fault

    def label(structures: Sequence[Atoms]) -> list[Evaluation]:
        out = Faulty(inner, stress=True)(make_state(structures, torch.device("cpu"), torch.float64))
        (stress,) = out["stress"].numpy().reshape(1, 9)[:, [0, 4, 8, 5, 2, 1]]
        energy = float(out["energy"][0]) + (K * len(structures[0]) if fault == "calculator" else 0)
        whole = structures[0].pbc.all()
        return [checked_results(energy=energy, forces=out["forces"].numpy(), stress=stress if whole else None)]

    return Potential(
        calculator=calculator_of(label),
        model=lambda stress: Faulty(inner, stress),
        knows_charge=fault == "charge",
    )


def identify(fault: str) -> Identity:
    return Identity(name="faulty", hash=fault)


@pytest.fixture
def faulty_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POTENTIALS.table, "faulty", f"{__name__}:faulty")


@pytest.mark.usefixtures("faulty_is_registered")
@pytest.mark.parametrize("seed", range(3))
def test_a_good_potential_passes(seed: int) -> None:
    check_potential("faulty", {"fault": "none"}, seed=seed)


@pytest.mark.usefixtures("faulty_is_registered")
@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("float32", "bulk", r"energy of a float64 state has dtype torch\.float32"),
        ("no forces", "bulk", r"the model returns no forces"),
        ("flat forces", "bulk", r"forces has shape \(24,\), not \(8, 3\)"),
        ("silent", "bulk", r"there are no forces to be seen"),
        ("writes", "bulk", r"the model changed the positions of its state"),
        ("unasked stress", "bulk", r"stress without being asked"),
        ("company", "bulk", r"with others in its batch changes its energy by"),
        ("calculator", "bulk", r"the batched model, not the calculator, of .* changes its energy by"),
        ("wrong forces", "bulk", r"the forces on .* are off the slope of the energy by"),
        ("wrong stress", "bulk", r"the stress of .* is off the slope of the energy by"),
        ("stress of nothing", "molecule", r"has a stress, and its cell no volume"),
        ("turns", "molecule", r"a rotation of .* changes its (energy|forces) by"),
        ("moves", "molecule", r"a translation of .* changes its (energy|forces) by"),
        ("counts", "molecule", r"a new order of .* changes its (energy|forces) by"),
        ("open", "flat slab", r"moving atoms by lattice vectors of .* changes its (energy|forces) by"),
        ("charge", "bulk", r"has the same energy with a charge; .*Potential\(knows_charge=False\)"),
        ("size", "bulk", r"a supercell of .* changes its energy by"),
    ],
)
def test_a_faulty_potential_is_told_its_fault(fault: str, kind: str, said: str) -> None:
    rng = np.random.default_rng(0)
    shape: Kind = "slab" if kind == "flat slab" else kind  # type: ignore[assignment]
    structures = [draw_structure(shape, ["Au", "Cu"], rng) for _ in range(2)]
    if kind == "flat slab":
        # Without a volume there is no stress that would have to hold the fault as well.
        for atoms in structures:
            atoms.cell[2] = 0
    with pytest.raises(AssertionError, match=said):
        check_potential("faulty", {"fault": fault}, structures)
