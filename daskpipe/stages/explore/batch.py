"""The systems that are in flight together, as tensors on the model's device."""

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
from daskpipe.stages.explore.guards import Fault, Guard, View, check
from daskpipe.stages.explore.integrate import CHAIN, Bath, Configuration, Pace, State, Systems, kinetic_energy, step
from daskpipe.stages.explore.random_numbers import Purpose
from daskpipe.stages.explore.settings import Dynamics

if TYPE_CHECKING:
    from ase import Atoms
    from torch_sim.models.interface import ModelInterface

    from daskpipe.stages.explore.trajectory import Walker

PER_ATOM = ("positions", "momenta", "forces")


class Batch:
    """Walkers in flight. Its members never change: when some leave or join, another batch is made.

    Parameters
    ----------
    walkers
        At least one. Those without a state get velocities and forces.
    model
        Batched model; decides the device.
    dynamics
        Conditions and paces.
    """

    state_type: ClassVar[type[Configuration]] = State

    def __init__(self, walkers: Sequence[Walker], model: ModelInterface, dynamics: Dynamics) -> None:
        self.walkers, self.model, self.dynamics = list(walkers), model, dynamics
        self.failures: dict[int, str] = {}
        self.fields = tuple(field.name for field in fields(self.state_type))
        self.state: Any
        timestep = np.array([walker.timestep(dynamics) for walker in self.walkers])
        self.pace = Pace(
            dt=self._tensor(timestep * constants.FS),
            damping=self._tensor(np.exp(-dynamics.friction * timestep)),
            thermostat_time=dynamics.thermostat_time * constants.FS,
            barostat=dynamics.compressibility / constants.GPA / (dynamics.barostat_time * constants.FS),
        )
        self._start([walker for walker in self.walkers if walker.state is None])
        self.load()
        self.systems = self._systems()
        self.volume = self._tensor(np.abs([np.linalg.det(spanning_cell(walker.start)) for walker in self.walkers]))
        self.forces_of = evaluator(self.walkers, model)

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array, dtype=float), device=self.model.device)

    def _start(self, newcomers: list[Walker]) -> None:
        """Give velocities and forces to walkers that have not run."""
        if not newcomers:
            return
        cells = [spanning_cell(walker.start) for walker in newcomers]
        found = evaluator(newcomers, self.model)(
            self._tensor(np.concatenate([walker.start.positions for walker in newcomers])),
            self._tensor(np.stack(cells)),
        )
        places = [self.walkers.index(walker) for walker in newcomers]
        self.failures = {places[system]: why for system, why in failures(self.model).items()}
        rows = split(found, [len(walker.seed) for walker in newcomers])
        for walker, cell, row in zip(newcomers, cells, rows, strict=True):
            walker.state = {
                "positions": walker.start.positions.copy(),
                "cell": cell,
                "start_energy": row["energy"],
                **row,
                **self._first_state(walker),
            }

    def _first_state(self, walker: Walker) -> dict[str, Any]:
        """Return what a system that has not run has besides positions, cell and what the model gives."""
        return {
            "momenta": thermal_momenta(walker, walker.temperature(self.dynamics, 0)),
            "chain": np.zeros((2, CHAIN)),
        }

    def _systems(self) -> Systems:
        n_atoms = np.array([len(walker.seed) for walker in self.walkers])
        device = self.model.device
        modes = np.stack([walker.modes for walker in self.walkers])
        names = [walker.ensemble for walker in self.walkers]
        langevin = np.array([walker.has_friction for walker in self.walkers])
        nose_hoover = np.array([name == "nvt_nose_hoover" for name in names])
        rescale = np.array([name == "nvt_rescale" for name in names])
        free = np.concatenate([walker.free for walker in self.walkers])
        return Systems(
            masses=self._tensor(np.concatenate([walker.masses for walker in self.walkers])[:, None]),
            system=torch.as_tensor(np.repeat(np.arange(len(n_atoms)), n_atoms), device=device),
            n_atoms=torch.as_tensor(n_atoms, device=device),
            freedom=self._tensor([walker.freedom for walker in self.walkers]),
            langevin=torch.as_tensor(langevin, device=device),
            nose_hoover=torch.as_tensor(nose_hoover, device=device),
            rescale=torch.as_tensor(rescale, device=device),
            modes=self._tensor(modes),
            has_chain=bool(nose_hoover.any()),
            has_rescale=bool(rescale.any()),
            has_barostat=bool(modes.any()),
            free=None if free.all() else self._tensor(free),
        )

    def advance(self, n_steps: int, guards: Sequence[Guard], go_on: Callable[[], bool]) -> dict[int, Fault]:
        """Go up to `n_steps` steps.

        Parameters
        ----------
        n_steps
            At least one; fewer are gone if a system breaks or `go_on` says no.
        guards
            Looked at after each step.
        go_on
            Asked after each step.

        Returns
        -------
        dict
            The systems that broke in the last step, and why.
        """
        bath = self._bath(n_steps)
        for number in range(n_steps):
            now = Bath(**{name: column[number] for name, column in bath.items()})
            self.state = step(self.state, self.systems, now, self.pace, self.forces_of)
            self._stepped()
            if (faults := self.check(guards, now.thermal)) or not go_on():
                return faults
        return {}

    def _stepped(self) -> None:
        self.failures = failures(self.model)
        for walker in self.walkers:
            walker.step += 1

    def check(self, guards: Sequence[Guard], thermal: torch.Tensor | None = None) -> dict[int, Fault]:
        """Return the systems that are broken, and why; what the potential itself refused comes first."""
        if thermal is None:
            temperatures = [walker.temperature(self.dynamics, walker.step) for walker in self.walkers]
            thermal = self._tensor(constants.KB * np.array(temperatures))
        equilibrating = [walker.step < self.dynamics.equilibration for walker in self.walkers]
        view = View(
            state=self.state,
            systems=self.systems,
            thermal=thermal,
            volume=self.volume,
            equilibrating=torch.tensor(equilibrating, device=self.model.device),
        )
        return {
            system: ("potential_failed", self.failures[system]) if system in self.failures else fault
            for system, fault in check(guards, view).items()
        }

    def _bath(self, n_steps: int) -> dict[str, torch.Tensor]:
        """Draw what acts on the batch in the steps to come; each array has one row a step."""
        kicks, thermals, rescalings, pressures, strains = [], [], [], [], []
        for walker in self.walkers:
            steps = range(walker.step + 1, walker.step + n_steps + 1)
            thermal = constants.KB * np.array([walker.temperature(self.dynamics, number) for number in steps])
            pressure = constants.GPA * np.array([walker.pressure(self.dynamics, number) for number in steps])
            thermals.append(thermal)
            pressures.append(np.nan_to_num(pressure))
            kicks.append(self._kicks(walker, thermal))
            rescalings.append(_rescalings(walker, n_steps))
            strains.append(_strains(walker, n_steps))
        return {
            "thermal": self._tensor(np.stack(thermals, axis=1)),
            "kick": self._tensor(np.concatenate(kicks, axis=1)),
            "rescaling": self._tensor(np.stack(rescalings, axis=1)),
            "pressure": self._tensor(np.stack(pressures, axis=1)),
            "strain": self._tensor(np.stack(strains, axis=1)),
        }

    def _kicks(self, walker: Walker, thermal: np.ndarray) -> np.ndarray:
        """Momenta from the Langevin thermostat, shape (step, atom, 3); what rests is left at rest."""
        shape = (len(walker.seed), 3)
        if not walker.has_friction:
            return np.zeros((len(thermal), *shape))
        normal = walker.noise.steps(
            Purpose.THERMOSTAT, walker.step, len(thermal), lambda generator, n: generator.standard_normal((n, *shape))
        )
        damping = np.exp(-self.dynamics.friction * walker.timestep(self.dynamics))
        width = np.sqrt(thermal * (1 - damping**2))
        momenta = without_drift(normal * np.sqrt(walker.masses)[:, None], walker.masses, walker.free)
        return momenta * width[:, None, None]

    def load(self) -> None:
        """Take the state of each system from its walker."""
        states = [walker.state for walker in self.walkers if walker.state is not None]
        columns = {name: [state[name] for state in states] for name in self.fields}
        self.state = self.state_type(
            **{
                name: self._tensor(np.concatenate(column) if name in PER_ATOM else np.stack(column))
                for name, column in columns.items()
            }
        )

    def cell(self, system: int) -> np.ndarray:
        """Cell of one system as its start has it: what is open stays as it was. Shape (3, 3), Å."""
        seed = self.walkers[system].start
        if not self.walkers[system].has_barostat:
            return np.array(seed.cell.array)
        return np.where(seed.pbc[:, None], self.state.cell[system].cpu().numpy(), seed.cell.array)

    def is_worth_a_frame(self, system: int) -> bool:
        """Whether the geometry of a system is data, as far as no guard speaks against it."""
        return True

    def kinetic_temperature(self) -> np.ndarray:
        """Return the temperatures of the kinetic energies, K, shape (system,)."""
        freedom = self.systems.freedom * constants.KB
        found: np.ndarray = (2 * kinetic_energy(self.state.momenta, self.systems) / freedom).cpu().numpy()
        return found

    def geometry(self, system: int) -> Atoms:
        """One system as it is."""
        rows = torch.nonzero(self.systems.system == system).flatten()
        positions = self.state.positions[rows].cpu().numpy()
        return self.walkers[system].geometry(positions, self.cell(system))

    def export(self) -> None:
        """Write the state of each system into its walker."""
        n_atoms = [len(walker.seed) for walker in self.walkers]
        rows = split({name: getattr(self.state, name) for name in self.fields}, n_atoms)
        for walker, row in zip(self.walkers, rows, strict=True):
            walker.state = row


def failures(model: ModelInterface) -> dict[int, str]:
    """Which systems of the last evaluation the potential refused, and why; models that know of none say nothing."""
    return dict(getattr(model, "failures", {}))


def split(values: dict[str, torch.Tensor], n_atoms: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Take the fields of a state apart, system by system; arrays on the host that share no memory with it."""
    ends = np.cumsum(n_atoms)[:-1]
    host = {name: value.detach().cpu().numpy() for name, value in values.items()}
    columns = {name: np.split(array, ends) if name in PER_ATOM else array for name, array in host.items()}
    return [{name: np.array(column[system]) for name, column in columns.items()} for system in range(len(n_atoms))]


def evaluator(
    walkers: Sequence[Walker], model: ModelInterface
) -> Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a function that runs the model on these walkers, from positions and cells (rows are vectors)."""
    device = model.device
    systems = make_state([walker.seed for walker in walkers], device, torch.float64)
    nothing = torch.full((len(walkers),), torch.nan, dtype=torch.float64, device=device)

    def evaluate(positions: torch.Tensor, cell: torch.Tensor) -> dict[str, torch.Tensor]:
        systems.positions = positions
        systems.cell = cell.mT.contiguous()
        found = model(systems)
        return {
            "energy": found["energy"].double(),
            "forces": found["forces"].double(),
            "stress": found["stress"].double() if "stress" in found else nothing[:, None, None].expand(-1, 3, 3),
            "disagreement": found["force_disagreement"].double() if "force_disagreement" in found else nothing,
        }

    return evaluate


def spanning_cell(atoms: Atoms) -> np.ndarray:
    """Cell whose vectors along open axes span the atoms and an Å on either side, so that it has a volume; (3, 3), Å."""
    cell = full_cell(atoms)
    extent = np.ptp(atoms.positions @ np.linalg.inv(cell), axis=0)
    return np.where(atoms.pbc[:, None], cell, cell * (extent + 2)[:, None])


def thermal_momenta(walker: Walker, temperature: float) -> np.ndarray:
    """Momenta of a Maxwell-Boltzmann distribution at a temperature (K), shape (atom, 3)."""
    normal = walker.noise.at(Purpose.VELOCITIES, 0).standard_normal((len(walker.seed), 3))
    momenta = normal * np.sqrt(constants.KB * temperature * walker.masses)[:, None]
    return without_drift(momenta, walker.masses, walker.free)


def _rescalings(walker: Walker, n_steps: int) -> np.ndarray:
    if walker.ensemble != "nvt_rescale":
        return np.zeros((n_steps, 2))
    squares = walker.freedom - 1

    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        normal = generator.standard_normal(n)
        return np.stack([normal, generator.chisquare(squares, n) if squares else np.zeros(n)], axis=1)

    return walker.noise.steps(Purpose.RESCALING, walker.step, n_steps, draw)


def _strains(walker: Walker, n_steps: int) -> np.ndarray:
    if not walker.has_barostat:
        return np.zeros((n_steps, 6))
    return walker.noise.steps(
        Purpose.BAROSTAT, walker.step, n_steps, lambda generator, n: generator.standard_normal((n, 6))
    )
