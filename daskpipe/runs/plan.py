"""What a config would do, told before anything runs: counts, bytes, files; and hours, where a probe has measured."""

from __future__ import annotations

import io
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import daskpipe.store.stage as storing
from daskpipe.cluster.sites import site_of
from daskpipe.config.models import Config
from daskpipe.pipeline.steps import devices
from daskpipe.runs.budget import HOUR, limits, size_in_words
from daskpipe.runs.costs import Line, counts
from daskpipe.stages import describe
from daskpipe.stages.describe.catalogue import has_atom_rows
from daskpipe.stages.describe.stage import FIT
from daskpipe.stages.explore.stage import ensemble_of
from daskpipe.stages.explore.timesteps import timestep_of, timestep_warning
from daskpipe.stages.generate.stage import FILES, Request, generate_partition, list_requests

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.runs.costs import Measured
    from daskpipe.stages.explore.settings import Dynamics

SAMPLE = 16
"""Seeds that are really generated to learn how large they are."""

SAMPLE_SECONDS = 5.0
"""Time after which no further one is generated."""

SMALL_FILE = 2**20
"""Files larger than this, bytes, are not read by plan."""

OVERHEAD = (1400.0, 43_000.0, 27_000.0)
"""Bytes of a manifest, of a dataset's metadata, and of ledger and logs, where no probe has measured them."""

UNIT_INODES = 4
"""A committed unit is a folder with payload.npz, rejected.json and manifest.json."""


def plan(config: Config, measured: Measured | None = None) -> dict[str, Any]:
    """Count inputs, outputs, units, bytes and files of each stage, and its hours if a probe has measured.

    Parameters
    ----------
    config
        A validated config.
    measured
        What a probe found, from `daskpipe.runs.probe.probe`.

    Returns
    -------
    dict
        JSON types. ``stages``: per stage ``pool`` (gpu or cpu), ``inputs``, ``outputs`` (at most), ``units``,
        ``tasks`` (a unit is one Dask task), ``bytes``, ``inodes``, ``seconds_a_unit`` and ``hours`` of work.
        ``totals``: the sums, and the ``dataset_bytes`` among the bytes. ``pools``: per pool its stages, ``workers``,
        ``hours`` of work and ``wall_hours``. ``seconds``: of the whole run on that many workers. ``budget``: the
        limits, and whether they are kept. ``dynamics``: of a sample of the seeds, how many are explored in which
        ensemble and with which time step (fs), and a ``warning`` if that is too long. ``doubts`` says what is not
        exact. What is not known is None.

    Raises
    ------
    InputError
        If a path of the config does not exist.
    """
    wanted = list_requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    sample = _sample(wanted, config)
    n_atoms = measured.n_atoms if measured else float(np.mean([len(atoms) for atoms in sample] or [1]))
    found = counts(config, len(wanted), measured.seeds_a_request if measured else 1.0, n_atoms)
    if measured:
        sizes: Mapping[str, Line] = {stage: rate.bytes for stage, rate in measured.rates.items()}
        overhead = measured.overhead
    else:
        sizes, overhead = _sizes(sample, config), OVERHEAD
    on_gpu = measured.on_gpu if measured else _on_gpu(config)
    workers = measured.workers if measured else _workers(config)
    stages: dict[str, dict[str, Any]] = {}
    wall = dict.fromkeys(("gpu", "cpu"), 0.0)
    for stage, count in found.items():
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
            "inodes": _inodes(stage, count.units, measured.n_arrays if measured else 32),
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
        count = found[storing.WRITE]
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
    doubts = _doubts(config, wanted, measured)
    return {
        "name": config.run_name,
        "exact": not doubts,
        "doubts": doubts,
        "stages": stages,
        "totals": totals,
        "md_steps": found["explore"].inputs * config.explore.dynamics.n_steps,
        "pools": pools,
        "seconds": round(sum(wall.values()) + measured.around, 1) if measured else None,
        "budget": _budget(config, stages),
        "probe": measured.as_json() if measured else None,
        "dynamics": _dynamics(sample, config.explore.dynamics),
    }


def _dynamics(sample: Sequence[Atoms], dynamics: Dynamics) -> dict[str, Any]:
    """Count the ensembles and time steps of sampled seeds, and collect what is to be said against them."""
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


def _doubts(config: Config, wanted: Sequence[Request], measured: Measured | None) -> list[str]:
    doubts = []
    if any(request.generator == FILES for request in wanted):
        doubts.append(
            "files are not read by plan: each counts as one structure"
            if measured is None
            else f"each file counts as {measured.seeds_a_request:.3g} structures, as those that the probe read"
        )
    if len(config.explore.dynamics.pressures) > 1:
        doubts.append(
            "each structure is counted under each pressure: without a barostat there is one trajectory for all"
        )
    if config.shard is not None:
        doubts.append(
            f"how many seeds lie in shard {config.shard} is not known before they are generated: counted as their mean"
        )
    if config.select.against is not None:
        doubts.append("what describing the structures of select.against takes is not counted")
    return doubts + (measured.doubts if measured else [])


def _budget(config: Config, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compare what is planned with what may be taken."""
    hours, n_bytes = limits(config)
    labels = config.budget.labels
    if hours is None and n_bytes is None and labels is None:
        return None
    over, unknown = [], []
    for name, limit, key, words in (
        ("hours", hours, "hours", lambda value: f"{value:.3g} h of work"),
        ("bytes", n_bytes, "bytes", size_in_words),
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


def _sample(wanted: Sequence[Request], config: Config) -> list[Atoms]:
    """Generate a few seeds, spread over all of them; nothing of large files."""
    from daskpipe.core.errors import Rejection

    step = max(1, len(wanted) // SAMPLE)
    started = time.perf_counter()
    found: list[Atoms] = []
    for request in wanted[::step][:SAMPLE]:
        path = request.params.get("path", "")
        if request.generator == FILES and (not os.path.isfile(path) or Path(path).stat().st_size > SMALL_FILE):
            continue
        made = generate_partition([request], seed=config.seed, limits=config.generate.limits)
        found += [item for item in made if not isinstance(item, Rejection)]
        if time.perf_counter() - started > SAMPLE_SECONDS:
            break
    return found


def _sizes(sample: Sequence[Atoms], config: Config) -> dict[str, Line]:
    """Return the bytes of a unit of each stage, from what structures like those of the sample take."""
    from daskpipe.core.structures import from_atoms
    from daskpipe.engine.rows import arrays_of

    if not sample:
        return {}

    def line(frames: Sequence[Atoms]) -> Line:
        points = []
        for n in (1, 2):
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **arrays_of(from_atoms(list(frames) * n)))
            points.append((float(n * len(frames)), float(len(buffer.getvalue()))))
        return Line(points[0], points[1])

    def straight(first: float, each: float) -> Line:
        return Line((1.0, first + each), (2.0, first + 2 * each))

    dims = config.describe.dims
    frames = [_as_frame(atoms) for atoms in sample]
    labelled = [_as_labelled(atoms, dims) for atoms in frames]
    arrays = arrays_of(from_atoms(labelled))
    of_label = line(labelled)
    packed = sum(array.nbytes if array.dtype.kind != "U" else len(array) for array in arrays.values()) / len(sample)
    n_atoms = float(np.mean([len(atoms) for atoms in sample]))
    rows = 4 * dims * (1 + (n_atoms if config.describe.level == "atom" else 0))
    return {
        "generate": line(sample),
        "explore": line(frames),
        FIT: straight(_axes_bytes(sample, config), 0),
        "describe": straight(300, rows),
        "select": straight(3000, 4 * dims + 8 + 8 + 4 + 36),
        "label": of_label,
        storing.SORT: of_label,
        storing.PLAN: straight(3000, 21),
        storing.WRITE: straight(1000, packed),
        "store": straight(1000, 28),
    }


def _axes_bytes(sample: Sequence[Atoms], config: Config) -> float:
    """Bytes of the fitted axes; those of a model's features, which only the model could tell, count as none."""
    if describe.identify_model(config.describe) is not None:
        return 0.0
    species = sorted({symbol for atoms in sample for symbol in set(atoms.symbols)})
    descriptor = describe.build_descriptor(
        config.describe, species, "off" if has_atom_rows(config.describe) else "outer"
    )
    levels = 2 if config.describe.level == "atom" else 1
    return float(levels * (config.describe.dims + 1) * descriptor.n_features * 8)


def _as_frame(atoms: Atoms) -> Atoms:
    frame = atoms.copy()
    frame.info |= {
        "parent_id": bytes(16), "ensemble": "npt_isotropic", "replica": 0, "step": 0, "time": 0.0, "temperature": 0.0,
        "kinetic_temperature": 0.0, "pressure": 0.0,
    }  # fmt: skip
    return frame


def _as_labelled(atoms: Atoms, dims: int) -> Atoms:
    from ase.calculators.singlepoint import SinglePointCalculator

    frame = atoms.copy()
    frame.info |= {
        "features": np.zeros(dims, dtype=np.float32), "cluster": 0, "selection_reason": "kmeans", "label_method": "x",
        "label_status": "ok",
    }  # fmt: skip
    frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.zeros((len(frame), 3)), stress=np.zeros(6))
    return frame


def _inodes(stage: str, n_units: int, n_arrays: int) -> int:
    """Files and folders of a stage; files of the dataset are those of its units."""
    folders = 1 + round(256 * (1 - (1 - 1 / 256) ** n_units))  # units/STAGE, and units/STAGE/K0
    extra = {storing.SORT: n_units * n_arrays, storing.WRITE: n_units * math.ceil(n_arrays / 2), "store": 3 * n_arrays}
    return folders + n_units * UNIT_INODES + extra.get(stage, 0)


# --- where ------------------------------------------------------------------------------------------


def _on_gpu(config: Config) -> frozenset[str]:
    """Return the stages that would run on GPU workers."""
    gpu = _workers(config)["gpu"] > 0
    return frozenset(stage for stage, device in devices(config).items() if gpu and device != "cpu")


def _workers(config: Config) -> dict[str, int]:
    """Return how many workers each pool would have; 0 where it is not known, or none."""
    from daskpipe.cluster.local import local_workers

    settings = config.cluster
    if settings.address:
        return {"gpu": 0, "cpu": 0}
    if settings.name != "local":
        pools = site_of(settings).pools.values()
        return {
            kind: sum(pool.jobs * pool.n_processes for pool in pools if (pool.gpus > 0) == (kind == "gpu"))
            for kind in ("gpu", "cpu")
        }
    n_workers, n_gpus = local_workers(settings)
    return {"gpu": n_gpus, "cpu": n_workers}
