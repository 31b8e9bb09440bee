"""What a probe predicts for a preset, and what then happens: time on the clock, bytes of the run and of the dataset.

Run: ``python benchmarks/probe.py [PRESET] [ROUNDS] [KEY=VALUE]...``, on a quiet machine. Each round types
``daskpipe plan PRESET --probe`` and ``daskpipe run PRESET``, each in a process of its own, and prints the ratios;
without a probe, bytes are those of the plain plan. Limit: within 30 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from daskpipe.runs.budget import format_bytes
from daskpipe.runs.probe import measure_disk

LIMIT = 0.3


def typed(*words: str) -> tuple[dict[str, Any], float]:
    """Run a command; return its JSON and the seconds of its process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "daskpipe", *words, "--json"], capture_output=True, text=True)
    if done.returncode not in (0, 10):
        sys.exit(f"daskpipe {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout), time.perf_counter() - started


def main() -> None:
    preset, rounds, *overrides = [*sys.argv[1:], *["quickstart", "3"][len(sys.argv[1:]) :]]
    print(f"# daskpipe plan {preset} {' '.join(overrides)} --probe, then daskpipe run; {os.cpu_count()} cores")
    print(f"{'':<32}{'predicted':>12}{'happened':>12}{'ratio':>8}")
    worst = 0.0
    for number in range(1, int(rounds) + 1):
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            before = os.getloadavg()[0]
            counted, _ = typed("plan", preset, *overrides)
            planned, probe_seconds = typed("plan", preset, *overrides, "--probe", "--run-dir", str(run_dir))
            between = os.getloadavg()[0]
            result, seconds = typed("run", preset, *overrides, "--run-dir", str(run_dir))
            stages = {stage: row["hours"] * 3600 for stage, row in planned["stages"].items()}
            receipts = [
                json.loads(path.read_text())["receipt"] for path in run_dir.glob("units/*/*/[!.]*/manifest.json")
            ]
            explored = sum(row["seconds"] for row in receipts if row["stage"] == "explore")
            happened = measure_disk(run_dir), measure_disk(run_dir / "dataset.zarr")
        print(f"round {number}: probe {probe_seconds:.0f} s; load {before:.1f} before it, {between:.1f} before the run")
        rows = [
            ("seconds of the run", planned["seconds"], result["seconds"], True),
            ("  of its process", planned["seconds"], seconds, False),
            ("  in units of exploration", stages["explore"], explored, False),
            ("bytes of the run directory", planned["totals"]["bytes"], happened[0], True),
            ("bytes of the dataset", planned["totals"]["dataset_bytes"], happened[1], True),
            ("  of the run, without a probe", counted["totals"]["bytes"], happened[0], False),
        ]
        for name, predicted, real, counts in rows:
            shown = [
                format_bytes(value) if "byte" in name or "without" in name else f"{value:.1f} s"
                for value in (predicted, real)
            ]
            print(f"{name:<32}{shown[0]:>12}{shown[1]:>12}{predicted / real:>8.2f}", flush=True)
            if counts:
                worst = max(worst, abs(predicted / real - 1))
    print(f"farthest off: {worst:.0%} (limit {LIMIT:.0%})")


if __name__ == "__main__":
    main()
