"""Define the settings of budgets and of faults."""

from __future__ import annotations

import re

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from daskpipe.core.validation import SIZE, FrozenModel, in_bytes


class Budget(FrozenModel):
    """Limits of what a run may take; each shard has its share of them."""

    hours: PositiveFloat | None = Field(default=None, description="Hours of workers at work, over all driver starts")
    bytes: str | None = Field(default=None, description="Size of the units in the run directory, e.g. 50GB")
    labels: PositiveInt | None = Field(default=None, description="Frames that are labelled at most: cuts select.n")

    @field_validator("bytes")
    @classmethod
    def _check_bytes(cls, size: str | None) -> str | None:
        if size is not None and not (re.fullmatch(SIZE, size) and in_bytes(size)):
            raise ValueError("must be a number with a unit, e.g. 50GB")
        return size


class Faults(FrozenModel):
    """Limits of the faults that a run tolerates; they never change the results of structures that cause no fault."""

    attempts: int = Field(
        default=3,
        ge=2,
        description="Tries of a unit under which the process dies, hangs or runs out of memory; in the last one each "
        "of its structures has a process of its own, and those that kill it are quarantined",
    )
    hang: PositiveFloat = Field(
        default=3600.0, description="Seconds without a checkpoint, or a labelled structure, after which a unit hangs"
    )
    disk_reserve: str = Field(default="500MB", description="Free space below which a run stops, e.g. 5GB")

    @field_validator("disk_reserve")
    @classmethod
    def _check_reserve(cls, size: str) -> str:
        if not re.fullmatch(SIZE, size):
            raise ValueError("must be a number with a unit, e.g. 5GB")
        return size

    @property
    def disk_bytes(self) -> int:
        """`disk_reserve` in bytes."""
        return in_bytes(self.disk_reserve)
