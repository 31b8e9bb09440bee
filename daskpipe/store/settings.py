"""Hyper-parameters of the store: what a dataset must be to pass the quality gate."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from daskpipe.errors import unknown
from daskpipe.store.assignment import SLACK

Profile = Literal["auto", "run", "import", "molecules", "reference"]

type _Share = Annotated[float, Field(ge=0, le=1)]
type _Factor = Annotated[float, Field(gt=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CellLimits(_Model):
    """What a cell must be."""

    min_volume: PositiveFloat = Field(default=2.0, description="Least volume an atom, if periodic along all axes, Å^3")
    max_volume: PositiveFloat = Field(
        default=10_000.0,
        description="Largest volume an atom, likewise, Å^3; a dozen atoms or fewer may have the box of a dozen",
    )
    min_fullness: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Volume (area) of the periodic vectors over the product of their lengths; 1 for right angles",
    )
    left_handed: bool = Field(default=False, description="Whether periodic cells may be left-handed")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.min_volume >= self.max_volume:
            raise ValueError(f"min_volume={self.min_volume:g} must be smaller than max_volume={self.max_volume:g}")
        return self


class EnergyLimits(_Model):
    """When an energy is far from those of its like."""

    deviations: PositiveFloat = Field(
        default=10.0,
        description="Distance from the median, in standard deviations told from the median absolute one, of an outlier",
    )
    min_deviation: PositiveFloat = Field(
        default=0.05,
        description="Least standard deviation that is taken for true, eV an atom: isomers of one composition differ",
    )
    min_deviation_of_types: PositiveFloat = Field(
        default=0.15, description="The same where different compositions are compared: energies are not additive"
    )
    members: PositiveInt = Field(
        default=5, ge=4, description="Structures that a composition needs to be judged alone, and not with its type"
    )
    share: _Share = Field(default=0.001, description="Largest share of outliers")


class DuplicateLimits(_Model):
    """When structures count as the same, and how many may."""

    share: _Share = Field(default=0.01, description="Largest share of structures that repeat another one")
    tolerance: NonNegativeFloat = Field(
        default=1e-4,
        le=0.1,
        description="Difference of the fingerprints of the same structure; 1e-4 is about 0.0002 Å in metals, less in "
        "molecules",
    )


class SizeLimits(_Model):
    """How large structures are."""

    min_atoms: PositiveInt = Field(default=1, description="Least number of atoms")
    max_atoms: PositiveInt = Field(default=10_000, description="Largest number of atoms")
    share: _Share | None = Field(default=None, description="Largest share of the most frequent size; null: any")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.min_atoms > self.max_atoms:
            raise ValueError(f"min_atoms={self.min_atoms} must not be larger than max_atoms={self.max_atoms}")
        return self


class Shares(_Model):
    """Least and largest share."""

    least: _Share = Field(default=0.0, description="Least share")
    most: _Share = Field(default=1.0, description="Largest share")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least={self.least:g} must not be larger than most={self.most:g}")
        return self


class Quality(_Model):
    """Thresholds of the quality gate, a check each; null turns a check off."""

    profile: Profile = Field(
        default="auto",
        description="Where the data comes from: run, import, molecules, or reference (isolated atoms, dimer curves, "
        "pressed and stretched cells, sets of others); it decides which checks warn only. auto tells it from the data",
    )
    warn: tuple[str, ...] | None = Field(
        default=None, description="Checks that warn where they would fail; null: those of the profile"
    )
    overlap: PositiveFloat | None = Field(
        default=0.5, le=1, description="Least distance of two atoms, in sums of the two covalent radii"
    )
    isolated_atoms: _Factor | None = Field(
        default=2.5,
        le=5,
        description="Largest distance of an atom from the nearest one of its structure, in sums of covalent radii",
    )
    cell: CellLimits | None = Field(default_factory=CellLimits, description="What a cell must be")
    energy: EnergyLimits | None = Field(default_factory=EnergyLimits, description="Outliers of the energy")
    units: _Factor | None = Field(
        default=5.0,
        description="Factor by which energies and forces of neighbouring frames may disagree; 1.3 where the frames "
        "are near and many enough to tell it precisely",
    )
    forces: PositiveFloat | None = Field(default=10.0, description="Largest 99th percentile of the forces, eV/Å")
    largest_force: PositiveFloat | None = Field(default=50.0, description="Largest force on an atom, eV/Å")
    net_force: PositiveFloat | None = Field(
        default=0.005, description="Largest sum of the forces of a structure, eV/Å an atom"
    )
    zero_forces: _Share | None = Field(
        default=0.0,
        description="Largest share of structures whose forces are all 0, though symmetry does not ask for it",
    )
    stress: PositiveFloat | None = Field(default=100.0, description="Largest component of a stress, GPa")
    duplicates: DuplicateLimits | None = Field(default_factory=DuplicateLimits, description="Repeated structures")
    label_success: _Share | None = Field(
        default=0.95, description="Least share of the structures given to the teacher that it labelled"
    )
    label_checks: _Share | None = Field(default=0.99, description="Least share of structures with label_status ok")
    elements: _Share | None = Field(
        default=0.01, description="Least share of structures that hold the rarest of the elements"
    )
    composition_entropy: _Share | None = Field(
        default=0.5, description="Least entropy of the compositions, over that of as many equally frequent ones"
    )
    sizes: SizeLimits | None = Field(default_factory=SizeLimits, description="Numbers of atoms")
    type_balance: _Share | None = Field(
        default=0.2, description="Least share of the rarest system type, over that of equally frequent ones"
    )
    periodic_share: Shares | None = Field(default=None, description="Share of structures periodic along all axes")
    diversity: PositiveFloat | None = Field(
        default=3.0, description="Least effective number of different structures (Vendi score)"
    )
    splits: _Share | None = Field(
        default=SLACK,
        description="Largest difference of a split from its share, beyond the least one that whole groups allow",
    )
    leakage: _Share | None = Field(
        default=0.2,
        description="Largest share of val or test with a training structure of the same trajectory close by",
    )

    @field_validator("warn")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in CHECKS:
                raise ValueError(unknown("check", name, list(CHECKS)))
        return names


CHECKS = tuple(name for name in Quality.model_fields if name not in ("profile", "warn"))
"""Names of the checks, in their order."""
