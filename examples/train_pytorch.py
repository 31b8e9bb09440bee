"""Train a small network in plain PyTorch, straight from a dataset; no model package, no conversion.

    python examples/train_pytorch.py runs/quickstart/dataset.zarr

What it shows: `TorchDataset` and `collate` give batches with flat atoms and a neighbour list, `spec` gives what a model
is normalised with (energies of single atoms, RMS force, mean number of neighbours), forces come from autograd.

The network: around each atom a density of its neighbours by distance and element, ``A0`` (a scalar) and ``A1`` (a
vector); the energy of the atom is a perceptron of its element, ``A0`` and ``|A1|²``. That is invariant under
rotation, translation and permutation, and the forces turn with the atoms. It is here to be read; it knows no angles
between bonds to different neighbours, as a MACE (``daskpipe train``) does.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from daskpipe.load import Batch, Spec, TorchDataset, collate, spec


class Network(torch.nn.Module):
    """Energy of structures from the densities around their atoms."""

    def __init__(self, norm: Spec, n_radial: int = 8, width: int = 32) -> None:
        super().__init__()
        assert norm.cutoff is not None
        assert norm.avg_num_neighbors is not None
        self.cutoff, self.scale = norm.cutoff, norm.rms_force
        self.crowd = math.sqrt(norm.avg_num_neighbors)  # keeps sums over neighbours near one
        self.frequencies = torch.arange(1, n_radial + 1) * math.pi / self.cutoff
        # Elements are counted from 0 in the order of the spec; e0s are in the same order.
        self.place = torch.full((119,), -1)
        self.place[norm.elements] = torch.arange(len(norm.elements))
        self.e0s = torch.tensor(list(norm.e0s.values()))
        self.element = torch.nn.Embedding(len(norm.elements), width)
        self.radial = torch.nn.Linear(n_radial, 2 * width, bias=False)
        self.energy = torch.nn.Sequential(
            torch.nn.Linear(3 * width, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
            torch.nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies (system,) in eV and forces (atom, 3) in eV/Å."""
        positions = batch["positions"].detach().requires_grad_(True)
        (i, j), species = batch["edge_index"], self.place[batch["numbers"]]
        vectors = positions[j] - positions[i] + batch["shifts"]
        distances = vectors.norm(dim=1, keepdim=True)
        waves = torch.sin(distances * self.frequencies) / distances
        smooth = 0.5 * (1 + torch.cos(math.pi * distances / self.cutoff))
        near, far = (self.radial(waves * smooth) * self.element(species[j]).repeat(1, 2)).chunk(2, dim=1)
        n_atoms, width = len(species), near.shape[1]
        a0 = near.new_zeros(n_atoms, width).index_add(0, i, near) / self.crowd
        directed = (vectors / distances)[:, :, None] * far[:, None, :]
        a1 = near.new_zeros(n_atoms, 3, width).index_add(0, i, directed) / self.crowd
        features = torch.cat([self.element(species), a0, (a1**2).sum(dim=1)], dim=1)
        of_atoms = self.e0s[species] + self.scale * self.energy(features)[:, 0]
        energy = of_atoms.new_zeros(batch.n_structures).index_add(0, batch["batch"], of_atoms)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return energy, -gradient


def loss_of(model: Network, batch: Batch) -> torch.Tensor:
    """Mean squares of the errors of forces and of energies an atom, in units of the RMS force."""
    energy, forces = model(batch)
    per_atom = (energy - batch["energy"]) / batch["n_atoms"]
    return ((forces - batch["forces"]) ** 2).mean() / model.scale**2 + (per_atom**2).mean() / model.scale**2


def force_error(model: Network, loader: DataLoader[Batch]) -> float:
    """RMSE of all force components, eV/Å."""
    model.eval()
    squares, count = 0.0, 0
    for batch in loader:
        difference = model(batch)[1] - batch["forces"]
        squares += float((difference**2).sum())
        count += difference.numel()
    model.train()
    return math.sqrt(squares / count)


def main(words: list[str] | None = None) -> list[float]:
    """Train; return the loss of each epoch."""
    parser = argparse.ArgumentParser(description="Train a small network in plain PyTorch.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args(words)

    torch.manual_seed(0)
    norm = spec(arguments.dataset, "train", arguments.cutoff)
    make = partial(collate, dtype=torch.float32, cutoff=arguments.cutoff)
    loaders = {
        split: DataLoader(
            TorchDataset(arguments.dataset, split), arguments.batch_size, shuffle=split == "train", collate_fn=make
        )
        for split in ("train", "val")
    }
    model = Network(norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs)
    print(f"{norm.n_structures} structures to train on, RMS force {norm.rms_force:.3f} eV/Å")
    losses = []
    for epoch in range(arguments.epochs):
        total = 0.0
        for batch in loaders["train"]:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            total += loss.item()
        schedule.step()
        losses.append(total / len(loaders["train"]))
        if epoch % 10 == 9 or epoch == arguments.epochs - 1:
            errors = "  ".join(f"{split} {force_error(model, loader):.3f}" for split, loader in loaders.items())
            print(f"epoch {epoch + 1:>3}  loss {losses[-1]:.4f}  force RMSE, eV/Å: {errors}")
    return losses


if __name__ == "__main__":
    main()
