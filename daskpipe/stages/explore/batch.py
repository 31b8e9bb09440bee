"""Tensors of the systems that one batch moves together, on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from daskpipe.core import constants
from daskpipe.core.geometry import full_cell
from daskpipe.potentials.batches import make_state
from daskpipe.stages.explore.fixed_atoms import without_drift
from daskpipe.stages.explore.guards import BatchView, Fault, Guard, find_faults
from daskpipe.stages.explore.integrate import (
    CHAIN_LENGTH,
    BatchState,
    Coupling,
    CouplingRates,
    DynamicsState,
    Systems,
    baoab_step,
    kinetic_energy,
)
from daskpipe.stages.explore.random_numbers import Purpose
from daskpipe.stages.explore.settings import Dynamics

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.torch_sim import ModelInterface
    from daskpipe.stages.explore.trajectory import Trajectory

PER_ATOM = ("positions", "momenta", "forces")


class Batch:
    """Hold the systems of one batch as tensors and move them.

    Its members never change: when trajectories leave or join, the runner makes another batch.

    Parameters
    ----------
    trajectories
        At least one. Those without a state receive velocities and forces.
    model
        Batched model; decides the device.
    dynamics
        Conditions, time step and relaxation times.
    """

    state_type: ClassVar[type[BatchState]] = DynamicsState

    def __init__(self, trajectories: Sequence[Trajectory], model: ModelInterface, dynamics: Dynamics) -> None:
        self.trajectories, self.model, self.dynamics = list(trajectories), model, dynamics
        self.failures: dict[int, str] = {}
        self.fields = tuple(field.name for field in fields(self.state_type))
        self.state: Any
        timestep = np.array([trajectory.timestep_in(dynamics) for trajectory in self.trajectories])
        self.rates = CouplingRates(
            dt=self._as_tensor(timestep * constants.FS),
            damping=self._as_tensor(np.exp(-dynamics.friction * timestep)),
            thermostat_time=dynamics.thermostat_time * constants.FS,
            barostat_rate=dynamics.compressibility / constants.GPA / (dynamics.barostat_time * constants.FS),
        )
        self._start_newcomers([trajectory for trajectory in self.trajectories if trajectory.state is None])
        self.load_states()
        self.systems = self._make_systems()
        self.volume = self._as_tensor(
            np.abs([np.linalg.det(spanning_cell(trajectory.start_atoms)) for trajectory in self.trajectories])
        )
        self.forces_of = make_evaluator(self.trajectories, model)

    def _as_tensor(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array, dtype=float), device=self.model.device)

    def _start_newcomers(self, newcomers: list[Trajectory]) -> None:
        """Give velocities and forces to trajectories that have not run."""
        if not newcomers:
            return
        cells = [spanning_cell(trajectory.start_atoms) for trajectory in newcomers]
        evaluated = make_evaluator(newcomers, self.model)(
            self._as_tensor(np.concatenate([trajectory.start_atoms.positions for trajectory in newcomers])),
            self._as_tensor(np.stack(cells)),
        )
        places = [self.trajectories.index(trajectory) for trajectory in newcomers]
        self.failures = {places[system]: why for system, why in read_failures(self.model).items()}
        rows = split_systems(evaluated, [len(trajectory.seed) for trajectory in newcomers])
        for trajectory, cell, row in zip(newcomers, cells, rows, strict=True):
            trajectory.state = {
                "positions": trajectory.start_atoms.positions.copy(),
                "cell": cell,
                "start_energy": row["energy"],
                **row,
                **self._first_state(trajectory),
            }

    def _first_state(self, trajectory: Trajectory) -> dict[str, Any]:
        """Return the state of a new system other than positions, cell and results of the model."""
        return {
            "momenta": draw_thermal_momenta(trajectory, trajectory.temperature_at(self.dynamics, 0)),
            "chain": np.zeros((2, CHAIN_LENGTH)),
        }

    def _make_systems(self) -> Systems:
        n_atoms = np.array([len(trajectory.seed) for trajectory in self.trajectories])
        device = self.model.device
        strain_modes = np.stack([trajectory.strain_modes for trajectory in self.trajectories])
        names = [trajectory.ensemble for trajectory in self.trajectories]
        langevin = np.array([trajectory.has_friction for trajectory in self.trajectories])
        nose_hoover = np.array([name == "nvt_nose_hoover" for name in names])
        rescale = np.array([name == "nvt_rescale" for name in names])
        free = np.concatenate([trajectory.free for trajectory in self.trajectories])
        return Systems(
            masses=self._as_tensor(np.concatenate([trajectory.masses for trajectory in self.trajectories])[:, None]),
            system=torch.as_tensor(np.repeat(np.arange(len(n_atoms)), n_atoms), device=device),
            n_atoms=torch.as_tensor(n_atoms, device=device),
            degrees_of_freedom=self._as_tensor([trajectory.degrees_of_freedom for trajectory in self.trajectories]),
            langevin=torch.as_tensor(langevin, device=device),
            nose_hoover=torch.as_tensor(nose_hoover, device=device),
            rescale=torch.as_tensor(rescale, device=device),
            strain_modes=self._as_tensor(strain_modes),
            has_chain=bool(nose_hoover.any()),
            has_rescale=bool(rescale.any()),
            has_barostat=bool(strain_modes.any()),
            free=None if free.all() else self._as_tensor(free),
        )

    def run_steps(self, n_steps: int, guards: Sequence[Guard], may_continue: Callable[[], bool]) -> dict[int, Fault]:
        """Move all systems by up to `n_steps` steps.

        Parameters
        ----------
        n_steps
            At least one. Fewer are made if a guard stops a system or `may_continue` returns False.
        guards
            Checked after each step.
        may_continue
            Called after each step.

        Returns
        -------
        dict
            Fault of each system that a guard stopped in the last step.
        """
        coupling = self._draw_coupling(n_steps)
        for number in range(n_steps):
            now = Coupling(**{name: column[number] for name, column in coupling.items()})
            self.state = baoab_step(self.state, self.systems, now, self.rates, self.forces_of)
            self._count_step()
            if (faults := self.check_systems(guards, now.thermal_energy)) or not may_continue():
                return faults
        return {}

    def _count_step(self) -> None:
        self.failures = read_failures(self.model)
        for trajectory in self.trajectories:
            trajectory.step += 1

    def check_systems(self, guards: Sequence[Guard], thermal: torch.Tensor | None = None) -> dict[int, Fault]:
        """Return the fault of each broken system; a failure of the potential takes precedence over the guards."""
        if thermal is None:
            temperatures = [
                trajectory.temperature_at(self.dynamics, trajectory.step) for trajectory in self.trajectories
            ]
            thermal = self._as_tensor(constants.KB * np.array(temperatures))
        equilibrating = [trajectory.step < self.dynamics.equilibration for trajectory in self.trajectories]
        view = BatchView(
            state=self.state,
            systems=self.systems,
            thermal_energy=thermal,
            volume=self.volume,
            equilibrating=torch.tensor(equilibrating, device=self.model.device),
        )
        return {
            system: ("potential_failed", self.failures[system]) if system in self.failures else fault
            for system, fault in find_faults(guards, view).items()
        }

    def _draw_coupling(self, n_steps: int) -> dict[str, torch.Tensor]:
        """Return temperatures, pressures and random numbers of the next steps; each array has one row a step."""
        kicks, thermals, rescalings, pressures, strains = [], [], [], [], []
        for trajectory in self.trajectories:
            steps = range(trajectory.step + 1, trajectory.step + n_steps + 1)
            thermal = constants.KB * np.array([trajectory.temperature_at(self.dynamics, number) for number in steps])
            pressure = constants.GPA * np.array([trajectory.pressure_at(self.dynamics, number) for number in steps])
            thermals.append(thermal)
            pressures.append(np.nan_to_num(pressure))
            kicks.append(self._draw_langevin_momenta(trajectory, thermal))
            rescalings.append(_draw_rescaling_numbers(trajectory, n_steps))
            strains.append(_draw_strain_numbers(trajectory, n_steps))
        return {
            "thermal_energy": self._as_tensor(np.stack(thermals, axis=1)),
            "langevin_momenta": self._as_tensor(np.concatenate(kicks, axis=1)),
            "rescaling_numbers": self._as_tensor(np.stack(rescalings, axis=1)),
            "pressure": self._as_tensor(np.stack(pressures, axis=1)),
            "strain_numbers": self._as_tensor(np.stack(strains, axis=1)),
        }

    def _draw_langevin_momenta(self, trajectory: Trajectory, thermal: np.ndarray) -> np.ndarray:
        """Return momenta that the Langevin thermostat adds, shape (step, atom, 3); fixed components stay zero."""
        shape = (len(trajectory.seed), 3)
        if not trajectory.has_friction:
            return np.zeros((len(thermal), *shape))
        normal = trajectory.random_numbers.draw_steps(
            Purpose.THERMOSTAT,
            trajectory.step,
            len(thermal),
            lambda generator, n: generator.standard_normal((n, *shape)),
        )
        damping = np.exp(-self.dynamics.friction * trajectory.timestep_in(self.dynamics))
        width = np.sqrt(thermal * (1 - damping**2))
        momenta = without_drift(normal * np.sqrt(trajectory.masses)[:, None], trajectory.masses, trajectory.free)
        return momenta * width[:, None, None]

    def load_states(self) -> None:
        """Copy the state of each trajectory into the tensors."""
        states = [trajectory.state for trajectory in self.trajectories if trajectory.state is not None]
        columns = {name: [state[name] for state in states] for name in self.fields}
        self.state = self.state_type(
            **{
                name: self._as_tensor(np.concatenate(column) if name in PER_ATOM else np.stack(column))
                for name, column in columns.items()
            }
        )

    def cell_of(self, system: int) -> np.ndarray:
        """Return the cell of one system, Å, shape (3, 3); vectors along open axes are those of its start."""
        seed = self.trajectories[system].start_atoms
        if not self.trajectories[system].has_barostat:
            return np.array(seed.cell.array)
        return np.where(seed.pbc[:, None], self.state.cell[system].cpu().numpy(), seed.cell.array)

    def is_worth_a_frame(self, system: int) -> bool:
        """Return True if the geometry of a system may be kept as a frame; guards are checked elsewhere."""
        return True

    def kinetic_temperature(self) -> np.ndarray:
        """Return the temperatures of the kinetic energies, K, shape (system,)."""
        freedom = self.systems.degrees_of_freedom * constants.KB
        temperatures: np.ndarray = (2 * kinetic_energy(self.state.momenta, self.systems) / freedom).cpu().numpy()
        return temperatures

    def geometry_of(self, system: int) -> Atoms:
        """Return the present geometry of one system."""
        rows = torch.nonzero(self.systems.system == system).flatten()
        positions = self.state.positions[rows].cpu().numpy()
        return self.trajectories[system].make_atoms(positions, self.cell_of(system))

    def export_states(self) -> None:
        """Copy the tensors back into the state of each trajectory."""
        n_atoms = [len(trajectory.seed) for trajectory in self.trajectories]
        rows = split_systems({name: getattr(self.state, name) for name in self.fields}, n_atoms)
        for trajectory, row in zip(self.trajectories, rows, strict=True):
            trajectory.state = row


def read_failures(model: ModelInterface) -> dict[int, str]:
    """Return the reason for each system that the potential could not evaluate last; empty for models without any."""
    return dict(getattr(model, "failures", {}))


def split_systems(values: dict[str, torch.Tensor], n_atoms: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Split the fields of a state by system, as arrays on the host that share no memory with it."""
    ends = np.cumsum(n_atoms)[:-1]
    host = {name: value.detach().cpu().numpy() for name, value in values.items()}
    columns = {name: np.split(array, ends) if name in PER_ATOM else array for name, array in host.items()}
    return [{name: np.array(column[system]) for name, column in columns.items()} for system in range(len(n_atoms))]


def make_evaluator(
    trajectories: Sequence[Trajectory], model: ModelInterface
) -> Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a function that runs the model on these trajectories, from positions and cells (rows are vectors)."""
    device = model.device
    systems = make_state([trajectory.seed for trajectory in trajectories], device, torch.float64)
    nothing = torch.full((len(trajectories),), torch.nan, dtype=torch.float64, device=device)

    def evaluate_model(positions: torch.Tensor, cell: torch.Tensor) -> dict[str, torch.Tensor]:
        systems.positions = positions
        systems.cell = cell.mT.contiguous()
        results = model(systems)
        return {
            "energy": results["energy"].double(),
            "forces": results["forces"].double(),
            "stress": results["stress"].double() if "stress" in results else nothing[:, None, None].expand(-1, 3, 3),
            "disagreement": results["force_disagreement"].double() if "force_disagreement" in results else nothing,
        }

    return evaluate_model


def spanning_cell(atoms: Atoms) -> np.ndarray:
    """Return a cell with a volume, Å, shape (3, 3): along open axes it spans the atoms and 1 Å on either side."""
    cell = full_cell(atoms)
    extent = np.ptp(atoms.positions @ np.linalg.inv(cell), axis=0)
    return np.where(atoms.pbc[:, None], cell, cell * (extent + 2)[:, None])


def draw_thermal_momenta(trajectory: Trajectory, temperature: float) -> np.ndarray:
    """Draw momenta from the Maxwell-Boltzmann distribution at a temperature (K), shape (atom, 3)."""
    normal = trajectory.random_numbers.stream_at(Purpose.VELOCITIES, 0).standard_normal((len(trajectory.seed), 3))
    momenta = normal * np.sqrt(constants.KB * temperature * trajectory.masses)[:, None]
    return without_drift(momenta, trajectory.masses, trajectory.free)


def _draw_rescaling_numbers(trajectory: Trajectory, n_steps: int) -> np.ndarray:
    if trajectory.ensemble != "nvt_rescale":
        return np.zeros((n_steps, 2))
    squares = trajectory.degrees_of_freedom - 1

    def draw_numbers(generator: np.random.Generator, n: int) -> np.ndarray:
        normal = generator.standard_normal(n)
        return np.stack([normal, generator.chisquare(squares, n) if squares else np.zeros(n)], axis=1)

    return trajectory.random_numbers.draw_steps(Purpose.RESCALING, trajectory.step, n_steps, draw_numbers)


def _draw_strain_numbers(trajectory: Trajectory, n_steps: int) -> np.ndarray:
    if not trajectory.has_barostat:
        return np.zeros((n_steps, 6))
    return trajectory.random_numbers.draw_steps(
        Purpose.BAROSTAT, trajectory.step, n_steps, lambda generator, n: generator.standard_normal((n, 6))
    )
