"""Compute a unit whose process died in isolation: each input in a process of its own; inputs that kill it are rejected.

Payloads of single inputs are kept in the work folder of the unit until it is committed, so that an isolated unit can
yield and another worker can continue it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskpipe.core import errors
from daskpipe.core.deadline import yield_if_ending
from daskpipe.core.errors import DaskpipeError, Rejection, Suspect
from daskpipe.core.files import make_folders
from daskpipe.core.heartbeat import record_heartbeats
from daskpipe.core.shared_disk import call_patiently, disk_error, explain_disk_errors
from daskpipe.core.structures import concat, from_atoms
from daskpipe.engine.attempts import Silence
from daskpipe.engine.rows import arrays_to_dataset, dataset_to_arrays
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit

TRIES = 2
"""Tries of an input in isolation before it is rejected: the first death may have had another cause."""

POLL_SECONDS = 0.1
"""Seconds between two looks at the process of an input."""

PR_SET_PDEATHSIG = 1
"""Option of Linux's ``prctl`` that sets the signal which a process gets when its parent dies."""


@dataclass(frozen=True, kw_only=True)
class IsolatedInputs:
    """Name the inputs of a unit, and compute them one by one.

    Parameters
    ----------
    names
        Returns the name of each input, as its rejection would have it.
    compute
        For each input, a function that returns its payload, or a list with its payload.
    """

    names: Callable[[], list[str]]
    compute: Sequence[Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class InputLimits:
    """Limit what the process of an input may take.

    Parameters
    ----------
    hang
        Longest time without a sign of life, s.
    memory
        Most memory, bytes; 0 for no limit.
    attempts
        Tries of the unit before and with this one; rejections record it.
    """

    hang: float
    memory: int
    attempts: int


def compute_isolated(root: Path, unit: Unit, inputs: IsolatedInputs, limits: InputLimits, mark: Path) -> Payload:
    """Compute a unit input by input, and reject the inputs that end their process.

    Parameters
    ----------
    root, unit
        Run directory and unit.
    inputs, limits
        The inputs, and what each may take.
    mark
        File of the mark of the unit; its time is that of the last heartbeat.

    Raises
    ------
    Yielded
        Between two inputs, if the worker ends soon.
    DaskpipeError
        Any error of an input that its structure did not cause.
    """
    folder = RunDirectory(root).work_dir(unit.stage, unit.key) / "alone"
    with explain_disk_errors(root, folder):
        make_folders(root, folder)
    payloads = []
    for index, (name, compute) in enumerate(zip(inputs.names(), inputs.compute, strict=True)):
        yield_if_ending()
        done = folder / f"{index}.npz"
        ends: list[tuple[str, str]] = []
        while not done.exists() and len(ends) < TRIES:
            if end := _compute_in_process(compute, done, mark, limits):
                ends.append(end)
        if done.exists():
            payloads.append(_read_payload(done))
        else:
            reason, evidence = ends[-1]
            rejection = Rejection(
                stage=unit.stage,
                structure=name,
                reason=reason,
                evidence=f"{evidence}, alone in its process, {TRIES} times",
                attempts=limits.attempts - 1 + TRIES,
            )
            payloads.append(Payload(arrays={}, n_out=0, rejected=[rejection]))
    return merge_payloads(payloads)


def merge_payloads(payloads: Sequence[Payload]) -> Payload:
    """Merge the payloads of inputs, in their order, into that of their unit."""
    parts = [arrays_to_dataset(payload.arrays) for payload in payloads if payload.n_out]
    return Payload(
        arrays=dataset_to_arrays(concat(parts) if parts else from_atoms([])),
        n_out=sum(payload.n_out for payload in payloads),
        rejected=[rejection for payload in payloads for rejection in payload.rejected],
        tallies=sum((Counter(payload.tallies) for payload in payloads), Counter()),
    )


def _compute_in_process(
    compute: Callable[[], Any], out: Path, mark: Path, limits: InputLimits
) -> tuple[str, str] | None:
    """Compute one payload into a file, in a process of its own; return reason and evidence if that process ended."""
    import cloudpickle
    import psutil

    os.utime(mark)
    process = subprocess.Popen(
        [sys.executable, "-m", "daskpipe.engine.isolation", str(out), str(mark)], stdin=subprocess.PIPE, stdout=2
    )
    silence = Silence()
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already; its exit code says why
            process.stdin.write(cloudpickle.dumps(compute))
            process.stdin.close()
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            with suppress(psutil.NoSuchProcess):
                used = psutil.Process(process.pid).memory_info().rss
                if limits.memory and used > limits.memory:
                    return "memory", f"it held {used / 1e9:.2f} GB of the {limits.memory / 1e9:.2f} GB that it may"
            silent = silence.measure_seconds(call_patiently(mark.stat).st_mtime_ns)
            if silent > limits.hang:
                return "hung", f"it gave no sign of life for {silent:.0f} s"
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        return "crashed", f"its process ended with {signal.Signals(-process.returncode).name}"
    if process.returncode == 0:
        return None
    report = out.with_suffix(".json")
    if not report.exists():
        return "crashed", f"its process ended with exit code {process.returncode}"
    error = json.loads(report.read_text())
    report.unlink()
    kind = getattr(errors, error["kind"])
    if kind is Suspect:
        return "memory", error["message"]
    raise kind(error["message"])


def _write_payload(out: Path, payload: Payload) -> None:
    if payload.files:
        raise TypeError("a unit that keeps files of its own cannot be computed input by input")
    facts = {
        "n_out": payload.n_out,
        "rejected": [rejection.as_json() for rejection in payload.rejected],
        "tallies": dict(payload.tallies),
    }
    buffer = io.BytesIO()
    facts_array = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, **payload.arrays, **{"/facts": facts_array})
    temporary = out.with_suffix(".new")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, out)


def _read_payload(path: Path) -> Payload:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop("/facts").tobytes())
    rejected = [Rejection(**row) for row in facts.pop("rejected")]
    return Payload(arrays=arrays, rejected=rejected, **facts)


def compute_from_stdin(out: Path, mark: Path) -> int:
    """Compute the pickled function on the standard input; this runs in a process of its own.

    Parameters
    ----------
    out
        File for the payload.
    mark
        File whose time heartbeats set.

    Returns
    -------
    int
        Exit code: 0 if the payload is in `out`, 1 if the error is in the JSON file beside it.
    """
    import pickle

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    compute = pickle.load(sys.stdin.buffer)  # from the worker that started this process
    try:
        with record_heartbeats(mark):
            payload = compute()
        if isinstance(payload, list):
            (payload,) = payload
        _write_payload(out, payload)
    except (DaskpipeError, MemoryError) as error:
        kind = type(error).__name__ if isinstance(error, DaskpipeError) else "Suspect"
        out.with_suffix(".json").write_text(json.dumps({"kind": kind, "message": str(error) or "memory ran out"}))
        return 1
    except OSError as error:
        if (explained := disk_error(error)) is None:
            raise
        out.with_suffix(".json").write_text(json.dumps({"kind": type(explained).__name__, "message": str(explained)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(compute_from_stdin(Path(sys.argv[1]), Path(sys.argv[2])))
