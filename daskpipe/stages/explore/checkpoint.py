"""Checkpoints of the trajectories of a unit: a NumPy archive without pickled objects.

The names in the archive (``walkers``, ``n_flying``, ``capacity``) are part of the format on disk and do not change.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields

import numpy as np

from daskpipe.core.errors import Rejection
from daskpipe.stages.explore.trajectory import Frame, Trajectory

SCALARS = ("attempt", "step", "moved_at", "finished", "tallies")


def pack_trajectories(
    trajectories: Sequence[Trajectory], order: Sequence[int], n_flying: int, capacity: float
) -> bytes:
    """Return a checkpoint as bytes.

    Parameters
    ----------
    trajectories
        All of the unit.
    order, n_flying
        Indices of unfinished trajectories, those in the batch first, in its order; and how many are in the batch.
    capacity
        Present limit of the batch, which out-of-memory errors may have halved.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, trajectory in enumerate(trajectories):
        parts = {"state": trajectory.state or {}}
        if trajectory.fingerprint is not None:
            parts["walker"] = {"fingerprint": trajectory.fingerprint}
        if trajectory.frames:
            names = [field.name for field in fields(Frame)]
            parts["frame"] = {name: np.stack([getattr(frame, name) for frame in trajectory.frames]) for name in names}
        arrays |= {
            f"{number}/{part}/{name}": array for part, columns in parts.items() for name, array in columns.items()
        }
    facts = {
        "order": list(order),
        "n_flying": n_flying,
        "capacity": capacity,
        "walkers": [{name: getattr(trajectory, name) for name in SCALARS} for trajectory in trajectories],
        "stops": [[asdict(stop) for stop in trajectory.stops] for trajectory in trajectories],
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_trajectories(data: bytes, trajectories: Sequence[Trajectory]) -> tuple[list[int], int, float]:
    """Restore trajectories from a checkpoint; return order, number in the batch and capacity."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop("facts").tobytes())
    columns_of: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        number, part, field = name.split("/")
        columns_of.setdefault((int(number), part), {})[field] = array
    for number, trajectory in enumerate(trajectories):
        for name in SCALARS:
            setattr(trajectory, name, facts["walkers"][number][name])
        trajectory.stops = [Rejection(**stop) for stop in facts["stops"][number]]
        trajectory.state = columns_of.get((number, "state"))
        trajectory.fingerprint = columns_of.get((number, "walker"), {}).get("fingerprint")
        trajectory.frames = _unpack_frames(columns_of.get((number, "frame")))
    return facts["order"], facts["n_flying"], facts["capacity"]


def _unpack_frames(columns: dict[str, np.ndarray] | None) -> list[Frame]:
    if columns is None:
        return []
    return [
        Frame(
            positions=positions,
            cell=cell,
            **{name: column[row].item() for name, column in columns.items() if name not in ("positions", "cell")},
        )
        for row, (positions, cell) in enumerate(zip(columns["positions"], columns["cell"], strict=True))
    ]


def count_steps(data: bytes) -> int:
    """Return the sum of the steps that all trajectories had made at a checkpoint."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        facts = json.loads(archive["facts"].tobytes())
    return sum(trajectory["step"] for trajectory in facts["walkers"])
