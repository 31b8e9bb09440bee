"""NVT Langevin dynamics of many structures in one torch-sim batch, with noise that belongs to each structure.

The step is the BAOAB splitting of Leimkuhler and Matthews (DOI 10.1098/rspa.2016.0138) on torch-sim's own
kick and drift. Only the noise is ours: torch-sim draws it for the whole batch at once, so that a
trajectory would depend on its neighbours in the batch. All arithmetic on a system's atoms is element-wise
multiplication, addition and division, which IEEE 754 rounds the same in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch_sim as ts
from torch_sim.integrators.md import MDState, momentum_step, position_step

from daskpipe import seeds, units
from daskpipe.errors import Rejection
from daskpipe.explore.guards import check, temperature_limit
from daskpipe.explore.settings import Dynamics, Guards
from daskpipe.geometry import overlap
from daskpipe.structures import charge, round_positions, spin_multiplicity, structure_id

if TYPE_CHECKING:
    from ase import Atoms
    from torch_sim.models.interface import ModelInterface

INHERITED = ("system_type", "generator", "charge", "spin_multiplicity", "temperature", "replica")
"""What a seed hands on to its frames."""

DRAW = 100
"""Steps whose noise is drawn at once. It bounds the memory; the numbers are the same for any choice."""


@dataclass
class Trajectory:
    """One seed at one temperature in one replica, while it runs."""

    seed: Atoms
    noise: np.random.Generator
    frames: list[Atoms] = field(default_factory=list)
    rejection: Rejection | None = None

    @property
    def temperature(self) -> float:
        """Temperature of the thermostat, K."""
        return float(self.seed.info["temperature"])

    @property
    def name(self) -> str:
        """What the quarantine calls it."""
        return f"{structure_id(self.seed).hex()}@{self.temperature:g}K#{self.seed.info['replica']}"

    def reject(self, reason: str, evidence: str, step: int) -> None:
        """End the trajectory; the geometry of the last sane frame goes with the reason."""
        last = self.frames[-1] if self.frames else self.seed
        self.rejection = Rejection(
            stage="explore",
            structure=self.name,
            reason=reason,
            evidence=f"at step {step}: {evidence}",
            details={
                "step": step,
                "last_sane": {
                    "symbols": list(last.symbols),
                    "positions": np.round(last.positions, 4).tolist(),
                    "cell": np.round(last.cell.array, 4).tolist(),
                    "pbc": last.pbc.tolist(),
                },
            },
        )


def langevin_step(
    state: MDState,
    model: ModelInterface,
    *,
    dt: float,
    damping: float,
    kick: torch.Tensor,
    noise: torch.Tensor,
) -> MDState:
    """One BAOAB step of the Langevin equation, in place.

    Parameters
    ----------
    state
        Batch with momenta and forces.
    model
        Gives energy (eV) and forces (eV/Å).
    dt
        Time step, Å sqrt(amu/eV).
    damping
        exp(-friction x dt).
    kick
        sqrt(kT (1 - damping^2) m) of each atom, shape (atom, 1).
    noise
        Standard normal numbers, shape (atom, 3).
    """
    state = momentum_step(state, dt / 2)
    state = position_step(state, dt / 2)
    state.momenta = state.momenta * damping + kick * noise
    state = position_step(state, dt / 2)
    output = model(state)
    state.energy, state.forces = output["energy"], output["forces"]
    return momentum_step(state, dt / 2)


def run_batch(
    structures: Sequence[Atoms], model: ModelInterface, dynamics: Dynamics, guards: Guards, run_seed: int
) -> list[Trajectory]:
    """Run one trajectory from each structure, all in one batch.

    Parameters
    ----------
    structures
        Seeds of one periodicity, at least one, with ``temperature`` (K) and ``replica`` in ``info``.
    model
        Batched model; decides device and dtype.
    dynamics, guards
        See `daskpipe.explore.settings`.
    run_seed
        The run's seed.

    Returns
    -------
    list of Trajectory
        In the order of `structures`; each holds its frames and, if it was stopped, why.
    """
    trajectories = [
        Trajectory(
            seed=_explicit(atoms),
            noise=seeds.stream(
                run_seed,
                "explore",
                structure_id(atoms),
                str(float(atoms.info["temperature"])),
                int(atoms.info["replica"]),
            ),
        )
        for atoms in structures
    ]
    batch = _Batch(trajectories, model, dynamics, guards)
    step = 0
    for n_steps in [dynamics.equilibration, *[dynamics.stride] * dynamics.n_frames]:
        last = step + n_steps
        while batch.running and step < last:
            step = batch.advance(step, min(DRAW, last - step))
        if batch.running and step > dynamics.equilibration:
            batch.keep_frames(step)
    return trajectories


class _Batch:
    """The systems that still run, as one torch-sim state."""

    def __init__(
        self, trajectories: list[Trajectory], model: ModelInterface, dynamics: Dynamics, guards: Guards
    ) -> None:
        self.model, self.dynamics, self.guards = model, dynamics, guards
        self.running = trajectories
        self.dt = dynamics.timestep * units.FS
        self.damping = float(np.exp(-dynamics.friction * dynamics.timestep))
        state = ts.io.atoms_to_state(
            [trajectory.seed for trajectory in trajectories],
            model.device,
            model.dtype,
            system_extras_map={"charge": "charge", "spin": "spin_multiplicity"},
        )
        momenta = [_maxwell_boltzmann(trajectory) for trajectory in trajectories]
        output = model(state)
        self.state = MDState.from_state(
            state, momenta=self._tensor(np.concatenate(momenta)), energy=output["energy"], forces=output["forces"]
        )
        self._set_constants()
        self._stop(self._wrong(), step=0)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=self.model.dtype, device=self.model.device)

    def _set_constants(self) -> None:
        thermostat = np.array([trajectory.temperature for trajectory in self.running])
        n_atoms = np.array([len(trajectory.seed) for trajectory in self.running])
        masses = np.concatenate([trajectory.seed.get_masses() for trajectory in self.running])
        kick = np.sqrt(units.KB * np.repeat(thermostat, n_atoms) * (1 - self.damping**2) * masses)
        self.kick = self._tensor(kick[:, None])
        self.limits = self._tensor(temperature_limit(thermostat, n_atoms, self.guards.max_temperature_ratio))

    def advance(self, step: int, n_steps: int) -> int:
        """Go `n_steps` on from `step`, or until no system runs; return the step that was reached."""
        # Each system draws from its own stream; shape (step, atom, 3).
        draws = [item.noise.standard_normal((n_steps, len(item.seed), 3)) for item in self.running]
        noise = self._tensor(np.concatenate(draws, axis=1))
        for number in range(n_steps):
            step += 1
            self.state = langevin_step(
                self.state, self.model, dt=self.dt, damping=self.damping, kick=self.kick, noise=noise[number]
            )
            atoms_kept = self._stop(self._wrong(), step)
            if not self.running:
                break
            if atoms_kept is not None:
                noise = noise[:, atoms_kept]
        return step

    def _wrong(self) -> dict[int, tuple[str, str]]:
        """Which systems the last evaluation of the model shows to be broken: ``{system: (reason, evidence)}``."""
        failures: dict[int, str] = getattr(self.model, "failures", {})
        return {
            system: ("potential_failed", failures[system]) if system in failures else fault
            for system, fault in check(self.state, self.limits, self.guards.max_force).items()
        }

    def _stop(self, wrong: dict[int, tuple[str, str]], step: int) -> torch.Tensor | None:
        """Take systems out of the batch; return the mask of the atoms that stay, ``None`` if all do."""
        if not wrong:
            return None
        for system, (reason, evidence) in wrong.items():
            self.running[system].reject(reason, evidence, step)
        kept = [system for system in range(len(self.running)) if system not in wrong]
        atoms_kept = torch.isin(self.state.system_idx, torch.as_tensor(kept, device=self.state.device))
        self.running = [self.running[system] for system in kept]
        if self.running:
            self.state = self.state[kept]
            self._set_constants()
        return atoms_kept

    def keep_frames(self, step: int) -> None:
        """Keep the present geometry of each system as a frame, unless atoms overlap."""
        positions = self.state.positions.double().cpu().numpy()
        ends = np.cumsum([len(trajectory.seed) for trajectory in self.running])
        wrong = {}
        for system, (trajectory, block) in enumerate(zip(self.running, np.split(positions, ends[:-1]), strict=True)):
            frame = _frame(trajectory, block, step, self.dynamics)
            if evidence := overlap(frame, self.guards.min_distance):
                wrong[system] = ("overlap", evidence)
            else:
                trajectory.frames.append(frame)
        self._stop(wrong, step)


def _explicit(atoms: Atoms) -> Atoms:
    """Copy that says its charge and spin; torch-sim drops them from all if one system of the batch does not."""
    seed = atoms.copy()
    seed.info |= {"charge": charge(atoms), "spin_multiplicity": spin_multiplicity(atoms)}
    return seed


def _maxwell_boltzmann(trajectory: Trajectory) -> np.ndarray:
    """Momenta at the thermostat's temperature, shape (atom, 3), without net momentum."""
    masses = trajectory.seed.get_masses()[:, None]
    draw = trajectory.noise.standard_normal((len(trajectory.seed), 3))
    momenta = draw * np.sqrt(units.KB * trajectory.temperature * masses)
    if len(masses) == 1:
        return momenta
    velocity: Any = momenta.sum(axis=0) / masses.sum()
    return momenta - masses * velocity


def _frame(trajectory: Trajectory, positions: np.ndarray, step: int, dynamics: Dynamics) -> Atoms:
    frame = trajectory.seed.copy()
    frame.positions = positions
    frame.info = {name: trajectory.seed.info[name] for name in INHERITED if name in trajectory.seed.info}
    frame.info |= {
        "parent_id": structure_id(trajectory.seed),
        "step": step,
        "time": step * dynamics.timestep,
        "ensemble": dynamics.ensemble,
        "pressure": np.nan,
    }
    return round_positions(frame)
