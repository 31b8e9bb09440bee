"""Settings of labelling."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from daskpipe.core.validation import FiniteModel


def _check_order(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError(f"the smaller limit comes first, received {list(limits)}; give [{limits[1]}, {limits[0]}]")
    return limits


Limits = Annotated[tuple[float, float], AfterValidator(_check_order)]
Share = Annotated[float, Field(gt=0, le=1)]

JUDGED = {"finite_differences", "force_outliers", "energy_outliers", "agreement"}
"""Checks that come after labelling, and refuse no label."""


class FiniteDifferences(FiniteModel):
    """Comparison of forces and stresses with differences of energies, on some of the frames."""

    share: Share = Field(default=0.01, description="Share of the frames, drawn at random")
    at_least: PositiveInt = Field(default=5, description="Frames at least, if there are so many")
    relative: PositiveFloat = Field(default=0.02, description="Disagreement allowed, of the force or stress")
    force: PositiveFloat = Field(default=0.02, description="Disagreement allowed besides, eV/Å")
    stress: PositiveFloat = Field(default=0.5, description="Disagreement allowed besides, GPa")
    energy: PositiveFloat = Field(
        default=0.05, description="Disagreement allowed between the energy and those beside it, eV, and 2 meV an atom"
    )


class ForceOutliers(FiniteModel):
    """Largest forces that are far above those of the other labels."""

    percentile: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=99.0, description="Percentile of the largest forces of all structures that they are compared with"
    )
    factor: PositiveFloat = Field(default=5.0, description="Factor above it from which one is an outlier")
    least: PositiveFloat = Field(default=10.0, description="Force, eV/Å, below which none is one")


class EnergyOutliers(FiniteModel):
    """Energies that are far from a sum over the elements."""

    deviations: PositiveFloat = Field(
        default=20.0, description="Distance of an outlier, in standard deviations estimated from the median"
    )
    min_deviation: PositiveFloat = Field(
        default=0.15, description="Smallest standard deviation that is assumed, eV per atom: bonds are not additive"
    )


class Agreement(FiniteModel):
    """Agreement with the second teacher."""

    deviations: PositiveFloat = Field(
        default=15.0, description="Distance of an outlier of the difference of energies, in standard deviations"
    )
    min_deviation: PositiveFloat = Field(
        default=0.003, description="Smallest standard deviation of the energy that is assumed, eV per atom"
    )
    factor: PositiveFloat = Field(
        default=12.0, description="Factor above the median disagreement of forces from which it is too much"
    )


class LabelChecks(FiniteModel):
    """Limits that a label must satisfy."""

    max_force: PositiveFloat = Field(default=50.0, description="Largest force on an atom, eV/Å")
    max_net_force: PositiveFloat = Field(default=0.05, description="Largest sum of the forces, eV/Å per atom")
    max_stress: PositiveFloat = Field(default=300.0, description="Largest component of the stress of a crystal, GPa")
    energy_per_atom: Limits | None = Field(
        default=None,
        description="Smallest and largest energy, eV per atom; null: each teacher has its own zero",
    )
    force_outliers: ForceOutliers | None = Field(
        default_factory=ForceOutliers, description="Forces far above those of the other labels; null for none"
    )
    energy_outliers: EnergyOutliers | None = Field(
        default_factory=EnergyOutliers, description="Energies far from a sum over the elements; null for none"
    )
    agreement: Agreement | None = Field(
        default_factory=Agreement, description="Agreement with the second teacher; null for none"
    )
    finite_differences: FiniteDifferences | None = Field(
        default_factory=FiniteDifferences, description="Comparison of forces and stresses with energies; null for none"
    )

    def list_deciding(self) -> dict[str, Any]:
        """Return the limits that decide which labels are taken; what came later only where it is not at its default."""
        later = ("max_net_force", "max_stress", "energy_per_atom")
        fields = type(self).model_fields
        unchanged = {name for name in later if getattr(self, name) == fields[name].default}
        return self.model_dump(exclude=JUDGED | unchanged)
