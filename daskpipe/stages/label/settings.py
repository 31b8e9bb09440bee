"""Settings of labelling."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from daskpipe.core.validation import FiniteModel


class LabelChecks(FiniteModel):
    """Limits that a label must satisfy."""

    max_force: PositiveFloat = Field(default=50.0, description="Largest force on an atom, eV/Å")
