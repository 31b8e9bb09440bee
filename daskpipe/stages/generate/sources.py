"""Model of one source of structures in a config."""

from __future__ import annotations

from collections.abc import Mapping
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

    share: float | None = Field(
        default=None, gt=0, description="Share of generate.n, in any unit: the shares of all sources are compared"
    )

    @field_validator("generator")
    @classmethod
    def _check_generator(cls, name: str) -> str:
        if name not in GENERATORS.known_names():
            raise ValueError(describe_unknown("generator", name, GENERATORS.known_names()))
        return name

    @model_validator(mode="after")
    def _check_params(self) -> Self:
        if self.n is None and self.share is None and not is_enumerated(self.generator):
            raise ValueError(
                f"n is missing: give the number of structures that {self.generator!r} is to make "
                "(or its share of generate.n)"
            )
        if self.n is not None and GENERATORS.find_companion(self.generator, "TAKES_N") is False:
            raise ValueError(f"n does not apply to {self.generator}, which are read whole; leave it out")
        if self.share is not None and GENERATORS.find_companion(self.generator, "TAKES_N") is False:
            raise ValueError(f"share does not apply to {self.generator}, which are read whole; leave it out")
        # A ValidationError raised here keeps its locations below that of this source.
        object.__setattr__(self, "__pydantic_extra__", GENERATORS.check_params(self.generator, self.params))
        return self

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the generator, checked, defaults filled in, JSON types."""
        return dict(self.__pydantic_extra__ or {})


def share_out(n: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide a number of structures among sources, by the method of the largest remainder (Hamilton's).

    Parameters
    ----------
    n
        Number of structures.
    shares
        Share of each source, in any unit.

    Returns
    -------
    dict
        Number of each source; the sum is `n`. Of equal remainders the first source comes first.

    Raises
    ------
    ValueError
        If a source would get none.

    Examples
    --------
    >>> share_out(10, {"molecules": 50, "crystals": 33, "clusters": 10, "surfaces": 7})
    {'molecules': 5, 'crystals': 3, 'clusters': 1, 'surfaces': 1}
    """
    exact = {name: n * share / sum(shares.values()) for name, share in shares.items()}
    counts = {name: int(number) for name, number in exact.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - exact[name])  # stable: in the order of the sources
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    if none := [name for name, count in counts.items() if count == 0]:
        raise ValueError(
            f"generate.n: of {n} structures none is left for {', '.join(none)}; raise n or the share, or leave it out"
        )
    return counts
