"""What a user types for one source of structures."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from daskpipe.core.errors import describe_unknown
from daskpipe.stages.generate import ENUMERATED, GENERATORS

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""Name of a source; it becomes a code in the dataset, so it is one word."""


class Source(BaseModel):
    """One source of seed structures; keys beyond these are parameters of its generator."""

    model_config = ConfigDict(extra="allow", frozen=True)

    generator: str = Field(description="Name of the generator")
    n: int | None = Field(
        default=None, ge=1, description="Number of structures; for a list of molecules, all by default"
    )

    @field_validator("generator")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in GENERATORS.known_names():
            raise ValueError(describe_unknown("generator", name, GENERATORS.known_names()))
        return name

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.n is None and self.generator not in ENUMERATED:
            raise ValueError(f"n is missing: give the number of structures that {self.generator!r} is to make")
        if self.n is not None and self.generator == "files":
            raise ValueError("n does not apply to files, which are read whole; leave it out")
        # A ValidationError that is raised here keeps its locations beneath this source's.
        object.__setattr__(self, "__pydantic_extra__", GENERATORS.check_params(self.generator, self.params))
        return self

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the generator, checked, defaults filled in, JSON types."""
        return dict(self.__pydantic_extra__ or {})
