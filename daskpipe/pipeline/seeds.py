"""Generate the seeds of a config into one file: what ``daskpipe generate`` calls."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from daskpipe.config.load import load_config
from daskpipe.core.errors import InputError, describe_reasons
from daskpipe.core.events import Emit
from daskpipe.core.outputs import replace_output
from daskpipe.core.structures import take
from daskpipe.core.vendi import compute_vendi_score
from daskpipe.engine.dask_pool import DaskPool, Workers, gpu_stages
from daskpipe.engine.driver import Driver
from daskpipe.engine.rows import read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Receipt, Unit, unit_key
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.steps import generate_seeds
from daskpipe.pipeline.workspace import FilesResult, Outputs, check_target, run_in_workspace
from daskpipe.stages.describe.rows import compute_fingerprints, make_structures
from daskpipe.stages.generate.diversity import measure_diversity
from daskpipe.stages.generate.stage import count_refused, find_distinct_seeds, list_requests
from daskpipe.store.formats import iter_records
from daskpipe.store.formats.extxyz import format_frame

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms
    from distributed import Client

    from daskpipe.stages.describe.settings import Describe

WRITE = "write"
"""Stage that formats seeds."""

FRAMES = "frames.extxyz"
"""File of a unit of `WRITE`."""

SAMPLE = 500
"""Seeds, at most, whose features are compared."""


def generate_file(
    target: str,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> FilesResult:
    """Generate the seeds of a config, and write them to an extxyz file.

    Parameters
    ----------
    target
        A preset, or the path of a config; its sections ``generate``, ``describe``, ``seed`` and ``cluster`` count.
    out
        File to write, ``*.extxyz`` or ``*.xyz``. Equal structures are written once.
    overrides
        As those of `daskpipe.run`.
    force
        Replace `out` if it exists.
    client, subscribers
        As in `daskpipe.run`.

    Returns
    -------
    FilesResult
        Its report has ``diversity`` (see `daskpipe.stages.generate.diversity`), ``refused`` (structures that failed
        the checks and were replaced, by source and reason), and ``config`` (the sections that count).

    Raises
    ------
    ConfigError
        For a wrong config or file name, or if `out` exists.
    InputError
        If a path of the config does not exist, or no structure passes the checks.
    """
    out = check_target(out, (".extxyz", ".xyz"), force)
    config = load_config(target, overrides)
    settings = config.generate
    requests = list_requests(settings.sources, settings.paths, settings.base_dir)

    def write_seeds(directory: RunDirectory, workers: Workers, emit: Emit) -> Outputs:
        run = Run(config, {}, Driver(directory, DaskPool(workers, gpu_stages(workers, {})), emit, config.faults))
        seeds = generate_seeds(run, requests)
        keys = [receipt.key for receipt in seeds if receipt.n_out]
        if not keys:
            rejected = directory.read_quarantine()
            raise InputError(f"no seed passes the checks: {describe_reasons(rejected)}; e.g. {rejected[0].evidence}")
        rows, duplicates, _ = find_distinct_seeds(directory.root, keys)
        directory.write_quarantine(duplicates)
        distinct: dict[str, list[int]] = {key: [] for key in keys}
        for unit in rows:
            distinct[unit.key] += unit.rows

        def units() -> Iterator[xr.Dataset]:
            for key, chosen in distinct.items():
                yield take(read_unit(directory.root, "generate", key), chosen)

        frames = _format_units(run, distinct)
        with replace_output(out) as attempt:
            _join_files(directory, frames, attempt)
        wanted = {name: source.n for name, source in settings.sources.items() if source.n is not None}
        diversity = measure_diversity(units(), len(rows), wanted)
        report = {
            "diversity": {**diversity, "features": _measure_features(units(), len(rows), config.describe)},
            "refused": count_refused(run.driver.stages["generate"]["tallies"]),
            "config": config.model_dump(mode="json", include={"name", "seed", "generate"}),
        }
        return seeds, len(rows), report

    return run_in_workspace(f"generate {config.name}", config, out, client, subscribers, write_seeds)


def _measure_features(units: Iterable[xr.Dataset], n: int, settings: Describe) -> dict[str, Any]:
    """Count effectively different structures among `SAMPLE` seeds, spread evenly, by their mean descriptors."""
    stride = max(1, -(-n // SAMPLE))
    sampled: list[Atoms] = []
    seen = 0
    for ds in units:
        n_here = ds.sizes["structure"]
        rows = range(-seen % stride, n_here, stride)
        sampled += make_structures(take(ds, list(rows))) if rows else []
        seen += n_here
    species = sorted({symbol for atoms in sampled for symbol in atoms.symbols})
    features = compute_fingerprints(sampled, settings, species)
    effective = round(compute_vendi_score(features), 2)
    return {"descriptor": settings.descriptor, "sampled": len(sampled), "effective": effective}


def _format_units(run: Run, distinct: Mapping[str, list[int]]) -> list[Receipt]:
    """Format the distinct structures of units as frames of an extxyz file, on the workers."""
    plan = []
    for index, (key, rows) in enumerate(distinct.items()):
        unit_id = unit_key(WRITE, 1, {"rows": rows}, [key], run.seed)
        unit = Unit(stage=WRITE, index=index, key=unit_id, n_inputs=len(rows), upstream=(key,))
        task = dask.delayed(partial(_format_unit, run.directory.root, key, rows), name=f"{WRITE}-{key}", traverse=False)
        plan.append((unit, task))
    return run.driver.run_stage(WRITE, plan, "seeds")


def _format_unit(root: Path, key: str, rows: list[int]) -> Payload:
    """Format structures of a unit as frames of an extxyz file."""
    ds = take(read_unit(root, "generate", key), rows)
    text = "".join(format_frame(record) for record in iter_records(ds))
    return Payload(arrays={}, n_out=len(rows), files={FRAMES: text.encode()})


def _join_files(directory: RunDirectory, frames: Sequence[Receipt], path: Path) -> None:
    """Write the frames of all units to one file."""
    with open(path, "wb") as target:
        for receipt in frames:
            with open(directory.unit_file(WRITE, receipt.key, FRAMES), "rb") as source:
                shutil.copyfileobj(source, target)
