"""Select and describe the frames of files: what ``daskpipe select`` and ``daskpipe describe`` call.

The frames take the place of an exploration in a run directory that lives as long as the call. The stages, the units
and the workers are those of a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.config.models import Config
from daskpipe.core.events import Emit
from daskpipe.core.outputs import replace_output
from daskpipe.engine.dask_pool import Workers
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt
from daskpipe.pipeline.existing_data import list_frame_ranges, plan_frames, read_and_describe
from daskpipe.pipeline.packing import read_package_versions
from daskpipe.pipeline.steps import hash_content
from daskpipe.pipeline.workspace import (
    FilesResult,
    Outputs,
    check_target,
    compose_sections,
    run_in_workspace,
)
from daskpipe.stages.generate.reading.frame_ranges import FrameRange, copy_frames
from daskpipe.stages.select.overlaps import find_overlaps
from daskpipe.stages.select.stage import atom_table, feature_table

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client


CHUNK_ROWS = 65_536
"""Rows of a chunk of what `describe_files` writes."""


@dataclass(frozen=True, kw_only=True)
class DescribedFrames:
    """Frames of files, read and described in a run directory.

    Parameters
    ----------
    directory, config
        The run directory, and the config of the description.
    filled
        Frame ranges that hold frames, and the keys of their units.
    features
        Units of features, in the order of `filled`.
    picks
        Unit of picks; None where nothing was picked.
    """

    directory: RunDirectory
    config: Config
    filled: list[tuple[FrameRange, str]]
    features: list[Receipt]
    picks: Receipt | None


def select_files(
    paths: Sequence[str],
    n: int,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> FilesResult:
    """Pick frames of files, and copy them unchanged to an extxyz file.

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
    out = check_target(out, (".extxyz", ".xyz"), force)
    config = compose_sections([*overrides, f"select.n={n}"])
    if config.select.against is not None:
        hash_content(Path(config.select.against))
    return _process_files(f"select {n}", paths, config, out, client, subscribers, _write_picks, picks=True)


def describe_files(
    paths: Sequence[str],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> FilesResult:
    """Describe frames of files: their features, and with ``describe.level=atom`` those of their atoms.

    Parameters
    ----------
    paths, overrides, force, client, subscribers
        As in `select_files`.
    out
        ``*.zarr``, which xarray opens, or ``*.npz``. It holds ``features`` (structure, feature), ``n_atoms``,
        ``structure_id``, ``path`` and ``frame`` of each structure, and ``environments`` (atom, feature).

    Raises
    ------
    ConfigError, InputError
        As `select_files`.
    """
    out = check_target(out, (".zarr", ".npz"), force)
    write = _write_zarr if out.suffix == ".zarr" else _write_npz
    return _process_files("describe", paths, compose_sections(overrides), out, client, subscribers, write, picks=False)


def _process_files(
    name: str,
    paths: Sequence[str],
    config: Config,
    out: Path,
    client: Client | None,
    subscribers: Iterable[Emit],
    write: Callable[[DescribedFrames, Path], tuple[int, dict[str, Any]]],
    *,
    picks: bool,
) -> FilesResult:
    """Read and describe the frames of files, and write to `out` what is made of them.

    `write` is given the frames and a path that becomes `out` when it returns; it returns how many rows or frames it
    wrote, and a report.
    """
    frame_ranges = list_frame_ranges(paths)

    def write_outputs(directory: RunDirectory, workers: Workers, emit: Emit) -> Outputs:
        plan = plan_frames(frame_ranges, config.seed)
        frames, features, picked = read_and_describe(directory, config, plan, workers, emit, picks=picks)
        filled = [
            (frame_range, receipt.key)
            for frame_range, receipt in zip(frame_ranges, frames, strict=True)
            if receipt.n_out
        ]
        described = DescribedFrames(directory=directory, config=config, filled=filled, features=features, picks=picked)
        with replace_output(out) as attempt:
            n_out, report = write(described, attempt)
        return frames, n_out, report

    return run_in_workspace(name, config, out, client, subscribers, write_outputs)


def _write_picks(described: DescribedFrames, path: Path) -> tuple[int, dict[str, Any]]:
    """Copy the frames that were picked to an extxyz file."""
    directory, picks = described.directory, described.picks
    assert picks is not None
    chosen = directory.load_arrays("select", picks.key, ["unit", "row", "report"])
    numbers: dict[str, list[int]] = {}
    for unit in np.unique(chosen["unit"]).tolist():
        frame_range, key = described.filled[unit]
        steps = directory.load_arrays("explore", key, ["step"])["step"]
        numbers.setdefault(frame_range.path, []).extend(steps[chosen["row"][chosen["unit"] == unit]].tolist())
    copy_frames(numbers.items(), path)
    overlaps = find_overlaps(
        directory, "explore", [(frame_range.path, key) for frame_range, key in described.filled], chosen
    )
    return picks.n_out, {**json.loads(chosen["report"].item()), "overlaps": overlaps}


def _write_zarr(described: DescribedFrames, path: Path) -> tuple[int, dict[str, Any]]:
    """Write the features of frames to a Zarr store."""
    ds = _collect_features(described)
    ds.to_zarr(path, zarr_format=3, consolidated=False)
    return _report_features(ds)


def _write_npz(described: DescribedFrames, path: Path) -> tuple[int, dict[str, Any]]:
    """Write the features of frames to an npz file."""
    ds = _collect_features(described)
    np.savez(path, allow_pickle=False, **{str(name): array.values for name, array in ds.items()})
    return _report_features(ds)


def _report_features(ds: xr.Dataset) -> tuple[int, dict[str, Any]]:
    """Return how many structures are described, and the attributes."""
    return ds.sizes["structure"], {key: json.loads(value) for key, value in ds.attrs.items()}


def _collect_features(described: DescribedFrames) -> xr.Dataset:
    """Collect the features and names of frames; features are lazy Dask arrays."""
    import xarray as xr

    root, dims = described.directory.root, described.config.describe.dims
    table = [(receipt.key, receipt.n_out) for receipt in described.features]
    units = [
        described.directory.load_arrays("explore", key, ["structure_id", "n_atoms", "step"])
        for _, key in described.filled
    ]
    n_atoms = np.concatenate([unit["n_atoms"] for unit in units])
    paths = [
        np.full(len(unit["step"]), frame_range.path)
        for (frame_range, _), unit in zip(described.filled, units, strict=True)
    ]
    variables: dict[str, Any] = {
        "features": (
            ("structure", "feature"),
            feature_table(root, "describe", table, dims).rechunk((CHUNK_ROWS, dims)),
        ),
        "n_atoms": ("structure", n_atoms),
        "structure_id": ("structure", [id_.tobytes().hex() for unit in units for id_ in unit["structure_id"]]),
        "path": ("structure", np.concatenate(paths)),
        "frame": ("structure", np.concatenate([unit["step"] for unit in units])),
    }
    if described.config.describe.level == "atom":
        atoms = atom_table(root, "describe", table, n_atoms.astype(np.int64)).rechunk((CHUNK_ROWS, dims))
        variables["environments"] = (("atom", "feature"), atoms)
    attrs = {"describe": described.config.describe.model_dump(mode="json"), "versions": read_package_versions()}
    return xr.Dataset(variables, attrs={key: json.dumps(value, sort_keys=True) for key, value in attrs.items()})
