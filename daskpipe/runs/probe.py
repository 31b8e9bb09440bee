"""A probe: about 1 % of a config really runs, on its cluster and in a folder that is removed, to learn its rates.

Three passes over the same seeds. The first is as small as can be: it pays for what each worker pays once (imports,
models, compiled kernels). The two others run units as large as those of the run, with few MD steps and with as many as
the time allows: the line through both is what a unit costs. What the first passes took beyond that line is the start.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import daskpipe.store.stage as storing
from daskpipe.cluster.connect import check as check_cluster
from daskpipe.cluster.connect import connect
from daskpipe.cluster.joining import join
from daskpipe.config.models import Config
from daskpipe.core.errors import DiskError
from daskpipe.core.events import Emit, Event, UnitCommitted, fan_out
from daskpipe.engine.dask_pool import CPU, GPU, Workers, gpu_stages, offers
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.settings import Budget
from daskpipe.pipeline.run_pipeline import run_pipeline
from daskpipe.pipeline.steps import devices
from daskpipe.runs.costs import Count, Line, Measured, Rate, counts
from daskpipe.runs.run import prepare
from daskpipe.stages.explore.stage import list_conditions
from daskpipe.stages.generate.stage import Request, list_requests
from daskpipe.store.quality.gate import judge

if TYPE_CHECKING:
    from distributed import Client

    from daskpipe.potentials import Identity

SHARE = 0.01
"""Of the time of exploration that its longest pass takes, within `SECONDS`."""

SECONDS = (10.0, 90.0)
"""Least and most time, about, of the longest pass over the explored units."""

FRAME_STEPS = 10
"""MD steps between two frames of a probe, unless the run takes them more often."""

FEW_UNITS, MOST_UNITS = 4, 16
"""Explored units: one a worker, within these."""

UNRESOLVED = 1.2
"""Cost of the longest pass over that of the short one below which the two do not tell what a step costs."""

SLOW_LABEL = 60.0
"""Seconds for one label from which on the probe labels no full batches."""


@dataclass
class _Pass:
    """One small run, as it went."""

    config: Config
    counts: Mapping[str, Count]
    stages: Mapping[str, Mapping[str, Any]]
    units: Mapping[str, list[UnitCommitted]]
    gate: float
    overhead: tuple[float, float, float]
    n_arrays: int
    n_atoms: float


def probe(
    config: Config, run_dir: Path | None = None, *, client: Client | None = None, subscribers: Sequence[Emit] = ()
) -> Measured:
    """Run a little of a config, and measure.

    Parameters
    ----------
    config
        A validated config.
    run_dir
        Where the run is going to be; the probe works in a folder beside it and removes it. By default ``runs/NAME``.
    client
        A Dask client to use; by default ``cluster`` of the config says what to start.
    subscribers
        Called with each event of the small runs.

    Raises
    ------
    ConfigError, InputError, ClusterError, DiskError
        As `daskpipe.run`.
    """
    started = time.perf_counter()
    if client is None:
        check_cluster(config.cluster)
    identities = prepare(config)
    wanted = list_requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    with _folder_beside(run_dir or Path("runs") / config.run_name) as folder:
        emit = fan_out(*subscribers)
        place = (
            connect(config.cluster, folder / "workers.log", emit)
            if client is None
            else nullcontext(join(client, folder, emit))
        )
        with place as workers:
            connected = time.perf_counter() - started
            on_gpu = gpu_stages(workers, devices(config))
            passes = _three(config, identities, wanted, workers, on_gpu, folder, subscribers)
            in_pools = _in_pools(workers)
            closing = time.perf_counter()
        closed = time.perf_counter() - closing
    done = passes[-1]
    n_requests = done.counts["generate"].inputs
    seeds_a_request = done.stages["generate"]["out"] / n_requests
    found = counts(config, len(wanted), seeds_a_request, done.n_atoms)
    n_stored, n_probed = found["store"].inputs, done.stages["store"]["out"]
    gate = max(0.0, passes[0].gate - done.gate) + done.gate * max(1.0, n_stored / n_probed)
    return Measured(
        rates={stage: _rate(stage, passes, in_pools["gpu" if stage in on_gpu else "cpu"]) for stage in found},
        workers=in_pools,
        on_gpu=on_gpu,
        seeds_a_request=seeds_a_request,
        n_atoms=done.n_atoms,
        n_arrays=done.n_arrays,
        overhead=done.overhead,
        around=connected + closed + gate,
        seconds=time.perf_counter() - started,
        sizes={stage: count.size for stage, count in found.items()},
        doubts=_doubts(config, done),
    )


def _three(
    config: Config,
    identities: Mapping[str, Identity],
    wanted: Sequence[Request],
    workers: Workers,
    on_gpu: frozenset[str],
    folder: Path,
    subscribers: Sequence[Emit],
) -> list[_Pass]:
    full = counts(config, len(wanted))
    at_once = {stage: _in_pools(workers)["gpu" if stage in on_gpu else "cpu"] for stage in full}
    n_units = min(full["explore"].units, max(FEW_UNITS, min(at_once["explore"], MOST_UNITS)))
    chosen, n_seeds = _some(wanted, config, n_units)
    most, stride = config.explore.n_steps, min(_stride(config), FRAME_STEPS)
    n_labels, batch = min(at_once["label"], MOST_UNITS), config.label.batch_size

    def run(number: int, steps: int, labels: int, batch: int) -> _Pass:
        small = _shortened(config, steps, stride, labels, batch)
        expected = counts(small, len(chosen), n_seeds / len(chosen))
        return _run(small, expected, identities, chosen, n_seeds, workers, folder / str(number), subscribers)

    first = run(0, stride, n_labels, 1)
    if max(unit.seconds for unit in first.units["label"]) > SLOW_LABEL:
        batch = 1
    short = min(2 * stride, most // stride * stride)
    second = run(1, short, n_labels * batch, batch)
    # Of the whole exploration, as it looks from here.
    wall = second.stages["explore"]["seconds"]
    whole = wall * most / short * math.ceil(full["explore"].units / second.stages["explore"]["units"])
    least, longest = SECONDS
    steps = short * min(max(SHARE * whole, least), longest) / wall
    long = int(min(max(steps, 3 * short), most)) // stride * stride
    return [first, second, run(2, long, n_labels * batch, batch)]


def _some(wanted: Sequence[Request], config: Config, n_units: int) -> tuple[list[Request], int]:
    """Choose what to generate for so many full units: stretches spread evenly over all; and how many seeds to explore.

    Neighbours stay together, for they fly together.
    """
    n_conditions = len(list_conditions(config.explore.dynamics, config.explore.relax))
    n_seeds = math.ceil(n_units * config.explore.batch_size / n_conditions)
    if n_seeds >= len(wanted):
        return list(wanted), n_seeds
    size = math.ceil(config.explore.batch_size / n_conditions)
    n_stretches = math.ceil(n_seeds / size)
    starts = np.linspace(0, len(wanted) - size, n_stretches).round().astype(int)
    rows = np.unique((starts[:, None] + np.arange(size)).ravel())[:n_seeds]
    return [wanted[row] for row in rows.tolist()], n_seeds


def _stride(config: Config) -> int:
    """Return the steps between two frames of a trajectory, or of a relaxation where there is nothing else."""
    dynamics, relax = config.explore.dynamics, config.explore.relax
    return dynamics.stride if dynamics.steps or relax is None else relax.stride or relax.steps


def _shortened(config: Config, steps: int, stride: int, labels: int, batch: int) -> Config:
    dynamics, relax = config.explore.dynamics, config.explore.relax
    if dynamics.steps:
        change: dict[str, Any] = {
            "dynamics": dynamics.model_copy(update={"steps": steps, "stride": stride, "equilibration": 0})
        }
    else:
        assert relax is not None
        change = {"relax": relax.model_copy(update={"steps": steps, "stride": stride})}
    return config.model_copy(
        update={
            "explore": config.explore.model_copy(update=change),
            "select": config.select.model_copy(update={"n": min(labels, config.selection.n), "against": None}),
            "label": config.label.model_copy(update={"batch_size": batch}),
            "budget": Budget(),
            "shard": None,
        }
    )


def _run(
    config: Config,
    expected: Mapping[str, Count],
    identities: Mapping[str, Identity],
    chosen: Sequence[Request],
    n_seeds: int,
    workers: Workers,
    root: Path,
    subscribers: Sequence[Emit],
) -> _Pass:
    root.mkdir()
    directory = RunDirectory(root)
    units: dict[str, list[UnitCommitted]] = defaultdict(list)

    def note(event: Event) -> None:
        if isinstance(event, UnitCommitted):
            units[event.stage].append(event)

    emit = fan_out(Ledger(directory), *subscribers, note)
    stages = run_pipeline(directory, config, dict(identities), workers, emit, requests=chosen, n_seeds=n_seeds)
    started = time.perf_counter()
    judge(directory.dataset, config.quality)
    gate = time.perf_counter() - started
    manifests = [path.stat().st_size for path in directory.manifests()]
    of_units = sum(unit.n_bytes for of_stage in units.values() for unit in of_stage)
    metadata = disk_bytes(directory.dataset) - sum(unit.n_bytes for unit in units[storing.WRITE])
    rest = disk_bytes(root) - of_units - sum(manifests) - metadata
    sorted_run = units[storing.SORT][0]
    n_arrays = sum(name.endswith(".npy") for name in directory.names_of_files(storing.SORT, sorted_run.key))
    n_atoms = [directory.load("explore", unit.key, ["n_atoms"])["n_atoms"] for unit in units["explore"]]
    return _Pass(
        config=config,
        counts=expected,
        stages=stages,
        units=units,
        gate=gate,
        overhead=(statistics.mean(manifests), float(max(0, metadata)), float(max(0, rest))),
        n_arrays=n_arrays,
        n_atoms=float(np.mean(np.concatenate(n_atoms))),
    )


def disk_bytes(root: Path) -> int:
    """Size of all files below a folder; one that has two names counts once."""
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())


def _in_pools(workers: Workers) -> dict[str, int]:
    """Count the workers of each pool: those with a GPU, and those that take the other work."""
    offered = offers(workers.client)
    gpu = sum(int(resources.get(GPU, 0)) for resources in offered.values())
    apart = workers.supply is not None and CPU in workers.supply.resources
    cpu = sum(not apart or resources.get(CPU, 0) > 0 for resources in offered.values())
    return {"gpu": max(gpu, 1), "cpu": max(cpu, 1)}


# --- from passes to rates -----------------------------------------------------------------------------


def _rate(stage: str, passes: Sequence[_Pass], n_workers: int) -> Rate:
    first, *warm = passes
    points = [_point(stage, each, n_workers) for each in warm]
    start = _point(stage, first, n_workers)
    seen = {unit.worker for unit in first.units[stage]}
    for index, (each, point) in enumerate(zip(warm, points, strict=True)):
        here = {unit.worker for unit in each.units[stage]}
        if here - seen:
            # A worker that had not been there: it paid its start again.
            points[index] = replace(
                point, seconds=max(0.0, point.seconds - start.seconds), wall=max(0.0, point.wall - start.wall)
            )
        seen |= here
    short, long = points
    wall = _line(stage, (short.size, short.wall), (long.size, long.wall))
    seconds = [unit.seconds for unit in warm[-1].units[stage]]
    mean = statistics.mean(seconds)
    return Rate(
        seconds=_line(stage, (short.size, short.seconds), (long.size, long.seconds)),
        wall=wall,
        bytes=Line((short.rows, short.bytes), (long.rows, long.bytes)),
        # Part of it may be paid only where a unit is full, in the second pass.
        cold=sum(max(0.0, point.rounds * (point.wall - wall(point.size))) for point in (start, short)),
        probed=len(seconds),
        spread=statistics.stdev(seconds) / mean if len(seconds) > 1 and mean > 0 else None,
        size=long.size,
    )


def _line(stage: str, short: tuple[float, float], long: tuple[float, float]) -> Line:
    """Return the line through two points; through zero where three times the MD steps seem to cost hardly more.

    That is the noise of a busy machine, and steps are what a run consists of. Other stages may well not grow.
    """
    return Line(long, long) if stage == "explore" and long[1] < UNRESOLVED * short[1] else Line(short, long)


@dataclass(frozen=True)
class _Point:
    """What a unit of a stage took in a pass, in the mean."""

    size: float
    rows: float
    seconds: float
    wall: float
    bytes: float
    rounds: int


def _point(stage: str, each: _Pass, n_workers: int) -> _Point:
    row, units = each.stages[stage], each.units[stage]
    n_units = len(units)
    rounds = math.ceil(n_units / n_workers)
    wall = row["seconds"] / rounds
    # A room that does not look at the clock has only that of the driver.
    seconds = statistics.mean(unit.seconds for unit in units) or row["seconds"] * min(n_workers, n_units) / n_units
    size, rows = row["inputs"] / n_units, row["out"] / n_units
    if stage == "explore":
        size = each.config.explore.n_steps
    elif stage == storing.WRITE:
        size = rows = each.stages["store"]["out"] / n_units
    return _Point(size, rows, seconds, wall, statistics.mean(unit.n_bytes for unit in units), rounds)


def _doubts(config: Config, done: _Pass) -> list[str]:
    doubts = []
    units = done.units["label"]
    if done.config.label.batch_size < config.label.batch_size:
        longest = max(unit.seconds for unit in units)
        doubts.append(f"one label took up to {longest:.0f} s, so the probe labelled frames one by one")
    stride = _stride(done.config)
    if stride < _stride(config):
        doubts.append(
            f"the probe keeps a frame every {stride} MD steps, the run every {_stride(config)}: "
            "its steps count a little too dear"
        )
    if config.explore.relax is not None:
        doubts.append("relaxations end when they have converged: fewer steps and frames than are counted")
    share = done.config.explore.n_steps / config.explore.n_steps
    n_labels = sum(unit.n_inputs for unit in units)
    doubts.append(
        f"measured: {len(done.units['explore'])} units of exploration, each with {share:.1%} of its MD steps, and "
        f"{n_labels} labels; all else is extrapolated. Waiting in a queue is not counted"
    )
    return doubts


@contextmanager
def _folder_beside(run_dir: Path) -> Iterator[Path]:
    """Yield a new folder on the disk that the run is going to use; it is gone afterwards."""
    parent = run_dir.absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{run_dir.name}-probe-", dir=parent))
    except OSError as error:
        raise DiskError(f"cannot write in {parent}: {error.strerror}; give another --run-dir") from error
    try:
        yield folder
    finally:
        # Away in one step: units that are still under way after an interruption find nothing to add to.
        gone = folder.with_name(f"{folder.name}-gone")
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
