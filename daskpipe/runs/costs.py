"""Model what the stages of a run cost: units, seconds and bytes by size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import daskpipe.store.stage as storing
from daskpipe.config.models import Config, part_of
from daskpipe.stages.describe.stage import FIT
from daskpipe.stages.explore.stage import list_conditions
from daskpipe.store.writer import ATOM_CHUNK, STRUCTURE_CHUNK

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Line:
    """A cost that grows linearly with a size, through two measured points, ((size, cost), (size, cost)).

    It is never below zero and never falls: where two measurements say so, they say no more than their noise.
    """

    short: tuple[float, float]
    long: tuple[float, float]

    def __call__(self, size: float) -> float:
        """Return the cost of a size."""
        (x1, y1), (x2, y2) = self.short, self.long
        through_zero = y2 / x2 if x2 else 0.0
        slope = through_zero if x1 == x2 else min(max(0.0, (y2 - y1) / (x2 - x1)), through_zero)
        return max(0.0, y2 + slope * (size - x2))


@dataclass(frozen=True)
class Count:
    """Inputs, outputs (at most) and units of a stage, and the size that the cost of a unit grows with."""

    inputs: int
    outputs: int
    units: int
    size: float
    """Of the work in a unit: MD steps, or inputs, or rows of the dataset."""
    rows: float
    """What a unit leaves: outputs, or rows of the dataset."""


def counts(config: Config, n_requests: int, seeds_a_request: float = 1.0, n_atoms: float = 1.0) -> dict[str, Count]:
    """Count the units of each stage of a run, in their order.

    Parameters
    ----------
    config
        Of the run.
    n_requests
        Seeds and files that are generated from.
    seeds_a_request
        Structures that each gives.
    n_atoms
        Atoms of a structure: a large dataset has more chunks of atoms than of structures.
    """
    dynamics, generate, explore, label = config.explore.dynamics, config.generate, config.explore, config.label
    n_made = round(n_requests * seeds_a_request)
    # Each shard generates all seeds and explores its own.
    n_seeds = n_made if config.shard is None else max(1, round(n_made / part_of(config.shard)[1]))
    # As if all were bulk: without a barostat a seed is explored once for all pressures.
    grid = list_conditions(dynamics, explore.relax)
    n_trajectories = n_seeds * len(grid)
    n_frames = n_trajectories * dynamics.n_frames
    if explore.relax is not None:
        n_frames += n_seeds * sum(condition.relaxation for condition in grid) * explore.relax.n_frames
    n_picks = min(config.selection.n, n_frames)
    n_explore = math.ceil(n_trajectories / explore.batch_size)
    n_sample = min(config.describe.sample, n_frames)
    n_chunks = math.ceil(n_picks / STRUCTURE_CHUNK) + math.ceil(n_picks * n_atoms / ATOM_CHUNK)
    n_sorts = math.ceil(n_picks / storing.RUN_STRUCTURES)
    n_labels = math.ceil(n_picks / label.batch_size)

    def count(inputs: int, outputs: int, units: int, size: float = 0.0, rows: float = 0.0) -> Count:
        return Count(inputs, outputs, units, size or inputs / units, rows or outputs / units)

    return {
        "generate": count(n_requests, n_made, math.ceil(n_requests / generate.partition_size)),
        "explore": count(n_trajectories, n_frames, n_explore, size=explore.n_steps),
        FIT: count(n_sample, n_sample, 1),
        "describe": count(n_frames, n_frames, n_explore),
        "select": count(n_frames, n_picks, 1),
        "label": count(n_picks, n_picks, n_labels),
        storing.SORT: count(n_picks, n_picks, n_sorts),
        storing.PLAN: count(n_picks, n_picks, 1),
        storing.WRITE: count(n_picks, n_picks, n_chunks, n_picks / n_chunks, n_picks / n_chunks),
        "store": count(n_picks, n_picks, 1),
    }


@dataclass(frozen=True)
class Rate:
    """What a stage costs.

    Parameters
    ----------
    seconds, wall
        Seconds inside a unit, and on the clock for one unit on each worker, by the unit's size; see `Count`.
    bytes
        Of a unit's files, by its rows.
    cold
        Seconds on the clock that are paid once: imports, models, kernels.
    probed
        Units that the longest pass ran.
    spread
        Standard deviation of their seconds over the mean, where there are several.
    size
        Of each of them; what lies beyond is extrapolated.
    """

    seconds: Line
    wall: Line
    bytes: Line
    cold: float
    probed: int
    spread: float | None
    size: float


@dataclass(frozen=True)
class Measured:
    """What a probe found; `daskpipe.runs.plan.plan` takes it."""

    rates: Mapping[str, Rate]
    workers: Mapping[str, int]
    """Workers of each pool, ``gpu`` and ``cpu``."""
    on_gpu: frozenset[str]
    seeds_a_request: float
    n_atoms: float
    n_arrays: int
    overhead: tuple[float, float, float]
    """Bytes of a manifest, of the dataset's metadata, and of what else is no unit: ledger, logs."""
    around: float
    """Seconds to start and close the cluster, and of the quality gate."""
    seconds: float
    """What the probe took."""
    sizes: Mapping[str, float]
    """Size of a unit of each stage in the run."""
    doubts: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return what was measured, and what that was extrapolated by, as JSON types."""
        return {
            "seconds": round(self.seconds, 1),
            "around_seconds": round(self.around, 2),
            "seeds_a_request": round(self.seeds_a_request, 4),
            "atoms_a_structure": round(self.n_atoms, 2),
            "stages": {
                stage: {
                    "probed_units": rate.probed,
                    "probed_size": round(rate.size, 2),
                    "extrapolated_by": round(self.sizes[stage] / rate.size, 2) if rate.size else None,
                    "start_seconds": round(rate.cold, 3),
                    "spread": None if rate.spread is None else round(rate.spread, 3),
                }
                for stage, rate in self.rates.items()
            },
        }
