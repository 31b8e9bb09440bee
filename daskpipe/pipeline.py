"""The corridor: generate -> explore -> describe -> select -> label -> store.

It calls the rooms in order, turns their lazy collections into units and drives them through the window.
It computes nothing itself and keeps nothing but receipts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.bag as db

import daskpipe.describe.stage as describing
import daskpipe.explore.stage as exploring
import daskpipe.generate.stage as generating
import daskpipe.label.stage as labelling
import daskpipe.select.stage as selecting
import daskpipe.store.stage as storing
from daskpipe import config as configs
from daskpipe import potentials
from daskpipe.cluster import connect
from daskpipe.config import Config
from daskpipe.errors import ConfigError, DaskpipeError, InputError, Rejection
from daskpipe.events import Emit, RunFinished, RunStarted, StageFinished, StageStarted, fan_out
from daskpipe.placement import DaskPool, gpu_stages, offers
from daskpipe.work import (
    Ledger,
    Receipt,
    Rows,
    Task,
    Tree,
    Unit,
    commit,
    drive,
    key_of,
    write_atomically,
)

if TYPE_CHECKING:
    from distributed import Client

STAGES = ("generate", "explore", "describe", "select", "label", "store")


@dataclass(frozen=True)
class Result:
    """What a run made.

    Parameters
    ----------
    run_dir, dataset
        Where it is.
    stages
        Per stage: units, computed now, inputs, outputs, rejected, wall seconds, counts by system type.
    quarantined
        Rejected structures by reason.
    seconds
        Wall time of this driver.
    """

    run_dir: Path
    dataset: Path
    stages: dict[str, dict[str, Any]]
    quarantined: dict[str, int]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 10 if structures were quarantined."""
        return 10 if self.quarantined else 0


@dataclass
class _Run:
    """What all stages of a run share."""

    config: Config
    tree: Tree
    pool: DaskPool
    emit: Emit
    identities: Mapping[str, potentials.Identity]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.config.seed

    def drive(self, stage: str, plan: Sequence[tuple[Unit, Callable[[], Any]]], what: str) -> list[Receipt]:
        """Bring all units of a stage to be committed; return their receipts in order.

        `plan` pairs each unit with a function that makes its lazy payload; it is called only where needed.
        """
        started = time.perf_counter()
        missing = [(unit, lazy) for unit, lazy in plan if self.tree.receipt(unit) is None]
        self.emit(
            StageStarted(
                stage=stage,
                n_units=len(plan),
                n_committed=len(plan) - len(missing),
                n_inputs=sum(unit.n_inputs for unit, _ in plan),
                what=what,
            )
        )
        tasks = [Task(unit=unit, work=_committed(self.tree.root, unit, lazy())) for unit, lazy in missing]
        if tasks:
            drive(tasks, self.pool, self.emit)
        receipts = []
        for unit, _ in plan:
            receipt = self.tree.receipt(unit)
            if receipt is None:
                raise DaskpipeError(f"{unit} gave a receipt and is not on disk; is {self.tree.root} shared by all workers?")
            if receipt.n_rejected:
                self.tree.quarantine(self.tree.rejected(unit.stage, unit.key))
            receipts.append(receipt)
        self._finished(stage, receipts, len(tasks), time.perf_counter() - started)
        return receipts

    def _finished(self, stage: str, receipts: list[Receipt], n_computed: int, seconds: float) -> None:
        counts: dict[str, int] = {}
        for receipt in receipts:
            for name, count in receipt.counts.items():
                counts[name] = counts.get(name, 0) + count
        row = {
            "units": len(receipts),
            "computed": n_computed,
            "inputs": sum(receipt.n_inputs for receipt in receipts),
            "out": sum(receipt.n_out for receipt in receipts),
            "rejected": sum(receipt.n_rejected for receipt in receipts),
            "seconds": round(seconds, 2),
            "counts": counts,
        }
        self.stages[stage] = row
        self.emit(
            StageFinished(stage=stage, seconds=seconds, n_out=row["out"], n_rejected=row["rejected"], counts=counts)
        )


def _committed(root: Path, unit: Unit, lazy: Any) -> Any:
    """Wrap a lazy payload so that the task commits it and returns the receipt."""
    return dask.delayed(_commit_first, pure=False)(root, unit, lazy, dask_key_name=f"{unit.stage}-commit-{unit.key}")


def _commit_first(root: Path, unit: Unit, payload: Any) -> Receipt:
    """Commit the payload of a partition; a bag's partition is a list of one."""
    return commit(root, unit, payload[0] if isinstance(payload, list) else payload)


def _partition(collection: Any) -> Any:
    """The one partition or block of a lazy collection; not optimised, since fusion would lose its resources."""
    return collection.to_delayed(optimize_graph=False).item() if hasattr(collection, "chunks") else (
        collection.to_delayed(optimize_graph=False)[0]
    )


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# --- stages -----------------------------------------------------------------------------------------


def _generate(run: _Run) -> list[Receipt]:
    """Seeds from generators and files; a partition of the bag is a unit."""
    settings = run.config.generate
    requests = generating.requests(settings.sources, settings.paths, Path.cwd())
    plan = []
    for index, batch in enumerate(_batches(requests, settings.partition_size)):
        params = {"requests": [request.fingerprint() for request in batch], "limits": settings.limits.model_dump()}
        key = key_of("generate", generating.VERSION, params, [], run.seed)
        unit = Unit(stage="generate", index=index, key=key, n_inputs=len(batch))

        def lazy(batch: Sequence[generating.Request] = batch) -> Any:
            seeds = generating.generate(batch, seed=run.seed, limits=settings.limits, partition_size=len(batch))
            return _partition(seeds.map_partitions(generating.pack))

        plan.append((unit, lazy))
    return run.drive("generate", plan, "seeds")


def _explore(run: _Run, seeds: list[Receipt]) -> tuple[list[Receipt], list[str]]:
    """Trajectories from each seed at each temperature and replica; and the elements of the seeds."""
    settings = run.config.explore
    pieces, duplicates, species = generating.distinct(run.tree.root, [receipt.key for receipt in seeds])
    run.tree.quarantine(duplicates)
    if not pieces:
        raise InputError(
            "no seed structure passed the checks; the reasons are in "
            f"{run.tree.root / 'quarantine'}: {_reasons(run.tree.quarantined())}"
        )
    trajectories = [
        (piece, temperature, replica)
        for piece in pieces
        for temperature in settings.dynamics.temperatures
        for replica in range(settings.dynamics.replicas)
    ]
    build = _builder(settings)
    plan = []
    for index, batch in enumerate(_batches(trajectories, settings.batch_size)):
        rows = [piece for piece, _, _ in batch]
        conditions = [(temperature, replica) for _, temperature, replica in batch]
        params = {
            "potential": run.identities["explore"].hash,
            "dtype": settings.dtype,
            "dynamics": settings.dynamics.model_dump(exclude={"temperatures", "replicas"}),
            "guards": settings.guards.model_dump(),
            "conditions": conditions,
        }
        upstream = [[piece.key, *piece.rows] for piece in rows]
        key = key_of("explore", exploring.VERSION, params, upstream, run.seed)
        unit = Unit(
            stage="explore", index=index, key=key, n_inputs=len(batch), upstream=tuple(sorted({p.key for p in rows}))
        )

        def lazy(rows: list[Rows] = rows, conditions: list[tuple[float, int]] = conditions) -> Any:
            loaded = dask.delayed(exploring.load_seeds)(run.tree.root, rows, conditions)
            seeds = db.from_delayed([loaded])
            return _partition(exploring.explore(seeds, build, settings.dynamics, settings.guards, run.seed))

        plan.append((unit, lazy))
    return run.drive("explore", plan, "trajectories"), species


def _describe(run: _Run, frames: list[Receipt], species: list[str]) -> list[Receipt]:
    """Features of all frames: axes fitted once on a sample, then one block a unit of exploration."""
    settings = run.config.describe
    root = run.tree.root
    filled = [receipt for receipt in frames if receipt.n_out]
    params = {**settings.model_dump(), "species": species}
    keys = [receipt.key for receipt in filled]
    fit_key = key_of(describing.FIT, describing.VERSION, params, keys, run.seed)
    n_sample = min(settings.sample, sum(receipt.n_out for receipt in filled))
    fit_unit = Unit(stage=describing.FIT, index=0, key=fit_key, n_inputs=n_sample, upstream=tuple(keys))
    fit = dask.delayed(describing.fit_reduction)
    run.drive(
        describing.FIT,
        [(fit_unit, lambda: fit(root, keys, settings, species, run.seed))],
        "sampled frames",
    )
    plan = []
    for index, receipt in enumerate(filled):
        key = key_of("describe", describing.VERSION, params, [fit_key, receipt.key], run.seed)
        unit = Unit(stage="describe", index=index, key=key, n_inputs=receipt.n_out, upstream=(fit_key, receipt.key))

        def lazy(receipt: Receipt = receipt) -> Any:
            features = describing.describe(root, [(receipt.key, receipt.n_out)], settings, species, fit_key)
            return dask.delayed(describing.pack)(_partition(features))

        plan.append((unit, lazy))
    return run.drive("describe", plan, "frames")


def _select(run: _Run, frames: list[Receipt], features: list[Receipt]) -> Receipt:
    """Picks, in one unit that streams the features."""
    settings = run.config.select
    keys = [receipt.key for receipt in frames if receipt.n_out]
    table = [(receipt.key, receipt.n_out) for receipt in features]
    key = key_of("select", selecting.VERSION, settings.model_dump(), [keys, table], run.seed)
    n_frames = sum(n for _, n in table)
    unit = Unit(stage="select", index=0, key=key, n_inputs=n_frames, upstream=tuple(keys))
    pick = dask.delayed(selecting.select)
    lazy = partial(pick, run.tree.root, keys, table, run.config.describe.dims, settings, run.seed)
    return run.drive("select", [(unit, lazy)], "frames")[0]


def _label(run: _Run, frames: list[Receipt], picks: Receipt) -> list[Receipt]:
    """Labels of the picks, a batch a unit, in canonical order."""
    settings = run.config.label
    root = run.tree.root
    keys = [receipt.key for receipt in frames if receipt.n_out]
    chosen = run.tree.load("select", picks.key, ["unit", "row"])
    pieces = [
        Rows(stage="explore", key=keys[unit], rows=(row,))
        for unit, row in zip(chosen["unit"].tolist(), chosen["row"].tolist(), strict=True)
    ]
    build = _builder(settings)
    identity = run.identities["label"]
    plan = []
    for index, batch in enumerate(_batches(pieces, settings.batch_size)):
        start = index * settings.batch_size
        params = {"potential": identity.hash, "dtype": settings.dtype, "checks": settings.checks.model_dump()}
        upstream = [picks.key, start, [[piece.key, *piece.rows] for piece in batch]]
        key = key_of("label", labelling.VERSION, params, upstream, run.seed)
        unit = Unit(stage="label", index=index, key=key, n_inputs=len(batch), upstream=(picks.key,))

        def lazy(batch: Sequence[Rows] = batch, start: int = start) -> Any:
            loaded = dask.delayed(labelling.load_picks)(root, list(batch), picks.key, start, start + len(batch))
            return _partition(labelling.label(db.from_delayed([loaded]), build, identity.name, settings.checks))

        plan.append((unit, lazy))
    return run.drive("label", plan, "frames")


def _store(run: _Run, labels: list[Receipt]) -> Receipt:
    """The dataset, written by one task and published by rename."""
    filled = [receipt.key for receipt in labels if receipt.n_out]
    if not filled:
        raise InputError(
            f"the teacher labelled no structure; the reasons are in {run.tree.root / 'quarantine'}: "
            f"{_reasons(run.tree.quarantined())}"
        )
    attrs = {
        "config": json.dumps(run.config.deciding(), sort_keys=True),
        "seed": run.seed,
        "versions": json.dumps(versions(), sort_keys=True),
        "explore_potential": json.dumps(_named(run.identities["explore"])),
        "label_potential": json.dumps(_named(run.identities["label"])),
        "run_counts": json.dumps({name: row["out"] for name, row in run.stages.items()}),
        "quarantined": json.dumps(_reasons(run.tree.quarantined())),
    }
    params = {"attrs": attrs, "split": run.config.store.split}
    key = key_of("store", storing.VERSION, params, filled, run.seed)
    n_inputs = sum(receipt.n_out for receipt in labels)
    unit = Unit(stage="store", index=0, key=key, n_inputs=n_inputs, upstream=tuple(filled))
    if run.tree.receipt(unit) and not run.tree.dataset.exists():
        # The user took the dataset away; the units that make it still stand.
        run.tree.forget(unit)
    write = dask.delayed(storing.store)
    lazy = partial(
        write,
        run.tree.root,
        filled,
        target=run.tree.dataset,
        seed=run.seed,
        fractions=run.config.store.split,
        attrs={**attrs, "dataset_key": key},
    )
    return run.drive("store", [(unit, lazy)], "structures")[0]


def _named(identity: potentials.Identity) -> dict[str, str]:
    return {"name": identity.name, "sha256": identity.hash}


def _builder(settings: configs.Explore | configs.Label) -> Callable[[], potentials.Potential]:
    """A function that builds the potential where it is called: on the worker, once a process."""
    return partial(
        potentials.build, settings.potential.name, settings.potential.params, settings.device, settings.dtype
    )


# --- runs -------------------------------------------------------------------------------------------


def run(
    target: str | Config,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> Result:
    """Run a config to its dataset, or go on with a run of the same config.

    Parameters
    ----------
    target
        Name of a preset, path of a YAML file, or a validated config.
    overrides
        ``group=choice`` or ``key.path=value``.
    run_dir
        Where everything goes; by default ``runs/NAME``.
    client
        A Dask client to use; by default ``cluster`` of the config says what to start.
    subscribers
        Called with each event.

    Returns
    -------
    Result

    Raises
    ------
    ConfigError
        If the config is wrong, or the run directory holds a run of another one.
    InputError
        If a model or file cannot be used, or nothing is left to work on.
    ClusterError
        If workers cannot be had.
    """
    config = target if isinstance(target, Config) else configs.load(target, overrides)
    root = Path(run_dir) if run_dir is not None else Path("runs") / config.name
    tree = Tree(root.absolute())
    identities = prepare(config)
    _open_run(tree, config)
    return _drive_all(tree, config, identities, client, subscribers)


def resume(
    run_dir: str | Path,
    *,
    cluster: configs.Cluster | None = None,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> Result:
    """Go on with a run; nothing that is committed is computed again.

    Parameters
    ----------
    run_dir
        A run directory.
    cluster
        Where to run instead of where the config says.
    client, subscribers
        As in `run`.

    Raises
    ------
    ConfigError
        If it is no run directory, or another driver works in it.
    """
    tree = Tree(Path(run_dir).absolute())
    config = configs.from_yaml(tree.config)
    if cluster is not None:
        config = config.model_copy(update={"cluster": cluster})
    return _drive_all(tree, config, prepare(config), client, subscribers)


def prepare(config: Config) -> dict[str, potentials.Identity]:
    """Check, before anything runs, that models and inputs are there.

    Returns
    -------
    dict
        Identity of the potential of each stage that uses one.

    Raises
    ------
    InputError
        For a model or file that is not there.
    """
    generating.requests(config.generate.sources, config.generate.paths, Path.cwd())
    return {
        stage: potentials.identity(choice.name, choice.params)
        for stage, choice in (("explore", config.explore.potential), ("label", config.label.potential))
    }


def _open_run(tree: Tree, config: Config) -> None:
    """Make the run directory, or see that it holds a run of the same config."""
    if tree.config.exists():
        if different := configs.differences(config, configs.from_yaml(tree.config)):
            raise ConfigError(
                f"{tree.root} holds a run of another config ({'; '.join(different[:3])}). "
                "Give another --run-dir, or remove it"
            )
        return
    if tree.root.exists() and any(tree.root.iterdir()):
        raise ConfigError(f"{tree.root} is neither empty nor a run directory; give another --run-dir")
    tree.root.mkdir(parents=True, exist_ok=True)
    write_atomically(tree.config, configs.to_yaml(config))


def _drive_all(
    tree: Tree,
    config: Config,
    identities: dict[str, potentials.Identity],
    client: Client | None,
    subscribers: Iterable[Emit],
) -> Result:
    started = time.perf_counter()
    with tree.driver_lock():
        tree.sweep()
        emit = fan_out(Ledger(tree), *subscribers)
        if client is not None:
            return _corridor(tree, config, identities, client, emit, started)
        with connect(config.cluster, tree.root / "workers.log") as own_client:
            return _corridor(tree, config, identities, own_client, emit, started)


def _corridor(
    tree: Tree,
    config: Config,
    identities: dict[str, potentials.Identity],
    client: Client,
    emit: Emit,
    started: float,
) -> Result:
    on_gpu = gpu_stages(client, {"explore": config.explore.device, "label": config.label.device})
    workers = sorted(offers(client))
    emit(RunStarted(run_dir=str(tree.root), name=config.name, dashboard=client.dashboard_link or None, workers=workers))
    run = _Run(config, tree, DaskPool(client, on_gpu), emit, identities)
    seeds = _generate(run)
    frames, species = _explore(run, seeds)
    if not any(receipt.n_out for receipt in frames):
        raise InputError(
            f"no trajectory survived; the reasons are in {tree.root / 'quarantine'}: {_reasons(tree.quarantined())}"
        )
    features = _describe(run, frames, species)
    picks = _select(run, frames, features)
    labels = _label(run, frames, picks)
    _store(run, labels)
    quarantined = _reasons(tree.quarantined())
    seconds = time.perf_counter() - started
    emit(RunFinished(dataset=str(tree.dataset), seconds=seconds, quarantined=quarantined))
    return Result(tree.root, tree.dataset, run.stages, quarantined, seconds)


def _reasons(rejections: list[Rejection]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for rejection in sorted(rejections, key=lambda item: (item.stage, item.reason)):
        name = f"{rejection.stage}/{rejection.reason}"
        reasons[name] = reasons.get(name, 0) + 1
    return reasons


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import version

    names = ("daskpipe", "ase", "numpy", "scipy", "scikit-learn", "torch", "torch-sim-atomistic", "mace-torch", "chgnet")
    return {name: version(name) for name in (*names, "tblite", "dscribe", "zarr", "xarray")}

