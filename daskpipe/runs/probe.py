"""Probe a config: run about 1 % of it on its cluster, in a folder that is removed, and measure the costs of each stage.

Three passes run over the same seeds. The first is as small as possible: it pays the cost that each worker pays once
(imports, models, compiled kernels). The two others run units as large as those of the run, with few MD steps and with
as many as the time allows: the line through both is the cost of a unit. What the first passes took beyond that line is
the cost of the start.
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
from daskpipe.cluster.connect import check_cluster, connect
from daskpipe.cluster.joining import join_scheduler
from daskpipe.config.models import Config
from daskpipe.core.errors import DiskError
from daskpipe.core.events import Emit, Event, UnitCommitted, fan_out
from daskpipe.engine.dask_pool import CPU, GPU, Workers, gpu_stages, read_offers
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.settings import Budget
from daskpipe.pipeline.run_pipeline import run_pipeline
from daskpipe.pipeline.steps import list_devices
from daskpipe.runs.costs import Count, Line, Measurements, Rate, count_units
from daskpipe.runs.run import check_inputs
from daskpipe.stages.explore.stage import list_conditions
from daskpipe.stages.generate.stage import Request, list_requests
from daskpipe.store.quality.gate import judge

if TYPE_CHECKING:
    from distributed import Client

    from daskpipe.potentials import Identity

SHARE = 0.01
"""Share of the time of exploration that the longest pass takes, within `SECONDS`."""

SECONDS = (10.0, 90.0)
"""Shortest and longest time of the longest pass over the explored units, about."""

FRAME_STEPS = 10
"""MD steps between two frames of a probe, unless the run takes frames more often."""

FEW_UNITS, MOST_UNITS = 4, 16
"""Fewest and most explored units; between them, one a worker."""

UNRESOLVED = 1.2
"""Ratio of the costs of the long and the short pass below which the two do not resolve the cost of a step."""

SLOW_LABEL = 60.0
"""Seconds for one label above which the probe labels frames one by one."""


@dataclass
class _Pass:
    """Counts and measurements of one small run."""

    config: Config
    counts: Mapping[str, Count]
    stages: Mapping[str, Mapping[str, Any]]
    units: Mapping[str, list[UnitCommitted]]
    gate: float
    overhead: tuple[float, float, float]
    n_arrays: int
    n_atoms: float


def probe_run(
    config: Config, run_dir: Path | None = None, *, client: Client | None = None, subscribers: Sequence[Emit] = ()
) -> Measurements:
    """Run a small part of a config, and measure the costs of each stage.

    Parameters
    ----------
    config
        A validated config.
    run_dir
        The run directory to be; the probe works in a folder beside it and removes it. By default ``runs/NAME``.
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
    identities = check_inputs(config)
    wanted = list_requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    with _folder_beside(run_dir or Path("runs") / config.run_name) as folder:
        emit = fan_out(*subscribers)
        place = (
            connect(config.cluster, folder / "workers.log", emit)
            if client is None
            else nullcontext(join_scheduler(client, folder, emit))
        )
        with place as workers:
            connected = time.perf_counter() - started
            on_gpu = gpu_stages(workers, list_devices(config))
            passes = _run_passes(config, identities, wanted, workers, on_gpu, folder, subscribers)
            in_pools = _count_workers(workers)
            closing = time.perf_counter()
        closed = time.perf_counter() - closing
    done = passes[-1]
    n_requests = done.counts["generate"].inputs
    seeds_a_request = done.stages["generate"]["out"] / n_requests
    expected = count_units(config, len(wanted), seeds_a_request, done.n_atoms)
    n_stored, n_probed = expected["store"].inputs, done.stages["store"]["out"]
    gate = max(0.0, passes[0].gate - done.gate) + done.gate * max(1.0, n_stored / n_probed)
    return Measurements(
        rates={stage: _fit_rate(stage, passes, in_pools["gpu" if stage in on_gpu else "cpu"]) for stage in expected},
        workers=in_pools,
        on_gpu=on_gpu,
        seeds_a_request=seeds_a_request,
        n_atoms=done.n_atoms,
        n_arrays=done.n_arrays,
        overhead=done.overhead,
        around=connected + closed + gate,
        seconds=time.perf_counter() - started,
        sizes={stage: count.size for stage, count in expected.items()},
        doubts=_list_doubts(config, done),
    )


def _run_passes(
    config: Config,
    identities: Mapping[str, Identity],
    wanted: Sequence[Request],
    workers: Workers,
    on_gpu: frozenset[str],
    folder: Path,
    subscribers: Sequence[Emit],
) -> list[_Pass]:
    full = count_units(config, len(wanted))
    at_once = {stage: _count_workers(workers)["gpu" if stage in on_gpu else "cpu"] for stage in full}
    n_units = min(full["explore"].units, max(FEW_UNITS, min(at_once["explore"], MOST_UNITS)))
    chosen, n_seeds = _choose_requests(wanted, config, n_units)
    most, stride = config.explore.n_steps, min(_frame_stride(config), FRAME_STEPS)
    n_labels, batch = min(at_once["label"], MOST_UNITS), config.label.batch_size

    def run_short(number: int, steps: int, labels: int, batch: int) -> _Pass:
        small = _shorten_config(config, steps, stride, labels, batch)
        expected = count_units(small, len(chosen), n_seeds / len(chosen))
        return _run_pass(small, expected, identities, chosen, n_seeds, workers, folder / str(number), subscribers)

    first = run_short(0, stride, n_labels, 1)
    if max(unit.seconds for unit in first.units["label"]) > SLOW_LABEL:
        batch = 1
    short = min(2 * stride, most // stride * stride)
    second = run_short(1, short, n_labels * batch, batch)
    # Estimated wall time of the whole exploration.
    wall = second.stages["explore"]["seconds"]
    whole = wall * most / short * math.ceil(full["explore"].units / second.stages["explore"]["units"])
    least, longest = SECONDS
    steps = short * min(max(SHARE * whole, least), longest) / wall
    long = int(min(max(steps, 3 * short), most)) // stride * stride
    return [first, second, run_short(2, long, n_labels * batch, batch)]


def _choose_requests(wanted: Sequence[Request], config: Config, n_units: int) -> tuple[list[Request], int]:
    """Choose the requests for some full units, in ranges spread evenly over all, and the number of seeds to explore.

    Neighbours stay together: they are explored in one batch.
    """
    n_conditions = len(list_conditions(config.explore.dynamics, config.explore.relax))
    n_seeds = math.ceil(n_units * config.explore.batch_size / n_conditions)
    if n_seeds >= len(wanted):
        return list(wanted), n_seeds
    size = math.ceil(config.explore.batch_size / n_conditions)
    n_ranges = math.ceil(n_seeds / size)
    starts = np.linspace(0, len(wanted) - size, n_ranges).round().astype(int)
    rows = np.unique((starts[:, None] + np.arange(size)).ravel())[:n_seeds]
    return [wanted[row] for row in rows.tolist()], n_seeds


def _frame_stride(config: Config) -> int:
    """Return the steps between two frames of a trajectory, or of a relaxation where there is nothing else."""
    dynamics, relax = config.explore.dynamics, config.explore.relax
    return dynamics.stride if dynamics.steps or relax is None else relax.stride or relax.steps


def _shorten_config(config: Config, steps: int, stride: int, labels: int, batch: int) -> Config:
    """Return a config with fewer steps and labels, other batches of labels, no budget and no shard."""
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


def _run_pass(
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

    def note_commit(event: Event) -> None:
        if isinstance(event, UnitCommitted):
            units[event.stage].append(event)

    emit = fan_out(Ledger(directory), *subscribers, note_commit)
    stages = run_pipeline(directory, config, dict(identities), workers, emit, requests=chosen, n_seeds=n_seeds)
    started = time.perf_counter()
    judge(directory.dataset, config.quality)
    gate = time.perf_counter() - started
    manifests = [path.stat().st_size for path in directory.list_manifests()]
    of_units = sum(unit.n_bytes for of_stage in units.values() for unit in of_stage)
    metadata = measure_disk(directory.dataset) - sum(unit.n_bytes for unit in units[storing.WRITE])
    rest = measure_disk(root) - of_units - sum(manifests) - metadata
    sorted_run = units[storing.SORT][0]
    n_arrays = sum(name.endswith(".npy") for name in directory.list_files(storing.SORT, sorted_run.key))
    n_atoms = [directory.load_arrays("explore", unit.key, ["n_atoms"])["n_atoms"] for unit in units["explore"]]
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


def measure_disk(root: Path) -> int:
    """Return the size of all files below a folder, in bytes; a file with two names counts once."""
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())


def _count_workers(workers: Workers) -> dict[str, int]:
    """Count the workers of each pool: those with a GPU, and those for all other work."""
    offered = read_offers(workers.client)
    gpu = sum(int(resources.get(GPU, 0)) for resources in offered.values())
    apart = workers.supply is not None and CPU in workers.supply.resources
    cpu = sum(not apart or resources.get(CPU, 0) > 0 for resources in offered.values())
    return {"gpu": max(gpu, 1), "cpu": max(cpu, 1)}


# --- from passes to rates -----------------------------------------------------------------------------


def _fit_rate(stage: str, passes: Sequence[_Pass], n_workers: int) -> Rate:
    first, *warm = passes
    points = [_measure_point(stage, each, n_workers) for each in warm]
    start = _measure_point(stage, first, n_workers)
    seen = {unit.worker for unit in first.units[stage]}
    for index, (each, point) in enumerate(zip(warm, points, strict=True)):
        here = {unit.worker for unit in each.units[stage]}
        if here - seen:
            # A new worker paid the cost of its start in this pass.
            points[index] = replace(
                point, seconds=max(0.0, point.seconds - start.seconds), wall=max(0.0, point.wall - start.wall)
            )
        seen |= here
    short, long = points
    wall = _fit_line(stage, (short.size, short.wall), (long.size, long.wall))
    seconds = [unit.seconds for unit in warm[-1].units[stage]]
    mean = statistics.mean(seconds)
    return Rate(
        seconds=_fit_line(stage, (short.size, short.seconds), (long.size, long.seconds)),
        wall=wall,
        bytes=Line((short.rows, short.bytes), (long.rows, long.bytes)),
        # Part of the start may be paid only with full units, in the second pass.
        cold=sum(max(0.0, point.rounds * (point.wall - wall(point.size))) for point in (start, short)),
        probed=len(seconds),
        spread=statistics.stdev(seconds) / mean if len(seconds) > 1 and mean > 0 else None,
        size=long.size,
    )


def _fit_line(stage: str, short: tuple[float, float], long: tuple[float, float]) -> Line:
    """Fit the line through two points; through zero where three times the MD steps seem to cost hardly more.

    Such a result is the noise of a busy machine, and steps dominate a run. The costs of other stages may well not grow.
    """
    return Line(long, long) if stage == "explore" and long[1] < UNRESOLVED * short[1] else Line(short, long)


@dataclass(frozen=True)
class _Point:
    """Mean cost of a unit of a stage in a pass."""

    size: float
    rows: float
    seconds: float
    wall: float
    bytes: float
    rounds: int


def _measure_point(stage: str, each: _Pass, n_workers: int) -> _Point:
    row, units = each.stages[stage], each.units[stage]
    n_units = len(units)
    rounds = math.ceil(n_units / n_workers)
    wall = row["seconds"] / rounds
    # A stage that does not measure its units has only the time of the driver.
    seconds = statistics.mean(unit.seconds for unit in units) or row["seconds"] * min(n_workers, n_units) / n_units
    size, rows = row["inputs"] / n_units, row["out"] / n_units
    if stage == "explore":
        size = each.config.explore.n_steps
    elif stage == storing.WRITE:
        size = rows = each.stages["store"]["out"] / n_units
    return _Point(size, rows, seconds, wall, statistics.mean(unit.n_bytes for unit in units), rounds)


def _list_doubts(config: Config, done: _Pass) -> list[str]:
    doubts = []
    units = done.units["label"]
    if done.config.label.batch_size < config.label.batch_size:
        longest = max(unit.seconds for unit in units)
        doubts.append(f"one label took up to {longest:.0f} s, so the probe labelled frames one by one")
    stride = _frame_stride(done.config)
    if stride < _frame_stride(config):
        doubts.append(
            f"the probe keeps a frame every {stride} MD steps, the run every {_frame_stride(config)}: "
            "the cost of its steps is a little too high"
        )
    if config.explore.relax is not None:
        doubts.append("relaxations end when they have converged: they take fewer steps and frames than counted")
    share = done.config.explore.n_steps / config.explore.n_steps
    n_labels = sum(unit.n_inputs for unit in units)
    doubts.append(
        f"measured: {len(done.units['explore'])} units of exploration, each with {share:.1%} of its MD steps, and "
        f"{n_labels} labels; the rest is extrapolated. Time in a queue is not counted"
    )
    return doubts


@contextmanager
def _folder_beside(run_dir: Path) -> Iterator[Path]:
    """Yield a new folder on the disk that the run will use, and remove it afterwards."""
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
        # Renamed first: units that still run after an interruption cannot add files to it.
        gone = folder.with_name(f"{folder.name}-gone")
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
