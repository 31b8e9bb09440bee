"""Plan to read frames, rows and labels that exist, describe them, and gather them into a dataset."""

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
from daskpipe.core.errors import InputError, list_reasons
from daskpipe.core.events import Emit
from daskpipe.engine.dask_pool import DaskPool, Workers, gpu_stages
from daskpipe.engine.driver import Driver
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt, Unit, key_of
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.packing import pack
from daskpipe.pipeline.steps import _describe, _rejected, _select, devices
from daskpipe.stages import describe
from daskpipe.stages.generate.labelled import LabelledFrameRange, read_labelled
from daskpipe.stages.generate.labels import LabelKeys
from daskpipe.store import reader

if TYPE_CHECKING:
    from daskpipe.stages.generate.frame_ranges import FrameRange

MERGE_SIZE = 4096
"""Structures of a dataset that are read by one unit when datasets are merged."""


Frames = Sequence[tuple[Unit, Callable[[], Any]]]
"""Units that bring frames to be described, and what makes their payloads."""


def frames_of(frame_ranges: Sequence[FrameRange], seed: int) -> Frames:
    """Plan to read the frames of ranges of files: they stand where those of an exploration stand."""
    plan = []
    for index, frame_range in enumerate(frame_ranges):
        key = key_of("read", generating.VERSION, asdict(frame_range), [], seed)
        unit = Unit(stage="explore", index=index, key=key, n_inputs=frame_range.n_frames)
        plan.append((unit, partial(dask.delayed(generating.frame_range_payload), frame_range)))
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


def labels_of(frame_ranges: Sequence[LabelledFrameRange], keys: LabelKeys, method: str, seed: int) -> Frames:
    """Plan to read the labelled frames of ranges of files."""
    plan = []
    for index, frame_range in enumerate(frame_ranges):
        params = {**asdict(frame_range), "keys": keys.model_dump(), "method": method}
        unit = Unit(
            stage="explore",
            index=index,
            key=key_of("import", generating.VERSION, params, [], seed),
            n_inputs=frame_range.n_frames,
        )
        plan.append((unit, partial(dask.delayed(read_labelled), frame_range, keys, method)))
    return plan


def read_and_describe(
    directory: RunDirectory, config: Config, plan: Frames, workers: Workers, emit: Emit, *, picks: bool
) -> tuple[list[Receipt], list[Receipt], Receipt | None]:
    """Describe the frames of files, and pick some of them; no exploration, no labels.

    Parameters
    ----------
    directory, config
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
        Units of frames, one for each frame range, and of their features, one for each unit that holds frames.
    picks : Receipt or None
        The unit of picks.

    Raises
    ------
    InputError
        If no frame can be read.
    """
    run = _described_run(directory, config, workers, emit)
    frames, features, against = _read_and_describe(run, plan)
    return frames, features, _select(run, frames, features, against) if picks else None


def gather(
    directory: RunDirectory,
    config: Config,
    plan: Frames,
    workers: Workers,
    emit: Emit,
    *,
    target: Path,
    attrs: Mapping[str, Any],
) -> tuple[list[Receipt], Receipt, dict[str, Any]]:
    """Make a dataset of labelled structures that others have made.

    Parameters
    ----------
    directory, config, plan, workers, emit
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
    run = _described_run(directory, config, workers, emit)
    frames, features, _ = _read_and_describe(run, plan)
    filled = [receipt for receipt in frames if receipt.n_out]
    sources = [
        storing.Source(stage="explore", key=rows.key, features=described.key)
        for rows, described in zip(filled, features, strict=True)
    ]
    published = pack(run, filled, sources, target, {**attrs, **_rejected(directory)})
    return frames, published, run.driver.stages[storing.PLAN]["report"]


def _described_run(directory: RunDirectory, config: Config, workers: Workers, emit: Emit) -> Run:
    model = describe.identify_model(config.describe)
    wanted = {stage: device for stage, device in devices(config).items() if stage not in ("explore", "label")}
    pool = DaskPool(workers, gpu_stages(workers, wanted))
    return Run(config, {"describe": model} if model else {}, Driver(directory, pool, emit, config.faults))


def _read_and_describe(run: Run, plan: Frames) -> tuple[list[Receipt], list[Receipt], list[Receipt]]:
    frames = run.driver.drive("read", plan, "frames")
    if not any(receipt.n_out for receipt in frames):
        rejected = run.directory.quarantined()
        raise InputError(f"no frame can be described: {list_reasons(rejected)}; e.g. {rejected[0].evidence}")
    species = generating.list_elements(run.directory.root, [receipt.key for receipt in frames])
    features, against = _describe(run, frames, species)
    return frames, features, against
