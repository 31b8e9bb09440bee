"""Feed a small torch model through a DataLoader: workers, start methods, neighbour lists; and the time lost waiting.

Run: ``python benchmarks/loaders.py``. A `TorchStream` gives shuffled batches of 32 synthetic structures of 10 to 200
atoms to a model of pair distances (of elements alone, without neighbour lists), which is trained for `ITERATIONS`
within one epoch. Waiting is the time from asking for a batch to having it, after the first; computing is the rest.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch read it

import numpy as np
import torch
import xarray as xr
from torch.utils.data import DataLoader

from daskpipe.core.variables import VARIABLES
from daskpipe.load import Batch, TorchStream
from daskpipe.store import write_dataset

N_STRUCTURES = 40_000
BATCH = 32
CUTOFF = 4.0
ITERATIONS = 1000


def write(path: Path, n_structures: int = N_STRUCTURES) -> None:
    """Random gases of 0.05 atoms an Å^3."""
    rng = np.random.default_rng(0)
    n_atoms = rng.integers(10, 201, n_structures).astype("i4")
    stop = np.cumsum(n_atoms, dtype="i8")
    length = np.cbrt(n_atoms / 0.05)
    arrays = {
        "n_atoms": n_atoms,
        "atom_start": stop - n_atoms,
        "numbers": rng.integers(1, 90, stop[-1], dtype="u1"),
        "positions": rng.random((stop[-1], 3), dtype="f4") * np.repeat(length, n_atoms).astype("f4")[:, None],
        "forces": rng.standard_normal((stop[-1], 3), dtype="f4"),
        "cell": np.eye(3) * length[:, None, None],
        "pbc": np.ones((n_structures, 3), bool),
        "energy": rng.normal(-5.0, 1.0, n_structures) * n_atoms,
        "stress": rng.normal(scale=0.01, size=(n_structures, 6)),
        "structure_id": np.frombuffer(rng.bytes(16 * n_structures), "V16"),
    }
    ds = xr.Dataset({name: (VARIABLES[name].dims, array) for name, array in arrays.items()})
    write_dataset(ds, path, attrs={"dataset_key": "benchmark"})


class Model(torch.nn.Module):
    """Energy per atom from its element and the distances of its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.element = torch.nn.Embedding(119, 16)
        self.pair = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU())
        self.out = torch.nn.Linear(16, 1)
        self.register_buffer("centres", torch.linspace(0.5, CUTOFF, 8))

    def forward(self, batch: Batch) -> torch.Tensor:
        atoms = self.element(batch["numbers"])
        if "edge_index" in batch:
            i, j = batch["edge_index"]
            lengths = (batch["positions"][j] - batch["positions"][i] + batch["shifts"]).norm(dim=1, keepdim=True)
            atoms = atoms.index_add(0, i, self.pair(torch.exp(-((lengths - self.centres) ** 2))) * atoms[j])
        energies = self.out(torch.tanh(atoms))[:, 0]
        return torch.zeros(batch.n_structures).index_add(0, batch["batch"], energies)


def train(path: Path, workers: int, context: str | None, cutoff: float | None) -> tuple[float, ...]:
    """Return what an iteration computes and waits, ms, the 99th percentile of it, and the first batch's time, s."""
    stream = TorchStream(path, batch_size=BATCH, cutoff=cutoff, dtype=torch.float32, verify=False)
    torch.manual_seed(0)
    model = Model()
    optimiser = torch.optim.Adam(model.parameters())
    waits, started = [], time.perf_counter()
    loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context)

    batches = islice(loader, ITERATIONS + 1)
    next(batches)
    first = begun = asked = time.perf_counter()
    for batch in batches:
        waits.append(time.perf_counter() - asked)
        loss = ((model(batch) - batch["energy"]) / batch["n_atoms"]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss)
        asked = time.perf_counter()
    total = time.perf_counter() - begun
    assert len(waits) == ITERATIONS
    waited = sum(waits)
    p99 = float(np.percentile(waits, 99))
    return (total - waited) / ITERATIONS * 1e3, waited / ITERATIONS * 1e3, p99 * 1e3, first - started


def main() -> None:
    # Python 3.12 warns of a fork with threads, torch of more workers than cores.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    torch.set_num_threads(1)
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    print(
        f"{model.split(': ')[1]}, {os.cpu_count()} cores, page cache warm, load {os.getloadavg()[0]:.1f} at the start"
    )
    print(f"{N_STRUCTURES:,} structures, batches of {BATCH}, cutoff {CUTOFF} Å; milliseconds an iteration, means\n")
    print(f"{'neighbours':<12}{'workers':>8}{'start':>7}{'iterations':>12}{'computes':>10}{'waits':>8}{'p99':>8}"
          f"{'lost':>7}{'first batch, s':>16}")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="daskpipe-loaders-") as folder:
        path = Path(folder) / "dataset.zarr"
        write(path)
        for neighbours, cutoff in (("no", None), ("yes", CUTOFF)):
            for workers, context in [(0, None), (2, "fork"), (4, "fork"), (2, "spawn"), (4, "spawn")]:
                computes, waits, p99, first = train(path, workers, context, cutoff)
                print(
                    f"{neighbours:<12}{workers:>8}{context or '-':>7}{ITERATIONS:>12}{computes:>10.2f}{waits:>8.2f}"
                    f"{p99:>8.2f}{waits / (computes + waits):>7.0%}{first:>16.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
