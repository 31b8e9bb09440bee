"""Selection at scale, next to maml's DIRECTSampler (2025.4) on the same features in the same run.

Part 1: 1,315,097 x 128 float32 features -> 185,670 picks: `direct` and `kmeans` of daskpipe and DIRECTSampler, each in
a process of its own; seconds of the selection alone, by the clock and by the CPU (other work on the machine lengthens
the former), peak memory, and coverage. DIRECTSampler gets its authors' settings for this many structures (20,050 Birch
clusters), but a start threshold of 0.05 and k = 10 picks a cluster rather than 20, as its clusters of these features
are fuller and 20 would pick 330,000.

Part 2: features in Zarr, 64 float32 a row in chunks of 100,000 rows: seconds and peak memory of each process at 1 and
at 10 million rows, for 100,000 picks.

The features are made up, but shaped like those of MD: trajectories of very different lengths, each a walk about a
start of its own in 20 latent dimensions of falling width, mapped to all features by a fixed smooth map, with noise.

(Not select.py: that would hide a module of the standard library, and a coverage.py one that Numba looks for.)

Run: ``python benchmarks/selection.py --maml-python PATH``: a Python that has maml and scikit-learn. Peak memory is
VmHWM of /proc. Needs 4 GB of disk in the temporary directory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

N_ROWS, N_FEATURES, N_PICKS = 1_315_097, 128, 185_670
LATENT, HIDDEN = 20, 64
CORRELATION = 200  # frames
CHUNK = 100_000
ZARR_METHODS = ["kmeans", "direct", "random", "duplicates", "coverage"]

MAML = """
import json, sys, time, types
import numpy as np
# The structure encoder is off; importing it would need TensorFlow or PyTorch.
encoders = types.ModuleType("maml.describers")
encoders.M3GNetStructure = None
sys.modules["maml.describers"] = encoders
from maml.sampling.clustering import BirchClustering
from maml.sampling.direct import DIRECTSampler
from maml.sampling.stratified_sampling import SelectKFromClusters
X = np.load(sys.argv[1])
started, cpu = time.perf_counter(), time.process_time()
sampler = DIRECTSampler(
    structure_encoder=None,
    clustering=BirchClustering(n=int(sys.argv[3]), threshold_init=0.05),
    select_k_from_clusters=SelectKFromClusters(k=int(sys.argv[4])),
)
picked = sampler.fit_transform(X)["selected_indexes"]
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
np.save(sys.argv[2], np.sort(np.array(picked)))
"""
OURS = """
import json, sys, time
import numpy as np
import dask.array as da
import daskpipe
source, target, rows, n, method = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
X = np.load(source) if source.endswith(".npy") else da.from_zarr(source)[:rows]
started, cpu = time.perf_counter(), time.process_time()
if method == "duplicates":
    from daskpipe.stages.select.blocks import Blocks
    from daskpipe.stages.select.duplicates import find_near_duplicates
    picked = np.flatnonzero(find_near_duplicates(Blocks(X, np.arange(rows)), 1e-3).mask)
elif method == "coverage":
    from daskpipe.stages.select.coverage import measure_coverage
    picked = np.arange(0, rows, rows // n)
    measure_coverage(X, picked)
else:
    picked = daskpipe.pick(X, n, method)
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
np.save(target, picked)
"""
PEAK = """
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**20
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak}))
"""


def trajectories(n_rows: int, n_features: int, n_walks: int, seed: int) -> Iterator[np.ndarray]:
    """Yield features of one trajectory after another, shape (frame, feature), float32."""
    from scipy.signal import lfilter

    shape = np.random.default_rng(0)  # one map for all
    inner = shape.standard_normal((LATENT, HIDDEN)) / np.sqrt(LATENT)
    outer = shape.standard_normal((HIDDEN, n_features)) / np.sqrt(HIDDEN)
    linear = shape.standard_normal((LATENT, n_features)) / np.sqrt(LATENT)
    width = 1 / np.sqrt(1 + np.arange(LATENT))
    rng = np.random.default_rng(seed)
    length = rng.lognormal(0, 1, n_walks)
    ends = np.round(np.cumsum(length) / length.sum() * n_rows).astype(int)
    memory = np.exp(-1 / CORRELATION)
    for n_frames in np.diff(ends, prepend=0):
        kicks = rng.standard_normal((n_frames, LATENT)) * width * rng.lognormal(-1, 0.5)
        walk = lfilter([np.sqrt(1 - memory**2)], [1, -memory], kicks, axis=0) + 3 * rng.standard_normal(LATENT) * width
        features = 2 * np.tanh(walk @ inner) @ outer + walk @ linear
        yield (features + 0.02 * rng.standard_normal(features.shape)).astype(np.float32)


def measured(python: str, code: str, *arguments: object) -> dict[str, float]:
    """Run code in a process of its own; return its seconds by the clock and by the CPU, and peak memory (GiB)."""
    command = [python, "-c", code + PEAK, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": ""}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def in_memory(folder: Path, maml: str | None, n_rows: int, n_picks: int, n_clusters: int) -> None:
    from daskpipe.stages.select.coverage import measure_coverage
    from daskpipe.stages.select.direct import principal_axes

    features = np.concatenate(list(trajectories(n_rows, N_FEATURES, 400, seed=1)))
    np.save(folder / "features.npy", features)
    axes = principal_axes(features, weighted=False)(features)
    print(f"part 1: {n_rows:,} x {N_FEATURES} float32 -> {n_picks:,} picks; {axes.shape[1]} axes by Kaiser's rule")
    figures = f"{'mean':>7}{'p95':>7}{'max':>7}"
    costs = f"{'picks':>9}{'s':>8}{'CPU s':>8}{'GiB':>6}"
    print(f"{'method':<16}{costs} | {'features: hit':>13}{figures} | {'axes: hit':>10}{figures}")

    def report(name: str, picked: np.ndarray, cost: dict[str, float]) -> None:
        line = f"{name:<16}{len(picked):>9,}{cost['seconds']:>8.1f}{cost['cpu']:>8.1f}{cost['peak']:>6.2f}"
        for space, width in ((features, 13), (axes, 10)):
            found = measure_coverage(space, picked, clusters=np.zeros(n_rows, dtype=np.int32))
            line += f" | {found.bins_hit:>{width}.4f}"
            line += f"{found.nearest_mean:>7.3f}{found.nearest_p95:>7.3f}{found.nearest_max:>7.3f}"
        print(line, flush=True)

    ours = {}
    for method in ("direct", "kmeans", "random", "stride"):
        cost = measured(sys.executable, OURS, folder / "features.npy", folder / "picked.npy", n_rows, n_picks, method)
        ours[method] = cost
        report(method, np.load(folder / "picked.npy"), cost)
    if maml:
        k = 10
        cost = measured(maml, MAML, folder / "features.npy", folder / "picked.npy", n_clusters, k)
        report(f"maml DIRECT k={k}", np.load(folder / "picked.npy"), cost)
        for method in ("direct", "kmeans"):
            ratios = [cost[name] / ours[method][name] for name in ("seconds", "cpu")]
            print(f"maml / {method}: {ratios[0]:.1f} x the time, {ratios[1]:.1f} x the CPU time")


def from_zarr(folder: Path, sizes: list[int], n_picks: int, methods: list[str]) -> None:
    import zarr

    n_features, store = 64, folder / "features.zarr"
    array = zarr.create_array(store, shape=(max(sizes), n_features), chunks=(CHUNK, n_features), dtype="float32")
    for start in range(0, max(sizes), CHUNK):
        array[start : start + CHUNK] = np.concatenate(list(trajectories(CHUNK, n_features, 30, seed=start)))
    print(f"\npart 2: rows x {n_features} float32 from Zarr, chunks of {CHUNK:,} rows, {n_picks:,} picks")
    print(
        f"{'what':<12}"
        + "".join(f"{f'{size:,}: s':>16}{'CPU s':>8}{'GiB':>7}" for size in sizes)
        + f"{'CPU ratio':>12}"
    )
    for method in methods:
        costs = [measured(sys.executable, OURS, store, folder / "p.npy", size, n_picks, method) for size in sizes]
        line = "".join(f"{cost['seconds']:>16.1f}{cost['cpu']:>8.1f}{cost['peak']:>7.2f}" for cost in costs)
        print(f"{method:<12}{line}{costs[-1]['cpu'] / max(costs[0]['cpu'], 1e-9):>12.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maml-python", help="a Python with maml; without it daskpipe runs alone")
    parser.add_argument("--part", type=int, choices=(1, 2), help="one part alone")
    parser.add_argument("--only", nargs="+", default=ZARR_METHODS, choices=ZARR_METHODS, help="of part 2")
    parser.add_argument("--scale", type=float, default=1.0, help="of rows, picks and clusters; less for a try")
    options = parser.parse_args()
    with Path("/proc/cpuinfo").open() as lines:
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    print(f"{time.strftime('%Y-%m-%d')}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("synthetic features shaped like MD: 400 walks (part 1), 30 each chunk (part 2), in 20 latent dimensions")
    scale = options.scale
    with tempfile.TemporaryDirectory() as name:
        if options.part in (None, 1):
            in_memory(Path(name), options.maml_python, int(N_ROWS * scale), int(N_PICKS * scale), int(20_050 * scale))
        if options.part in (None, 2):
            sizes = [max(CHUNK, int(size * scale) // CHUNK * CHUNK) for size in (1_000_000, 10_000_000)]
            from_zarr(Path(name), sizes, int(100_000 * scale), options.only)


if __name__ == "__main__":
    main()
