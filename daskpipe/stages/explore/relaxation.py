"""Relaxation of seeds in batches, before dynamics or without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from daskpipe.core import constants
from daskpipe.core.connectivity import periodic_directions
from daskpipe.stages.explore import settings as explore_settings
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.ensembles import strain_modes
from daskpipe.stages.explore.fire import DT_START, SLOWER, FireState, fire_step, largest_force, largest_residual
from daskpipe.stages.explore.fixed_atoms import free_components
from daskpipe.stages.explore.guards import FINISHED, Fault, Guard, force_guard
from daskpipe.stages.explore.integrate import BatchState
from daskpipe.stages.explore.settings import Dynamics, Exploration
from daskpipe.stages.explore.trajectory import Trajectory

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.torch_sim import ModelInterface

ENSEMBLE = "relaxation"
"""Value of ``ensemble`` in the frames of a relaxation."""

EXEMPT_GUARDS = ("force", "temperature")
"""Guards that do not end a relaxation: it starts from large forces and has no temperature."""


@dataclass(kw_only=True, eq=False)
class RelaxationTrajectory(Trajectory):
    """The relaxation of one seed.

    Parameters
    ----------
    cell
        Strains in which the cell relaxes; ``fixed`` for none. See `choose_cell_strains`.
    """

    cell: str = "fixed"
    ensemble: str = ENSEMBLE
    is_relaxation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reached: tuple[np.ndarray, Atoms] | None = None

    @property
    def has_barostat(self) -> bool:
        """True if the cell changes."""
        return self.cell != "fixed"

    @property
    def has_pressure(self) -> bool:
        """True if a pressure acts on the cell."""
        return self.cell not in ("fixed", "plane")

    @property
    def has_friction(self) -> bool:
        """False: a relaxation has no thermostat."""
        return False

    @property
    def strain_modes(self) -> np.ndarray:
        """Strains in which its cell relaxes, shape (6, 3, 3)."""
        return strain_modes(f"npt_{self.cell}" if self.has_barostat else "nve", self.seed)

    def temperature_at(self, dynamics: Dynamics, step: int) -> float:
        """Return NaN: there is no thermostat."""
        return np.nan

    def pressure_at(self, dynamics: Dynamics, step: int) -> float:
        """Return the pressure on the cell, GPa; NaN if the cell is fixed."""
        return super().pressure_at(dynamics, 0)

    def n_steps(self, settings: Exploration) -> int:
        """Return the largest number of steps."""
        return _relax_settings(settings).steps

    def steps_to_frame(self, settings: Exploration) -> int:
        """Count the steps to its next frame."""
        relax = _relax_settings(settings)
        left = max(1, relax.steps - self.step)
        return left if relax.stride is None else min(left, relax.stride - self.step % relax.stride)

    def is_frame_due(self, settings: Exploration) -> bool:
        """Return True if a frame is due at this step; the last step is treated elsewhere."""
        stride = _relax_settings(settings).stride
        return stride is not None and self.step > 0 and self.step % stride == 0

    @property
    def is_candidate(self) -> bool:
        """True if it ended because the committee disagreed."""
        return bool(self.frames) and self.frames[-1].candidate

    @property
    def relaxed_atoms(self) -> Atoms:
        """Present geometry; the seed before the first step.

        It is built once for each state, since every frame of the trajectories that start from it reads it.
        """
        if self.state is None:
            return self.seed
        positions = self.state["positions"]
        if self._reached is None or self._reached[0] is not positions:
            atoms = self.seed.copy()
            if self.has_barostat:
                atoms.set_cell(np.where(self.seed.pbc[:, None], self.state["cell"], self.seed.cell.array))
            atoms.positions = positions
            self._reached = positions, atoms
        return self._reached[1]

    def stop_attempt(self, reason: str, evidence: str, crashed: Atoms, on_stop: str) -> None:
        """End the relaxation; it is never retried, since it would take the same way."""
        super().stop_attempt(reason, evidence, crashed, "keep" if on_stop == "retry" else on_stop)


class RelaxationBatch(Batch):
    """Hold the relaxations of one batch as tensors and move them.

    Parameters
    ----------
    trajectories
        At least one `RelaxationTrajectory`.
    model
        Batched model; decides the device.
    settings
        Parameters of the relaxation and limits of the guards.
    """

    state_type: ClassVar[type[BatchState]] = FireState
    state: FireState

    def __init__(self, trajectories: Sequence[Trajectory], model: ModelInterface, settings: Exploration) -> None:
        self.relax, self.max_force = _relax_settings(settings), settings.guards.max_force
        super().__init__(trajectories, model, settings.dynamics)
        pressures = [trajectory.pressure_at(settings.dynamics, 0) for trajectory in self.trajectories]
        self.external = self._as_tensor(constants.GPA * np.nan_to_num(pressures))

    def _first_state(self, trajectory: Trajectory) -> dict[str, Any]:
        return {
            "momenta": np.zeros((len(trajectory.seed), 3)),
            "strain_rate": np.zeros((3, 3)),
            # The power is zero in the first step, so that FIRE shortens the time step there.
            "dt": np.array(DT_START / SLOWER),
            "alpha": np.array(0.0),
            "n_downhill": np.array(0.0),
        }

    def run_steps(self, n_steps: int, guards: Sequence[Guard], may_continue: Callable[[], bool]) -> dict[int, Fault]:
        """Move all systems by up to `n_steps` steps; see `Batch.run_steps`. A system that is relaxed is `FINISHED`."""
        for _ in range(n_steps):
            self.state = fire_step(self.state, self.systems, self.external, self.relax.max_step, self.forces_of)
            self._count_step()
            if (faults := self.check_systems(guards)) or not may_continue():
                return faults
        return {}

    def check_systems(self, guards: Sequence[Guard], thermal: torch.Tensor | None = None) -> dict[int, Fault]:
        """Return the fault of each system that is broken, relaxed or at its last step."""
        looking = [guard for guard in guards if guard.reason not in EXEMPT_GUARDS]
        faults = super().check_systems(looking, torch.zeros_like(self.external))
        relaxed = (largest_residual(self.state, self.systems, self.external) < self.relax.fmax).tolist()
        for system, trajectory in enumerate(self.trajectories):
            is_last = trajectory.step >= self.relax.steps
            if system in faults or not (relaxed[system] or is_last):
                continue
            trajectory.tallies = {f"relaxations_{'converged' if relaxed[system] else 'unconverged'}": 1}
            faults[system] = FINISHED
        if FINISHED not in faults.values():
            return faults
        # A relaxation that ends with forces above the limit gives no structure.
        broken = super().check_systems([force_guard(self.max_force)], torch.zeros_like(self.external))
        return {system: broken.get(system, fault) if fault == FINISHED else fault for system, fault in faults.items()}

    def is_worth_a_frame(self, system: int) -> bool:
        """Return True if the forces are small enough for the geometry to be kept."""
        return bool(largest_force(self.state, self.systems)[system] <= self.max_force)

    def kinetic_temperature(self) -> np.ndarray:
        """Return NaN for each system: a relaxation has no temperature."""
        return np.full(len(self.trajectories), np.nan)


def _relax_settings(settings: Exploration) -> explore_settings.Relaxation:
    assert settings.relax is not None
    return settings.relax


def choose_cell_strains(seed: Atoms, cell: str, *, relax_plane: bool = False) -> str:
    """Return the strains in which the cell of a seed relaxes; ``auto`` is resolved.

    Parameters
    ----------
    seed
        See `daskpipe.core.connectivity.periodic_directions`.
    cell
        One of ``explore.relax.cell``.
    relax_plane
        Whether ``auto`` relaxes slabs in their plane.

    Returns
    -------
    str
        `cell`; in place of ``auto``: ``triclinic`` for bulk, ``plane`` for slabs where `relax_plane`, else ``fixed``,
        as it is with fixed atoms.
    """
    if cell != "auto":
        return cell
    if not free_components(seed).all():
        return "fixed"
    n_directions = len(periodic_directions(seed))
    if n_directions == 3:
        return "triclinic"
    return "plane" if n_directions == 2 and relax_plane else "fixed"


def add_relaxations(trajectories: Sequence[Trajectory], settings: Exploration) -> list[RelaxationTrajectory]:
    """Set the relaxation of each trajectory, and return them: trajectories of one seed and pressure share one.

    Parameters
    ----------
    trajectories
        Trajectories; their ``relaxation`` is set.
    settings
        Without ``relax`` nothing is done.
    """
    if settings.relax is None:
        return []
    made: dict[tuple[bytes, str], RelaxationTrajectory] = {}
    for trajectory in trajectories:
        cell = choose_cell_strains(trajectory.seed, settings.relax.cell, relax_plane=settings.dynamics.relax_plane)
        relaxation = RelaxationTrajectory(seed=trajectory.seed, run_seed=trajectory.run_seed, cell=cell)
        pressure = relaxation.pressure_at(settings.dynamics, 0)
        trajectory.relaxation = made.setdefault((trajectory.id, f"{pressure:.17g}"), relaxation)
    return list(made.values())
