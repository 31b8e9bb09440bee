"""Hyper-parameters of selection."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Select(BaseModel):
    """How many frames to pick, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: PositiveInt = Field(description="Frames to pick")
    method: str = Field(default="kmeans", description="Name of the selector: kmeans, random")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters, e.g. n_clusters")
