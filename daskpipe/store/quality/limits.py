"""Define the limits of quality checks that are more than one number."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from daskpipe.core.validation import FiniteModel

type Share = Annotated[float, Field(ge=0, le=1)]
type Factor = Annotated[float, Field(gt=1)]


class CellLimits(FiniteModel):
    """Limits of the volume and shape of a cell."""

    min_volume: PositiveFloat = Field(
        default=2.0, description="Smallest volume per atom of a cell that is periodic along all axes, Å^3"
    )
    max_volume: PositiveFloat = Field(
        default=10_000.0,
        description="Largest volume per atom of such a cell, Å^3; a dozen atoms or fewer may have the box of a dozen",
    )
    min_fullness: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Volume (area) of the periodic vectors over the product of their lengths; 1 for right angles",
    )
    left_handed: bool = Field(default=False, description="Whether periodic cells may be left-handed")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_volume >= self.max_volume:
            raise ValueError(f"min_volume={self.min_volume:g} must be smaller than max_volume={self.max_volume:g}")
        return self


class EnergyLimits(FiniteModel):
    """Limits that make an energy an outlier among similar structures."""

    deviations: PositiveFloat = Field(
        default=10.0,
        description="Distance of an outlier from the median, in standard deviations estimated from the median absolute "
        "deviation",
    )
    min_deviation: PositiveFloat = Field(
        default=0.05,
        description="Smallest standard deviation that is assumed, eV per atom: isomers of one composition differ",
    )
    min_deviation_of_types: PositiveFloat = Field(
        default=0.15, description="The same where different compositions are compared: energies are not additive"
    )
    members: PositiveInt = Field(
        default=5,
        ge=4,
        description="Structures that a composition needs to be compared among themselves; with fewer, they are "
        "compared with their system type",
    )
    share: Share = Field(default=0.001, description="Largest share of outliers")


class DuplicateLimits(FiniteModel):
    """Limits of the number of structures that repeat another one, and of what counts as a repetition."""

    share: Share = Field(default=0.01, description="Largest share of structures that repeat another one")
    tolerance: NonNegativeFloat = Field(
        default=1e-4,
        le=0.1,
        description="Largest difference between the fingerprints of one structure; 1e-4 is about 0.0002 Å in metals, "
        "less in molecules",
    )


class SizeLimits(FiniteModel):
    """Limits of the number of atoms of a structure."""

    min_atoms: PositiveInt = Field(default=1, description="Smallest number of atoms")
    max_atoms: PositiveInt = Field(default=10_000, description="Largest number of atoms")
    share: Share | None = Field(default=None, description="Largest share of the most frequent size; null: any")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_atoms > self.max_atoms:
            raise ValueError(f"min_atoms={self.min_atoms} must not be larger than max_atoms={self.max_atoms}")
        return self


class Shares(FiniteModel):
    """Smallest and largest share that is allowed."""

    least: Share = Field(default=0.0, description="Smallest share")
    most: Share = Field(default=1.0, description="Largest share")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least={self.least:g} must not be larger than most={self.most:g}")
        return self
