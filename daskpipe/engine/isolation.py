"""A unit whose process has died, taken apart: each input in a process of its own, those that kill it rejected.

What is done is kept beside the unit until it is committed, so that a unit taken apart can yield and go on elsewhere.
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
from daskpipe.core.deadline import YIELD_SECONDS, seconds_left
from daskpipe.core.errors import DaskpipeError, Rejection, Suspect, Yielded
from daskpipe.core.files import make_folders
from daskpipe.core.heartbeat import touching
from daskpipe.core.shared_disk import call_patiently, disk_error, explained
from daskpipe.core.structures import concat
from daskpipe.engine.attempts import Silence
from daskpipe.engine.rows import arrays_of
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit

TRIES = 2
"""How often an input is tried alone before it is rejected: the first death may have had another reason."""

POLL_SECONDS = 0.1

PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when the one that started it dies."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    """The inputs of a unit, one by one.

    Parameters
    ----------
    names
        Returns the name of each input, as its rejection tells it.
    one
        For each input, a function that computes its payload, alone in a list or as it is.
    """

    names: Callable[[], list[str]]
    one: Sequence[Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an input may take.

    Parameters
    ----------
    hang
        Seconds without a sign of life.
    memory
        Bytes; 0 for no limit.
    attempts
        How often the unit had been tried when it was taken apart; told in rejections.
    """

    hang: float
    memory: int
    attempts: int


def compute_apart(root: Path, unit: Unit, apart: Apart, bounds: Bounds, mark: Path) -> Payload:
    """Compute a unit input by input, and reject those that end their process.

    Raises
    ------
    Yielded
        Between two inputs, if the worker ends soon.
    DaskpipeError
        Whatever an input raises that is no fault of a structure.
    """
    folder = RunDirectory(root).work_dir(unit.stage, unit.key) / "alone"
    with explained(root, folder):
        make_folders(root, folder)
    payloads = []
    for index, (name, compute) in enumerate(zip(apart.names(), apart.one, strict=True)):
        if seconds_left() < YIELD_SECONDS:
            raise Yielded(f"the worker ends in {max(0.0, seconds_left()):.0f} s")
        done = folder / f"{index}.npz"
        ends: list[tuple[str, str]] = []
        while not done.exists() and len(ends) < TRIES:
            if end := _in_its_own_process(compute, done, mark, bounds):
                ends.append(end)
        if done.exists():
            payloads.append(_read(done))
        else:
            reason, evidence = ends[-1]
            rejection = Rejection(
                stage=unit.stage,
                structure=name,
                reason=reason,
                evidence=f"{evidence}, alone in its process, {TRIES} times",
                attempts=bounds.attempts - 1 + TRIES,
            )
            payloads.append(Payload(arrays={}, n_out=0, rejected=[rejection]))
    return merged(payloads)


def merged(payloads: Sequence[Payload]) -> Payload:
    """Join the payloads of inputs, in their order, into that of their unit."""
    import xarray as xr

    from daskpipe.core.structures import from_atoms
    from daskpipe.core.variables import VARIABLES

    parts = [
        xr.Dataset({name: (VARIABLES[name].dims, array) for name, array in payload.arrays.items()})
        for payload in payloads
        if payload.n_out
    ]
    return Payload(
        arrays=arrays_of(concat(parts) if parts else from_atoms([])),
        n_out=sum(payload.n_out for payload in payloads),
        rejected=[rejection for payload in payloads for rejection in payload.rejected],
        tallies=sum((Counter(payload.tallies) for payload in payloads), Counter()),
    )


def _in_its_own_process(compute: Callable[[], Any], out: Path, mark: Path, bounds: Bounds) -> tuple[str, str] | None:
    """Compute one payload into a file; return reason and evidence if that ended the process."""
    import cloudpickle
    import psutil

    os.utime(mark)
    process = subprocess.Popen(
        [sys.executable, "-m", "daskpipe.engine.isolation", str(out), str(mark)], stdin=subprocess.PIPE, stdout=2
    )
    silence = Silence()
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already; its exit code tells
            process.stdin.write(cloudpickle.dumps(compute))
            process.stdin.close()
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            with suppress(psutil.NoSuchProcess):
                used = psutil.Process(process.pid).memory_info().rss
                if bounds.memory and used > bounds.memory:
                    return "memory", f"it held {used / 1e9:.2f} GB of the {bounds.memory / 1e9:.2f} GB that it may"
            silent = silence.measure(call_patiently(mark.stat).st_mtime_ns)
            if silent > bounds.hang:
                return "hung", f"it gave no sign of life for {silent:.0f} s"
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        return "crashed", f"its process ended with {signal.Signals(-process.returncode).name}"
    if process.returncode == 0:
        return None
    said = out.with_suffix(".json")
    if not said.exists():
        return "crashed", f"its process ended with exit code {process.returncode}"
    error = json.loads(said.read_text())
    said.unlink()
    kind = getattr(errors, error["kind"])
    if kind is Suspect:
        return "memory", error["message"]
    raise kind(error["message"])


def _write(out: Path, payload: Payload) -> None:
    if payload.files:
        raise TypeError("a unit that keeps files of its own cannot be taken apart")
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


def _read(path: Path) -> Payload:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop("/facts").tobytes())
    rejected = [Rejection(**row) for row in facts.pop("rejected")]
    return Payload(arrays=arrays, rejected=rejected, **facts)


def main(out: Path, mark: Path) -> int:
    """Compute what comes in through the standard input; called in a process of its own.

    Returns
    -------
    int
        Exit code: 0 if the payload is in `out`, 1 if what was raised is in the file beside it.
    """
    import pickle

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    compute = pickle.load(sys.stdin.buffer)  # from the worker that started this process
    try:
        with touching(mark):
            payload = compute()
        if isinstance(payload, list):
            (payload,) = payload
        _write(out, payload)
    except (DaskpipeError, MemoryError) as error:
        kind = type(error).__name__ if isinstance(error, DaskpipeError) else "Suspect"
        out.with_suffix(".json").write_text(json.dumps({"kind": kind, "message": str(error) or "memory ran out"}))
        return 1
    except OSError as error:
        if (found := disk_error(error)) is None:
            raise
        out.with_suffix(".json").write_text(json.dumps({"kind": type(found).__name__, "message": str(found)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
