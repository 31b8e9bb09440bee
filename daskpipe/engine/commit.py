"""Commit the payload of a unit: attempt directory, manifest last, fsync, rename."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np

from daskpipe.core.errors import DiskUnreachable
from daskpipe.core.files import make_folders, sync_folder, write_synced
from daskpipe.core.shared_disk import explain_disk_errors
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Receipt, Unit


def commit(root: Path, unit: Unit, payload: Payload, *, seconds: float = 0.0) -> Receipt:
    """Commit the payload of a unit, or return the receipt of another attempt that was first.

    Parameters
    ----------
    root, unit, payload
        Run directory, unit, and what the unit made.
    seconds
        Seconds of work that the payload took.

    Raises
    ------
    DiskError
        If the disk is full or cannot be written.
    FileNotFoundError
        If the run directory is not there.
    """
    directory = RunDirectory(root)
    final = directory.unit_dir(unit.stage, unit.key)
    attempt = final.with_name(f".{unit.key}-{uuid.uuid4().hex[:8]}-attempt")
    try:
        with explain_disk_errors(root, attempt):
            make_folders(root, attempt)
            receipt = _write_and_rename(directory, unit, payload, seconds, attempt, final)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)  # a full disk needs the room
        raise
    shutil.rmtree(directory.work_dir(unit.stage, unit.key), ignore_errors=True)
    return receipt


def _write_and_rename(
    directory: RunDirectory, unit: Unit, payload: Payload, seconds: float, attempt: Path, final: Path
) -> Receipt:
    """Write the files of a unit into its attempt directory, and rename that to the directory of the unit."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **payload.arrays)
    rejected = json.dumps([rejection.as_json() for rejection in payload.rejected], indent=1).encode()
    files = {
        "payload.npz": write_synced(attempt / "payload.npz", buffer.getvalue()),
        "rejected.json": write_synced(attempt / "rejected.json", rejected),
        **{name: write_synced(attempt / name, data) for name, data in payload.files.items()},
    }
    receipt = Receipt(
        stage=unit.stage,
        index=unit.index,
        key=unit.key,
        n_inputs=unit.n_inputs,
        n_out=payload.n_out,
        n_rejected=len(payload.rejected),
        counts=count_by(payload.arrays.get("system_type")),
        n_bytes=sum(file["size"] for file in files.values()),
        seconds=round(seconds, 3),
        worker=f"{os.uname().nodename}:{os.getpid()}",
        tallies=dict(payload.tallies),
    )
    manifest = {"unit": asdict(unit), "files": files, "receipt": asdict(receipt)}
    write_synced(attempt / "manifest.json", json.dumps(manifest, indent=1).encode())
    sync_folder(attempt)
    try:
        os.rename(attempt, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(attempt)
        first = directory.wait_for_receipt(unit)
        if first is None:
            raise DiskUnreachable(
                f"{final} was committed by another process and cannot be seen here; is {directory.root} shared by all?"
            ) from error
        return first
    sync_folder(final.parent)
    return receipt


def count_by(names: np.ndarray | None) -> dict[str, int]:
    """Count how often each name occurs."""
    if names is None:
        return {}
    values, counts = np.unique(names, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
