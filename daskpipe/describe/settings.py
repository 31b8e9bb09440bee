"""Hyper-parameters of the reduced descriptor."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Describe(BaseModel):
    """Descriptor of a structure and its reduction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    descriptor: str = Field(default="soap", description="Name of the descriptor")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters, e.g. r_cut (Å), n_max, l_max")
    normalise: bool = Field(
        default=True,
        description="Scale each descriptor to length one first; else dense systems, whose descriptors are longest, "
        "span nearly all of the feature space",
    )
    dims: PositiveInt = Field(default=16, description="Principal axes kept as features")
    sample: PositiveInt = Field(default=512, description="Frames, chosen by hash, on which the axes are fitted")
