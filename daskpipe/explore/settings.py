"""Hyper-parameters of exploration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator


class Guards(BaseModel):
    """Limits beyond which a trajectory is not physics any more."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_temperature_ratio: float = Field(
        default=6.0, gt=1, description="Instantaneous over thermostat temperature at which a trajectory is stopped"
    )
    max_force: PositiveFloat = Field(default=100.0, description="Largest force on an atom, eV/Å")
    min_distance: float = Field(
        default=0.5, ge=0, lt=1, description="Shortest pair distance, in sums of the two covalent radii"
    )


class Dynamics(BaseModel):
    """Conditions and lengths of the trajectories."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ensemble: Literal["nvt_langevin"] = Field(default="nvt_langevin", description="Statistical ensemble")
    temperatures: list[PositiveFloat] = Field(min_length=1, description="One trajectory a seed at each, K")
    replicas: PositiveInt = Field(default=1, description="Trajectories a seed and temperature")
    timestep: PositiveFloat = Field(default=1.0, le=20, description="Time step, fs")
    friction: PositiveFloat = Field(default=0.01, le=1, description="Friction of the Langevin thermostat, 1/fs")
    steps: PositiveInt = Field(description="MD steps of each trajectory")
    stride: PositiveInt = Field(description="A frame is kept every so many steps")
    equilibration: Annotated[int, Field(ge=0)] = Field(default=0, description="Steps before the first frame")

    @field_validator("temperatures")
    @classmethod
    def _distinct(cls, temperatures: list[float]) -> list[float]:
        if len(set(temperatures)) < len(temperatures):
            raise ValueError(
                f"received {temperatures}; a temperature given twice makes the same trajectory twice, use replicas"
            )
        return temperatures

    @model_validator(mode="after")
    def _some_frames(self) -> Dynamics:
        if self.n_frames < 1:
            raise ValueError(
                f"steps={self.steps} with equilibration={self.equilibration} and stride={self.stride} keep no frame; "
                "make steps larger or stride smaller"
            )
        return self

    @property
    def n_frames(self) -> int:
        """Frames kept of each trajectory."""
        return (self.steps - self.equilibration) // self.stride
