"""Measure how long ``import daskpipe``, ``daskpipe --help`` and local workers take, next to a Python that does nothing.

The workers are started with the keys of the run, as they are for each run, and without TLS.
Run: ``python benchmarks/startup.py``. Prints medians of whole processes, taken in turn, and their ratios to the
bare interpreter. Limits: help under 1 s, import under 0.5 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 11
WORKERS = """
from daskpipe.cluster.connect import connect
from daskpipe.config.models import Cluster
with connect(Cluster(workers=2, gpus=0, insecure={insecure})):
    pass
"""
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import daskpipe": [sys.executable, "-c", "import daskpipe"],
    "daskpipe --help": [sys.executable, "-m", "daskpipe", "--help"],
    "daskpipe run --help": [sys.executable, "-m", "daskpipe", "run", "--help"],
    "two workers, no TLS": [sys.executable, "-c", WORKERS.format(insecure=True)],
    "two workers, TLS": [sys.executable, "-c", WORKERS.format(insecure=False)],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if number:  # the first round warms the page cache
                seconds[name].append(time.perf_counter() - started)
    bare = statistics.median(seconds["python -c pass"])
    print(f"{'command':<22}{'median s':>10}{'min':>8}{'max':>8}{'x bare':>8}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<22}{median:>10.3f}{min(values):>8.3f}{max(values):>8.3f}{median / bare:>8.1f}")


if __name__ == "__main__":
    main()
