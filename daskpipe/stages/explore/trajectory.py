"""A trajectory: one seed under one condition, its state and the frames that were kept.

A trajectory that is not in a batch holds its state as arrays on the host: while it waits, after it was removed from a
batch that did not fit the device, and when it is written into a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from daskpipe.core import seeds
from daskpipe.core.errors import Rejection
from daskpipe.core.structures import round_positions, structure_id
from daskpipe.core.validation import FrozenModel
from daskpipe.core.variables import VARIABLES
from daskpipe.stages.explore.ensembles import has_barostat, has_pressure, strain_modes
from daskpipe.stages.explore.fixed_atoms import count_degrees_of_freedom, free_components
from daskpipe.stages.explore.random_numbers import RandomNumbers
from daskpipe.stages.explore.settings import Dynamics, Exploration, Ramp, Schedule
from daskpipe.stages.explore.timesteps import timestep_of

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.stages.explore.moves import Swaps
    from daskpipe.stages.explore.relaxation import RelaxationTrajectory
    from daskpipe.stages.explore.vacancies import HopSites

type PossibleMoves = tuple[Swaps, HopSites | None, np.ndarray]
"""Pairs of atoms that may be swapped, sites for hops if some are vacant, and hop lengths, Å, shape (atom,)."""

RETRY_FACTOR = 0.9
"""Factor of the temperature in each retry."""
MAX_ATTEMPTS = 3
"""Largest number of attempts of a trajectory where stops are retried."""

INHERITED = tuple(name for name, variable in VARIABLES.items() if variable.inherited)
"""Entries of ``info`` that frames inherit from their seed; arrays of atoms are inherited, too."""


STATIC = "static"
"""Ensemble of reference data, which exploration does not move."""


class Condition(FrozenModel):
    """Conditions under which a seed is explored."""

    temperature: Schedule
    pressure: Schedule = 0.0
    replica: int = 0
    relaxation: bool = False
    """True for the one trajectory of a seed that outputs the frames of its relaxation."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A geometry that is kept."""

    positions: np.ndarray
    """Shape (atom, 3), float32, Å."""
    cell: np.ndarray
    """Shape (3, 3), Å."""
    step: int
    temperature: float
    kinetic_temperature: float
    pressure: float
    force_disagreement: float
    candidate: bool
    energy: float = np.nan
    """Potential energy, eV, where seeds are relaxed."""


@dataclass(kw_only=True, eq=False)
class Trajectory:
    """State, frames and stops of one trajectory.

    Parameters
    ----------
    seed
        Structure from which it starts, with ``condition`` in ``info``.
    ensemble
        One of `ensembles.ENSEMBLES`.
    run_seed
        The run's seed.
    """

    seed: Atoms
    ensemble: str
    run_seed: int
    attempt: int = 0
    step: int = 0
    state: dict[str, np.ndarray] | None = None
    """Fields of `integrate.DynamicsState` of this system alone; ``None`` before the first step."""
    frames: list[Frame] = field(default_factory=list)
    stops: list[Rejection] = field(default_factory=list)
    fingerprint: np.ndarray | None = None
    """Descriptor of the frame kept last."""
    finished: bool = False
    tallies: dict[str, int] = field(default_factory=dict)
    """Trial moves: ``swaps_tried``, ``swaps_overlapping``, ``swaps_accepted`` and the same of hops."""
    moved_at: int = 0
    """Step at which its last trial moves were made."""
    relaxation: RelaxationTrajectory | None = None
    """Relaxation of the seed that comes first; trajectories of one seed share it."""
    is_relaxation: ClassVar[bool] = False
    moves: PossibleMoves | None = None
    """Possible trial moves; a function of the start."""

    def __post_init__(self) -> None:
        self.id = structure_id(self.seed)
        self.condition: Condition = self.seed.info["condition"]
        self.masses = self.seed.get_masses()
        self.free = free_components(self.seed)
        self._random_numbers: RandomNumbers | None = None

    @cached_property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom; see `daskpipe.stages.explore.fixed_atoms`."""
        return count_degrees_of_freedom(self.free)

    @cached_property
    def strain_modes(self) -> np.ndarray:
        """Strains that the barostat may use, shape (6, 3, 3)."""
        return strain_modes(self.ensemble, self.seed)

    @property
    def has_barostat(self) -> bool:
        """True if the cell changes."""
        return has_barostat(self.ensemble)

    @property
    def has_pressure(self) -> bool:
        """True if the barostat has a pressure."""
        return has_pressure(self.ensemble)

    @property
    def has_friction(self) -> bool:
        """True if the thermostat is Langevin's, as it is beside every barostat."""
        return self.ensemble == "nvt_langevin" or self.has_barostat

    @property
    def name(self) -> str:
        """Name of the trajectory in the quarantine."""
        pressure = f"{format_schedule(self.condition.pressure)}GPa" if self.has_pressure else ""
        again = f"~{self.attempt}" if self.attempt else ""
        return (
            f"{self.id.hex()}@{format_schedule(self.condition.temperature)}K{pressure}#{self.condition.replica}{again}"
        )

    @property
    def random_numbers(self) -> RandomNumbers:
        """Random numbers of the present attempt."""
        if self._random_numbers is None:
            condition = self.condition
            key = seeds.stream_key(
                self.run_seed, "explore", self.id, self.ensemble, format_schedule(condition.temperature),
                format_schedule(condition.pressure), condition.replica, self.attempt,
            )  # fmt: skip
            self._random_numbers = RandomNumbers(key)
        return self._random_numbers

    def temperature_at(self, dynamics: Dynamics, step: int) -> float:
        """Return the temperature of the thermostat at a step, K."""
        return dynamics.value_at(self.condition.temperature, step) * RETRY_FACTOR**self.attempt

    def timestep_in(self, dynamics: Dynamics) -> float:
        """Return the time step, fs."""
        return timestep_of(dynamics.timestep, self.masses)

    def pressure_at(self, dynamics: Dynamics, step: int) -> float:
        """Return the pressure of the barostat at a step, GPa; NaN without a barostat."""
        if not self.has_barostat:
            return np.nan
        return dynamics.value_at(self.condition.pressure, step) if self.has_pressure else 0.0

    @property
    def start_atoms(self) -> Atoms:
        """Geometry at the start: the seed, or the relaxed seed."""
        return self.seed if self.relaxation is None else self.relaxation.relaxed_atoms

    def end_with_relaxation(self, n_steps: int) -> None:
        """Finish the trajectory if its relaxation was stopped or became a candidate, or if no steps follow."""
        relaxation = self.relaxation
        if relaxation is None:
            return
        if relaxation.stops:
            (stop,) = relaxation.stops
            self.stops.append(replace(stop, structure=self.name, evidence=f"relaxation, {stop.evidence}"))
        if relaxation.stops or relaxation.is_candidate or not n_steps:
            self.finished = True

    def n_steps(self, settings: Exploration) -> int:
        """Return the number of steps to the last frame."""
        return settings.dynamics.n_steps

    def steps_to_frame(self, settings: Exploration) -> int:
        """Count the steps to its next frame, or to the end of equilibration."""
        dynamics = settings.dynamics
        past = self.step - dynamics.equilibration
        return dynamics.stride - past % dynamics.stride if past >= 0 else -past

    def is_frame_due(self, settings: Exploration) -> bool:
        """Return True if a frame is due at this step."""
        past = self.step - settings.dynamics.equilibration
        return past > 0 and past % settings.dynamics.stride == 0

    def stop_attempt(self, reason: str, evidence: str, crashed: Atoms, on_stop: str) -> None:
        """Record a stop and end the present attempt; `on_stop` decides what follows (see `Guards`)."""
        last = self.atoms_of_frame(self.frames[-1]) if self.frames else self.start_atoms
        again = on_stop == "retry" and self.attempt + 1 < MAX_ATTEMPTS
        if again:
            then = f"tried again at {RETRY_FACTOR ** (self.attempt + 1):.2f} of the temperature"
        elif on_stop == "quarantine":
            then = "none of its frames is kept"
        else:
            then = f"{len(self.frames)} frames before are kept"
        self._record_stop(reason, f"{evidence}; {then}", last_sane=last, crashed=crashed)
        if again:
            self.attempt += 1
            self.step = self.moved_at = 0
            self._random_numbers = None
        else:
            self.finished = True
        if again or on_stop == "quarantine":
            self.frames = []
        self.state = self.fingerprint = None

    def keep_seed(self) -> None:
        """Finish the trajectory with the seed as its only frame: reference data do not move."""
        unknown = dict.fromkeys(("temperature", "kinetic_temperature", "pressure", "force_disagreement"), np.nan)
        positions = self.seed.positions.astype(np.float32)
        self.frames = [Frame(positions=positions, cell=self.seed.cell.array.copy(), step=0, candidate=False, **unknown)]
        self.ensemble = STATIC
        self.finished = True

    def refuse_seed(self, reason: str, evidence: str) -> None:
        """Record that the seed cannot be run, and finish the trajectory."""
        self._record_stop(reason, evidence, crashed=self.seed)
        self.finished = True

    def _record_stop(self, reason: str, evidence: str, **geometries: Atoms) -> None:
        self.stops.append(
            Rejection(
                stage="explore",
                structure=self.name,
                reason=reason,
                evidence=f"at step {self.step}: {evidence}",
                attempts=self.attempt + 1,
                details={"step": self.step, **{name: geometry_as_json(atoms) for name, atoms in geometries.items()}},
            )
        )

    def atoms_of_frame(self, frame: Frame) -> Atoms:
        """Return a kept frame as a structure."""
        return self.make_atoms(frame.positions, frame.cell)

    def make_atoms(self, positions: np.ndarray, cell: np.ndarray) -> Atoms:
        """Return the seed with other positions and cell, Å."""
        atoms = self.seed.copy()
        atoms.calc = None
        atoms.set_cell(cell)
        atoms.positions = positions
        atoms.info = {name: self.seed.info[name] for name in INHERITED if name in self.seed.info}
        return atoms

    def output_frames(self, dynamics: Dynamics) -> list[Atoms]:
        """Return the kept frames with their metadata in ``info``; those of a relaxation come first."""
        outputs = self.relaxation.output_frames(dynamics) if self.relaxation and self.condition.relaxation else []
        for frame in self.frames:
            atoms = round_positions(self.atoms_of_frame(frame))
            atoms.info |= {
                "parent_id": self.id,
                "ensemble": self.ensemble,
                "replica": self.condition.replica,
                "step": frame.step,
                "time": np.nan if self.is_relaxation else frame.step * self.timestep_in(dynamics),
                "temperature": frame.temperature,
                "kinetic_temperature": frame.kinetic_temperature,
                "pressure": frame.pressure,
            }
            if not np.isnan(frame.force_disagreement):
                atoms.info |= {"force_disagreement": frame.force_disagreement, "candidate": frame.candidate}
            if not np.isnan(frame.energy):
                atoms.info["explore_energy"] = frame.energy
            outputs.append(atoms)
        return outputs


def geometry_as_json(atoms: Atoms) -> dict[str, Any]:
    """Return a geometry as JSON types; values that are not finite become null."""
    return {
        "symbols": list(atoms.symbols),
        "positions": _rows_as_json(np.round(atoms.positions, 4)),
        "cell": _rows_as_json(np.round(atoms.cell.array, 4)),
        "pbc": atoms.pbc.tolist(),
    }


def _rows_as_json(rows: np.ndarray) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in rows]


def format_schedule(schedule: Schedule) -> str:
    """Return the text that stands for a schedule in names and random keys."""
    return str(schedule) if isinstance(schedule, Ramp) else f"{schedule:g}"
