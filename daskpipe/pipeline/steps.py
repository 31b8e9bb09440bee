"""The steps of a run: generate -> explore -> describe -> select -> label -> store.

Each step turns the lazy collections of a stage into units, and has the driver bring them to be committed. A step
computes nothing itself and keeps nothing but receipts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.bag as db

import daskpipe.stages.describe.stage as describing
import daskpipe.stages.explore.stage as exploring
import daskpipe.stages.generate.stage as generating
import daskpipe.stages.label.checking as checking
import daskpipe.stages.label.isolated_atoms as isolated_atoms
import daskpipe.stages.select.stage as selecting
import daskpipe.store.stage as storing
from daskpipe import potentials
from daskpipe.config.models import Config, Explore
from daskpipe.core.errors import InputError, count_reasons, describe_reasons
from daskpipe.core.events import Notice
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.driver import PlannedUnit, cut_batches
from daskpipe.engine.rows import UnitRows
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt, Unit, unit_key
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.packing import pack_dataset
from daskpipe.stages import describe
from daskpipe.stages.explore.settings import Exploration
from daskpipe.stages.explore.timesteps import masses_of, timestep_warning
from daskpipe.stages.explore.trajectory import Condition
from daskpipe.stages.generate.reading.files import KNOWN_NAMES, hash_file, reader_of
from daskpipe.stages.generate.reading.frame_ranges import cut_frame_ranges
from daskpipe.store import reader

AGAINST = "describe-against"
"""Stage that describes the structures of ``select.against``."""

AGAINST_SIZE = 1024
"""Structures of ``select.against`` that one unit describes."""


# --- stages -----------------------------------------------------------------------------------------


def generate_seeds(run: Run, requests: Sequence[generating.Request] | None) -> list[Receipt]:
    """Generate seeds from generators and files; a partition of the bag is a unit."""
    settings = run.config.generate
    if requests is None:
        requests = generating.list_requests(settings.sources, settings.paths, settings.base_dir)

    def make_task(batch: Sequence[generating.Request]) -> Any:
        seeds = generating.generate_seeds(list(batch), seed=run.seed, limits=settings.limits, partition_size=len(batch))
        return seeds.map_partitions(generating.to_payloads)

    plan = []
    for index, batch in enumerate(generating.cut_requests(requests, settings.partition_size)):
        # A limit that came later leaves the keys of earlier runs as they were.
        limits = settings.limits.model_dump(exclude={"min_width"} if settings.limits.min_width is None else None)
        params = {"requests": [request.fingerprint() for request in batch], "limits": limits}
        key = unit_key("generate", generating.VERSION, params, [], run.seed)
        unit = Unit(stage="generate", index=index, key=key, n_inputs=len(batch))
        one = [partial(make_task, [request]) for request in batch]
        plan.append(PlannedUnit(unit, partial(make_task, batch), one, partial(_name_requests, batch)))
    return run.driver.run_stage("generate", plan, "seeds")


def _name_requests(requests: Sequence[generating.Request]) -> list[str]:
    return [request.name for request in requests]


def explore_seeds(run: Run, seeds: list[Receipt], most: int | None) -> tuple[list[Receipt], list[str]]:
    """Explore each distinct seed under each condition and replica, a batch of trajectories a unit.

    Parameters
    ----------
    run
        The run.
    seeds
        Units of seeds.
    most
        Seeds to explore at most; None for all.

    Returns
    -------
    frames : list of Receipt
        Units of frames.
    species : list of str
        Elements of the seeds, sorted.

    Raises
    ------
    InputError
        If no seed passed the checks, or none lies in the shard.
    """
    settings = run.config.explore
    holds = run.config.holds_seed
    pieces, duplicates, species = generating.find_distinct_seeds(
        run.directory.root, [receipt.key for receipt in seeds], holds
    )
    run.directory.write_quarantine(duplicates)
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
            f"{run.directory.root / 'quarantine'}: {describe_reasons(run.directory.read_quarantine())}"
        )
    if warning := timestep_warning(settings.dynamics.timestep, masses_of(species)):
        run.driver.emit(Notice(message=warning))
    conditions_of = exploring.list_seed_conditions(run.directory.root, pieces, settings)
    trajectories = [(piece, condition) for piece, each in zip(pieces, conditions_of, strict=True) for condition in each]
    build = _make_builder(settings)
    name = f"{run.identities['explore'].hash} {settings.dtype}"
    fingerprint = None
    deciding = {
        "potential": run.identities["explore"].hash,
        "dtype": settings.dtype,
        **settings.model_dump(include=set(Exploration.model_fields) - {"checkpoint"}),
    }
    if settings.relax is not None:
        deciding["explore_energy"] = True  # its frames have one
    if settings.dynamics.change is not None:
        fingerprint = partial(describe.compute_fingerprints, settings=run.config.describe, species=species)
        deciding["fingerprint"] = [run.config.describe.model_dump(include={"descriptor", "params"}), species]
    for of_each in ("temperatures", "temperatures_by_type", "pressures", "replicas"):
        del deciding["dynamics"][of_each]

    def make_task(rows: list[UnitRows], conditions: list[Condition], checkpoints: Checkpoints | None = None) -> Any:
        loaded = dask.delayed(exploring.load_seeds)(run.directory.root, rows, conditions)
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
    for index, batch in enumerate(cut_batches(trajectories, settings.batch_size)):
        rows = [piece for piece, _ in batch]
        conditions = [condition for _, condition in batch]
        params = {**deciding, "conditions": [condition.model_dump() for condition in conditions]}
        upstream = [[piece.key, *piece.rows] for piece in rows]
        key = unit_key("explore", exploring.VERSION, params, upstream, run.seed)
        unit = Unit(
            stage="explore", index=index, key=key, n_inputs=len(batch), upstream=tuple(sorted({p.key for p in rows}))
        )
        checkpoints = Checkpoints(root=run.directory.root, unit=unit)
        one = [partial(make_task, [piece], [condition]) for piece, condition in batch]
        names = partial(exploring.trajectory_names, run.directory.root, rows, conditions, settings.dynamics)
        make_lazy = partial(make_task, rows, conditions, checkpoints)
        plan.append(PlannedUnit(unit, make_lazy, one, names, settings.checkpoint))
    return run.driver.run_stage("explore", plan, "trajectories"), species


def describe_frames(run: Run, frames: list[Receipt], species: list[str]) -> tuple[list[Receipt], list[Receipt]]:
    """Describe all frames: fit the axes once on a sample, then project the frames of each unit of exploration.

    Returns
    -------
    features, against : list of Receipt
        Units of features, one for each unit that holds frames, and of the features of ``select.against``.
    """
    settings = run.config.describe
    root = run.directory.root
    filled = [receipt for receipt in frames if receipt.n_out]
    params = {**settings.model_dump(exclude={"device"}), "species": species}
    if "describe" in run.identities:
        params["model"] = run.identities["describe"].hash
    keys = [receipt.key for receipt in filled]
    fit_key = unit_key(describing.FIT, describing.VERSION, params, keys, run.seed)
    n_sample = min(settings.sample, sum(receipt.n_out for receipt in filled))
    fit_unit = Unit(stage=describing.FIT, index=0, key=fit_key, n_inputs=n_sample, upstream=tuple(keys))
    fit = dask.delayed(describing.fit_reduction)
    run.driver.run_stage(
        describing.FIT,
        [(fit_unit, lambda: fit(root, "explore", keys, settings, species, run.seed))],
        "sampled frames",
    )
    plan = []
    for index, receipt in enumerate(filled):
        key = unit_key("describe", describing.VERSION, params, [fit_key, receipt.key], run.seed)
        unit = Unit(stage="describe", index=index, key=key, n_inputs=receipt.n_out, upstream=(fit_key, receipt.key))
        plan.append(
            (
                unit,
                partial(
                    describing.describe_unit, root, "explore", receipt.key, receipt.n_out, settings, species, fit_key
                ),
            )
        )
    features = run.driver.run_stage("describe", plan, "frames")
    return features, describe_existing(run, species, params, fit_key) if run.config.select.against else []


def describe_existing(run: Run, species: list[str], params: dict[str, Any], fit_key: str) -> list[Receipt]:
    """Describe an existing dataset, or the frames of a file, on the axes of this run."""
    path = Path(run.config.select.against or "")
    digest = hash_content(path)
    read: Callable[..., Any]
    pieces: list[tuple[Any, ...]]
    if path.is_dir():
        read, n_structures = reader.read_geometries, reader.read_identity(path)[1]
        starts = range(0, n_structures, AGAINST_SIZE)
        pieces = [(path, start, min(start + AGAINST_SIZE, n_structures)) for start in starts]
        sizes = [stop - start for _, start, stop in pieces]
    else:
        read = generating.load_frame_range
        pieces = [(frame_range,) for frame_range in cut_frame_ranges(path, AGAINST_SIZE)]
        sizes = [frame_range.n_frames for (frame_range,) in pieces]
    plan = []
    for index, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        key = unit_key(AGAINST, describing.VERSION, params, [fit_key, digest, AGAINST_SIZE, index], run.seed)
        unit = Unit(stage=AGAINST, index=index, key=key, n_inputs=size, upstream=(fit_key,))

        def make_task(piece: tuple[Any, ...] = piece) -> Any:
            structures = dask.delayed(read)(*piece)
            return dask.delayed(describing.describe_outside)(
                structures, run.directory.root, run.config.describe, species, fit_key
            )

        plan.append((unit, make_task))
    return run.driver.run_stage(AGAINST, plan, "structures")


def hash_content(path: Path) -> str:
    """Return the hash of the content of a dataset, or of a file of frames.

    Raises
    ------
    InputError
        If it is neither, or is not there.
    """
    if path.is_dir():
        return reader.read_identity(path)[0]
    if not path.exists():
        raise InputError(f"{path} does not exist; select.against takes a dataset.zarr or a file of frames")
    if reader_of(path) is None:
        raise InputError(f"{path} is in no known format; select.against takes a dataset.zarr or one of {KNOWN_NAMES}")
    return hash_file(path)


def select_frames(run: Run, frames: list[Receipt], features: list[Receipt], against: list[Receipt]) -> Receipt:
    """Pick frames, in one unit that streams the features; put its report beside the counts of the stage."""
    settings = run.config.selection
    keys = [receipt.key for receipt in frames if receipt.n_out]
    table = [(receipt.key, receipt.n_out) for receipt in features]
    others = [receipt.key for receipt in against]
    version = selecting.AGAINST_VERSION if others else selecting.VERSION
    # A setting that came later leaves the keys of earlier runs as they were.
    left_out = {"against"} | ({"energy_window"} if settings.energy_window is None else set())
    key = unit_key("select", version, settings.model_dump(exclude=left_out), [keys, table, others], run.seed)
    n_frames = sum(n for _, n in table)
    unit = Unit(stage="select", index=0, key=key, n_inputs=n_frames, upstream=tuple(keys))
    pick = dask.delayed(selecting.select)
    near = dask.delayed(selecting.features_of)(run.directory.root, AGAINST, others)
    lazy = partial(
        pick,
        run.directory.root,
        keys,
        table,
        run.config.describe.dims,
        settings,
        run.seed,
        frames_stage="explore",
        features_stage="describe",
        against=near,
    )
    (receipt,) = run.driver.run_stage("select", [(unit, lazy)], "frames")
    report = json.loads(run.directory.load_arrays("select", receipt.key, ["report"])["report"].item())
    run.driver.stages["select"]["report"] = report
    return receipt


def store_structures(
    run: Run,
    labels: list[Receipt],
    sources: Sequence[storing.LabelledUnit],
    atoms: dict[str, float],
    units_of_atoms: Sequence[str],
) -> Receipt:
    """Pack the labelled structures, the results of their checks and energies of isolated atoms into the dataset."""
    filled = [receipt for receipt in labels if receipt.n_out]
    if not filled:
        raise InputError(
            f"the teacher labelled no structure; the reasons are in {run.directory.root / 'quarantine'}: "
            f"{describe_reasons(run.directory.read_quarantine())}"
        )
    attrs = {
        "config": json.dumps(run.config.dump_deciding(), sort_keys=True),
        "explore_potential": json.dumps(name_model(run.identities["explore"])),
        "label_potential": json.dumps(name_model(run.identities["label"])),
        **({"second_teacher": json.dumps(name_model(other))} if (other := run.identities.get("second")) else {}),
        **({"describe_model": json.dumps(name_model(model))} if (model := run.identities.get("describe")) else {}),
        **storing.name_atom_energies(atoms),
        "selection": json.dumps(run.driver.stages["select"]["report"], sort_keys=True),
        "run_counts": json.dumps({name: row["out"] for name, row in run.driver.stages.items()}),
        **summarise_rejections(run.directory),
    }
    return pack_dataset(run, filled, sources, run.directory.dataset, attrs, units_of_atoms)


def summarise_rejections(directory: RunDirectory) -> dict[str, str]:
    """Return the rejections of a run as root attributes: counts by stage and reason, and names of structures."""
    rejections = directory.read_quarantine()
    names: dict[str, list[str]] = {kind: [] for kind in count_reasons(rejections)}
    for rejection in rejections:
        names[rejection.kind].append(rejection.structure)
    rows = {kind: sorted(structures) for kind, structures in names.items()}
    return {"quarantined": json.dumps(count_reasons(rejections)), "rejected": json.dumps(rows)}


def name_model(identity: potentials.Identity) -> dict[str, str]:
    """Return name and hash of a potential, as a root attribute of a dataset has them."""
    return {"name": identity.name, "sha256": identity.hash}


def list_devices(config: Config) -> dict[str, str]:
    """Return the device of each stage that computes on one."""
    devices: dict[str, str] = {"explore": config.explore.device}
    devices |= dict.fromkeys(("label", checking.STAGE, isolated_atoms.STAGE), config.label.device)
    if describe.uses_device(config.describe):
        devices |= {"describe": config.describe.device, describing.FIT: config.describe.device}
    return devices


def _make_builder(settings: Explore) -> Callable[[], potentials.Potential]:
    """Return a function that builds the potential where it is called: on the worker, once a process."""
    return partial(
        potentials.build_potential, settings.potential.name, settings.potential.params, settings.device, settings.dtype
    )
