"""Largest batch that fits the device: limited by atoms on a CPU, by atoms and neighbour pairs on a GPU."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from platformdirs import user_cache_path

from daskpipe.core.connectivity import find_neighbours

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.torch_sim import ModelInterface

CPU_ATOMS = 1024
"""Atoms in a batch on a CPU by default: larger batches are no faster there."""

SHARE = 0.85
"""Part of the device's free memory that a batch may take; the rest is for densities that rise during a run."""

PROBES = (2_000, 40_000)
"""Neighbour pairs of the two batches whose memory is measured."""

OUT_OF_MEMORY = ("out of memory", "Failed to allocate", "can't allocate memory")
"""Messages of torch on CUDA, Warp and torch on a CPU."""


class BatchCapacity:
    """Decide whether structures fit the device together, by the sum of their weights.

    Parameters
    ----------
    weigh
        Weight of a structure.
    capacity
        Largest sum of weights in a batch. A heavier structure is run in a batch of its own.
    """

    def __init__(self, weigh: Callable[[Atoms], float], capacity: float) -> None:
        self.weigh, self.capacity = weigh, capacity

    def can_join(self, running: Sequence[float], newcomer: float) -> bool:
        """Return True if one more structure of this weight fits; an empty batch takes any."""
        return not running or sum(running) + newcomer <= self.capacity

    def halve_limit(self, running: Sequence[float]) -> None:
        """Set the limit to half the weight of a batch that did not fit."""
        self.capacity = sum(running) / 2


def measure_capacity(
    model: ModelInterface, seeds: Sequence[Atoms], batch_atoms: int | None, cutoff: float | None, name: str
) -> BatchCapacity:
    """Return how large a batch may be.

    Parameters
    ----------
    model
        Decides the device.
    seeds
        Some of the structures that will be run.
    batch_atoms
        Most atoms in a batch; ``None`` measures the memory of a GPU, and takes `CPU_ATOMS` on a CPU.
    cutoff
        Cutoff of the model, Å; its memory grows with the pairs closer than that.
    name
        Name of model, precision and results; the measurement is cached under it.
    """
    if batch_atoms is not None:
        return BatchCapacity(len, batch_atoms)
    if model.device.type != "cuda" or cutoff is None:
        return BatchCapacity(len, CPU_ATOMS)

    def weigh(atoms: Atoms) -> float:
        return len(atoms) + n_pairs(atoms, cutoff)

    growth = remember_or_measure(
        f"{name} {torch.cuda.get_device_name(model.device)} torch {torch.__version__}",
        lambda: memory_growth(model, max(seeds, key=weigh), weigh, _peak_memory),
    )
    free, _ = torch.cuda.mem_get_info(model.device)
    unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return BatchCapacity(weigh, SHARE * (free + unused) / growth)


def n_pairs(atoms: Atoms, cutoff: float) -> int:
    """Count the ordered pairs of atoms closer than a distance (Å), images included."""
    return len(find_neighbours(atoms, cutoff, "i"))


def memory_growth(
    model: ModelInterface,
    atoms: Atoms,
    weigh: Callable[[Atoms], float],
    peak_memory: Callable[[Sequence[Atoms], ModelInterface], float],
) -> float:
    """Measure how much memory a model takes for each unit of weight, bytes.

    The memory of a small batch is subtracted, since it belongs to the model and not to the batch.
    """
    weight = weigh(atoms)
    few, many = (max(1, round(size / weight)) for size in PROBES)
    many = max(many, few + 1)
    taken = peak_memory([atoms] * many, model) - peak_memory([atoms] * few, model)
    return max(taken, 1.0) / (weight * (many - few))


def _peak_memory(structures: Sequence[Atoms], model: ModelInterface) -> float:
    """Measure the peak memory of a GPU while a batch is evaluated, bytes."""
    from daskpipe.core.torch_sim import torch_sim

    with redirect_stdout(io.StringIO()):  # torch-sim prints a line for each batch
        state = torch_sim.io.atoms_to_state(list(structures), model.device, model.dtype)
        return float(torch_sim.autobatching.measure_model_memory_forward(state, model)) * 1024**3


def remember_or_measure(name: str, measure: Callable[[], float], folder: Path | None = None) -> float:
    """Return the figure measured under a name before, in this or another process, or measure it now.

    Parameters
    ----------
    name
        Names everything that the figure depends on.
    measure
        Called if no figure is cached.
    folder
        Folder of the cache; by default the user's.
    """
    folder = folder or user_cache_path("daskpipe")
    file = folder / "memory.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):  # no cache yet, or another process is writing it right now
        known = {}
    if name not in known:
        known[name] = measure()
        with suppress(OSError):  # the cache is full or read-only: the next run measures again
            folder.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}-{os.getpid()}")
            temporary.write_text(json.dumps(known, indent=1))
            os.replace(temporary, file)
    return float(known[name])


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that a device is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
