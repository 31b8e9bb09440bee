"""Model what the stages of a run cost: units, seconds and bytes by size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import daskpipe.store.stage as storing
from daskpipe.config.models import Config, parse_shard
from daskpipe.stages.describe.stage import FIT
from daskpipe.stages.explore.stage import list_conditions
from daskpipe.stages.label.checking import STAGE as LABEL_CHECK
from daskpipe.stages.label.checking import draw_checks
from daskpipe.stages.label.isolated_atoms import STAGE as LABEL_ATOMS
from daskpipe.stages.label.judging import STAGE as LABEL_JUDGE
from daskpipe.store.writer import ATOM_CHUNK, STRUCTURE_CHUNK


@dataclass(frozen=True)
class Line:
    """Cost that grows linearly with a size, through two measured points (size, cost).

    It is never below zero and never falls: where two measurements fall, the difference is noise.

    Examples
    --------
    >>> Line((1.0, 3.0), (3.0, 7.0))(10.0)
    21.0
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
    """Inputs, outputs (at most) and units of a stage, and the size with which the cost of a unit grows."""

    inputs: int
    outputs: int
    units: int
    size: float
    """Work in a unit: MD steps, or inputs, or rows of the dataset."""
    rows: float
    """Outputs of a unit, or rows of the dataset that it writes."""


def count_units(
    config: Config, n_requests: int, seeds_a_request: float = 1.0, n_atoms: float = 1.0, n_elements: int = 1
) -> dict[str, Count]:
    """Count the units of each stage of a run, in their order.

    Parameters
    ----------
    config
        Config of the run.
    n_requests
        Seeds to make and files to read.
    seeds_a_request
        Structures that each of them gives.
    n_atoms
        Atoms of a structure: a large dataset has more chunks of atoms than of structures.
    n_elements
        Elements whose isolated atoms are labelled.
    """
    dynamics, generate, explore, label = config.explore.dynamics, config.generate, config.explore, config.label
    n_made = round(n_requests * seeds_a_request)
    # Each shard generates all seeds and explores its own.
    n_seeds = n_made if config.shard is None else max(1, round(n_made / parse_shard(config.shard)[1]))
    # Counted as if all were bulk: without a barostat a seed is explored once for all pressures.
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

    def make_count(inputs: int, outputs: int, units: int, size: float = 0.0, rows: float = 0.0) -> Count:
        return Count(inputs, outputs, units, size or inputs / units, rows or outputs / units)

    return {
        "generate": make_count(n_requests, n_made, math.ceil(n_requests / generate.partition_size)),
        "explore": make_count(n_trajectories, n_frames, n_explore, size=explore.n_steps),
        FIT: make_count(n_sample, n_sample, 1),
        "describe": make_count(n_frames, n_frames, n_explore),
        "select": make_count(n_frames, n_picks, 1),
        "label": make_count(n_picks, n_picks, n_labels),
        **_count_checks(config, n_picks, n_labels, make_count),
        LABEL_JUDGE: make_count(n_picks, n_picks, 1),
        **({LABEL_ATOMS: make_count(n_elements, n_elements, n_elements)} if label.isolated_atoms else {}),
        storing.SORT: make_count(n_picks, n_picks, n_sorts),
        storing.PLAN: make_count(n_picks, n_picks, 1),
        storing.WRITE: make_count(n_picks, n_picks, n_chunks, n_picks / n_chunks, n_picks / n_chunks),
        "store": make_count(n_picks, n_picks, 1),
    }


def _count_checks(
    config: Config, n_picks: int, n_labels: int, make_count: Callable[[int, int, int], Count]
) -> dict[str, Count]:
    """Count the labels that are checked; none if neither finite differences nor a second teacher are asked for."""
    sizes = [len(range(number, n_picks, n_labels)) for number in range(n_labels)]
    second = config.label.second
    drawn = draw_checks(
        sizes, config.label.checks.finite_differences, None if second is None else second.share, seed=config.seed
    )
    n_checked = sum(len(plan.rows) for plan in drawn.values())
    return {LABEL_CHECK: make_count(n_checked, n_checked, len(drawn))} if drawn else {}


@dataclass(frozen=True)
class Rate:
    """Cost of a stage.

    Parameters
    ----------
    seconds, wall
        Seconds inside a unit, and wall time of one unit on each worker, by the size of the unit; see `Count`.
    bytes
        Size of the files of a unit, by its rows.
    cold
        Wall time that is spent once, in seconds: imports, models, kernels.
    probed
        Units that the longest pass ran.
    spread
        Standard deviation of their seconds over the mean; None where there is one unit.
    size
        Size of each of these units; costs of larger ones are extrapolated.
    """

    seconds: Line
    wall: Line
    bytes: Line
    cold: float
    probed: int
    spread: float | None
    size: float


@dataclass(frozen=True)
class Measurements:
    """Measurements of a probe, for `daskpipe.runs.plan.plan_run`."""

    rates: Mapping[str, Rate]
    workers: Mapping[str, int]
    """Workers of each pool, ``gpu`` and ``cpu``."""
    on_gpu: frozenset[str]
    seeds_a_request: float
    n_atoms: float
    n_arrays: int
    overhead: tuple[float, float, float]
    """Bytes of a manifest, of the metadata of the dataset, and of files outside units: ledger, logs."""
    around: float
    """Seconds to start and close the cluster, and of the quality gate."""
    seconds: float
    """Wall time of the probe, in seconds."""
    sizes: Mapping[str, float]
    """Size of a unit of each stage in the run."""
    doubts: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the measurements, and by how much each is extrapolated, as JSON types."""
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
