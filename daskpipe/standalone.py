"""Some stages on their own, files in, files out: what ``daskpipe describe``, ``select``, ``merge`` and ``import`` call.

The frames of the user's files take the place of an exploration in a run directory that lives as long as the call;
the rooms, the units and the workers are those of a run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe import config as configs
from daskpipe.cluster import check as check_cluster
from daskpipe.cluster import connect
from daskpipe.composition import sections_of
from daskpipe.config import Config
from daskpipe.driving import tell_stale_deadlines
from daskpipe.errors import (
    EXIT_COMPLETE,
    EXIT_QUARANTINED,
    ConfigError,
    DiskError,
    DiskUnreachable,
    reasons,
    unknown,
)
from daskpipe.events import Emit, RunStarted, fan_out
from daskpipe.generate.files import checksum, find
from daskpipe.generate.given_splits import splits_of_files
from daskpipe.generate.labelled import (
    KNOWN_NAMES,
    check_method,
    find_labelled,
    label_report,
    labelled_stretches,
)
from daskpipe.generate.labels import LabelKeys
from daskpipe.generate.stretches import Stretch, copy_frames, stretches
from daskpipe.joining import join
from daskpipe.ledger import Ledger
from daskpipe.outputs import check_output, replacing, resolve_output
from daskpipe.packing import versions
from daskpipe.pipeline import Frames, content_of, frames_of, gather, labels_of, read_and_describe, rows_of
from daskpipe.placement import Workers, offers
from daskpipe.select.overlaps import find_overlaps
from daskpipe.select.stage import atom_table, feature_table
from daskpipe.store import export as export_dataset
from daskpipe.store.cold import write_cold
from daskpipe.store.formats import FORMATS
from daskpipe.store.reader import dataset_of
from daskpipe.variables import read_root
from daskpipe.work import Receipt, Tree

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

SIZE = 512
"""Frames read and described by one task."""

PICKING = ("describe", "select", "cluster", "seed")
MAKING = ("store", "describe", "cluster", "seed")
"""What of the config counts where frames are described and picked, and where a dataset is made."""

COLD = "cold"
"""Name of the compressed copy among the formats of exports."""

Made = tuple[list[Receipt], int, dict[str, Any]]
"""Units of frames, how much was written, and what to report."""

CHUNK = 65_536
"""Rows of a chunk of what `describe` writes."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was made of the frames of files.

    Parameters
    ----------
    out
        The file written.
    n_frames, n_out
        Frames described, and rows or frames written.
    rejected
        Frames that could not be read, by reason.
    examples
        One of each reason: what it was.
    report
        Of `select`: method, near-duplicates left out, coverage, and picks whose atoms overlap. Of `describe`: its
        settings, and versions. Of `import`: ``labels``, the frames that have each label, ``sources``, by the keys that
        their labels come from, and ``left_out``, by what they hold that no dataset has room for.
    seconds
        Wall time.
    """

    out: Path
    n_frames: int
    n_out: int
    seconds: float
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 10 if frames were rejected."""
        return EXIT_QUARANTINED if self.rejected else EXIT_COMPLETE


def select(
    paths: Sequence[str],
    n: int,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> Done:
    """Pick frames of files, and copy them to an extxyz file as they are written there.

    Parameters
    ----------
    paths
        Files, folders and globs of the formats that ``generate.paths`` takes.
    n
        Frames to pick.
    out
        File to write, ``*.extxyz`` or ``*.xyz``.
    overrides
        Of ``describe``, ``select``, ``cluster`` and ``seed``: ``select=fps``, ``describe.params.r_cut=6``.
    force
        Replace `out` if it exists.
    client, subscribers
        As in `daskpipe.run`.

    Raises
    ------
    ConfigError
        For a wrong override or file name, or if `out` exists.
    InputError
        If a path does not exist, or no frame can be read.
    """
    out = _target(out, (".extxyz", ".xyz"), force)
    config = _config([*overrides, f"select.n={n}"])
    if config.select.against is not None:
        content_of(Path(config.select.against))

    pieces = _pieces(paths)

    def work(tree: Tree, workers: Workers, emit: Emit) -> Made:
        frames, _, picks = read_and_describe(tree, config, frames_of(pieces, config.seed), workers, emit, picks=True)
        assert picks is not None
        chosen = tree.load("select", picks.key, ["unit", "row", "report"])
        filled = [(piece, receipt.key) for piece, receipt in zip(pieces, frames, strict=True) if receipt.n_out]
        numbers: dict[str, list[int]] = {}
        for unit in np.unique(chosen["unit"]).tolist():
            piece, key = filled[unit]
            steps = tree.load("explore", key, ["step"])["step"]
            numbers.setdefault(piece.path, []).extend(steps[chosen["row"][chosen["unit"] == unit]].tolist())
        with replacing(out) as attempt:
            copy_frames(numbers.items(), attempt)
        overlaps = find_overlaps(tree, [(piece.path, key) for piece, key in filled], chosen)
        return frames, picks.n_out, {**json.loads(chosen["report"].item()), "overlaps": overlaps}

    return _run(f"select {n}", config, out, client, subscribers, work)


def describe(
    paths: Sequence[str],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> Done:
    """Describe frames of files: their features, and with ``describe.level=atom`` those of their atoms.

    Parameters
    ----------
    paths, overrides, force, client, subscribers
        As in `select`.
    out
        ``*.zarr``, which xarray opens, or ``*.npz``. It holds ``features`` (structure, feature), ``n_atoms``,
        ``structure_id``, ``path`` and ``frame`` of each structure, and ``environments`` (atom, feature).

    Raises
    ------
    ConfigError, InputError
        As `select`.
    """
    out = _target(out, (".zarr", ".npz"), force)
    config = _config(overrides)

    pieces = _pieces(paths)

    def work(tree: Tree, workers: Workers, emit: Emit) -> Made:
        frames, rows, _ = read_and_describe(tree, config, frames_of(pieces, config.seed), workers, emit, picks=False)
        ds = _features(tree, pieces, frames, rows, config)
        with replacing(out) as attempt:
            if out.suffix == ".zarr":
                ds.to_zarr(attempt, zarr_format=3, consolidated=False)
            else:
                np.savez(attempt, allow_pickle=False, **{str(name): array.values for name, array in ds.items()})
        return frames, ds.sizes["structure"], {key: json.loads(value) for key, value in ds.attrs.items()}

    return _run("describe", config, out, client, subscribers, work)


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
        Keys and units of the labels; by default one family of labels is taken, see `daskpipe.generate.labels`.
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
    pieces = [piece for file in files for piece in labelled_stretches(file, SIZE, given.get(file, ""))]
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

    def work(tree: Tree, workers: Workers, emit: Emit) -> Made:
        described = config.describe.model_dump(mode="json", exclude={"device"})
        attrs = {"sources": json.dumps(sources, sort_keys=True), "describe": json.dumps(described, sort_keys=True)}
        with replacing(out) as attempt:
            frames, dataset, report = gather(tree, config, plan, workers, emit, target=attempt, attrs=attrs)
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


def _config(overrides: Sequence[str], sections: Sequence[str] = PICKING) -> Config:
    """Compose the sections that count, from the presets of SOAP and k-means."""
    for override, section in zip(overrides, sections_of(overrides), strict=True):
        if section not in sections:
            raise ConfigError(f"{override!r} is of no use here: overrides begin with {', '.join(sections)}")
    return configs.load("quickstart", ["describe=soap", "select=kmeans", *overrides])


def _target(out: str | Path, suffixes: Sequence[str], force: bool) -> Path:
    out = Path(out)
    if out.suffix not in suffixes:
        raise ConfigError(f"{out} must end in {' or '.join(suffixes)}; type e.g. -o {quote(out.stem + suffixes[0])}")
    check_output(out, force)
    return out


def _pieces(paths: Sequence[str]) -> list[Stretch]:
    return [piece for file in find(list(paths), Path.cwd()) for piece in stretches(file, SIZE)]


def _run(
    name: str,
    config: Config,
    out: Path,
    client: Client | None,
    subscribers: Iterable[Emit],
    work: Callable[[Tree, Workers, Emit], Made],
) -> Done:
    """Do the work in a run directory beside `out`, and remove it."""
    started = time.perf_counter()
    if client is None:
        check_cluster(config.cluster)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=resolve_output(out).parent))
    except OSError as error:
        raise DiskError(f"cannot write beside {out}: {error.strerror}; give another -o") from error
    try:
        tree = Tree(folder)
        emit = fan_out(Ledger(tree), *subscribers)
        with (
            nullcontext(join(client, folder, emit))
            if client is not None
            else connect(config.cluster, folder / "workers.log", emit)
        ) as workers:
            dashboard = workers.client.dashboard_link or None
            emit(RunStarted(run_dir=str(out), name=name, dashboard=dashboard, workers=sorted(offers(workers.client))))
            tell_stale_deadlines(emit)
            frames, n_out, report = work(tree, workers, emit)
        rejections = tree.quarantined()
        return Done(
            out=out,
            n_frames=sum(receipt.n_out for receipt in frames),
            n_out=n_out,
            seconds=time.perf_counter() - started,
            rejected=reasons(rejections),
            examples={item.kind: f"{item.structure}: {item.evidence}" for item in reversed(rejections)},
            report=report,
        )
    except DiskError as error:
        # There is no run to go on with.
        advice = "Have the disk looked at" if isinstance(error, DiskUnreachable) else "Make room"
        raise type(error)(f"{str(error).partition('. ')[0]}. {advice}, or give another -o") from error
    finally:
        # Away in one step: units that are still under way after an interruption find nothing to add to.
        gone = folder.with_name(f"{folder.name}-gone")
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _features(
    tree: Tree, pieces: list[Stretch], frames: list[Receipt], features: list[Receipt], config: Config
) -> xr.Dataset:
    """Gather what describes the frames; features are lazy Dask arrays."""
    import xarray as xr

    dims = config.describe.dims
    table = [(receipt.key, receipt.n_out) for receipt in features]
    filled = [(piece, receipt.key) for piece, receipt in zip(pieces, frames, strict=True) if receipt.n_out]
    units = [tree.load("explore", key, ["structure_id", "n_atoms", "step"]) for _, key in filled]
    n_atoms = np.concatenate([unit["n_atoms"] for unit in units])
    paths = [np.full(len(unit["step"]), piece.path) for (piece, _), unit in zip(filled, units, strict=True)]
    variables: dict[str, Any] = {
        "features": (("structure", "feature"), feature_table(tree.root, table, dims).rechunk((CHUNK, dims))),
        "n_atoms": ("structure", n_atoms),
        "structure_id": ("structure", [id_.tobytes().hex() for unit in units for id_ in unit["structure_id"]]),
        "path": ("structure", np.concatenate(paths)),
        "frame": ("structure", np.concatenate([unit["step"] for unit in units])),
    }
    if config.describe.level == "atom":
        atoms = atom_table(tree.root, table, n_atoms.astype(np.int64)).rechunk((CHUNK, dims))
        variables["environments"] = (("atom", "feature"), atoms)
    attrs = {"describe": config.describe.model_dump(mode="json"), "versions": versions()}
    return xr.Dataset(variables, attrs={key: json.dumps(value, sort_keys=True) for key, value in attrs.items()})
