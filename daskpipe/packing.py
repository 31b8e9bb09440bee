"""From committed rows to a dataset: sort, plan, write, publish, each in units of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import dask

import daskpipe.store.stage as storing
from daskpipe.completed import ATTRIBUTE, stage_versions
from daskpipe.driving import Run
from daskpipe.errors import InputError
from daskpipe.events import UnitForgotten
from daskpipe.manifests import units_of
from daskpipe.variables import read_root
from daskpipe.work import Receipt, Unit, key_of


def pack(
    run: Run,
    receipts: Sequence[Receipt],
    sources: Sequence[storing.Source],
    target: Path,
    attrs: Mapping[str, Any],
) -> Receipt:
    """Sort, plan, write and publish a dataset of committed rows: `receipts` are those of the units of `sources`."""
    root, rule = run.tree.root, run.config.store
    runs = []
    for index, batch in enumerate(_runs(list(zip(receipts, sources, strict=True)))):
        of_run = [source for _, source in batch]
        key = key_of(storing.SORT, storing.VERSION, {}, [asdict(source) for source in of_run], run.seed)
        n_rows = sum(receipt.n_out for receipt, _ in batch)
        upstream = tuple(source.key for source in of_run)
        unit = Unit(stage=storing.SORT, index=index, key=key, n_inputs=n_rows, upstream=upstream)
        runs.append((unit, partial(dask.delayed(storing.sort), root, of_run, seed=run.seed)))
    keys = [unit.key for unit, _ in runs]
    n_inputs = sum(receipt.n_out for receipt in receipts)
    attrs = {**attrs, "seed": run.seed, "split_rule": storing.split_rule(run.seed, rule.split, rule)}
    plan_key, key = _keys(run, attrs, keys, target)
    unit = Unit(stage="store", index=0, key=key, n_inputs=n_inputs, upstream=(plan_key,))
    if not target.exists():
        # The user took the dataset away; the units that make it still stand.
        for _, manifest in units_of(run.tree, "store"):
            run.emit(UnitForgotten(stage="store", key=manifest.unit.key, reason="its dataset was taken away"))
            run.tree.forget("store", manifest.unit.key)
    run.drive(storing.SORT, runs, "structures")
    planned = Unit(stage=storing.PLAN, index=0, key=plan_key, n_inputs=n_inputs, upstream=tuple(keys))
    plan = partial(dask.delayed(storing.plan), root, keys, rule, seed=run.seed)
    run.drive(storing.PLAN, [(planned, plan)], "structures")
    run.stages[storing.PLAN]["report"] = json.loads(run.tree.load(storing.PLAN, plan_key, ["report"])["report"].item())
    chunks = []
    for index, (axis, number, n_files) in enumerate(storing.chunks_of(storing.read_plan(root, plan_key))):
        chunk_key = key_of(storing.WRITE, storing.VERSION, {"axis": axis, "number": number}, [plan_key], run.seed)
        chunk = Unit(stage=storing.WRITE, index=index, key=chunk_key, n_inputs=n_files, upstream=(plan_key,))
        chunks.append((chunk, partial(dask.delayed(storing.write), root, keys, plan_key, axis, number)))
    run.drive(storing.WRITE, chunks, "files")
    publish = partial(
        dask.delayed(storing.store),
        root,
        plan_key,
        [chunk.key for chunk, _ in chunks],
        target=target,
        attrs={
            **attrs,
            ATTRIBUTE: json.dumps(stage_versions(run.config), sort_keys=True),
            "versions": json.dumps(versions(), sort_keys=True),
            "dataset_key": key,
        },
    )
    return run.drive("store", [(unit, publish)], "structures")[0]


def _keys(run: Run, attrs: Mapping[str, Any], runs: Sequence[str], target: Path) -> tuple[str, str]:
    """Return the keys of the units that plan and publish a dataset; the second one names its content, too.

    The second one was hashed with the versions of packages before they were seen to be no part of it, and both with
    earlier ways to make splits. A dataset that stands and was made so keeps its keys.
    """
    rule = run.config.store

    def keys(version: int, split: dict[str, Any], attrs: Mapping[str, Any]) -> tuple[str, str]:
        plan_key = key_of(storing.PLAN, version, split, runs, run.seed)
        params = {"attrs": dict(attrs), "split": split}
        return plan_key, key_of("store", storing.VERSION, params, [plan_key], run.seed)

    now = storing.PLAN_VERSION, rule.model_dump()
    with suppress(InputError):  # no dataset stands there; the writer refuses anything else that does
        there = read_root(target)["attributes"]
        # The config is that of the run directory, which was compared; a later version writes more of its defaults.
        recorded = {**attrs, **{name: there[name] for name in ("config",) if name in there and name in attrs}}
        for version, split in (now, (storing.VERSION, rule.model_dump(exclude={"gap", "keep_splits"}))):
            for provenance in ({}, {"versions": there.get("versions")}):
                made = keys(version, split, {**recorded, **provenance})
                if there.get("dataset_key") == made[1]:
                    return made
    return keys(*now, attrs)


def _runs(items: Sequence[tuple[Receipt, Any]]) -> list[list[tuple[Receipt, Any]]]:
    """Gather units, in their order, into runs that one task can hold."""
    found: list[list[tuple[Receipt, Any]]] = []
    n_bytes = n_rows = 0
    for receipt, source in items:
        n_bytes, n_rows = n_bytes + receipt.n_bytes, n_rows + receipt.n_out
        if not found or n_bytes > storing.RUN_BYTES or n_rows > storing.RUN_STRUCTURES:
            found.append([])
            n_bytes, n_rows = receipt.n_bytes, receipt.n_out
        found[-1].append((receipt, source))
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers come from: provenance, and no part of any key."""
    from importlib.metadata import version

    libraries = ("numpy", "scipy", "scikit-learn", "torch", "zarr", "xarray")
    models = ("ase", "torch-sim-atomistic", "mace-torch", "chgnet", "tblite", "dscribe")
    return {name: version(name) for name in ("daskpipe", *libraries, *models)}
