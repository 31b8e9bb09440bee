"""Plan the reading of existing frames, rows and labels, describe them, and gather them into a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

import daskpipe.stages.generate.stage as generating
import daskpipe.store.stage as storing
from daskpipe.config.models import Config
from daskpipe.core.errors import InputError, describe_reasons
from daskpipe.core.events import Emit
from daskpipe.engine.dask_pool import DaskPool, Workers, gpu_stages
from daskpipe.engine.driver import Driver
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt, Unit, unit_key
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.packing import pack_dataset
from daskpipe.pipeline.steps import describe_frames, list_devices, select_frames, summarise_rejections
from daskpipe.pipeline.workspace import FRAMES_A_UNIT
from daskpipe.stages import describe
from daskpipe.stages.generate.reading.files import find_files
from daskpipe.stages.generate.reading.frame_ranges import cut_frame_ranges
from daskpipe.stages.generate.reading.labelled import LabelledFrameRange, read_labelled
from daskpipe.stages.generate.reading.labels import LabelKeys
from daskpipe.store import reader

if TYPE_CHECKING:
    from daskpipe.stages.generate.reading.frame_ranges import FrameRange

ROWS_A_UNIT = 4096
"""Structures of a dataset that one unit reads when datasets are merged."""

ReadPlan = Sequence[tuple[Unit, Callable[[], Any]]]
"""Units that read frames, and the function that makes the payload of each."""


def list_frame_ranges(paths: Sequence[str]) -> list[FrameRange]:
    """List the frames of files, folders and globs, in ranges that one unit reads each."""
    files = find_files(list(paths), Path.cwd())
    return [frame_range for file in files for frame_range in cut_frame_ranges(file, FRAMES_A_UNIT)]


def plan_frames(frame_ranges: Sequence[FrameRange], seed: int) -> ReadPlan:
    """Plan to read the frames of ranges of files: they stand where those of an exploration stand."""
    plan = []
    for index, frame_range in enumerate(frame_ranges):
        key = unit_key("read", generating.VERSION, asdict(frame_range), [], seed)
        unit = Unit(stage="explore", index=index, key=key, n_inputs=frame_range.n_frames)
        plan.append((unit, partial(dask.delayed(generating.frame_range_payload), frame_range)))
    return plan


def plan_rows(paths: Sequence[Path], seed: int) -> ReadPlan:
    """Plan units that read all rows of datasets, with their labels."""
    plan: list[tuple[Unit, Callable[[], Any]]] = []
    for path in paths:
        digest, n_structures = reader.read_identity(path)
        for start in range(0, n_structures, ROWS_A_UNIT):
            stop = min(start + ROWS_A_UNIT, n_structures)
            # The index tells the rows of a dataset that is named twice from each other.
            key = unit_key("rows", storing.VERSION, {"index": len(plan)}, [digest, start, stop], seed)
            unit = Unit(stage="explore", index=len(plan), key=key, n_inputs=stop - start)
            plan.append((unit, partial(dask.delayed(storing.read_dataset_rows), path, start, stop)))
    return plan


def plan_labels(frame_ranges: Sequence[LabelledFrameRange], keys: LabelKeys, method: str, seed: int) -> ReadPlan:
    """Plan to read the labelled frames of ranges of files."""
    plan = []
    for index, frame_range in enumerate(frame_ranges):
        params = {**asdict(frame_range), "keys": keys.model_dump(), "method": method}
        unit = Unit(
            stage="explore",
            index=index,
            key=unit_key("import", generating.VERSION, params, [], seed),
            n_inputs=frame_range.n_frames,
        )
        plan.append((unit, partial(dask.delayed(read_labelled), frame_range, keys, method)))
    return plan


def read_and_describe(
    directory: RunDirectory, config: Config, plan: ReadPlan, workers: Workers, emit: Emit, *, picks: bool
) -> tuple[list[Receipt], list[Receipt], Receipt | None]:
    """Describe the frames of files, and pick some of them.

    Parameters
    ----------
    directory, config
        An open run directory; of the config only ``seed``, ``describe`` and ``select`` count.
    plan
        Units that read the frames.
    workers, emit
        Where units run; called with each event.
    picks
        Whether to pick.

    Returns
    -------
    frames, features : list of Receipt
        Units of frames, one for each frame range, and of their features, one for each unit that holds frames.
    picks : Receipt or None
        The unit of picks.

    Raises
    ------
    InputError
        If no frame can be read.
    """
    run = _start_run(directory, config, workers, emit)
    frames, features, against = _describe_plan(run, plan)
    return frames, features, select_frames(run, frames, features, against) if picks else None


def gather_dataset(
    directory: RunDirectory,
    config: Config,
    plan: ReadPlan,
    workers: Workers,
    emit: Emit,
    *,
    target: Path,
    attrs: Mapping[str, Any],
) -> tuple[list[Receipt], Receipt, dict[str, Any]]:
    """Make a dataset of existing labelled structures.

    Parameters
    ----------
    directory, config, plan, workers, emit
        As `read_and_describe` takes them; ``store`` counts too.
    target
        Path of the dataset.
    attrs
        Root attributes that name the sources of the structures.

    Returns
    -------
    frames : list of Receipt
        Units of structures.
    dataset : Receipt
        Unit that published it.
    report : dict
        Sizes and leakage of the splits.
    """
    run = _start_run(directory, config, workers, emit)
    frames, features, _ = _describe_plan(run, plan)
    filled = [receipt for receipt in frames if receipt.n_out]
    sources = [
        storing.LabelledUnit(stage="explore", key=rows.key, features=described.key)
        for rows, described in zip(filled, features, strict=True)
    ]
    published = pack_dataset(run, filled, sources, target, {**attrs, **summarise_rejections(directory)})
    return frames, published, run.driver.stages[storing.PLAN]["report"]


def _start_run(directory: RunDirectory, config: Config, workers: Workers, emit: Emit) -> Run:
    """Return a run without exploration and labels, whose driver offers GPUs to the description alone."""
    model = describe.identify_model(config.describe)
    wanted = {stage: device for stage, device in list_devices(config).items() if stage.startswith("describe")}
    pool = DaskPool(workers, gpu_stages(workers, wanted))
    return Run(config, {"describe": model} if model else {}, Driver(directory, pool, emit, config.faults))


def _describe_plan(run: Run, plan: ReadPlan) -> tuple[list[Receipt], list[Receipt], list[Receipt]]:
    """Read frames and describe them; return the units of frames, of features, and of ``select.against``."""
    frames = run.driver.run_stage("read", plan, "frames")
    if not any(receipt.n_out for receipt in frames):
        rejected = run.directory.read_quarantine()
        raise InputError(f"no frame can be described: {describe_reasons(rejected)}; e.g. {rejected[0].evidence}")
    species = generating.list_elements(
        run.directory.load_arrays("explore", receipt.key, ["numbers"])["numbers"] for receipt in frames
    )
    features, against = describe_frames(run, frames, species)
    return frames, features, against
