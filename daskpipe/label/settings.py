"""Hyper-parameters of labelling."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class LabelChecks(BaseModel):
    """What a label must satisfy."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_force: PositiveFloat = Field(default=50.0, description="Largest force on an atom, eV/Å")
