"""Parameters of the descriptor and its reduction."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from daskpipe.core.validation import FrozenModel


class Describe(FrozenModel):
    """Descriptor of a structure, or of its atoms too, and its reduction."""

    descriptor: str = Field(
        default="soap", description="acsf, lmbtr, mace, mbtr, soap, valle_oganov, or a plugin's name"
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters, e.g. r_cut (Å), n_max, l_max")
    level: Literal["structure", "atom"] = Field(
        default="structure", description="atom describes each atom's environment as well as each frame"
    )
    normalise: bool = Field(
        default=True,
        description="Scale each descriptor to length one first; else dense systems, whose descriptors are longest, "
        "span nearly all of the feature space",
    )
    dims: PositiveInt = Field(default=16, description="Principal axes kept as features")
    sample: PositiveInt = Field(default=512, description="Frames, chosen by hash, on which the axes are fitted")
    atom_sample: PositiveInt = Field(
        default=4096, description="Atoms of these frames, chosen by hash, on which the axes of level atom are fitted"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu", description="Of mace: cpu takes any worker; cuda and auto as in explore"
    )
