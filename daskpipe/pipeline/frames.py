"""Some stages on their own, files in, files out: what ``daskpipe describe``, ``select``, ``merge`` and ``import`` call.

The frames of the user's files take the place of an exploration in a run directory that lives as long as the call;
the rooms, the units and the workers are those of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.config.models import Config
from daskpipe.core.events import Emit
from daskpipe.core.outputs import replacing
from daskpipe.engine.dask_pool import Workers
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt
from daskpipe.pipeline.existing_data import frames_of, read_and_describe
from daskpipe.pipeline.packing import versions
from daskpipe.pipeline.steps import content_of
from daskpipe.pipeline.workspace import SIZE, Done, Made, _config, _run, _target
from daskpipe.stages.generate.files import find_files
from daskpipe.stages.generate.frame_ranges import FrameRange, copy_frames, cut_frame_ranges
from daskpipe.stages.select.overlaps import find_overlaps
from daskpipe.stages.select.stage import atom_table, feature_table

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client


CHUNK = 65_536
"""Rows of a chunk of what `describe` writes."""


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

    def work(directory: RunDirectory, workers: Workers, emit: Emit) -> Made:
        frames, _, picks = read_and_describe(
            directory, config, frames_of(pieces, config.seed), workers, emit, picks=True
        )
        assert picks is not None
        chosen = directory.load("select", picks.key, ["unit", "row", "report"])
        filled = [(piece, receipt.key) for piece, receipt in zip(pieces, frames, strict=True) if receipt.n_out]
        numbers: dict[str, list[int]] = {}
        for unit in np.unique(chosen["unit"]).tolist():
            piece, key = filled[unit]
            steps = directory.load("explore", key, ["step"])["step"]
            numbers.setdefault(piece.path, []).extend(steps[chosen["row"][chosen["unit"] == unit]].tolist())
        with replacing(out) as attempt:
            copy_frames(numbers.items(), attempt)
        overlaps = find_overlaps(directory, "explore", [(piece.path, key) for piece, key in filled], chosen)
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

    def work(directory: RunDirectory, workers: Workers, emit: Emit) -> Made:
        frames, rows, _ = read_and_describe(
            directory, config, frames_of(pieces, config.seed), workers, emit, picks=False
        )
        ds = _features(directory, pieces, frames, rows, config)
        with replacing(out) as attempt:
            if out.suffix == ".zarr":
                ds.to_zarr(attempt, zarr_format=3, consolidated=False)
            else:
                np.savez(attempt, allow_pickle=False, **{str(name): array.values for name, array in ds.items()})
        return frames, ds.sizes["structure"], {key: json.loads(value) for key, value in ds.attrs.items()}

    return _run("describe", config, out, client, subscribers, work)


def _pieces(paths: Sequence[str]) -> list[FrameRange]:
    return [piece for file in find_files(list(paths), Path.cwd()) for piece in cut_frame_ranges(file, SIZE)]


def _features(
    directory: RunDirectory, pieces: list[FrameRange], frames: list[Receipt], features: list[Receipt], config: Config
) -> xr.Dataset:
    """Gather what describes the frames; features are lazy Dask arrays."""
    import xarray as xr

    dims = config.describe.dims
    table = [(receipt.key, receipt.n_out) for receipt in features]
    filled = [(piece, receipt.key) for piece, receipt in zip(pieces, frames, strict=True) if receipt.n_out]
    units = [directory.load("explore", key, ["structure_id", "n_atoms", "step"]) for _, key in filled]
    n_atoms = np.concatenate([unit["n_atoms"] for unit in units])
    paths = [np.full(len(unit["step"]), piece.path) for (piece, _), unit in zip(filled, units, strict=True)]
    variables: dict[str, Any] = {
        "features": (
            ("structure", "feature"),
            feature_table(directory.root, "describe", table, dims).rechunk((CHUNK, dims)),
        ),
        "n_atoms": ("structure", n_atoms),
        "structure_id": ("structure", [id_.tobytes().hex() for unit in units for id_ in unit["structure_id"]]),
        "path": ("structure", np.concatenate(paths)),
        "frame": ("structure", np.concatenate([unit["step"] for unit in units])),
    }
    if config.describe.level == "atom":
        atoms = atom_table(directory.root, "describe", table, n_atoms.astype(np.int64)).rechunk((CHUNK, dims))
        variables["environments"] = (("atom", "feature"), atoms)
    attrs = {"describe": config.describe.model_dump(mode="json"), "versions": versions()}
    return xr.Dataset(variables, attrs={key: json.dumps(value, sort_keys=True) for key, value in attrs.items()})
