"""Seeds, settings, potentials and a harmonic solid for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111

from daskpipe.core.structures import round_positions
from daskpipe.core.torch_sim import ModelInterface
from daskpipe.engine.units import Payload
from daskpipe.potentials import Potential, batched_model, build_potential
from daskpipe.stages.explore.capacity import BatchCapacity
from daskpipe.stages.explore.ensembles import choose_ensemble
from daskpipe.stages.explore.runner import BatchRunner
from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards, Schedule
from daskpipe.stages.explore.trajectory import Condition, Trajectory

HOT = 600.0
"""K; well below melting, so that all sane seeds stay whole."""

RUN_SEED = 7

PLENTY = 10**6
"""Atoms that fit; no limit."""


def emt() -> Potential:
    return build_potential("emt", {}, "cpu", "float64")


def lj() -> Potential:
    """Argon-like, but as stiff and close as copper, so that the same seeds serve."""
    return build_potential("lj", {"epsilon": 0.4, "sigma": 2.3, "r_cut": 5.5}, "cpu", "float64")


def seed(
    atoms: Atoms,
    *,
    temperature: Schedule = HOT,
    pressure: Schedule = 0.0,
    replica: int = 0,
    system_type: str = "alloy",
) -> Atoms:
    atoms = round_positions(atoms.copy())
    atoms.info |= {
        "condition": Condition(temperature=temperature, pressure=pressure, replica=replica),
        "system_type": system_type,
        "generator": "tests",
    }
    return atoms


def crystal(symbol: str = "Cu") -> Atoms:
    return bulk(symbol, cubic=True)


def alloy() -> Atoms:
    """Copper and gold in a cell without symmetry."""
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.symbols[[0, 3, 5]] = "Au"
    atoms.set_cell(atoms.cell.array @ [[1.08, 0.02, 0.01], [0, 1.05, 0.03], [0, 0, 1.06]], scale_atoms=True)
    return atoms


BONDS = {"Cu": 2.45, "Au": 2.7, "Pd": 2.6}
"""Å; a little shorter than in the crystals, as in small clusters."""


def cluster(symbol: str = "Cu") -> Atoms:
    corners = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    return Atoms(f"{symbol}4", positions=BONDS[symbol] / np.sqrt(2) * corners)


def slab() -> Atoms:
    return fcc111("Ag", (1, 2, 3), vacuum=5.0)


def compressed() -> Atoms:
    """Pair that flies apart: its first frames are sane, and then it is far too hot."""
    return Atoms("Pt2", positions=[[0, 0, 0], [0, 0, 1.95]])


def mixed() -> list[Atoms]:
    """Seeds of three periodicities, interleaved."""
    return [
        seed(crystal("Cu")),
        seed(cluster("Cu"), system_type="cluster"),
        seed(slab(), system_type="surface"),
        seed(cluster("Au"), system_type="cluster"),
        seed(crystal("Cu"), replica=1),
        seed(crystal("Cu"), temperature=HOT / 2),
        seed(alloy(), pressure=1.0),
    ]


def dynamics(**changes: Any) -> Dynamics:
    return Dynamics(**{"temperatures": [HOT], "steps": 20, "stride": 5, "timestep": 2.0, **changes})


def settings(guards: Guards | None = None, **changes: Any) -> Exploration:
    """Short runs; `changes` of the dynamics, or of the exploration where it has such a key."""
    own = {name: changes.pop(name) for name in list(changes) if name in Exploration.model_fields}
    return Exploration(dynamics=dynamics(**changes), guards=guards or Guards(), **own)


def make_trajectories(seeds: Sequence[Atoms], chosen: Exploration, run_seed: int = RUN_SEED) -> list[Trajectory]:
    name = chosen.dynamics.ensemble
    return [
        Trajectory(seed=atoms, ensemble=choose_ensemble(atoms) if name == "auto" else name, run_seed=run_seed)
        for atoms in seeds
    ]


def run_trajectories(
    seeds: Sequence[Atoms],
    chosen: Exploration | None = None,
    *,
    model: ModelInterface | None = None,
    capacity: float = PLENTY,
    run_seed: int = RUN_SEED,
    **options: Any,
) -> list[Trajectory]:
    """Run a trajectory from each seed to its end; EMT unless there is a model."""
    chosen = chosen or settings()
    found = make_trajectories(seeds, chosen, run_seed)
    BatchRunner(
        found, model or batched_model(emt(), stress=True), chosen, BatchCapacity(len, capacity), **options
    ).run()
    return found


def bits(trajectory: Trajectory) -> dict[str, bytes]:
    """All that a trajectory has reached, to the last bit."""
    frames = [(frame.step, frame.positions.tobytes(), frame.cell.tobytes()) for frame in trajectory.frames]
    state = {name: array.tobytes() for name, array in (trajectory.state or {}).items()}
    return {"frames": repr(frames).encode(), **state}


def positions(trajectory: Trajectory) -> np.ndarray:
    """Shape (frame, atom, 3)."""
    return np.array([frame.positions for frame in trajectory.frames], dtype=float)


def frames_by_trajectory(payload: Payload) -> dict[tuple[bytes, float, float, int], list[bytes]]:
    """Frames of each trajectory in a payload, as structure ids: equal ids are equal bits."""
    arrays = payload.arrays
    found: dict[tuple[bytes, float, float, int], list[bytes]] = {}
    if not payload.n_out:
        return found
    for parent, temperature, pressure, replica, frame in zip(
        arrays["parent_id"],
        arrays["temperature"],
        np.nan_to_num(arrays["pressure"], nan=-1),
        arrays["replica"],
        arrays["structure_id"],
        strict=True,
    ):
        key = (parent.tobytes(), float(temperature), float(pressure), int(replica))
        found.setdefault(key, []).append(frame.tobytes())
    return found


class Wells(ModelInterface):
    """Each atom in its own harmonic well; `spring` in eV/Å^2."""

    def __init__(self, centres: np.ndarray, spring: float) -> None:
        super().__init__()
        self.centres, self.spring = torch.as_tensor(centres), spring
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress, self._compute_forces = False, True

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        away = state.positions - self.centres
        energy = torch.zeros(state.cell.shape[0], dtype=state.dtype)
        energy.index_add_(0, state.system_idx, 0.5 * self.spring * (away**2).sum(dim=1))
        return {"energy": energy, "forces": -self.spring * away}


class Wrapped(ModelInterface):
    """A model with something done before each evaluation."""

    def __init__(self, model: ModelInterface, before: Callable[[Any], None]) -> None:
        super().__init__()
        self.model, self.before = model, before
        self._device, self._dtype = model.device, model.dtype
        self._compute_stress, self._compute_forces = True, True
        self.mixes_periodicity = True

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        self.before(state)
        found: dict[str, torch.Tensor] = self.model(state)
        return found
