"""The corridor: generate -> explore -> describe -> select -> label -> store.

It calls the rooms in order, turns their lazy collections into units and drives them through the window.
It computes nothing itself and keeps nothing but receipts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
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
from daskpipe import describe, potentials
from daskpipe.checkpoints import Checkpoints
from daskpipe.config import Config
from daskpipe.driving import Planned, Run, batches, tell_stale_deadlines
from daskpipe.errors import InputError, list_reasons, reasons
from daskpipe.events import Emit, Notice, RunFinished, RunStarted
from daskpipe.explore.settings import Exploration
from daskpipe.explore.timesteps import masses_of, too_long
from daskpipe.explore.walkers import Condition
from daskpipe.generate.files import KNOWN_NAMES, checksum, reader_of
from daskpipe.generate.labelled import LabelledStretch, read_labelled
from daskpipe.generate.labels import LabelKeys
from daskpipe.generate.stretches import stretches
from daskpipe.packing import pack, versions
from daskpipe.placement import DaskPool, Workers, gpu_stages, offers
from daskpipe.store import reader
from daskpipe.work import Receipt, Rows, Tree, Unit, key_of

if TYPE_CHECKING:
    from daskpipe.generate.stretches import Stretch

AGAINST = "describe-against"
MERGE_SIZE = 4096
"""Structures of a dataset that are read by one unit when datasets are merged."""

AGAINST_SIZE = 1024
"""Structures of an existing dataset that are described by one unit."""


# --- stages -----------------------------------------------------------------------------------------


def _generate(run: Run, requests: Sequence[generating.Request] | None) -> list[Receipt]:
    """Seeds from generators and files; a partition of the bag is a unit."""
    settings = run.config.generate
    if requests is None:
        requests = generating.requests(settings.sources, settings.paths, settings.base_dir)

    def lazy(batch: Sequence[generating.Request]) -> Any:
        seeds = generating.generate(list(batch), seed=run.seed, limits=settings.limits, partition_size=len(batch))
        return seeds.map_partitions(generating.pack)

    plan = []
    for index, batch in enumerate(batches(requests, settings.partition_size)):
        params = {"requests": [request.fingerprint() for request in batch], "limits": settings.limits.model_dump()}
        key = key_of("generate", generating.VERSION, params, [], run.seed)
        unit = Unit(stage="generate", index=index, key=key, n_inputs=len(batch))
        one = [partial(lazy, [request]) for request in batch]
        plan.append(Planned(unit, partial(lazy, batch), one, partial(_names, batch)))
    return run.drive("generate", plan, "seeds")


def _names(requests: Sequence[generating.Request]) -> list[str]:
    return [request.name for request in requests]


def _explore(run: Run, seeds: list[Receipt], most: int | None) -> tuple[list[Receipt], list[str]]:
    """Trajectories from each seed at each temperature and replica; and the elements of the seeds."""
    settings = run.config.explore
    holds = run.config.holds
    pieces, duplicates, species = generating.distinct(run.tree.root, [receipt.key for receipt in seeds], holds)
    run.tree.quarantine(duplicates)
    n_seeds = sum(receipt.n_out for receipt in seeds) - len(duplicates)
    if n_seeds and not pieces:
        raise InputError(
            f"none of the {n_seeds:,} seeds lies in shard {run.config.shard}; give fewer shards, e.g. --shard 1/2, or "
            "more seeds"
        )
    pieces = pieces[:most]
    if not pieces:
        raise InputError(
            "no seed structure passed the checks; the reasons are in "
            f"{run.tree.root / 'quarantine'}: {list_reasons(run.tree.quarantined())}"
        )
    if warning := too_long(settings.dynamics.timestep, masses_of(species)):
        run.emit(Notice(message=warning))
    pressed = exploring.under_pressure(run.tree.root, pieces, settings.dynamics)
    trajectories = [
        (piece, condition)
        for piece, each in zip(pieces, pressed, strict=True)
        for condition in exploring.conditions(settings.dynamics, settings.relax, pressed=each)
    ]
    build = _builder(settings)
    name = f"{run.identities['explore'].hash} {settings.dtype}"
    fingerprint = None
    deciding = {
        "potential": run.identities["explore"].hash,
        "dtype": settings.dtype,
        **settings.model_dump(include=set(Exploration.model_fields) - {"checkpoint"}),
    }
    if settings.dynamics.change is not None:
        fingerprint = partial(describe.fingerprints, settings=run.config.describe, species=species)
        deciding["fingerprint"] = [run.config.describe.model_dump(include={"descriptor", "params"}), species]
    for of_each in ("temperatures", "pressures", "replicas"):
        del deciding["dynamics"][of_each]

    def lazy(rows: list[Rows], conditions: list[Condition], checkpoints: Checkpoints | None = None) -> Any:
        loaded = dask.delayed(exploring.load_seeds)(run.tree.root, rows, conditions)
        return exploring.explore(
            db.from_delayed([loaded]),
            build,
            settings,
            run.seed,
            name=name,
            fingerprint=fingerprint,
            checkpoints=checkpoints,
        )

    plan = []
    for index, batch in enumerate(batches(trajectories, settings.batch_size)):
        rows = [piece for piece, _ in batch]
        conditions = [condition for _, condition in batch]
        params = {**deciding, "conditions": [condition.model_dump() for condition in conditions]}
        upstream = [[piece.key, *piece.rows] for piece in rows]
        key = key_of("explore", exploring.VERSION, params, upstream, run.seed)
        unit = Unit(
            stage="explore", index=index, key=key, n_inputs=len(batch), upstream=tuple(sorted({p.key for p in rows}))
        )
        checkpoints = Checkpoints(root=run.tree.root, unit=unit)
        one = [partial(lazy, [piece], [condition]) for piece, condition in batch]
        names = partial(exploring.names, run.tree.root, rows, conditions, settings.dynamics)
        plan.append(Planned(unit, partial(lazy, rows, conditions, checkpoints), one, names))
    return run.drive("explore", plan, "trajectories"), species


def _describe(run: Run, frames: list[Receipt], species: list[str]) -> tuple[list[Receipt], list[Receipt]]:
    """Features of all frames: axes fitted once on a sample, then one block a unit of exploration.

    And the features of the structures that the picks shall differ from.
    """
    settings = run.config.describe
    root = run.tree.root
    filled = [receipt for receipt in frames if receipt.n_out]
    params = {**settings.model_dump(exclude={"device"}), "species": species}
    if "describe" in run.identities:
        params["model"] = run.identities["describe"].hash
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
        plan.append((unit, partial(describing.unit, root, receipt.key, receipt.n_out, settings, species, fit_key)))
    features = run.drive("describe", plan, "frames")
    return features, _describe_against(run, species, params, fit_key) if run.config.select.against else []


def _describe_against(run: Run, species: list[str], params: dict[str, Any], fit_key: str) -> list[Receipt]:
    """Features of an existing dataset, or of the frames of a file, on the axes of this run."""
    path = Path(run.config.select.against or "")
    digest = content_of(path)
    read: Callable[..., Any]
    pieces: list[tuple[Any, ...]]
    if path.is_dir():
        read, n_structures = reader.geometries, reader.content(path)[1]
        starts = range(0, n_structures, AGAINST_SIZE)
        pieces = [(path, start, min(start + AGAINST_SIZE, n_structures)) for start in starts]
        sizes = [stop - start for _, start, stop in pieces]
    else:
        read = generating.frames_in_memory
        pieces = [(stretch,) for stretch in stretches(path, AGAINST_SIZE)]
        sizes = [stretch.n_frames for (stretch,) in pieces]
    plan = []
    for index, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        key = key_of(AGAINST, describing.VERSION, params, [fit_key, digest, AGAINST_SIZE, index], run.seed)
        unit = Unit(stage=AGAINST, index=index, key=key, n_inputs=size, upstream=(fit_key,))

        def lazy(piece: tuple[Any, ...] = piece) -> Any:
            structures = dask.delayed(read)(*piece)
            return dask.delayed(describing.outside)(structures, run.tree.root, run.config.describe, species, fit_key)

        plan.append((unit, lazy))
    return run.drive(AGAINST, plan, "structures")


def content_of(path: Path) -> str:
    """Return what tells a dataset, or a file of frames, from all others.

    Raises
    ------
    InputError
        If it is neither, or is not there.
    """
    if path.is_dir():
        return reader.content(path)[0]
    if not path.exists():
        raise InputError(f"{path} does not exist; select.against wants a dataset.zarr or a file of frames")
    if reader_of(path) is None:
        raise InputError(f"{path} is in no known format; select.against wants a dataset.zarr or one of {KNOWN_NAMES}")
    return checksum(path)


def _select(run: Run, frames: list[Receipt], features: list[Receipt], against: list[Receipt]) -> Receipt:
    """Pick frames, in one unit that streams the features."""
    settings = run.config.selection
    keys = [receipt.key for receipt in frames if receipt.n_out]
    table = [(receipt.key, receipt.n_out) for receipt in features]
    others = [receipt.key for receipt in against]
    version = selecting.AGAINST_VERSION if others else selecting.VERSION
    key = key_of("select", version, settings.model_dump(exclude={"against"}), [keys, table, others], run.seed)
    n_frames = sum(n for _, n in table)
    unit = Unit(stage="select", index=0, key=key, n_inputs=n_frames, upstream=tuple(keys))
    pick = dask.delayed(selecting.select)
    near = dask.delayed(selecting.features_of)(run.tree.root, AGAINST, others)
    lazy = partial(pick, run.tree.root, keys, table, run.config.describe.dims, settings, run.seed, against=near)
    (receipt,) = run.drive("select", [(unit, lazy)], "frames")
    report = json.loads(run.tree.load("select", receipt.key, ["report"])["report"].item())
    run.stages["select"]["report"] = report
    return receipt


def _label(run: Run, frames: list[Receipt], picks: Receipt) -> list[Receipt]:
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

    def lazy(batch: Sequence[Rows], start: int) -> Any:
        loaded = dask.delayed(labelling.load_picks)(root, list(batch), picks.key, start, start + len(batch))
        return labelling.label(db.from_delayed([loaded]), build, settings.potential.name, settings.checks)

    plan = []
    for index, batch in enumerate(batches(pieces, settings.batch_size)):
        start = index * settings.batch_size
        params = {"potential": identity.hash, "dtype": settings.dtype, "checks": settings.checks.model_dump()}
        upstream = [picks.key, start, [[piece.key, *piece.rows] for piece in batch]]
        key = key_of("label", labelling.VERSION, params, upstream, run.seed)
        unit = Unit(stage="label", index=index, key=key, n_inputs=len(batch), upstream=(picks.key,))
        one = [partial(lazy, [piece], start + row) for row, piece in enumerate(batch)]
        plan.append(Planned(unit, partial(lazy, batch, start), one, partial(labelling.names, root, list(batch))))
    return run.drive("label", plan, "frames")


def _store(run: Run, labels: list[Receipt]) -> Receipt:
    """Pack the labelled structures into the dataset of the run."""
    filled = [receipt for receipt in labels if receipt.n_out]
    if not filled:
        raise InputError(
            f"the teacher labelled no structure; the reasons are in {run.tree.root / 'quarantine'}: "
            f"{list_reasons(run.tree.quarantined())}"
        )
    attrs = {
        "config": json.dumps(run.config.deciding(), sort_keys=True),
        "explore_potential": json.dumps(_named(run.identities["explore"])),
        "label_potential": json.dumps(_named(run.identities["label"])),
        **({"describe_model": json.dumps(_named(model))} if (model := run.identities.get("describe")) else {}),
        "selection": json.dumps(run.stages["select"]["report"], sort_keys=True),
        "run_counts": json.dumps({name: row["out"] for name, row in run.stages.items()}),
        **_rejected(run.tree),
    }
    sources = [storing.Source(stage="label", key=receipt.key) for receipt in filled]
    return pack(run, filled, sources, run.tree.dataset, attrs)


def _rejected(tree: Tree) -> dict[str, str]:
    """Return what is no part of the dataset, as root attributes: counts by stage and reason, and what it was."""
    rejections = tree.quarantined()
    names: dict[str, list[str]] = {kind: [] for kind in reasons(rejections)}
    for rejection in rejections:
        names[rejection.kind].append(rejection.structure)
    rows = {kind: sorted(found) for kind, found in names.items()}
    return {"quarantined": json.dumps(reasons(rejections)), "rejected": json.dumps(rows)}


def _named(identity: potentials.Identity) -> dict[str, str]:
    return {"name": identity.name, "sha256": identity.hash}


def devices(config: Config) -> dict[str, str]:
    """Device of each stage that computes on one."""
    devices: dict[str, str] = {"explore": config.explore.device, "label": config.label.device}
    if describe.uses_device(config.describe):
        devices |= {"describe": config.describe.device, describing.FIT: config.describe.device}
    return devices


def _builder(settings: configs.Explore | configs.Label) -> Callable[[], potentials.Potential]:
    """Return a function that builds the potential where it is called: on the worker, once a process."""
    return partial(
        potentials.build, settings.potential.name, settings.potential.params, settings.device, settings.dtype
    )


def corridor(
    tree: Tree,
    config: Config,
    identities: dict[str, potentials.Identity],
    workers: Workers,
    emit: Emit,
    *,
    go_on: Callable[[], None] = lambda: None,
    requests: Sequence[generating.Request] | None = None,
    n_seeds: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Bring a run to its dataset.

    Parameters
    ----------
    tree, config
        An open run directory and its config.
    identities
        Potentials and models of the stages that use one.
    workers
        Those that there are, and those that can be had.
    emit
        Called with each event.
    go_on
        Raises what speaks against going on; called every second.
    requests, n_seeds
        What to generate, and how many of the seeds to explore; by default all. A probe takes some.

    Returns
    -------
    dict
        Per stage: units, computed now, inputs, outputs, rejected, wall seconds, counts by system type, tallies.

    Raises
    ------
    InputError
        If nothing is left to work on.
    ClusterError
        If the workers that a stage needs are not there.
    """
    started = time.perf_counter()
    on_gpu = gpu_stages(workers, devices(config))
    client = workers.client
    emit(
        RunStarted(
            run_dir=str(tree.root),
            name=config.name,
            dashboard=client.dashboard_link or None,
            workers=sorted(offers(client)),
            versions=versions(),
        )
    )
    tell_stale_deadlines(emit)
    run = Run(config, tree, DaskPool(workers, on_gpu), emit, identities, go_on)
    seeds = _generate(run, requests)
    frames, species = _explore(run, seeds, n_seeds)
    if not any(receipt.n_out for receipt in frames):
        raise InputError(
            f"no trajectory survived; the reasons are in {tree.root / 'quarantine'}: {list_reasons(tree.quarantined())}"
        )
    picks = _select(run, frames, *_describe(run, frames, species))
    labels = _label(run, frames, picks)
    _store(run, labels)
    seconds = time.perf_counter() - started
    emit(RunFinished(dataset=str(tree.dataset), seconds=seconds, quarantined=reasons(tree.quarantined())))
    return run.stages


Frames = Sequence[tuple[Unit, Callable[[], Any]]]
"""Units that bring frames to be described, and what makes their payloads."""


def frames_of(stretches: Sequence[Stretch], seed: int) -> Frames:
    """Plan to read the frames of stretches of files: they stand where those of an exploration stand."""
    plan = []
    for index, stretch in enumerate(stretches):
        key = key_of("read", generating.VERSION, asdict(stretch), [], seed)
        unit = Unit(stage="explore", index=index, key=key, n_inputs=stretch.n_frames)
        plan.append((unit, partial(dask.delayed(generating.read_frames), stretch)))
    return plan


def rows_of(paths: Sequence[Path], seed: int) -> Frames:
    """Plan to read all rows of datasets, labels and all."""
    plan: list[tuple[Unit, Callable[[], Any]]] = []
    for path in paths:
        digest, n_structures = reader.content(path)
        for start in range(0, n_structures, MERGE_SIZE):
            stop = min(start + MERGE_SIZE, n_structures)
            # The number keeps the rows of a dataset that is named twice apart.
            key = key_of("rows", storing.VERSION, {"index": len(plan)}, [digest, start, stop], seed)
            unit = Unit(stage="explore", index=len(plan), key=key, n_inputs=stop - start)
            plan.append((unit, partial(dask.delayed(storing.read), path, start, stop)))
    return plan


def labels_of(stretches: Sequence[LabelledStretch], keys: LabelKeys, method: str, seed: int) -> Frames:
    """Plan to read labelled frames of stretches of files."""
    plan = []
    for index, stretch in enumerate(stretches):
        params = {**asdict(stretch), "keys": keys.model_dump(), "method": method}
        unit = Unit(
            stage="explore",
            index=index,
            key=key_of("import", generating.VERSION, params, [], seed),
            n_inputs=stretch.n_frames,
        )
        plan.append((unit, partial(dask.delayed(read_labelled), stretch, keys, method)))
    return plan


def read_and_describe(
    tree: Tree, config: Config, plan: Frames, workers: Workers, emit: Emit, *, picks: bool
) -> tuple[list[Receipt], list[Receipt], Receipt | None]:
    """Describe the frames of files, and pick some of them; no exploration, no labels.

    Parameters
    ----------
    tree, config
        An open run directory; of the config only ``seed``, ``describe`` and ``select`` count.
    plan
        What to read.
    workers, emit
        Where units run; called with each event.
    picks
        Whether to pick.

    Returns
    -------
    frames, features : list of Receipt
        Units of frames, one a stretch, and of their features, one for each unit that holds frames.
    picks : Receipt or None
        The unit of picks.

    Raises
    ------
    InputError
        If no frame can be read.
    """
    run = _described_run(tree, config, workers, emit)
    frames, features, against = _read_and_describe(run, plan)
    return frames, features, _select(run, frames, features, against) if picks else None


def gather(
    tree: Tree, config: Config, plan: Frames, workers: Workers, emit: Emit, *, target: Path, attrs: Mapping[str, Any]
) -> tuple[list[Receipt], Receipt, dict[str, Any]]:
    """Make a dataset of labelled structures that others have made.

    Parameters
    ----------
    tree, config, plan, workers, emit
        As `read_and_describe` takes them; ``store`` counts too.
    target
        Where the dataset is to be.
    attrs
        Root attributes that say where the structures come from.

    Returns
    -------
    frames : list of Receipt
        Units of structures.
    dataset : Receipt
        The unit that published it.
    report : dict
        How the splits came out.
    """
    run = _described_run(tree, config, workers, emit)
    frames, features, _ = _read_and_describe(run, plan)
    filled = [receipt for receipt in frames if receipt.n_out]
    sources = [
        storing.Source(stage="explore", key=rows.key, features=described.key)
        for rows, described in zip(filled, features, strict=True)
    ]
    published = pack(run, filled, sources, target, {**attrs, **_rejected(tree)})
    return frames, published, run.stages[storing.PLAN]["report"]


def _described_run(tree: Tree, config: Config, workers: Workers, emit: Emit) -> Run:
    model = describe.identity(config.describe)
    wanted = {stage: device for stage, device in devices(config).items() if stage not in ("explore", "label")}
    pool = DaskPool(workers, gpu_stages(workers, wanted))
    return Run(config, tree, pool, emit, {"describe": model} if model else {})


def _read_and_describe(run: Run, plan: Frames) -> tuple[list[Receipt], list[Receipt], list[Receipt]]:
    frames = run.drive("read", plan, "frames")
    if not any(receipt.n_out for receipt in frames):
        rejected = run.tree.quarantined()
        raise InputError(f"no frame can be described: {list_reasons(rejected)}; e.g. {rejected[0].evidence}")
    species = generating.elements(run.tree.root, [receipt.key for receipt in frames])
    features, against = _describe(run, frames, species)
    return frames, features, against
