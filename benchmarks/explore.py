"""Molecular dynamics with MACE: ASE one by one, bare torch-sim, and daskpipe through Dask and the store.

Run: ``python benchmarks/explore.py [SYSTEMS [STEPS [DEVICE]]]``. The same bundled model in float32, the same threads,
one process at work, one run. Systems are 32-atom cells of random Cu-Ag-Au alloys at 900 K, NVT Langevin with 4 fs and
a frame every ten steps. ASE is `ase.md.langevin.Langevin` on `MACECalculator`; with many systems only some of them
are run. torch-sim is `torch_sim.integrate` on MACE's own torch-sim model, without a trajectory file. daskpipe is what
a run does for its stage ``explore``: units of the directory, one Dask worker in a process of its own, guards, frames,
checkpoints, a commit. Each is warmed up with a few steps first. On a GPU its share of busy time and the largest batch
that fits are measured too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.bag as db
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from distributed import Client, LocalCluster

from daskpipe import potentials
from daskpipe.cluster.dask_config import DASK_CONFIG
from daskpipe.core.structures import from_atoms, round_positions
from daskpipe.core.third_party import silence_libraries
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import UnitRows, dataset_to_arrays
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.stages.explore import stage
from daskpipe.stages.explore.capacity import measure_capacity
from daskpipe.stages.explore.settings import Dynamics, Exploration
from daskpipe.stages.explore.trajectory import Condition

TEMPERATURE, TIMESTEP, FRICTION, STRIDE = 900.0, 4.0, 0.01, 10
WARM_UP = 10
REPEATS = 3


def alloys(n: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=4.0, cubic=True).repeat(2)
        atoms.symbols[:] = rng.choice(["Cu", "Ag", "Au"], len(atoms))
        atoms.rattle(0.05, rng=rng)
        found.append(round_positions(atoms))
    return found


def ase_one_by_one(structures: list[Atoms], n_steps: int, device: str) -> float:
    """Atom-steps a second."""
    calculator = potentials.build_potential("mace", {}, device, "float32").calculator
    seconds = 0.0
    for atoms in structures:
        moving = atoms.copy()
        moving.calc = calculator
        MaxwellBoltzmannDistribution(moving, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
        dynamics = Langevin(
            moving, TIMESTEP * units.fs, temperature_K=TEMPERATURE, friction=FRICTION / units.fs, fixcm=False
        )
        dynamics.run(2)
        started = time.perf_counter()
        dynamics.run(n_steps)
        seconds += time.perf_counter() - started
    return sum(map(len, structures)) * n_steps / seconds


def bare_torch_sim(structures: list[Atoms], n_steps: int, device: str) -> float:
    """Atom-steps a second."""
    with silence_libraries():
        import torch_sim as ts

    module = potentials.build_potential("mace", {}, device, "float32").calculator.models[0]
    from mace.calculators.mace_torchsim import MaceTorchSimModel

    model = MaceTorchSimModel(module, torch.device(device), torch.float32, compute_stress=False)
    start = ts.io.atoms_to_state(structures, model.device, model.dtype)

    def run(n: int) -> float:
        started = time.perf_counter()
        ts.integrate(
            system=start.clone(), model=model, integrator=ts.Integrator.nvt_langevin, n_steps=n,
            temperature=TEMPERATURE, timestep=TIMESTEP / 1000,
        )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with redirect_stdout(sys.stderr):
        run(WARM_UP)
        # What it takes to set up is in both.
        return sum(map(len, structures)) * n_steps / run(n_steps)


def through_daskpipe(root: Path, structures: list[Atoms], n_steps: int, device: str, client: Client) -> float:
    """Atom-steps a second of one exploration unit: from the directory, through Dask, into the directory."""
    seeds = commit_seeds(root, structures)
    settings = Exploration(
        dynamics=Dynamics(
            ensemble="nvt_langevin", temperatures=[TEMPERATURE], timestep=TIMESTEP, friction=FRICTION,
            steps=n_steps, stride=STRIDE,
        ),
        batch_atoms=None if device == "cuda" else sum(map(len, structures)),
    )  # fmt: skip
    build = partial(potentials.build_potential, "mace", {}, device, "float32")

    def unit_of(pieces: list[UnitRows], chosen: Exploration, trial: str) -> Any:
        key = unit_key("explore", stage.VERSION, {"trial": trial}, [], 0)
        unit = Unit(stage="explore", index=0, key=key, n_inputs=len(pieces))
        conditions = [Condition(temperature=TEMPERATURE) for _ in pieces]
        bag = db.from_delayed([dask.delayed(stage.load_seeds)(root, pieces, conditions)])
        payloads = stage.explore(bag, build, chosen, 0, name="bundled", checkpoints=Checkpoints(root=root, unit=unit))
        return dask.delayed(committed)(root, unit, partial(dask.compute, payloads, scheduler="synchronous"))

    short = settings.model_copy(update={"dynamics": settings.dynamics.model_copy(update={"steps": WARM_UP})})
    client.compute(unit_of(seeds, short, f"warm {time.time()}"), optimize_graph=False).result()
    started = time.perf_counter()
    n_out = client.compute(unit_of(seeds, settings, f"{time.time()}"), optimize_graph=False).result()
    seconds = time.perf_counter() - started
    assert n_out == len(structures) * settings.dynamics.n_frames
    return sum(map(len, structures)) * n_steps / seconds


def commit_seeds(root: Path, structures: list[Atoms]) -> list[UnitRows]:
    key = unit_key("generate", 1, {"n": len(structures)}, [], 0)
    unit = Unit(stage="generate", index=0, key=key, n_inputs=len(structures))
    commit(root, unit, Payload(arrays=dataset_to_arrays(from_atoms(structures)), n_out=len(structures)))
    return [UnitRows(stage="generate", key=key, rows=(row,)) for row in range(len(structures))]


def committed(root: Path, unit: Unit, compute: Any) -> int:
    ((payload,),) = compute()
    return commit(root, unit, payload).n_out


@contextmanager
def busy_share(device: str) -> Iterator[list[float]]:
    """Sample how busy a GPU is, as its driver says it, percent."""
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.2):
            samples.append(torch.cuda.utilization())

    thread = threading.Thread(target=sample)
    if device == "cuda":
        thread.start()
    yield samples
    over.set()
    if device == "cuda":
        thread.join()


def main() -> None:
    words = [*sys.argv[1:], *["", "", ""]][:3]
    n_systems, n_steps, device = int(words[0] or 16), int(words[1] or 100), words[2] or "cpu"
    torch.set_num_threads(1)
    structures = alloys(n_systems)
    some = structures[: max(1, min(n_systems, 16))] if device == "cpu" else structures[:2]
    rates: dict[str, list[float]] = {"ASE one by one": [], "bare torch-sim": [], "daskpipe": []}
    shares: list[float] = []
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        dask.config.set(DASK_CONFIG),
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(**options) as cluster,
        Client(cluster) as client,
    ):
        for _ in range(REPEATS):
            rates["ASE one by one"].append(ase_one_by_one(some, max(2, n_steps * len(some) // n_systems // 4), device))
            rates["bare torch-sim"].append(bare_torch_sim(structures, n_steps, device))
            with busy_share(device) as samples:
                rates["daskpipe"].append(through_daskpipe(Path(folder), structures, n_steps, device, client))
            shares += samples
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"{n_systems} systems of 32 atoms, {n_steps} steps, {device}, medians of {REPEATS}, atom-steps/s")
    for name, rate in medians.items():
        spread = " ".join(f"{value:,.0f}" for value in rates[name])
        print(
            f"{name:<16}{rate:>12,.0f}   {rate / medians['ASE one by one']:6.2f} x ASE   "
            f"{rate / medians['bare torch-sim']:5.2f} x torch-sim   ({spread})"
        )
    if shares:
        print(f"GPU busy while daskpipe ran: {statistics.mean(shares):.0f} %")
        potential = potentials.build_potential("mace", {}, device, "float32")
        space = measure_capacity(
            potentials.batched_model(potential), structures[:1], None, potential.cutoff, "benchmark"
        )
        largest = space.capacity / space.weigh(structures[0])
        print(f"largest batch that its memory is thought to hold: {largest:,.0f} systems")


if __name__ == "__main__":
    main()
