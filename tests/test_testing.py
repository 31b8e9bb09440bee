"""The contract kits find what is wrong: what keeps its promises, broken in one way at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch_sim.models.interface import ModelInterface

from daskpipe.potentials import POTENTIALS, Evaluation, Identity, Potential, batched_model, build_potential
from daskpipe.potentials.batches import make_state
from daskpipe.potentials.evaluate import calculator_of
from daskpipe.potentials.results import checked_results
from daskpipe.testing import Kind, check_descriptor, check_potential, example


class Distances:
    """A small descriptor that keeps all promises: how many neighbours of each element, smoothly counted."""

    def __init__(self, *, species: Sequence[str], average: str = "off") -> None:
        self.species, self.average = sorted(species), average
        self.n_features = len(self.species)
        self.dtype = np.dtype("float64")

    def hypers(self) -> dict[str, Any]:
        return {"species": list(self.species), "average": self.average}

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        rows = [self.rows(atoms) for atoms in structures]
        if self.average == "outer":
            rows = [row.mean(axis=0, keepdims=True) for row in rows]
        return np.concatenate([np.zeros((0, self.n_features)), *rows])

    def rows(self, atoms: Atoms) -> np.ndarray:
        from ase.neighborlist import neighbor_list

        if missing := set(atoms.symbols) - set(self.species):
            raise ValueError(f"unknown {missing}")
        center, other, distance = neighbor_list("ijd", atoms, 4.0)
        kind = np.array([self.species.index(symbol) for symbol in atoms.symbols])
        rows = np.zeros((len(atoms), self.n_features))
        np.add.at(rows, (center, kind[other]), np.cos(distance * np.pi / 8) ** 4)
        return rows


class Turns(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        return super().rows(atoms) + np.abs(atoms.positions - atoms.positions.mean(axis=0))[:, :1]


class Moves(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        return super().rows(atoms) + np.linalg.norm(atoms.positions.mean(axis=0))


class Counts(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        return super().rows(atoms) + np.arange(len(atoms))[:, None]


class Open(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        atoms = atoms.copy()
        atoms.pbc = False
        return super().rows(atoms)


class Sums(Distances):
    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        times = [len(atoms) if self.average == "outer" else 1 for atoms in structures]
        return (
            super().compute(structures) * np.array(times)[:, None]
            if self.average == "outer"
            else super().compute(structures)
        )


class Constant(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        super().rows(atoms)
        return np.ones((len(atoms), self.n_features))


class Leaks(Distances):
    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        return super().compute(structures) * max(len(structures), 1)


class Writes(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        atoms.info["seen"] = True
        atoms.positions += 1.0
        return super().rows(atoms)


class WrongType(Distances):
    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        return super().compute(structures).astype(np.float32)


class WrongWidth(Distances):
    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.n_features += 1

    def rows(self, atoms: Atoms) -> np.ndarray:
        return np.zeros((len(atoms), self.n_features - 1))

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        if any(set(atoms.symbols) - set(self.species) for atoms in structures):
            raise ValueError("Xe")
        return np.concatenate([self.rows(atoms) for atoms in structures])


class NotJson(Distances):
    def hypers(self) -> dict[str, Any]:
        return {"species": tuple(self.species), "average": self.average}


class Forgets(Distances):
    def hypers(self) -> dict[str, Any]:
        return {"species": self.species[:1], "average": self.average}

    def __init__(self, *, species: Sequence[str], average: str = "off", more: int = 0) -> None:
        super().__init__(species=species, average=average)


class Anything(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        known = atoms.copy()
        known.symbols[:] = [symbol if symbol in self.species else self.species[0] for symbol in known.symbols]
        return super().rows(known)


class Mute(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        if set(atoms.symbols) - set(self.species):
            raise ValueError("no")
        return super().rows(atoms)


@pytest.mark.parametrize("seed", range(5))
def test_a_good_descriptor_passes(seed: int) -> None:
    check_descriptor(Distances, seed=seed)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Turns, r"a rotation of a bulk changes its descriptor by [\d.]+ \(average='off'\)"),
        (Moves, r"a translation of a bulk changes its descriptor by"),
        (Counts, r"a new order of a bulk changes its descriptor by"),
        (Open, r"moving atoms by lattice vectors of a bulk changes its descriptor by"),
        (Sums, r"a supercell of a bulk changes its descriptor by [\d.]+ \(average='outer'\)"),
        (Constant, r"a distorted bulk has the same descriptor"),
        (Leaks, r"a structure's descriptor depends on the others of the call"),
        (Writes, r"a structure was changed"),
        (WrongType, r"dtype float32, not float64"),
        (WrongWidth, r"shape \(\d+, 2\), not \(\d+, 3\)"),
        (NotJson, r"hypers\(\) are no JSON types"),
        (Forgets, r"the class called with hypers\(\) has another number of features"),
        (Anything, r"a structure with Xe was described, species are Au, Cu"),
        (Mute, r"the refusal of Xe does not name it: no"),
    ],
)
def test_a_broken_descriptor_is_told_what_it_breaks(broken: type, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_descriptor(broken)


# --- potentials ---------------------------------------------------------------------------------------

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
    structures = [example(shape, ["Au", "Cu"], rng) for _ in range(2)]
    if kind == "flat slab":
        # Without a volume there is no stress that would have to hold the fault as well.
        for atoms in structures:
            atoms.cell[2] = 0
    with pytest.raises(AssertionError, match=said):
        check_potential("faulty", {"fault": fault}, structures)
