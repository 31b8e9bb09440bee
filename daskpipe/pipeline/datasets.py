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
    unknown,
)
from daskpipe.core.events import Emit
from daskpipe.core.outputs import replacing
from daskpipe.core.variables import read_root
from daskpipe.engine.dask_pool import Workers
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.pipeline.existing_data import Frames, gather, labels_of, rows_of
from daskpipe.pipeline.workspace import MAKING, SIZE, Done, Made, _config, _run, _target
from daskpipe.stages.generate.files import checksum
from daskpipe.stages.generate.given_splits import splits_of_files
from daskpipe.stages.generate.labelled import (
    KNOWN_NAMES,
    check_method,
    cut_labelled_ranges,
    find_labelled,
    label_report,
)
from daskpipe.stages.generate.labels import LabelKeys
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
) -> Done:
    """Make one dataset of several. Structures that occur twice are kept once: the one of the dataset named first.

    All are described anew, on common axes, and split anew: groups are connected across the datasets.

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
    out = _target(out, (".zarr",), force)
    config = _config(overrides, MAKING)
    paths = [dataset_of(path) for path in datasets]
    sources = [_provenance(path) for path in paths]
    return _gathered("merge", config, rows_of(paths, config.seed), sources, out, client, subscribers)


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
) -> Done:
    """Make a dataset of labelled frames that others have computed.

    Frames are described, near-duplicates and trajectories found, and the splits made as in a run, unless the frames
    come with splits (key ``split``, or one file a split), which they keep: ``store.keep_splits=false`` splits anew.
    Doubled frames are kept once; frames that cannot be used are counted by reason, and named in the dataset's attribute
    ``rejected``.

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
        One word for how the labels were made, e.g. ``PBE-D3``: it becomes ``label_method``.
    keys
        Keys and units of the labels; by default one family of labels is taken, see `daskpipe.stages.generate.labels`.
    force, client, subscribers
        As in `select`.

    Raises
    ------
    ConfigError, InputError
        As `select`.
    """
    out = _target(out, (".zarr",), force)
    check_method(method)
    config = _config(overrides, MAKING)
    files, strangers = find_labelled(list(paths), Path.cwd())
    if strangers:
        raise ConfigError(f"{strangers[0]} holds no labels that can be read; give {KNOWN_NAMES}")
    typed = {"label_keys": keys.model_dump(exclude_none=True)} if keys != LabelKeys() else {}
    sources = [{"name": file.name, "checksum": checksum(file), "label_method": method, **typed} for file in files]
    given = splits_of_files(files)
    pieces = [piece for file in files for piece in cut_labelled_ranges(file, SIZE, given.get(file, ""))]
    return _gathered("import", config, labels_of(pieces, keys, method, config.seed), sources, out, client, subscribers)


def _provenance(path: Path) -> dict[str, Any]:
    """Return the row of a dataset in the table of where the structures of another come from."""
    attributes = read_root(path)["attributes"]
    said = ("dataset_key", "n_structures", "seed", "explore_potential", "label_potential", "sources", "versions")
    found = {name: attributes[name] for name in said if name in attributes}
    return {"name": path.name, **found, "checksum": attributes["checksums"]["root"]}


def _gathered(
    name: str,
    config: Config,
    plan: Frames,
    sources: Sequence[Mapping[str, Any]],
    out: Path,
    client: Client | None,
    subscribers: Iterable[Emit],
) -> Done:
    """Make a dataset at `out` of labelled structures."""

    def work(directory: RunDirectory, workers: Workers, emit: Emit) -> Made:
        described = config.describe.model_dump(mode="json", exclude={"device"})
        attrs = {"sources": json.dumps(sources, sort_keys=True), "describe": json.dumps(described, sort_keys=True)}
        with replacing(out) as attempt:
            frames, dataset, report = gather(directory, config, plan, workers, emit, target=attempt, attrs=attrs)
        return frames, dataset.n_out, {**report, **label_report(receipt.tallies for receipt in frames)}

    return _run(name, config, out, client, subscribers, work)


def export(
    dataset: str | Path,
    to: str,
    out: str | Path,
    *,
    split: str | None = None,
    force: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a dataset in another format, its parts side by side on a cluster if there are several.

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
        raise ConfigError(unknown("export format", to, [*FORMATS, COLD]))
    config = _config(overrides, ("cluster",))
    path, out = dataset_of(dataset), Path(out)

    def side_by_side(calls: Sequence[Callable[[], Any]]) -> list[Any]:
        if len(calls) == 1:
            return [calls[0]()]
        with connect(config.cluster) as workers:
            return list(workers.client.gather(workers.client.map(_called, calls, pure=False)))

    if to == COLD:
        if split is not None:
            raise ConfigError("a cold copy is of the whole dataset; leave --split out")
        out = _target(out, (".zarr",), force)
        with replacing(out) as attempt:
            n_files = write_cold(path, attempt, side_by_side)
        n_structures, reader = int(read_root(out)["attributes"]["n_structures"]), "zarr-python"
    else:
        done = export_dataset(path, to, out, split=split, force=force, run_parts=side_by_side)
        n_structures, n_files, reader = done.n_structures, len(done.files), done.reader
    return {"out": str(out), "to": to, "structures": n_structures, "files": n_files, "reader": reader}


def _called(call: Callable[[], Any]) -> Any:
    return call()
