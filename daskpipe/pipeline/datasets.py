"""Merge, import and export datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.connect import connect
from daskpipe.config.models import Config
from daskpipe.core.errors import (
    ConfigError,
    describe_unknown,
)
from daskpipe.core.events import Emit
from daskpipe.core.outputs import replace_output
from daskpipe.core.root_metadata import read_root
from daskpipe.engine.dask_pool import Workers
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.pipeline.existing_data import ReadPlan, gather_dataset, plan_labels, plan_rows
from daskpipe.pipeline.workspace import (
    DATASET_SECTIONS,
    FRAMES_A_UNIT,
    FilesResult,
    Outputs,
    check_target,
    compose_sections,
    run_in_workspace,
)
from daskpipe.stages.generate.reading.files import hash_file
from daskpipe.stages.generate.reading.given_splits import splits_of_files
from daskpipe.stages.generate.reading.labelled import (
    KNOWN_NAMES,
    check_method,
    cut_labelled_ranges,
    find_labelled,
    label_report,
)
from daskpipe.stages.generate.reading.labels import LabelKeys
from daskpipe.store import export as export_dataset
from daskpipe.store.cold import write_cold
from daskpipe.store.formats import FORMATS
from daskpipe.store.reader import dataset_of

if TYPE_CHECKING:
    from distributed import Client

COLD = "cold"
"""Name of the compressed copy among the formats of exports."""


def merge(
    datasets: Sequence[str | Path],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> FilesResult:
    """Merge datasets into one.

    A structure that occurs twice is kept once: the one of the dataset named first. All structures are described anew,
    on common axes, and split anew, with groups connected across the datasets.

    Parameters
    ----------
    datasets
        Paths of datasets, or of runs.
    out
        ``*.zarr``.
    overrides
        Of ``store`` (``store.split_by=composition``), ``describe``, ``cluster`` and ``seed``.
    force, client, subscribers
        As in `select`.

    Raises
    ------
    ConfigError, InputError
        As `select`.
    """
    out = check_target(out, (".zarr",), force)
    config = compose_sections(overrides, DATASET_SECTIONS)
    paths = [dataset_of(path) for path in datasets]
    sources = [_describe_source(path) for path in paths]
    return _make_dataset("merge", config, plan_rows(paths, config.seed), sources, out, client, subscribers)


def import_labelled(
    paths: Sequence[str],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    method: str,
    keys: LabelKeys = LabelKeys(),  # noqa: B008
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> FilesResult:
    """Make a dataset of labelled frames from files.

    Frames are described and split as in a run: near-duplicates and frames of one trajectory stay together. Frames that
    come with splits (key ``split``, or one file a split) keep them; ``store.keep_splits=false`` splits anew.
    A frame that occurs twice is kept once. Frames that cannot be used are counted by reason, and named in the
    dataset's attribute ``rejected``.

    Parameters
    ----------
    paths
        ``.extxyz``, ``.xyz``, ASE's ``.traj`` and ``.db``, fairchem's ``.aselmdb``, VASP's ``OUTCAR*`` and
        ``vasprun*.xml``: files, folders and globs of them. Of an OUTCAR and a vasprun.xml in one folder, which hold the
        same frames, the latter is read.
    out
        ``*.zarr``.
    overrides
        As in `merge`.
    method
        One word for the method that made the labels, e.g. ``PBE-D3``; it becomes ``label_method``.
    keys
        Keys and units of the labels; by default one family of labels is taken, see `generate.reading.labels`.
    force, client, subscribers
        As in `select`.

    Raises
    ------
    ConfigError, InputError
        As `select`.
    """
    out = check_target(out, (".zarr",), force)
    check_method(method)
    config = compose_sections(overrides, DATASET_SECTIONS)
    files, strangers = find_labelled(list(paths), Path.cwd())
    if strangers:
        raise ConfigError(f"{strangers[0]} holds no labels that can be read; give {KNOWN_NAMES}")
    typed = {"label_keys": keys.model_dump(exclude_none=True)} if keys != LabelKeys() else {}
    sources = [{"name": file.name, "checksum": hash_file(file), "label_method": method, **typed} for file in files]
    given = splits_of_files(files)
    pieces = [piece for file in files for piece in cut_labelled_ranges(file, FRAMES_A_UNIT, given.get(file, ""))]
    return _make_dataset(
        "import", config, plan_labels(pieces, keys, method, config.seed), sources, out, client, subscribers
    )


def _describe_source(path: Path) -> dict[str, Any]:
    """Return the provenance of a dataset, as a row of the attribute ``sources`` of a merged one."""
    attributes = read_root(path)["attributes"]
    names = ("dataset_key", "n_structures", "seed", "explore_potential", "label_potential", "sources", "versions")
    recorded = {name: attributes[name] for name in names if name in attributes}
    return {"name": path.name, **recorded, "checksum": attributes["checksums"]["root"]}


def _make_dataset(
    name: str,
    config: Config,
    plan: ReadPlan,
    sources: Sequence[Mapping[str, Any]],
    out: Path,
    client: Client | None,
    subscribers: Iterable[Emit],
) -> FilesResult:
    """Make a dataset at `out` of the labelled structures that a plan reads."""

    def write_dataset(directory: RunDirectory, workers: Workers, emit: Emit) -> Outputs:
        described = config.describe.model_dump(mode="json", exclude={"device"})
        attrs = {"sources": json.dumps(sources, sort_keys=True), "describe": json.dumps(described, sort_keys=True)}
        with replace_output(out) as attempt:
            frames, dataset, report = gather_dataset(
                directory, config, plan, workers, emit, target=attempt, attrs=attrs
            )
        return frames, dataset.n_out, {**report, **label_report(receipt.tallies for receipt in frames)}

    return run_in_workspace(name, config, out, client, subscribers, write_dataset)


def export_on_cluster(
    dataset: str | Path,
    to: str,
    out: str | Path,
    *,
    split: str | None = None,
    force: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a dataset in another format, several parts at once on the workers of a cluster.

    Parameters
    ----------
    dataset
        Path of a dataset, or of a run.
    to
        A format of `daskpipe.store.formats`, or ``cold``: a compressed copy of the Zarr store.
    out, split, force
        As `daskpipe.export` takes them.
    overrides
        Of ``cluster``.

    Returns
    -------
    dict
        ``out``, ``to``, ``structures``, ``files`` and the ``reader`` that it was read back with; JSON types.

    Raises
    ------
    ConfigError, InputError, IntegrityError
        As `daskpipe.export`.
    """
    if to not in (*FORMATS, COLD):
        raise ConfigError(describe_unknown("export format", to, [*FORMATS, COLD]))
    config = compose_sections(overrides, ("cluster",))
    path, out = dataset_of(dataset), Path(out)

    def run_parts(calls: Sequence[Callable[[], Any]]) -> list[Any]:
        if len(calls) == 1:
            return [calls[0]()]
        with connect(config.cluster) as workers:
            return list(workers.client.gather(workers.client.map(_call_part, calls, pure=False)))

    if to == COLD:
        if split is not None:
            raise ConfigError("a cold copy holds the whole dataset; leave --split out")
        out = check_target(out, (".zarr",), force)
        with replace_output(out) as attempt:
            n_files = write_cold(path, attempt, run_parts)
        n_structures, reader = int(read_root(out)["attributes"]["n_structures"]), "zarr-python"
    else:
        exported = export_dataset(path, to, out, split=split, force=force, run_parts=run_parts)
        n_structures, n_files, reader = exported.n_structures, len(exported.files), exported.reader
    return {"out": str(out), "to": to, "structures": n_structures, "files": n_files, "reader": reader}


def _call_part(call: Callable[[], Any]) -> Any:
    """Write one part, on a worker."""
    return call()
