"""Pack committed structures into a dataset: sort, plan, write and publish, each in units of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import dask

import daskpipe.store.stage as storing
from daskpipe.core.errors import InputError
from daskpipe.core.events import UnitForgotten
from daskpipe.core.root_metadata import read_root
from daskpipe.engine.manifests import read_units
from daskpipe.engine.units import Receipt, Unit, unit_key
from daskpipe.pipeline.completed import VERSIONS_ATTRIBUTE, collect_stage_versions
from daskpipe.pipeline.context import Run


def pack_dataset(
    run: Run,
    receipts: Sequence[Receipt],
    sources: Sequence[storing.LabelledUnit],
    target: Path,
    attrs: Mapping[str, Any],
    upstream_of_attrs: Sequence[str] = (),
) -> Receipt:
    """Pack committed structures into a dataset.

    Parameters
    ----------
    run
        Run whose driver brings the units to be committed.
    receipts, sources
        Units that hold the structures, and where the writer reads them, in the same order.
    target
        Path of the dataset.
    attrs
        Root attributes, besides those that every dataset has.
    upstream_of_attrs
        Keys of the units that root attributes come from.

    Returns
    -------
    Receipt
        Of the unit that published the dataset.
    """
    root, rule = run.directory.root, run.config.store
    runs = []
    for index, batch in enumerate(_batch_units(list(zip(receipts, sources, strict=True)))):
        of_run = [source for _, source in batch]
        key = unit_key(storing.SORT, storing.VERSION, {}, [source.list_upstream() for source in of_run], run.seed)
        n_rows = sum(receipt.n_out for receipt, _ in batch)
        upstream = tuple(dict.fromkeys(key for source in of_run for key in source.list_keys()))
        unit = Unit(stage=storing.SORT, index=index, key=key, n_inputs=n_rows, upstream=upstream)
        runs.append(
            (unit, partial(dask.delayed(storing.sort_rows), root, of_run, seed=run.seed, features_stage="describe"))
        )
    keys = [unit.key for unit, _ in runs]
    n_inputs = sum(receipt.n_out for receipt in receipts)
    attrs = {**attrs, "seed": run.seed, "split_rule": storing.split_rule(run.seed, rule.split, rule)}
    plan_key, key = _choose_keys(run, attrs, keys, target)
    unit = Unit(stage="store", index=0, key=key, n_inputs=n_inputs, upstream=(plan_key, *upstream_of_attrs))
    if not target.exists():
        # The user removed the dataset; the units that made it are still there.
        for _, manifest in read_units(run.directory, "store"):
            run.driver.emit(UnitForgotten(stage="store", key=manifest.unit.key, reason="its dataset was taken away"))
            run.directory.forget_unit("store", manifest.unit.key)
    run.driver.run_stage(storing.SORT, runs, "structures")
    planned = Unit(stage=storing.PLAN, index=0, key=plan_key, n_inputs=n_inputs, upstream=tuple(keys))
    plan = partial(dask.delayed(storing.plan_dataset), root, keys, rule, seed=run.seed)
    run.driver.run_stage(storing.PLAN, [(planned, plan)], "structures")
    run.driver.stages[storing.PLAN]["report"] = json.loads(
        run.directory.load_arrays(storing.PLAN, plan_key, ["report"])["report"].item()
    )
    chunks = []
    for index, (axis, number, n_files) in enumerate(storing.chunks_of(storing.read_plan(root, plan_key))):
        chunk_key = unit_key(storing.WRITE, storing.VERSION, {"axis": axis, "number": number}, [plan_key], run.seed)
        chunk = Unit(stage=storing.WRITE, index=index, key=chunk_key, n_inputs=n_files, upstream=(plan_key,))
        chunks.append((chunk, partial(dask.delayed(storing.write_chunks), root, keys, plan_key, axis, number)))
    run.driver.run_stage(storing.WRITE, chunks, "files")
    publish = partial(
        dask.delayed(storing.publish_chunks),
        root,
        plan_key,
        [chunk.key for chunk, _ in chunks],
        target=target,
        attrs={
            **attrs,
            VERSIONS_ATTRIBUTE: json.dumps(collect_stage_versions(run.config), sort_keys=True),
            "versions": json.dumps(read_package_versions(), sort_keys=True),
            "dataset_key": key,
        },
    )
    return run.driver.run_stage("store", [(unit, publish)], "structures")[0]


def _choose_keys(run: Run, attrs: Mapping[str, Any], runs: Sequence[str], target: Path) -> tuple[str, str]:
    """Return the keys of the units that plan and publish a dataset; the second one names its content, too.

    Earlier versions hashed the versions of packages into the second key, and earlier rules for splits into both. A
    dataset that was made so keeps its keys.
    """
    rule = run.config.store

    def make_keys(version: int, split: dict[str, Any], attrs: Mapping[str, Any]) -> tuple[str, str]:
        plan_key = unit_key(storing.PLAN, version, split, runs, run.seed)
        params = {"attrs": dict(attrs), "split": split}
        return plan_key, unit_key("store", storing.VERSION, params, [plan_key], run.seed)

    now = storing.PLAN_VERSION, rule.model_dump()
    with suppress(InputError):  # there is no dataset; the writer refuses anything else at this path
        there = read_root(target)["attributes"]
        # The config was compared with that of the run directory; a later version writes more of its defaults.
        recorded = {**attrs, **{name: there[name] for name in ("config",) if name in there and name in attrs}}
        for version, split in (now, (storing.VERSION, rule.model_dump(exclude={"gap", "keep_splits"}))):
            for provenance in ({}, {"versions": there.get("versions")}):
                made = make_keys(version, split, {**recorded, **provenance})
                if there.get("dataset_key") == made[1]:
                    return made
    return make_keys(*now, attrs)


def _batch_units(items: Sequence[tuple[Receipt, Any]]) -> list[list[tuple[Receipt, Any]]]:
    """Group units, in their order, into batches that one task can sort in memory."""
    runs: list[list[tuple[Receipt, Any]]] = []
    n_bytes = n_rows = 0
    for receipt, source in items:
        n_bytes, n_rows = n_bytes + receipt.n_bytes, n_rows + receipt.n_out
        if not runs or n_bytes > storing.RUN_BYTES or n_rows > storing.RUN_STRUCTURES:
            runs.append([])
            n_bytes, n_rows = receipt.n_bytes, receipt.n_out
        runs[-1].append((receipt, source))
    return runs


def read_package_versions() -> dict[str, str]:
    """Return the versions of the packages that compute numbers: provenance, and no part of any key."""
    from importlib.metadata import PackageNotFoundError

    from daskpipe.core.versions import read_version
    from daskpipe.potentials import list_packages

    libraries = ("daskpipe", "numpy", "scipy", "scikit-learn", "torch", "zarr", "xarray")
    installed = {}
    for name in (*libraries, *list_packages(), "dscribe"):
        with suppress(PackageNotFoundError):  # of a potential that is not used here
            installed[name] = read_version(name)
    return installed
