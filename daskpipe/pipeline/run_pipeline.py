"""Bring a run to its dataset: generate, explore, describe, select, label, store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import daskpipe.stages.generate.stage as generating
from daskpipe import potentials
from daskpipe.config.models import Config
from daskpipe.core.errors import InputError, count_reasons, describe_reasons
from daskpipe.core.events import Emit, RunFinished, RunStarted
from daskpipe.engine.dask_pool import DaskPool, Workers, gpu_stages, read_offers
from daskpipe.engine.driver import Driver, report_stale_deadlines
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.labels import check_labels, label_isolated_atoms, label_picks
from daskpipe.pipeline.packing import read_package_versions
from daskpipe.pipeline.steps import (
    describe_frames,
    explore_seeds,
    generate_seeds,
    list_devices,
    select_frames,
    store_structures,
)


def run_pipeline(
    directory: RunDirectory,
    config: Config,
    identities: dict[str, potentials.Identity],
    workers: Workers,
    emit: Emit,
    *,
    check_stop: Callable[[], None] = lambda: None,
    requests: Sequence[generating.Request] | None = None,
    n_seeds: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Run all steps of a pipeline, from seeds to the dataset.

    Parameters
    ----------
    directory, config
        An open run directory and its config.
    identities
        Potentials and models of the stages that use one.
    workers
        Workers of the cluster: those connected, and those that it can start.
    emit
        Called with each event.
    check_stop
        Called every second; raises the reason if the run must stop.
    requests, n_seeds
        What to generate, and how many of the seeds to explore; by default all. A probe takes a few.

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
    on_gpu = gpu_stages(workers, list_devices(config))
    client = workers.client
    emit(
        RunStarted(
            run_dir=str(directory.root),
            name=config.name,
            dashboard=client.dashboard_link or None,
            workers=sorted(read_offers(client)),
            versions=read_package_versions(),
        )
    )
    report_stale_deadlines(emit)
    run = Run(config, identities, Driver(directory, DaskPool(workers, on_gpu), emit, config.faults, check_stop))
    seeds = generate_seeds(run, requests)
    frames, species = explore_seeds(run, seeds, n_seeds)
    if not any(receipt.n_out for receipt in frames):
        raise InputError(
            f"no trajectory survived; the reasons are in {directory.root / 'quarantine'}: "
            f"{describe_reasons(directory.read_quarantine())}"
        )
    picks = select_frames(run, frames, *describe_frames(run, frames, species))
    labels = label_picks(run, frames, picks)
    store_structures(run, labels, check_labels(run, labels), *label_isolated_atoms(run, species))
    seconds = time.perf_counter() - started
    emit(
        RunFinished(
            dataset=str(directory.dataset), seconds=seconds, quarantined=count_reasons(directory.read_quarantine())
        )
    )
    return run.driver.stages
