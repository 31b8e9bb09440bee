"""Plan a run before anything runs: counts, bytes and files, and hours if a probe has measured."""

from __future__ import annotations

import io
import math
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import daskpipe.store.stage as storing
from daskpipe.cluster.sites import load_site
from daskpipe.config.models import Config
from daskpipe.core.variables import SIZES, VARIABLES, missing_values
from daskpipe.pipeline.steps import list_devices
from daskpipe.potentials import explain_evaluator
from daskpipe.runs.budget import HOUR, compute_limits, format_bytes
from daskpipe.runs.costs import Count, Line, count_units
from daskpipe.stages import describe
from daskpipe.stages.describe.catalogue import has_atom_rows
from daskpipe.stages.describe.stage import FIT
from daskpipe.stages.explore.stage import ensemble_of, list_conditions
from daskpipe.stages.explore.timesteps import timestep_of, timestep_warning
from daskpipe.stages.generate.stage import EXTERNAL, FILES, Request, generate_partition, list_requests
from daskpipe.stages.label.checking import STAGE as LABEL_CHECK
from daskpipe.stages.label.isolated_atoms import STAGE as LABEL_ATOMS
from daskpipe.stages.label.judging import STAGE as LABEL_JUDGE

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.runs.costs import Measurements
    from daskpipe.stages.explore.settings import Dynamics

SAMPLE = 16
"""Seeds that are generated to measure their sizes."""

SAMPLE_SECONDS = 5.0
"""Seconds after which no further seed is generated."""

SMALL_FILE = 2**20
"""Largest file, in bytes, that plan reads."""

OVERHEAD = (1400.0, 43_000.0, 27_000.0)
"""Bytes of a manifest, of the metadata of a dataset, and of ledger and logs, where no probe has measured them."""

UNIT_INODES = 4
"""Files and folders of a committed unit: a folder with payload.npz, rejected.json and manifest.json."""

USUAL_ARRAYS = sum(1 for variable in VARIABLES.values() if variable.stage)
"""Arrays of a dataset where no probe has counted them: the variables that stages give to every structure."""

USUAL_WORDS = {"ensemble": "npt_isotropic", "selection_reason": "kmeans", "label_method": "x", "label_status": "ok"}
"""Words of usual length for variables that hold words."""


def plan_run(config: Config, measured: Measurements | None = None) -> dict[str, Any]:
    """Count inputs, outputs, units, bytes and files of each stage, and its hours if a probe has measured.

    Parameters
    ----------
    config
        A validated config.
    measured
        Measurements of a probe, from `daskpipe.runs.probe.probe_run`.

    Returns
    -------
    dict
        JSON types. ``stages``: per stage ``pool`` (gpu or cpu), ``inputs``, ``outputs`` (at most), ``units``,
        ``tasks`` (a unit is one Dask task), ``bytes``, ``inodes``, ``seconds_a_unit`` and ``hours`` of work.
        ``totals``: the sums, and the ``dataset_bytes`` among the bytes. ``pools``: per pool its stages, ``workers``,
        ``hours`` of work and ``wall_hours``. ``seconds``: wall time of the whole run on that many workers.
        ``budget``: the limits, and whether they are kept. ``dynamics``: of a sample of the seeds, how many are
        explored in which ensemble and with which time step (fs), and a ``warning`` if that is too long.
        ``evaluators``: by stage, what evaluates a potential that has a choice, and why. ``doubts``: what is not exact.
        Unknown values are None.

    Raises
    ------
    InputError
        If a path of the config does not exist.
    """
    wanted = list_requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    sample = _sample_seeds(wanted, config)
    n_atoms = measured.n_atoms if measured else float(np.mean([len(atoms) for atoms in sample] or [1]))
    seeds_a_request = sum(request.count for request in wanted) / len(wanted)
    n_elements = len({symbol for atoms in sample for symbol in atoms.symbols}) or 1
    n_seeds = measured.seeds_a_request if measured else seeds_a_request
    counts = count_units(config, len(wanted), n_seeds, n_atoms, n_elements)
    if measured:
        sizes: Mapping[str, Line] = {stage: rate.bytes for stage, rate in measured.rates.items()}
        overhead = measured.overhead
    else:
        sizes, overhead = _measure_sizes(sample, config), OVERHEAD
    on_gpu = measured.on_gpu if measured else _list_gpu_stages(config)
    workers = measured.workers if measured else _count_workers(config)
    stages: dict[str, dict[str, Any]] = {}
    wall = dict.fromkeys(("gpu", "cpu"), 0.0)
    for stage, count in counts.items():
        rate = measured.rates[stage] if measured else None
        pool = "gpu" if stage in on_gpu else "cpu"
        seconds = rate.seconds(count.size) if rate else None
        n_bytes = round(count.units * (sizes[stage](count.rows) + overhead[0])) if sizes else None
        stages[stage] = {
            "pool": pool,
            "inputs": count.inputs,
            "outputs": count.outputs,
            "units": count.units,
            "tasks": count.units,
            "bytes": n_bytes,
            "inodes": _count_inodes(stage, count.units, measured.n_arrays if measured else USUAL_ARRAYS),
            "seconds_a_unit": None if seconds is None else round(seconds, 4),
            "hours": None if seconds is None else round(count.units * seconds / HOUR, 6),
        }
        if rate:
            wall[pool] += rate.cold + math.ceil(count.units / workers[pool]) * rate.wall(count.size)
    totals: dict[str, Any] = {
        key: None if stages["explore"][key] is None else sum(row[key] for row in stages.values())
        for key in ("units", "tasks", "bytes", "inodes", "hours")
    }
    totals["dataset_bytes"] = None
    if totals["bytes"] is not None:
        totals["bytes"] += round(overhead[1] + overhead[2])
        count = counts[storing.WRITE]
        totals["dataset_bytes"] = round(count.units * sizes[storing.WRITE](count.rows) + overhead[1])
    pools = {
        pool: {
            "stages": (of_pool := [stage for stage, row in stages.items() if row["pool"] == pool]),
            "workers": workers[pool] or None,
            "hours": round(sum(stages[stage]["hours"] for stage in of_pool), 6) if measured else None,
            "wall_hours": round(wall[pool] / HOUR, 6) if measured else None,
        }
        for pool in ("gpu", "cpu")
        if any(row["pool"] == pool for row in stages.values())
    }
    doubts = _list_doubts(config, wanted, measured)
    return {
        "name": config.run_name,
        "exact": not doubts,
        "doubts": doubts,
        "stages": stages,
        "totals": totals,
        "md_steps": counts["explore"].inputs * config.explore.dynamics.n_steps,
        "relaxation_steps": _count_relaxation_steps(config, counts),
        "pools": pools,
        "seconds": round(sum(wall.values()) + measured.around, 1) if measured else None,
        "budget": _judge_budget(config, stages),
        "probe": measured.as_json() if measured else None,
        "dynamics": _summarise_dynamics(sample, config.explore.dynamics),
        "evaluators": _explain_evaluators(config, on_gpu),
    }


def _explain_evaluators(config: Config, on_gpu: Collection[str]) -> dict[str, str]:
    """Return what evaluates the potentials that have a choice, and why, by stage."""
    choices = {"explore": config.explore.potential, "label": config.label.potential}
    found = {
        stage: explain_evaluator(choice.name, choice.params, "cuda" if stage in on_gpu else "cpu")
        for stage, choice in choices.items()
    }
    return {stage: text for stage, text in found.items() if text is not None}


def _count_relaxation_steps(config: Config, counts: Mapping[str, Count]) -> int:
    """Return the largest number of steps of all relaxations, one a seed and pressure."""
    explore = config.explore
    if explore.relax is None:
        return 0
    conditions = list_conditions(explore.dynamics, explore.relax)
    n_seeds = counts["explore"].inputs // len(conditions)
    return n_seeds * sum(condition.relaxation for condition in conditions) * explore.relax.steps


def _summarise_dynamics(sample: Sequence[Atoms], dynamics: Dynamics) -> dict[str, Any]:
    """Count the ensembles and time steps of sampled seeds, and warn of a time step that is too long."""
    if not dynamics.steps:
        sample = []
    masses = [atoms.get_masses() for atoms in sample]
    steps = Counter(timestep_of(dynamics.timestep, each) for each in masses)
    warnings = (timestep_warning(dynamics.timestep, each) for each in sorted(masses, key=np.min))
    return {
        "n_sampled": len(sample),
        "ensembles": dict(sorted(Counter(ensemble_of(atoms, dynamics) for atoms in sample).items())),
        "timesteps": {f"{step:g}": steps[step] for step in sorted(steps)},
        "warning": next(filter(None, warnings), None),
    }


def _list_doubts(config: Config, wanted: Sequence[Request], measured: Measurements | None) -> list[str]:
    doubts = []
    if any(request.generator == FILES for request in wanted):
        doubts.append(
            "plan does not read files: each counts as one structure"
            if measured is None
            else f"each file counts as {measured.seeds_a_request:.3g} structures, as those that the probe read"
        )
    if any(request.generator == EXTERNAL for request in wanted):
        doubts.append("plan starts no external programs: the sizes of what they make are not known")
    if len(config.explore.dynamics.pressures) > 1:
        doubts.append(
            "each structure is counted under each pressure: without a barostat there is one trajectory for all"
        )
    if config.shard is not None:
        doubts.append(
            f"how many seeds lie in shard {config.shard} is not known before they are generated: counted as their mean"
        )
    if config.select.against is not None:
        doubts.append("the description of the structures of select.against is not counted")
    return doubts + (measured.doubts if measured else [])


def _judge_budget(config: Config, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compare the plan with the budget; return None if there is no budget."""
    hours, n_bytes = compute_limits(config)
    labels = config.budget.labels
    if hours is None and n_bytes is None and labels is None:
        return None
    over, unknown = [], []
    for name, limit, key, words in (
        ("hours", hours, "hours", lambda value: f"{value:.3g} h of work"),
        ("bytes", n_bytes, "bytes", format_bytes),
    ):
        if limit is None:
            continue
        if stages["explore"][key] is None:
            unknown.append(name)
        elif (needed := sum(row[key] for row in stages.values())) > limit:
            over.append(f"{name}: {words(needed)} of {words(limit)}")
    verdict = "over budget" if over else "unknown" if unknown else "GO"
    says = {
        "over budget": f"over budget ({'; '.join(over)}): the run will stop there with exit code 75",
        "unknown": f"{' and '.join(unknown)} unknown: type --probe",
        "GO": "GO: within the budget",
    }[verdict]
    if labels is not None and labels < config.select.n:
        says += f"; budget.labels={labels} cuts select.n={config.select.n}"
    return {"hours": hours, "bytes": n_bytes, "labels": labels, "verdict": verdict, "says": says}


# --- sizes ------------------------------------------------------------------------------------------


def _sample_seeds(wanted: Sequence[Request], config: Config) -> list[Atoms]:
    """Generate a few seeds, spread over all of them, but read no large files and start no other programs."""
    from daskpipe.core.errors import Rejection

    step = max(1, len(wanted) // SAMPLE)
    started = time.perf_counter()
    seeds: list[Atoms] = []
    for request in wanted[::step][:SAMPLE]:
        path = request.params.get("path", "")
        if request.generator == FILES and (not os.path.isfile(path) or Path(path).stat().st_size > SMALL_FILE):
            continue
        if request.generator == EXTERNAL:
            continue
        made = generate_partition([request], seed=config.seed, limits=config.generate.limits)
        seeds += [item for item in made if not isinstance(item, Rejection)]
        if time.perf_counter() - started > SAMPLE_SECONDS:
            break
    return seeds


def _measure_sizes(sample: Sequence[Atoms], config: Config) -> dict[str, Line]:
    """Measure the bytes of a unit of each stage, by rows, on the structures of a sample."""
    from daskpipe.core.structures import from_atoms
    from daskpipe.engine.rows import dataset_to_arrays

    if not sample:
        return {}

    def fit_line(frames: Sequence[Atoms]) -> Line:
        points = []
        for n in (1, 2):
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **dataset_to_arrays(from_atoms(list(frames) * n)))
            points.append((float(n * len(frames)), float(len(buffer.getvalue()))))
        return Line(points[0], points[1])

    def make_line(first: float, each: float) -> Line:
        return Line((1.0, first + each), (2.0, first + 2 * each))

    dims = config.describe.dims
    frames = [_give_placeholders(atoms, ["explore"], dims) for atoms in sample]
    labelled = [_give_placeholders(atoms, ["select", "label"], dims) for atoms in frames]
    arrays = dataset_to_arrays(from_atoms(labelled))
    of_label = fit_line(labelled)
    packed = sum(array.nbytes if array.dtype.kind != "U" else len(array) for array in arrays.values()) / len(sample)
    n_atoms = float(np.mean([len(atoms) for atoms in sample]))
    rows = 4 * dims * (1 + (n_atoms if config.describe.level == "atom" else 0))
    return {
        "generate": fit_line(sample),
        "explore": fit_line(frames),
        FIT: make_line(_estimate_axes(sample, config), 0),
        "describe": make_line(300, rows),
        "select": make_line(3000, 4 * dims + 8 + 8 + 4 + 36),
        "label": of_label,
        LABEL_CHECK: of_label,
        LABEL_ATOMS: make_line(800, 0),
        LABEL_JUDGE: make_line(1500, 4 * (3 * 17 + 32)),
        storing.SORT: of_label,
        storing.PLAN: make_line(3000, 21),
        storing.WRITE: make_line(1000, packed),
        "store": make_line(1000, 28),
    }


def _estimate_axes(sample: Sequence[Atoms], config: Config) -> float:
    """Return the bytes of the fitted axes; 0 for features of a model, whose number only the model knows."""
    if describe.identify_model(config.describe) is not None:
        return 0.0
    species = sorted({symbol for atoms in sample for symbol in set(atoms.symbols)})
    descriptor = describe.build_descriptor(
        config.describe, species, "off" if has_atom_rows(config.describe) else "outer"
    )
    levels = 2 if config.describe.level == "atom" else 1
    return float(levels * (config.describe.dims + 1) * descriptor.n_features * 8)


def _give_placeholders(atoms: Atoms, stages: Sequence[str], dims: int) -> Atoms:
    """Return a copy of a structure with a value for each variable that some stages give to every structure."""
    from ase.calculators.singlepoint import SinglePointCalculator

    frame, results = atoms.copy(), {}
    sizes = {"atom": len(atoms), "feature": dims, **SIZES}
    for name, variable in VARIABLES.items():
        if variable.stage not in stages or not variable.place:
            continue
        values = missing_values(name, tuple(sizes[dim] for dim in variable.dims if dim != "structure"))
        value = values if values.ndim else USUAL_WORDS.get(name, values.item())
        if variable.place == "results":
            results[name] = value
        elif variable.place == "arrays":
            frame.set_array(name, values)
        else:
            frame.info[name] = value
    if results:
        frame.calc = SinglePointCalculator(frame, **results)
    return frame


def _count_inodes(stage: str, n_units: int, n_arrays: int) -> int:
    """Count the files and folders of a stage; the files of the dataset are those of its units."""
    folders = 1 + round(256 * (1 - (1 - 1 / 256) ** n_units))  # units/STAGE, and units/STAGE/K0
    extra = {storing.SORT: n_units * n_arrays, storing.WRITE: n_units * math.ceil(n_arrays / 2), "store": 3 * n_arrays}
    return folders + n_units * UNIT_INODES + extra.get(stage, 0)


# --- where ------------------------------------------------------------------------------------------


def _list_gpu_stages(config: Config) -> frozenset[str]:
    """Return the stages that would run on GPU workers."""
    gpu = _count_workers(config)["gpu"] > 0
    return frozenset(stage for stage, device in list_devices(config).items() if gpu and device != "cpu")


def _count_workers(config: Config) -> dict[str, int]:
    """Count the workers that each pool would have; 0 where that is unknown."""
    from daskpipe.cluster.local import count_local_workers

    settings = config.cluster
    if settings.address:
        return {"gpu": 0, "cpu": 0}
    if settings.name != "local":
        pools = load_site(settings).pools.values()
        return {
            kind: sum(pool.jobs * pool.n_processes for pool in pools if (pool.gpus > 0) == (kind == "gpu"))
            for kind in ("gpu", "cpu")
        }
    n_workers, n_gpus = count_local_workers(settings)
    return {"gpu": n_gpus, "cpu": n_workers}
