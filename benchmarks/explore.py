"""Molecular dynamics with MACE: ASE one by one, bare torch-sim, and daskpipe through Dask and the store.

Run: ``python benchmarks/explore.py [MODEL [SYSTEMS [STEPS [DEVICE [REPEATS]]]]]``. MODEL is ``bundled``, a file,
``small`` (32 channels, l_max 3, correlation 3, 4.5 Å) or ``foundation`` (128x0e+128x1o, l_max 3, correlation 3, 6 Å),
the last two with random weights. The same model in float32, one thread, one process at work, one run. Systems are
32-atom cells of random Cu-Ag-Au alloys, NVT Langevin with a frame every ten steps: at 900 K with 4 fs, with random
weights at 100 K with 1 fs. ASE is `ase.md.langevin.Langevin` on `MACECalculator`; with many systems only some are run.
torch-sim is `torch_sim.integrate` on MACE's own torch-sim model, without a trajectory file. daskpipe is what a run does
for its stage ``explore``: units of the directory, one Dask worker in a process of its own, guards, frames, checkpoints,
a commit; by torch, and natively where that is installed and takes the model, with one worker and with two. Each is
warmed up with a few steps first. On a GPU its share of busy time and the largest batch that fits are measured too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
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
from ase.md.velocitydistribution import thermalize_momenta
from distributed import Client, LocalCluster

from daskpipe import potentials
from daskpipe.cluster.dask_config import DASK_CONFIG
from daskpipe.core.structures import from_atoms, round_positions
from daskpipe.core.third_party import import_mace, silence_libraries
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import UnitRows, dataset_to_arrays
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.potentials import batched_model
from daskpipe.potentials.batches import make_state
from daskpipe.stages.explore import stage
from daskpipe.stages.explore.capacity import measure_capacity
from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards
from daskpipe.stages.explore.trajectory import Condition

FRICTION, STRIDE = 0.01, 10

WARM_UP = 3
"""Steps before time is taken: TorchScript compiles in the second and third evaluation."""

SHAPES = {
    "small": {"hidden_irreps": "32x0e", "r_max": 4.5},
    "foundation": {"hidden_irreps": "128x0e+128x1o", "r_max": 6.0, "radial_MLP": [64, 64, 64]},
}
"""Models with random weights, by what differs from the bundled one beside l_max and correlation."""


@dataclass(frozen=True)
class Task:
    """Model, device and conditions that all programs run."""

    name: str
    model: str
    device: str
    temperature: float
    timestep: float

    def build(self, acceleration: str = "none") -> potentials.Potential:
        params = {"model": self.model, "acceleration": acceleration}
        return potentials.build_potential("mace", params, self.device, "float32")


def make_task(name: str, device: str, folder: Path) -> Task:
    if name not in SHAPES:
        return Task(name, name, device, 900.0, 4.0)
    import_mace()
    from daskpipe.potentials.mace import BUNDLED
    from daskpipe.potentials.mace_files import build_module, read_hypers

    torch.manual_seed(0)
    module = build_module(read_hypers(BUNDLED) | {"max_ell": 3, "correlation": 3} | SHAPES[name], "float32")
    path = folder / f"{name}.model"
    with silence_libraries():
        torch.save(module, path)
    return Task(name, str(path), device, 100.0, 1.0)


def alloys(n: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=4.0, cubic=True).repeat(2)
        atoms.symbols[:] = rng.choice(["Cu", "Ag", "Au"], len(atoms))
        atoms.rattle(0.05, rng=rng)
        found.append(round_positions(atoms))
    return found


def ase_one_by_one(structures: list[Atoms], n_steps: int, task: Task) -> float:
    """Atom-steps a second."""
    calculator = task.build().calculator
    seconds = 0.0
    for atoms in structures:
        moving = atoms.copy()
        moving.calc = calculator
        thermalize_momenta(moving, temperature_K=task.temperature, rng=np.random.default_rng(0))
        dynamics = Langevin(
            moving, task.timestep * units.fs, temperature_K=task.temperature, friction=FRICTION / units.fs, fixcm=False
        )
        dynamics.run(WARM_UP)
        started = time.perf_counter()
        dynamics.run(n_steps)
        seconds += time.perf_counter() - started
    return sum(map(len, structures)) * n_steps / seconds


def bare_torch_sim(structures: list[Atoms], n_steps: int, task: Task, *, cueq: bool = False) -> float:
    """Atom-steps a second."""
    with silence_libraries():
        import torch_sim as ts

    module = task.build().calculator.models[0]
    from mace.calculators.mace_torchsim import MaceTorchSimModel

    model = MaceTorchSimModel(module, torch.device(task.device), torch.float32, compute_stress=False, enable_cueq=cueq)
    start = ts.io.atoms_to_state(structures, model.device, model.dtype)

    def run(n: int) -> float:
        started = time.perf_counter()
        ts.integrate(
            system=start.clone(), model=model, integrator=ts.Integrator.nvt_langevin, n_steps=n,
            temperature=task.temperature, timestep=task.timestep / 1000,
        )  # fmt: skip
        if task.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with redirect_stdout(sys.stderr):
        run(WARM_UP)
        # What it takes to set up is in both.
        return sum(map(len, structures)) * n_steps / run(n_steps)


def through_daskpipe(
    root: Path, structures: list[Atoms], n_steps: int, task: Task, acceleration: str, client: Client
) -> tuple[float, list[float]]:
    """Atom-steps a second of a unit of exploration for each worker: from the directory, through Dask, and back.

    With it come samples of how busy the GPU was meanwhile, percent.
    """
    n_workers = len(client.scheduler_info()["workers"])
    settings = Exploration(
        dynamics=Dynamics(
            ensemble="nvt_langevin", temperatures=[task.temperature], timestep=task.timestep, friction=FRICTION,
            steps=n_steps, stride=min(STRIDE, n_steps),
        ),
        guards=Guards(evaporation=None), batch_atoms=None if task.device == "cuda" else sum(map(len, structures)),
    )  # fmt: skip
    build = partial(Task.build, task, acceleration)
    name = f"benchmark {task.name} {acceleration}"
    seeds = commit_seeds(root, structures)

    def unit_of(chosen: Exploration, trial: str) -> Any:
        key = unit_key("explore", stage.VERSION, {"trial": trial}, [], 0)
        unit = Unit(stage="explore", index=0, key=key, n_inputs=len(seeds))
        conditions = [Condition(temperature=task.temperature) for _ in seeds]
        bag = db.from_delayed([dask.delayed(stage.load_seeds)(root, seeds, conditions)])
        payloads = stage.explore(bag, build, chosen, 0, name=name, checkpoints=Checkpoints(root=root, unit=unit))
        return dask.delayed(committed)(root, unit, partial(dask.compute, payloads, scheduler="synchronous"))

    def run(chosen: Exploration) -> list[int]:
        units = [unit_of(chosen, f"{time.time()} {number}") for number in range(n_workers)]
        found: list[int] = client.gather(client.compute(units, optimize_graph=False))
        return found

    run(settings.model_copy(update={"dynamics": settings.dynamics.model_copy(update={"steps": WARM_UP, "stride": 1})}))
    with busy_share(task.device) as samples:
        started = time.perf_counter()
        n_out = run(settings)
        seconds = time.perf_counter() - started
    assert n_out == [len(structures) * settings.dynamics.n_frames] * n_workers, n_out
    return n_workers * sum(map(len, structures)) * n_steps / seconds, samples


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
    if device != "cuda":
        yield samples
        return
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


@contextmanager
def connect(n_workers: int) -> Iterator[Client]:
    options = {"n_workers": n_workers, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


def main() -> None:
    words = [*sys.argv[1:], *[""] * 5]
    name, n_systems, n_steps = words[0] or "bundled", int(words[1] or 16), int(words[2] or 100)
    device, repeats = words[3] or "cpu", int(words[4] or 3)
    torch.set_num_threads(1)
    structures = alloys(n_systems)
    some = structures[: max(1, min(n_systems, 16))] if device == "cpu" else structures[:2]
    rates: dict[str, list[float]] = {}
    shares: list[float] = []
    with (
        dask.config.set(DASK_CONFIG),
        tempfile.TemporaryDirectory() as folder,
        connect(1) as one,
        connect(2) as two,
    ):
        root, task = Path(folder), make_task(name, device, Path(folder))
        by = batched_model(task.build("auto"))
        by(make_state(structures[:1], torch.device(device), torch.float64))
        native = getattr(by, "evaluated_by", "").startswith("symmetrix")

        def add(row: str, rate: float) -> None:
            rates.setdefault(row, []).append(rate)

        for _ in range(repeats):
            add("ASE one by one", ase_one_by_one(some, max(2, n_steps * len(some) // n_systems // 8), task))
            add("bare torch-sim", bare_torch_sim(structures, max(2, n_steps // 4), task))
            rate, samples = through_daskpipe(root, structures, max(2, n_steps // 4), task, "none", one)
            add("daskpipe, torch", rate)
            shares += samples
            if native:
                for row, client in (("daskpipe, native", one), ("the same, 2 workers", two)):
                    add(row, through_daskpipe(root, structures, 2 * n_steps, task, "symmetrix", client)[0])
    medians = {row: statistics.median(found) for row, found in rates.items()}
    print(f"{name}: {n_systems} systems of 32 atoms, {device}, medians of {repeats}, atom-steps/s")
    for row, rate in medians.items():
        spread = " ".join(f"{value:,.0f}" for value in rates[row])
        print(
            f"{row:<20}{rate:>12,.0f}   {rate / medians['ASE one by one']:6.2f} x ASE   "
            f"{rate / medians['bare torch-sim']:5.2f} x torch-sim   ({spread})"
        )
    if shares:
        print(f"GPU busy while daskpipe ran: {statistics.mean(shares):.0f} %")
        potential = task.build()
        space = measure_capacity(
            potentials.batched_model(potential), structures[:1], None, potential.cutoff, "benchmark"
        )
        largest = space.capacity / space.weigh(structures[0])
        print(f"largest batch that its memory is thought to hold: {largest:,.0f} systems")


if __name__ == "__main__":
    main()
