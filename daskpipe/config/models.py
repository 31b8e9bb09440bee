"""Models of the config: its schema, its defaults and its documentation.

`daskpipe.config.compose` composes a config, and `daskpipe.config.validate` validates it with these models. A wrong key
or value is a `ConfigError` that names the key, the rule, the value received and what to type instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from daskpipe.cluster.settings import Cluster
from daskpipe.core.validation import FrozenModel
from daskpipe.engine.settings import Budget, Faults
from daskpipe.potentials import POTENTIALS, traits_of
from daskpipe.potentials.dispersion import Dispersion
from daskpipe.stages.describe.settings import Describe
from daskpipe.stages.explore.settings import Exploration
from daskpipe.stages.generate.checks import Limits
from daskpipe.stages.generate.sources import Source, share_out
from daskpipe.stages.label.settings import LabelChecks, Share
from daskpipe.stages.select.settings import Select
from daskpipe.store.quality.settings import Quality
from daskpipe.store.splits import Split

Device = Literal["auto", "cpu", "cuda"]


class PotentialChoice(FrozenModel):
    """A potential by name and its parameters."""

    name: str = Field(description=f"{', '.join(POTENTIALS.table)}, or a plugin's name")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters, e.g. model for mace")


class Generate(FrozenModel):
    """Seed structures."""

    n: PositiveInt | None = Field(default=None, description="Number of structures of all sources that have a share")
    sources: dict[str, Source] = Field(default_factory=dict, description="Generators by a name of your choice")
    paths: list[str] = Field(default_factory=list, description="Your own files, folders and globs of them")
    partition_size: PositiveInt = Field(default=16, description="Structures, or files, a unit")
    limits: Limits = Field(default_factory=Limits, description="What a seed must satisfy")

    @property
    def base_dir(self) -> Path:
        """Folder that all `paths` lie below; their structures are named by the path from there."""
        # A glob lies in the folder above its first wildcard.
        plain = [path if Path(path).exists() else re.split(r"[*?\[]", path, maxsplit=1)[0] + "x" for path in self.paths]
        return Path(os.path.commonpath([Path(path).parent for path in plain])) if plain else Path.cwd()

    @field_validator("sources")
    @classmethod
    def _check_source_names(cls, sources: dict[str, Source]) -> dict[str, Source]:
        for name in sources:
            if not name.isidentifier():
                raise ValueError(f"source name {name!r} must be a word of letters, digits and _")
        return sources

    @model_validator(mode="after")
    def _check_not_empty(self) -> Generate:
        if not self.sources and not self.paths:
            raise ValueError("nothing to generate from: give generate.sources or generate.paths=[FILE,FOLDER,...]")
        return self

    @model_validator(mode="after")
    def _share_out(self) -> Generate:
        shares = {name: source.share for name, source in self.sources.items() if source.share is not None}
        if self.n is None and not shares:
            return self
        if self.n is None:
            raise ValueError(f"{', '.join(shares)} have shares, but of what? Give generate.n, the number of structures")
        if not shares:
            raise ValueError("generate.n is divided by shares, and no source has one; give share, or leave n out")
        for name, n in share_out(self.n, shares).items():
            source = self.sources[name]
            if source.n not in (None, n):
                raise ValueError(f"{name}: give n = {source.n} or share = {source.share:g}, not both")
            self.sources[name] = source.model_copy(update={"n": n})
        return self


class Explore(Exploration):
    """Molecular dynamics and Monte Carlo that start at the seeds."""

    potential: PotentialChoice = Field(description="Potential that moves the atoms")
    device: Device = Field(default="auto", description="auto takes workers that offer a GPU where there are any")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="Precision of the potential")
    batch_size: PositiveInt = Field(default=16, description="Trajectories a unit")


class Teacher(PotentialChoice):
    """A potential that labels, and what is added to its results."""

    dispersion: Dispersion | None = Field(default=None, description="Dispersion that is added; null for none")


class SecondTeacher(Teacher):
    """A teacher whose labels are compared with those of the first."""

    share: Share = Field(default=1.0, description="Share of the frames that it labels, drawn at random")


class Label(FrozenModel):
    """Labels from a teacher."""

    potential: Teacher = Field(description="The teacher")
    device: Device = Field(default="cpu", description="cpu takes any worker; cuda and auto as in explore")
    dtype: Literal["float32", "float64"] = Field(default="float64", description="Precision of the teacher")
    checks: LabelChecks = Field(default_factory=LabelChecks, description="What a label must satisfy")
    second: SecondTeacher | None = Field(default=None, description="Another teacher, to compare with; null for none")
    isolated_atoms: bool = Field(
        default=True, description="Whether it labels an isolated atom of each element, the zero of binding energies"
    )
    batch_size: PositiveInt = Field(
        default=16, description="Frames a unit; by default fewer for teachers that take minutes"
    )
    cache_dir: str | None = Field(
        default=None,
        description="Folder in which labels are kept for other runs; by default those of costly teachers are kept in "
        "the run directory",
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_batch_size(cls, content: Any) -> Any:
        """Take the number of frames that suits the teacher, where none is given."""
        if isinstance(content, dict) and "batch_size" not in content:
            potential = content.get("potential")
            name = potential.get("name") if isinstance(potential, dict) else getattr(potential, "name", None)
            size = traits_of(name).batch_size if name in POTENTIALS.table else None
            return content if size is None else {**content, "batch_size": size}
        return content


class Config(FrozenModel):
    """A run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names the run directory")
    seed: int = Field(default=0, ge=0, description="Same seed, same structures")
    generate: Generate
    explore: Explore
    describe: Describe = Field(default_factory=Describe)
    select: Select
    label: Label
    store: Split = Field(default_factory=Split)
    quality: Quality = Field(default_factory=Quality)
    cluster: Cluster = Field(default_factory=Cluster)
    budget: Budget = Field(default_factory=Budget)
    faults: Faults = Field(default_factory=Faults)
    shard: str | None = Field(default=None, description="Part of a campaign, e.g. 2/8: its seeds, a share of picks")

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, shard: str | None) -> str | None:
        if shard is not None:
            number, n = parse_shard(shard) if re.fullmatch(r"[1-9]\d*/[1-9]\d*", shard, re.ASCII) else (1, 0)
            if number > n:
                raise ValueError("must be i/n with i from 1 to n, e.g. 2/8")
        return shard

    @model_validator(mode="after")
    def _check_picks(self) -> Config:
        if self.shard is not None and not _take_share(self._n_labels, self.shard):
            raise ValueError(
                f"select.n={self._n_labels} leaves shard={self.shard} nothing to pick; give fewer shards or a larger n"
            )
        return self

    @model_validator(mode="after")
    def _check_energy_window(self) -> Config:
        if self.select.energy_window is not None and self.explore.relax is None:
            raise ValueError(
                f"select.energy_window={self.select.energy_window:g} needs energies, which exploration stores where "
                "it relaxes seeds; give explore.relax, e.g. explore=relax, or leave it out"
            )
        return self

    @property
    def _n_labels(self) -> int:
        """Frames to pick, of all shards together."""
        return min(self.select.n, self.budget.labels or self.select.n)

    @property
    def selection(self) -> Select:
        """``select`` with the number of picks of this run: cut to the budget's labels and to the shard's share."""
        n = self._n_labels
        return self.select.model_copy(update={"n": n if self.shard is None else _take_share(n, self.shard)})

    @property
    def run_name(self) -> str:
        """Name of the run directory, if no other is given."""
        return self.name if self.shard is None else f"{self.name}-{self.shard.replace('/', 'of')}"

    def holds_seed(self, structure: str) -> bool:
        """Tell whether a seed, given by its id in hex, belongs to the shard.

        The range of ids is cut into n equal parts: shards are disjoint, and together complete, for any n.
        """
        if self.shard is None:
            return True
        number, n = parse_shard(self.shard)
        return int(structure[:16], 16) * n >> 64 == number - 1

    def dump_deciding(self) -> dict[str, Any]:
        """Return the part of the config that decides what the dataset holds, as JSON types.

        Where and how fast it is made is left out. ``select.n`` is cut to the budget's labels and to the shard's share.
        """
        return self.model_copy(update={"select": self.selection}).model_dump(
            mode="json",
            exclude={
                "cluster": True,
                "budget": True,
                "name": True,
                "quality": True,
                "faults": True,
                "explore": {"device", "checkpoint"},
                "describe": {"device"},
                "label": {"device", "cache_dir"} | ({"second"} if self.label.second is None else set()),
            },
        )


def parse_shard(shard: str) -> tuple[int, int]:
    """Return the number, from 1, and the count of a shard ``i/n``.

    Examples
    --------
    >>> parse_shard("2/8")
    (2, 8)
    """
    number, _, n = shard.partition("/")
    return int(number), int(n)


def _take_share(total: int, shard: str) -> int:
    """Return a shard's share of a count; those of all shards add up to it."""
    number, n = parse_shard(shard)
    return total * number // n - total * (number - 1) // n
