"""Hyper-parameters of exploration."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from daskpipe.core.validation import FiniteModel
from daskpipe.stages.explore.timesteps import LONGEST

type EnsembleName = Literal[
    "auto",
    "nve",
    "nvt_langevin",
    "nvt_nose_hoover",
    "nvt_rescale",
    "npt_isotropic",
    "npt_anisotropic",
    "npt_triclinic",
    "npt_plane",
]


class Guards(FiniteModel):
    """Limits beyond which a trajectory is not physics any more, and what happens then."""

    max_temperature_ratio: float = Field(
        default=6.0,
        gt=1,
        description="Instantaneous over thermostat temperature at which a trajectory is stopped; neither equilibration "
        "nor heat from the seed's own potential energy counts",
    )
    max_force: PositiveFloat = Field(default=100.0, description="Largest force on an atom, eV/Å")
    max_volume_ratio: float = Field(
        default=1.6,
        gt=1,
        description="Volume over that of the seed, or the reverse, that a barostat may reach; so along each direction",
    )
    min_distance: float = Field(
        default=0.5, ge=0, lt=1, description="Shortest pair distance, in sums of the two covalent radii"
    )
    evaporation: Annotated[float, Field(gt=1)] | None = Field(
        default=2.5,
        description="A fragment that is farther than this many sums of covalent radii from what it was bonded to has "
        "left, unless matter is connected in three directions; null: may",
    )
    max_disagreement: PositiveFloat | None = Field(
        default=None,
        description="Disagreement of a committee about a force, eV/Å, at which a frame is marked as a candidate and "
        "its trajectory ends",
    )
    on_stop: Literal["keep", "retry", "quarantine"] = Field(
        default="keep",
        description="keep: frames before the stop stay; retry: from the seed at 0.9 T, at most twice, then keep; "
        "quarantine: none of them stays. The stop is listed in the quarantine in any case",
    )


class Ramp(FiniteModel):
    """A temperature (K) or pressure (GPa) that changes linearly while frames are taken."""

    start: float = Field(description="Value during equilibration and at its end")
    end: float = Field(description="Value that it goes to")
    cycles: NonNegativeInt = Field(default=0, description="0: one way, to the end; n: n times there and back")

    def __str__(self) -> str:
        return f"{self.start:g}to{self.end:g}" + (f"x{self.cycles}" if self.cycles else "")

    def value_at(self, progress: float) -> float:
        """Return the value at a fraction of the way, 0 to 1."""
        if self.cycles:
            phase = (progress * self.cycles) % 1.0
            progress = 2 * min(phase, 1 - phase)
        return self.start + (self.end - self.start) * progress


def _schedule_tag(value: Any) -> str:
    return "[ramp]" if isinstance(value, dict | Ramp) else "[number]"


type Schedule = float | Ramp
"""Constant or ramp."""

# The tags make an error speak of the type that was meant, and not of both.
type _Temperature = Annotated[
    Annotated[PositiveFloat, Tag("[number]")] | Annotated[Ramp, Tag("[ramp]")], Discriminator(_schedule_tag)
]
type _Step = Annotated[
    Annotated[PositiveFloat, Field(le=20), Tag("[number]")] | Annotated[Literal["auto"], Tag("[word]")],
    Discriminator(lambda value: "[word]" if isinstance(value, str) else "[number]"),
]
type _Pressure = Annotated[
    Annotated[float, Tag("[number]")] | Annotated[Ramp, Tag("[ramp]")], Discriminator(_schedule_tag)
]


def schedule_ends(schedule: Schedule) -> tuple[float, float]:
    """Return the first and the farthest value of a schedule."""
    return (schedule.start, schedule.end) if isinstance(schedule, Ramp) else (schedule, schedule)


class MonteCarlo(FiniteModel):
    """Trial moves between segments of dynamics, accepted at the temperature of the system (Metropolis)."""

    every: PositiveInt = Field(default=20, description="MD steps between two segments of trial moves")
    swaps: NonNegativeInt = Field(default=0, description="Trial exchanges of two atoms of different elements a segment")
    hops: NonNegativeInt = Field(
        default=0,
        description="Trial hops of one atom a segment: to a vacant site, if the start has any, as far away as atoms of "
        "its kind are; else by that length in any direction, where most overlap and cost nothing",
    )
    min_distance: float = Field(
        default=0.7, ge=0, lt=1.5, description="Trial moves that bring a pair closer are rejected, as in the guards"
    )
    oxidation_states: dict[str, float] = Field(
        default_factory=dict,
        description="Oxidation state of each element, e; guessed from the composition if not given",
    )
    charge_tolerance: float = Field(
        default=0.1, ge=0, description="Largest difference of oxidation states, e, of two atoms that may be exchanged"
    )

    @model_validator(mode="after")
    def _some_moves(self) -> Self:
        if not self.swaps + self.hops:
            raise ValueError("no trial moves: give swaps or hops, or leave monte_carlo out")
        return self


class Relaxation(FiniteModel):
    """Relaxation of each seed to the nearest minimum of the energy with FIRE, before its dynamics or alone."""

    cell: Literal["fixed", "auto", "isotropic", "anisotropic", "triclinic", "plane"] = Field(
        default="fixed",
        description="Strains in which the cell relaxes beside the atoms, at the seed's pressure; auto: triclinic for "
        "bulk, fixed where there is a vacuum (plane for slabs if dynamics.relax_plane)",
    )
    fmax: PositiveFloat = Field(
        default=0.05,
        description="Largest force on an atom, eV/Å, at which a seed is relaxed; with a cell the largest row of its "
        "virial over the number of atoms, eV, too",
    )
    steps: PositiveInt = Field(
        default=500, description="Most steps of a relaxation; its dynamics starts where it got to"
    )
    stride: PositiveInt | None = Field(
        default=10,
        description="A frame is kept every so many steps, where forces are below guards.max_force, and of the last "
        "step in any case; null: of the last step only",
    )
    max_step: Annotated[PositiveFloat, Field(le=1)] = Field(
        default=0.2, description="Longest displacement in a step, over all coordinates of a system, Å"
    )

    @property
    def n_frames(self) -> int:
        """Most frames of each relaxation."""
        return -(-self.steps // self.stride) if self.stride else 1


class Dynamics(FiniteModel):
    """Conditions and lengths of the trajectories."""

    ensemble: EnsembleName = Field(
        default="auto",
        description="auto: npt_isotropic for bulk, nvt_langevin where there is a vacuum; or one for all: nve, "
        "nvt_langevin, nvt_nose_hoover, nvt_rescale, npt_isotropic, npt_anisotropic, npt_triclinic, npt_plane",
    )
    ensembles: dict[str, EnsembleName] = Field(
        default_factory=dict,
        description="Ensemble of a system type, such as {surface: nvt_langevin}; wins over ensemble",
    )
    relax_plane: bool = Field(default=False, description="auto lets slabs change their area (npt_plane)")
    temperatures: list[_Temperature] = Field(
        description="One trajectory a seed at each, K; a number, or {start, end, cycles} for a ramp"
    )
    temperatures_by_type: dict[str, list[_Temperature]] = Field(
        default_factory=dict,
        description="Temperatures of a system type, such as {surface: [300, 600]}; win over temperatures",
    )
    pressures: list[_Pressure] = Field(
        default=[0.0], min_length=1, description="One trajectory a seed under a barostat at each, GPa; as temperatures"
    )
    replicas: PositiveInt = Field(default=1, description="Trajectories a seed, temperature and pressure")
    timestep: _Step = Field(
        default="auto",
        description="Time step, fs; auto: by the lightest atom of a structure 0.5 (hydrogen), 1 (Li to Ne), 2 (Na to "
        "Ar) or 4",
    )
    friction: PositiveFloat = Field(default=0.01, le=1, description="Friction of the Langevin thermostat, 1/fs")
    thermostat_time: PositiveFloat = Field(
        default=100.0, description="Relaxation time of the Nosé-Hoover and velocity-rescaling thermostats, fs"
    )
    barostat_time: PositiveFloat = Field(
        default=1000.0, description="Relaxation time of the volume of matter of that compressibility, fs"
    )
    compressibility: PositiveFloat = Field(
        default=0.02, description="Rough compressibility, 1/GPa: 0.01 for metals, 0.5 for liquids; sets only the pace"
    )
    steps: NonNegativeInt = Field(description="MD steps of each trajectory; 0 to relax only")
    stride: PositiveInt = Field(description="A frame is kept every so many steps")
    change: PositiveFloat | None = Field(
        default=None,
        description="A frame is kept only if its descriptor (that of describe, at unit length) is this far from that "
        "of the frame kept before",
    )
    equilibration: NonNegativeInt = Field(default=0, description="Steps before the first frame")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_relaxation_only(cls, data: Any) -> Any:
        """Fill in the fields that ``steps: 0`` leaves without meaning."""
        if isinstance(data, dict) and data.get("steps") == 0:
            return {"temperatures": [], "stride": 1, **data}
        return data

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if not self.steps:
            return self
        if not self.temperatures:
            raise ValueError("temperatures is empty; give at least one, K, e.g. temperatures=[300]")
        if self.n_frames < 1:
            raise ValueError(
                f"steps={self.steps} with equilibration={self.equilibration} and stride={self.stride} keep no frame; "
                "make steps larger or stride smaller"
            )
        if empty := [name for name, schedules in self.temperatures_by_type.items() if not schedules]:
            raise ValueError(f"temperatures_by_type of {empty[0]} is empty; give at least one, K, or leave it out")
        temperatures = [self.temperatures, *self.temperatures_by_type.values()]
        for name, schedules in (*(("temperature", each) for each in temperatures), ("pressure", self.pressures)):
            texts = [str(item) if isinstance(item, Ramp) else f"{item:g}" for item in schedules]
            if len(set(texts)) < len(texts):
                raise ValueError(
                    f"received {', '.join(texts)}; a {name} given twice makes the same trajectory twice, use replicas"
                )
        for schedule in chain.from_iterable(temperatures):
            if min(schedule_ends(schedule)) <= 0:
                raise ValueError(f"received {schedule} K; a temperature must be greater than 0 K")
        longest = LONGEST if self.timestep == "auto" else self.timestep
        if longest >= self.thermostat_time or longest >= self.barostat_time:
            raise ValueError(
                f"thermostat_time={self.thermostat_time:g} fs and barostat_time={self.barostat_time:g} fs must be "
                f"longer than timestep={longest:g} fs; ten steps and more are sensible"
            )
        return self

    @property
    def n_frames(self) -> int:
        """Largest number of frames of each trajectory."""
        return (self.steps - self.equilibration) // self.stride if self.steps else 0

    @property
    def n_steps(self) -> int:
        """Number of steps to the last frame."""
        return self.equilibration + self.stride * self.n_frames if self.steps else 0

    def ramp_progress(self, step: int) -> float:
        """Return the fraction of the way from the end of equilibration to the last frame."""
        length = self.n_steps - self.equilibration
        return min(max(0.0, (step - self.equilibration) / length), 1.0) if length > 0 else 0.0

    def value_at(self, schedule: Schedule, step: int) -> float:
        """Return the value of a schedule at a step."""
        return schedule.value_at(self.ramp_progress(step)) if isinstance(schedule, Ramp) else schedule


class Exploration(FiniteModel):
    """Parameters of exploration."""

    relax: Relaxation | None = Field(
        default=None, description="Relax each seed first, and keep frames of that; without dynamics: do only that"
    )
    dynamics: Dynamics = Field(
        default_factory=lambda: Dynamics.model_validate({"steps": 0}), description="Conditions and lengths"
    )
    guards: Guards = Field(default_factory=Guards, description="What ends a trajectory")
    monte_carlo: MonteCarlo | None = Field(default=None, description="Trial moves between segments of dynamics")
    repulsion: Literal["none", "zbl"] = Field(
        default="none",
        description="zbl adds a screened repulsion of nuclei closer than 0.7 of the sum of covalent radii, which is "
        "shorter than bonds; a seed with such a pair is refused",
    )
    batch_atoms: PositiveInt | None = Field(
        default=None, description="Most atoms in one batch; null: 1024 on a CPU, on a GPU what fits its memory"
    )
    checkpoint: PositiveFloat = Field(default=60.0, description="Seconds between two checkpoints of a unit")

    @property
    def n_steps(self) -> int:
        """Steps of a trajectory, or at most of a relaxation where there is nothing else."""
        return self.dynamics.n_steps or (self.relax.steps if self.relax else 0)

    @field_validator("dynamics", mode="before")
    @classmethod
    def _replace_no_dynamics(cls, dynamics: Any) -> Any:
        return {"steps": 0} if dynamics is None else dynamics

    @model_validator(mode="after")
    def _check_work(self) -> Self:
        if self.relax is None and not self.dynamics.steps:
            raise ValueError(
                "nothing to do: give dynamics, e.g. dynamics={temperatures: [300], steps: 1000, stride: 50}, "
                "or relax={}"
            )
        return self

    @model_validator(mode="after")
    def _check_thermostat(self) -> Self:
        if self.monte_carlo and "nve" in (self.dynamics.ensemble, *self.dynamics.ensembles.values()):
            raise ValueError(
                "monte_carlo accepts moves at the temperature of a thermostat and nve has none; "
                "give ensemble=nvt_langevin or leave monte_carlo out"
            )
        return self
