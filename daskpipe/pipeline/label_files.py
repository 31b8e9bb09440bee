"""Label the structures of files: what ``daskpipe label`` calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daskpipe.core.errors import InputError, describe_reasons
from daskpipe.core.events import Emit
from daskpipe.core.outputs import replace_output
from daskpipe.engine.dask_pool import DaskPool, Workers, gpu_stages
from daskpipe.engine.driver import Driver
from daskpipe.engine.rows import UnitRows
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.existing_data import list_frame_ranges, plan_frames
from daskpipe.pipeline.labels import check_labels, identify_teachers, label_isolated_atoms, label_rows
from daskpipe.pipeline.packing import pack_dataset
from daskpipe.pipeline.steps import list_devices, name_model, summarise_rejections
from daskpipe.pipeline.workspace import FilesResult, Outputs, check_target, compose_sections, run_in_workspace
from daskpipe.stages.generate.stage import list_elements
from daskpipe.stages.label.checking import STAGE
from daskpipe.store.formats import iter_records
from daskpipe.store.formats.extxyz import format_frame
from daskpipe.store.stage import LabelledUnit, iter_labelled_rows, name_atom_energies

if TYPE_CHECKING:
    from distributed import Client

SECTIONS = ("label", "store", "cluster", "seed", "faults")
"""Sections of the config that count."""


def label_files(
    paths: Sequence[str],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    teacher: str,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> FilesResult:
    """Label the structures of files with a teacher, and write them to an extxyz file or a dataset.

    Labels that the files hold are not read.

    Parameters
    ----------
    paths
        Files, folders and globs of the formats that ``generate.paths`` takes.
    out
        File or dataset to write, ``*.extxyz``, ``*.xyz`` or ``*.zarr``.
    overrides
        Of ``label``, ``store``, ``cluster``, ``seed`` and ``faults``: ``label.potential.params.basis=def2-tzvp``.
    teacher
        Name of a potential.
    force
        Replace `out` if it exists.
    client, subscribers
        As in `daskpipe.run`.

    Returns
    -------
    FilesResult
        Its report has ``teacher``, and ``differences``: outcomes of the checks by finite differences.

    Raises
    ------
    ConfigError
        For a wrong override, teacher or file name, or if `out` exists.
    InputError
        If a path does not exist, or the teacher labels no structure.
    """
    out = check_target(out, (".extxyz", ".xyz", ".zarr"), force)
    config = compose_sections([f"label.potential.name={teacher}", *overrides], SECTIONS)
    identities = identify_teachers(config)
    ranges = list_frame_ranges(paths)

    def write_labels(directory: RunDirectory, workers: Workers, emit: Emit) -> Outputs:
        devices = {stage: device for stage, device in list_devices(config).items() if stage.startswith("label")}
        pool = DaskPool(workers, gpu_stages(workers, devices))
        run = Run(config, identities, Driver(directory, pool, emit, config.faults))
        frames = run.driver.run_stage("read", plan_frames(ranges, config.seed), "frames")
        pieces = [
            UnitRows(stage="explore", key=receipt.key, rows=(row,))
            for receipt in frames
            for row in range(receipt.n_out)
        ]
        labels = label_rows(run, pieces) if pieces else []
        filled = [receipt for receipt in labels if receipt.n_out]
        if not filled:
            rejected = directory.read_quarantine()
            raise InputError(f"no structure was labelled: {describe_reasons(rejected)}; e.g. {rejected[0].evidence}")
        sources = check_labels(run, labels)
        with replace_output(out) as attempt:
            n_out = _write_labels(run, filled, sources, attempt)
        report = {"teacher": identities["label"].name, "differences": _count_differences(directory, sources)}
        return frames, n_out, report

    return run_in_workspace(f"label with {teacher}", config, out, client, subscribers, write_labels)


def _write_labels(run: Run, filled: Sequence[Receipt], sources: Sequence[LabelledUnit], path: Path) -> int:
    """Write labelled structures as a dataset, or as frames of a file; return their number."""
    if path.suffix == ".zarr":
        elements = list_elements(
            run.directory.load_arrays("label", receipt.key, ["numbers"])["numbers"] for receipt in filled
        )
        atoms, units = label_isolated_atoms(run, elements)
        attrs = {
            "label_potential": json.dumps(name_model(run.identities["label"])),
            **name_atom_energies(atoms),
            **summarise_rejections(run.directory),
        }
        return pack_dataset(run, filled, sources, path, attrs, units).n_out
    n_out = 0
    with open(path, "w", encoding="utf-8") as stream:
        for ds in iter_labelled_rows(run.directory.root, sources):
            for record in iter_records(ds):
                stream.write(format_frame(record))
                n_out += 1
    return n_out


def _count_differences(directory: RunDirectory, sources: Sequence[LabelledUnit]) -> dict[str, int]:
    """Count the outcomes of finite differences."""
    counts: dict[str, int] = {}
    for source in sources:
        if source.checks is None:
            continue
        columns = directory.load_arrays(STAGE, source.checks, [], optional=["finite_difference_check"])
        for outcome in columns.get("finite_difference_check", []):
            if outcome != "not_checked":
                counts[str(outcome)] = counts.get(str(outcome), 0) + 1
    return counts
