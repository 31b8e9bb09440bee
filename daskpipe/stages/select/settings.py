"""Parameters of selection."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from daskpipe.core.validation import FrozenModel


class Select(FrozenModel):
    """Number of picks, method and removal of near-duplicates."""

    n: PositiveInt = Field(description="Frames to pick")
    method: str = Field(
        default="kmeans", description="Name of the selector: kmeans, direct, fps, environments, random, stride"
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters, e.g. n_clusters")
    duplicate_distance: NonNegativeFloat = Field(
        default=1e-3,
        description="Frames closer than this to an earlier frame, or to one of the dataset in `against`, are left out "
        "first; in units of the root mean square distance of all frames from their mean, in feature space. "
        "0 leaves all in",
    )
    energy_window: PositiveFloat | None = Field(
        default=None,
        description="Frames whose energy in exploration is more than this above the lowest one of their composition, "
        "eV an atom, are left out before all else; needs explore.relax, which stores energies",
    )
    against: str | None = Field(
        default=None,
        description="An existing dataset (path) whose frames need no label again: what is near them is out, and picks "
        "come first from where it has no structures",
    )
