"""Model of one source of structures in a config."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from daskpipe.core.errors import describe_unknown
from daskpipe.stages.generate import GENERATORS, is_enumerated

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""Name of a source: one word, since it becomes a code in the dataset."""


class Source(BaseModel):
    """One source of seed structures; all further keys are parameters of its generator."""

    model_config = ConfigDict(extra="allow", frozen=True)

    generator: str = Field(description="Name of the generator")
    n: int | None = Field(
        default=None, ge=1, description="Number of structures; for a list of molecules, all by default"
    )

    @field_validator("generator")
    @classmethod
    def _check_generator(cls, name: str) -> str:
        if name not in GENERATORS.known_names():
            raise ValueError(describe_unknown("generator", name, GENERATORS.known_names()))
        return name

    @model_validator(mode="after")
    def _check_params(self) -> Self:
        if self.n is None and not is_enumerated(self.generator):
            raise ValueError(f"n is missing: give the number of structures that {self.generator!r} is to make")
        if self.n is not None and GENERATORS.find_companion(self.generator, "TAKES_N") is False:
            raise ValueError(f"n does not apply to {self.generator}, which are read whole; leave it out")
        # A ValidationError raised here keeps its locations below that of this source.
        object.__setattr__(self, "__pydantic_extra__", GENERATORS.check_params(self.generator, self.params))
        return self

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the generator, checked, defaults filled in, JSON types."""
        return dict(self.__pydantic_extra__ or {})
