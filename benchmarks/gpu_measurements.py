"""Measure dynamics, memory, descriptors, labels and loading on one device; `gpu.py` runs and prints it.

Each function yields rows. What fails is a row with the error, and the rest goes on.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import dask
import label
import loaders
import numpy as np
import psutil
import torch
from ase import Atoms
from explore import (
    FRICTION,
    STRIDE,
    WARM_UP,
    Task,
    alloys,
    ase_one_by_one,
    bare_torch_sim,
    connect,
    make_task,
    through_daskpipe,
)
from gpu import ASE, BARE, BUSY, DASKPIPE, RATE, Job, Row, describe
from torch.utils.data import DataLoader

from daskpipe import potentials
from daskpipe.cluster.dask_config import DASK_CONFIG
from daskpipe.core.third_party import import_mace
from daskpipe.load import TorchStream
from daskpipe.potentials.batches import find_neighbours, make_state
from daskpipe.stages.describe import mace as describe_mace
from daskpipe.stages.explore.capacity import is_out_of_memory, measure_capacity
from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards
from daskpipe.stages.explore.stage import explore_partition
from daskpipe.stages.explore.trajectory import Condition

MIB = 2**20

ACCELERATIONS = {"none": "torch", "cueq": "cuEquivariance", "compile": "torch.compile"}

N_UNITS = 4
"""Units explored one after another in one process, of which all but the first should take no new memory."""

Measured = float | tuple[float, str]
"""A value, or a value and a note."""


def try_row(model: str, what: str, unit: str, measure: Callable[[], Measured]) -> Row:
    """Return the row of a measurement, or of the error that ended it."""
    try:
        measured = measure()
    except Exception as error:  # whatever a driver, a compiler or a library does: the rest goes on
        return Row(model, what, math.nan, unit, f"failed: {describe(error)}")
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    value, note = measured if isinstance(measured, tuple) else (measured, "")
    return Row(model, what, value, unit, note)


def run_what_fits(measure: Callable[[list[Atoms]], float], structures: list[Atoms]) -> tuple[float, str]:
    """Measure with all structures, or with half of them, a quarter ... if the device is out of memory."""
    n = len(structures)
    while True:
        try:
            return measure(structures[:n]), "" if n == len(structures) else f"{n} systems: more do not fit"
        except Exception as error:
            if n == 1 or not is_out_of_memory(error):
                raise
        gc.collect()
        torch.cuda.empty_cache()
        n //= 2


def measure_dynamics(job: Job, model: str) -> Iterator[Row]:
    """Run ASE one by one, bare torch-sim, and units of exploration through the store, by torch and cuEquivariance."""
    task, structures = make_task(model, job.device, job.folder), alloys(job.n_systems)
    yield try_row(model, ASE, RATE, lambda: ase_one_by_one(structures[:2], job.n_steps, task))
    accelerations = ["none"]
    bare = partial(bare_torch_sim, n_steps=job.n_steps, task=task)
    yield try_row(model, BARE, RATE, lambda: run_what_fits(bare, structures))
    if find_spec("cuequivariance_ops_torch") is not None and job.device == "cuda":
        accelerations.append("cueq")
        with_cueq = partial(bare, cueq=True)
        yield try_row(model, f"{BARE}, cuEquivariance", RATE, lambda: run_what_fits(with_cueq, structures))
    yield from measure_units(job, task, accelerations, structures)


def measure_compiled(job: Job, model: str) -> Iterator[Row]:
    """Run units of exploration by compiled torch, which takes minutes for the first step."""
    yield from measure_units(job, make_task(model, job.device, job.folder), ["compile"], alloys(job.n_systems))


def measure_units(job: Job, task: Task, accelerations: list[str], structures: list[Atoms]) -> Iterator[Row]:
    """Run a unit of exploration with each acceleration, on one Dask worker in a process of its own."""
    with dask.config.set(DASK_CONFIG), connect(1) as client:
        for acceleration in accelerations:
            busy: list[float] = []

            def run_unit(acceleration: str = acceleration, busy: list[float] = busy) -> float:
                rate, samples = through_daskpipe(job.folder, structures, job.n_steps, task, acceleration, client)
                busy += samples
                return rate

            name = f"{DASKPIPE}, {ACCELERATIONS[acceleration]}"
            yield try_row(task.name, name, RATE, run_unit)
            if busy:
                yield Row(task.name, f"{BUSY}, {name}", statistics.mean(busy), "%", f"{len(busy)} samples")


def measure_native(job: Job, model: str) -> Iterator[Row]:
    """Evaluate one system and all systems with symmetrix, without dynamics. Not tested on a GPU yet."""
    import_mace()
    from daskpipe.potentials.mace_native import prepare_evaluator

    backend = find_backend(job.device)
    task, structures = make_task(model, "cpu", job.folder), alloys(job.n_systems)
    potential = task.build()
    digest = potentials.identify_potential("mace", {"model": task.model}).hash
    native = prepare_evaluator(potential.calculator.models[0], digest, None, "float32", backend=backend)

    def evaluate(chosen: list[Atoms]) -> tuple[float, str]:
        state = make_state(chosen, torch.device("cpu"), torch.float64)
        edges = find_neighbours(state, native.cutoff)
        given = (
            state.atomic_numbers.numpy(), edges.per_atom.numpy(), edges.second.numpy(), edges.vectors.T.numpy().copy(),
            edges.squares.sqrt().numpy(),
        )  # fmt: skip
        energies, _ = native.compute(*given)
        reference = potential.calculator.get_potential_energy(chosen[0])
        difference = abs(energies[: len(chosen[0])].sum() - reference) / len(chosen[0])
        started = time.perf_counter()
        for _ in range(job.n_steps):
            native.compute(*given)
        return state.n_atoms * job.n_steps / (time.perf_counter() - started), f"{difference:.0e} eV/atom from torch"

    yield try_row(model, f"symmetrix {backend}, one system", RATE, lambda: evaluate(structures[:1]))
    yield try_row(model, f"symmetrix {backend}, all systems", RATE, lambda: evaluate(structures))


def find_backend(device: str) -> str:
    """Return the name of symmetrix's backend for a device.

    Raises
    ------
    RuntimeError
        If none is installed.
    """
    if find_spec("symmetrix") is None:
        raise RuntimeError("symmetrix is not installed: pip install 'daskpipe[fast]'")
    import symmetrix

    installed = {backend["selector"]: backend for backend in symmetrix.available_backends()}
    fit = [selector for selector, backend in installed.items() if backend["backend"] == device]
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        fit = [selector for selector in fit if installed[selector]["architecture"] == f"sm{major}{minor}"]
    if not fit:
        raise RuntimeError(
            f"symmetrix has no backend for {device} here but {', '.join(installed)}; on a Hopper chip with CUDA 13: "
            "pip install symmetrix-xl-cuda13-sm90"
        )
    return fit[0]


def measure_repeatability(job: Job, model: str) -> Iterator[Row]:
    """Evaluate twice, alone and in a batch, explore a unit twice, and compare the bits."""
    task, structures = make_task(model, job.device, job.folder), alloys(job.n_systems)
    potential = task.build()
    by = potentials.batched_model(potential)

    def evaluate(chosen: list[Atoms]) -> dict[str, torch.Tensor]:
        return by(make_state(chosen, torch.device(job.device), torch.float64))

    def compare(first: list[Atoms], second: list[Atoms]) -> tuple[float, str]:
        n = len(first[0])
        ours, theirs = evaluate(first)["forces"][:n], evaluate(second)["forces"][:n]
        assert ours.isfinite().all(), "forces are not finite"
        return float(torch.equal(ours, theirs)), f"forces differ by {float((ours - theirs).abs().max()):.0e} eV/Å"

    def explore_twice() -> tuple[float, str]:
        first, second = (explore_once(structures, task, job.n_steps) for _ in range(2))
        same = first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)
        return float(same), f"{len(first['n_atoms'])} frames"

    yield try_row(model, "a batch twice: same bits", "yes/no", lambda: compare(structures, structures))
    yield try_row(model, "alone and in a batch: same bits", "yes/no", lambda: compare(structures[:1], structures))
    yield try_row(model, "a unit twice: same bits", "yes/no", explore_twice)


def explore_once(structures: list[Atoms], task: Task, n_steps: int) -> dict[str, np.ndarray]:
    """Explore in this process, and return the arrays of the unit."""
    dynamics = Dynamics(
        ensemble="nvt_langevin", temperatures=[task.temperature], timestep=task.timestep, friction=FRICTION,
        steps=n_steps, stride=min(STRIDE, n_steps),
    )  # fmt: skip
    settings = Exploration(dynamics=dynamics, guards=Guards(evaporation=None))
    seeds = [atoms.copy() for atoms in structures]
    for atoms in seeds:
        atoms.info["condition"] = Condition(temperature=task.temperature)
    (payload,) = explore_partition(seeds, task.build, settings, 0, name=f"benchmark {task.name} none")
    assert payload.n_out > 0, payload.rejected
    return dict(payload.arrays)


def measure_memory(job: Job, model: str) -> Iterator[Row]:
    """Evaluate the largest batch that is predicted to fit, and explore several units in one process."""
    task, structures = make_task(model, job.device, job.folder), alloys(job.n_systems)
    largest = 0

    def predict() -> float:
        nonlocal largest
        potential = task.build()
        by = potentials.batched_model(potential)
        space = measure_capacity(by, structures[:1], None, potential.cutoff, f"benchmark {model} none")
        largest = int(space.capacity / space.weigh(structures[0]))
        return largest

    def evaluate_largest() -> tuple[float, str]:
        by = potentials.batched_model(task.build())
        if job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        energy = by(make_state([structures[0]] * largest, torch.device(job.device), torch.float64))["energy"]
        assert energy.isfinite().all(), "energies are not finite"
        if job.device != "cuda":
            return read_memory(job.device), "memory of the process afterwards"
        total = torch.cuda.get_device_properties(0).total_memory
        return torch.cuda.max_memory_allocated() / MIB, f"of {total / MIB:,.0f} MiB"

    def grow() -> tuple[float, str]:
        after = []
        for _ in range(N_UNITS):
            explore_once(structures, task, max(1, job.n_steps // 4))
            gc.collect()
            after.append(read_memory(job.device))
        return after[-1] - after[0], "after each: " + ", ".join(f"{value:,.1f}" for value in after)

    yield try_row(model, "largest batch, predicted", "systems", predict)
    yield try_row(model, "peak memory of that batch", "MiB", evaluate_largest)
    yield try_row(model, f"growth over {N_UNITS - 1} units", "MiB", grow)


def read_memory(device: str) -> float:
    """Return the memory that tensors take on a GPU, or this process on a CPU, MiB."""
    return (torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss) / MIB


def measure_describe(job: Job, model: str) -> Iterator[Row]:
    """Describe all systems by the node features of MACE."""
    task, structures = make_task(model, job.device, job.folder), alloys(job.n_systems)

    def describe_all() -> tuple[float, str]:
        descriptor = describe_mace.MACE(species=["Ag", "Au", "Cu"], model=task.model, device=job.device)
        descriptor.compute(structures[:2])
        started = time.perf_counter()
        rows = descriptor.compute(structures)
        seconds = time.perf_counter() - started
        assert np.isfinite(rows).all(), "features are not finite"
        return len(rows) / seconds, f"{rows.shape[1]} features"

    yield try_row(model, "describe=mace", "atoms/s", describe_all)


def measure_label(job: Job, model: str) -> Iterator[Row]:
    """Label crystals in batches, with all checks, and one by one with the bare calculator, both in float64."""
    params = {"model": make_task(model, job.device, job.folder).model}
    structures = label.STRUCTURES["mace"]()[: job.n_systems]

    def label_one_by_one() -> float:
        calculator = potentials.build_potential("mace", params, job.device, "float64").calculator
        label.run_loop(calculator, structures[:1] * WARM_UP)
        return len(structures) / label.run_loop(calculator, structures)

    def label_batches() -> float:
        label.run_stage("mace", params, structures[:1] * WARM_UP, job.device)
        return len(structures) / label.run_stage("mace", params, structures, job.device)

    yield try_row(model, "label: calculator one by one", "labels/s", label_one_by_one)
    yield try_row(model, "label: batches with checks", "labels/s", label_batches)


def measure_load(job: Job) -> Iterator[Row]:
    """Stream shuffled batches with neighbour lists to the device, from pageable and from page-locked memory."""
    path = job.folder / "load.zarr"
    loaders.write(path, 40 * job.n_systems)
    for pinned in (False, True) if job.device == "cuda" else (False,):
        what = f"load to {job.device}{', pinned' if pinned else ''}"
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork with threads, torch of more workers than cores.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            row = try_row("", what, "structures/s", partial(load_once, path, job, pinned))
        yield row


def load_once(path: Path, job: Job, pinned: bool) -> tuple[float, str]:
    """Return structures a second of one epoch after its first batch."""
    cuda = job.device == "cuda"
    stream = TorchStream(
        path, batch_size=min(job.n_systems, 512), cutoff=loaders.CUTOFF, dtype=torch.float32, verify=False
    )
    loader = DataLoader(stream, batch_size=None, num_workers=4 if cuda else 0, pin_memory=pinned)
    n_structures = n_bytes = 0
    started = 0.0
    for batch in loader:
        assert batch.buffer.is_pinned() == pinned, "memory is not page-locked as asked for"
        moved = batch.to(job.device, non_blocking=pinned)
        if not started:
            assert torch.equal(moved["forces"].cpu(), batch["forces"]), "numbers changed on their way"
            started = time.perf_counter()
            continue
        n_structures += moved.n_structures
        n_bytes += moved.buffer.nbytes
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return n_structures / seconds, f"{n_bytes / MIB / seconds:,.0f} MiB/s with neighbour lists"
