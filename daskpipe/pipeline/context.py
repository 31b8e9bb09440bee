"""Hold what the steps of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daskpipe.config.models import Config
from daskpipe.engine.driver import Driver
from daskpipe.engine.run_directory import RunDirectory

if TYPE_CHECKING:
    from daskpipe.potentials import Identity


@dataclass(frozen=True)
class Run:
    """Config of a run, the potentials and models of its stages, and the driver of its units."""

    config: Config
    identities: Mapping[str, Identity]
    driver: Driver

    @property
    def directory(self) -> RunDirectory:
        """Run directory."""
        return self.driver.directory

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed
