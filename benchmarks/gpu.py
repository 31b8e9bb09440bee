"""Prove on one GPU, without a network, how fast daskpipe is there; in a few minutes.

python benchmarks/gpu.py [--device cuda] [--systems 512] [--steps 100] [--minutes 8] [--models bundled,foundation]
python benchmarks/gpu.py --wheels FOLDER [--installed FILE]

Dynamics of 32-atom alloys with the bundled model and with one of the size of a foundation model (`explore.py`): ASE one
by one, bare torch-sim, and units of exploration through Dask and the store, by torch, cuEquivariance and torch.compile;
evaluations by symmetrix. How busy the GPU is, its largest batch, memory after several units, equal bits; descriptors,
labels and loading. Each measurement has a process of its own, which is ended at its limit. What fails, is ended or does
not fit into the time is in the table. ``--wheels`` downloads what a machine without a network needs (`gpu_wheels.py`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from gpu_wheels import download_wheels

RESULTS = Path(__file__).parent / "results"

ASE, BARE, DASKPIPE, BUSY = "ASE one by one", "bare torch-sim", "daskpipe", "GPU busy"
RATE = "atom-steps/s"

FASTER_THAN_ASE, PART_OF_TORCH_SIM, BUSY_PERCENT = 20.0, 0.9, 80.0
"""Goals: times ASE one by one, part of bare torch-sim, and how busy the GPU is."""

PACKAGES = (
    "torch", "torch-sim-atomistic", "mace-torch", "cuequivariance-torch", "cuequivariance-ops-torch-cu12",
    "cuequivariance-ops-torch-cu13", "nvalchemi-toolkit-ops", "symmetrix-xl", "symmetrix-xl-cuda13-sm90", "daskpipe",
)  # fmt: skip

LONGEST = 3
"""A measurement is ended after this many times what it is expected to take."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Device and size of all measurements, and the folder of their models and units."""

    device: str
    n_systems: int
    n_steps: int
    folder: Path


class Row(NamedTuple):
    """One measured value; NaN if there is none, and then the note says why."""

    model: str
    what: str
    value: float
    unit: str
    note: str = ""


class Measurement(NamedTuple):
    """A function of `gpu_measurements`, its model, and the seconds that it is expected to take on a recent GPU."""

    function: str
    model: str
    seconds: float


def list_measurements(models: Sequence[str]) -> list[Measurement]:
    """Return all measurements, the most important ones first."""
    first, *_ = models
    return [
        *(Measurement("measure_dynamics", model, 60) for model in models),
        Measurement("measure_repeatability", first, 20),
        *(Measurement("measure_memory", model, 25) for model in models),
        Measurement("measure_label", first, 20),
        Measurement("measure_describe", models[-1], 15),
        Measurement("measure_load", "", 25),
        # The bundled model has a shape that symmetrix does not take.
        *(Measurement("measure_native", model, 40) for model in models if model != "bundled"),
        *(Measurement("measure_compiled", model, 60) for model in models),
    ]


def run_all(measurements: Sequence[Measurement], job: Job, minutes: float) -> list[Row]:
    """Run the measurements that fit into the time, each in a process of its own, and print rows as they come."""
    ends = time.monotonic() + 60 * minutes
    rows: list[Row] = []
    for function, model, seconds in measurements:
        left = ends - time.monotonic()
        if left < seconds:
            new = [Row(model, function, math.nan, "", f"left out: {max(left, 0):.0f} s of {minutes:g} min are left")]
        else:
            args = (job, model) if model else (job,)
            new = run_apart("gpu_measurements", function, args, model, min(left, LONGEST * seconds))
        print(*map(format_row, new), sep="\n", flush=True)
        rows += new
    return rows


def run_apart(module: str, function: str, args: tuple[Any, ...], model: str, seconds: float) -> list[Row]:
    """Run a function in a process of its own, and return its rows, those before it was ended or crashed included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows")
        path.touch()
        process = multiprocessing.get_context("spawn").Process(target=write_rows, args=(module, function, args, path))
        process.start()
        process.join(seconds)
        why = ""
        if process.exitcode is None:
            why = f"ended after {seconds:.0f} s"
        elif process.exitcode != 0:
            why = f"failed with exit code {process.exitcode}"
        with suppress(ProcessLookupError, PermissionError):  # its Dask worker, too
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        rows = [Row(*json.loads(line)) for line in path.read_text().splitlines()]
    return [*rows, Row(model, function, math.nan, "", why)] if why else rows


def write_rows(module: str, function: str, args: tuple[Any, ...], path: Path) -> None:
    """Write each row of a function as a line of JSON, and the error that ends it as one more."""
    os.setsid()
    os.environ["OMP_NUM_THREADS"] = "1"  # as on daskpipe's workers
    with path.open("a", buffering=1) as file:
        try:
            for row in getattr(importlib.import_module(module), function)(*args):
                file.write(json.dumps(row) + "\n")
        except Exception as error:
            traceback.print_exc()
            model = args[1] if len(args) > 1 else ""
            file.write(json.dumps(Row(model, function, math.nan, "", f"failed: {describe(error)}")) + "\n")


def describe(error: BaseException) -> str:
    """Return class and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def format_row(row: Row, rates: dict[tuple[str, str], float] | None = None) -> str:
    """Return a line of the table; a rate is compared with ASE and torch-sim where these are known."""
    if math.isnan(row.value):
        return f"{row.model:<12}{row.what:<42}{'-':>14} {row.unit:<13} {row.note}"
    value = (
        ("no", "yes")[int(row.value)]
        if row.unit == "yes/no"
        else f"{row.value:,.{0 if row.value >= 100 or row.value.is_integer() else 1}f}"
    )
    compared = [
        f"{row.value / base:.2f} x {name}"
        for name, what in (("ASE", ASE), ("torch-sim", BARE))
        if row.unit == RATE and (base := (rates or {}).get((row.model, what))) and row.what != what
    ]
    notes = "; ".join(part for part in (*compared, row.note) if part)
    return f"{row.model:<12}{row.what:<42}{value:>14} {row.unit:<13} {notes}".rstrip()


def collect_rates(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the value of each row that has one, by model and name."""
    return {(row.model, row.what): row.value for row in rows if not math.isnan(row.value)}


def judge(rows: Sequence[Row], models: Sequence[str]) -> list[str]:
    """Return a line for each goal of each model: reached, not reached, or not measured."""
    known = collect_rates(rows)
    lines = []
    for model in models:
        own = {what: value for (of, what), value in known.items() if of == model and what.startswith(DASKPIPE)}
        best = max(own.values(), default=math.nan)
        busy = max(
            (value for (of, what), value in known.items() if of == model and what.startswith(BUSY)), default=math.nan
        )
        for goal, value, least in (
            ("times ASE one by one", best / known.get((model, ASE), math.nan), FASTER_THAN_ASE),
            ("of bare torch-sim", best / known.get((model, BARE), math.nan), PART_OF_TORCH_SIM),
            ("% busy", busy, BUSY_PERCENT),
        ):
            word = f"{value:.2f}, {'reached' if value >= least else 'not reached'}"
            lines.append(f"{model}: goal {least:g} {goal}: {'not measured' if math.isnan(value) else word}")
    return lines


def describe_machine(device: str) -> list[str]:
    """Return date, device, processor and versions, a line each."""
    import torch

    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm{gpu.major}{gpu.minor}, CUDA {torch.version.cuda}"
    else:
        name = "no GPU is used"
    versions = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {name}",
        f"{cpu[0].partition(': ')[2] if cpu else platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        ", ".join(versions),
    ]


def name_results(device: str) -> Path:
    """Return the file of the results, named after the device."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    return RESULTS / f"gpu-{'-'.join(name.lower().split())}.txt"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--systems", type=int, default=512, help="systems of 32 atoms")
    parser.add_argument("--steps", type=int, default=100, help="steps of dynamics")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all measurements")
    parser.add_argument("--models", default="bundled,foundation", help="bundled, small, foundation or files")
    parser.add_argument("--only", help="names of measurements, e.g. measure_dynamics,measure_load")
    parser.add_argument("--out", type=Path, help="file of the results (benchmarks/results/gpu-NAME.txt)")
    parser.add_argument("--wheels", type=Path, help="download wheels into this folder instead")
    parser.add_argument("--installed", type=Path, help="what pip freeze prints on the machine with the GPU")
    options = parser.parse_args(words)
    options.models = options.models.split(",")
    known = dict.fromkeys(entry.function for entry in list_measurements(["foundation"]))
    options.only = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"--only: there is no {', '.join(unknown)}; give some of {', '.join(known)}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write the table; return 0 if there is a value in each row."""
    options = parse_arguments(words)
    if options.wheels:
        print(download_wheels(options.wheels, options.installed))
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU with CUDA: give --device cpu, or install torch for CUDA", file=sys.stderr)
        return 2
    measurements = [entry for entry in list_measurements(options.models) if entry.function in options.only]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="daskpipe-gpu-", ignore_cleanup_errors=True) as folder:
        job = Job(device=options.device, n_systems=options.systems, n_steps=options.steps, folder=Path(folder))
        rows = run_all(measurements, job, options.minutes)
    rates, seconds = collect_rates(rows), time.monotonic() - started
    lines = [
        *describe_machine(options.device),
        f"{options.systems} systems of 32 atoms, {options.steps} steps, float32, {seconds:.0f} s in all",
        "",
        *(format_row(row, rates) for row in rows),
        "",
        *judge(rows, options.models),
    ]
    out = options.out or name_results(options.device)
    out.write_text("\n".join(lines) + "\n")
    print("", *lines, f"written to {out}", sep="\n")
    return int(any(math.isnan(row.value) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
