"""Coverage of each selection method on MD frames of three systems, at equal numbers of picks.

The pool comes from daskpipe's own exploration with EMT: bulk Cu-Au (two thirds of the frames), an Au(111) slab and a
Cu cluster, at three temperatures. Its features are averaged SOAP on 16 principal axes, its atoms' SOAP alike.

Printed for each method: share of occupied histogram bins hit, of 256 clusters hit, entropy of the picks relative to
the pool, and distance to the nearest pick (mean, 95th percentile, largest; in units of the pool's RMS distance from its
mean), for frames; then share of 256 clusters of atoms hit and the largest distance from an atom to the nearest atom of
a pick.

Run: ``python benchmarks/selection_coverage.py``.
"""

from __future__ import annotations

import os
import platform
import time
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.cluster import Octahedron

import daskpipe
from daskpipe.core.structures import round_positions
from daskpipe.potentials import build_potential
from daskpipe.stages.describe.reduction import fit_axes
from daskpipe.stages.explore.settings import Dynamics, Guards
from daskpipe.stages.explore.stage import explore_partition
from daskpipe.stages.select.coverage import measure_coverage

TEMPERATURES = (300.0, 600.0, 900.0)
REPLICAS = {"alloy": 8, "surface": 3, "cluster": 1}
DYNAMICS = Dynamics(temperatures=list(TEMPERATURES), steps=1600, stride=10, equilibration=100, timestep=3.0)
DIMS = 16
METHODS: list[tuple[str, dict[str, str]]] = [
    ("kmeans", {}),
    ("kmeans", {"allocation": "equal"}),
    ("kmeans", {"allocation": "proportional"}),
    ("kmeans", {"within": "nearest"}),
    ("direct", {}),
    ("fps", {}),
    ("environments", {}),
    ("random", {}),
    ("stride", {}),
]


def systems() -> dict[str, Atoms]:
    alloy = bulk("Cu", a=3.75, cubic=True).repeat((2, 2, 1))
    alloy.numbers[::2] = 79
    cluster = Octahedron("Cu", 3, cutoff=1)
    cluster.center(vacuum=6)
    cluster.pbc = False
    return {"alloy": alloy, "surface": fcc111("Au", (2, 2, 4), vacuum=6), "cluster": cluster}


def pool() -> tuple[list[Atoms], dict[str, int]]:
    """Frames in the order of trajectories, and how many each system gave."""
    frames: list[Atoms] = []
    counts = {}
    for name, atoms in systems().items():
        seeds = []
        for temperature in TEMPERATURES:
            for replica in range(REPLICAS[name]):
                seed = round_positions(atoms.copy())
                seed.info |= {"temperature": temperature, "replica": replica, "system_type": name, "generator": name}
                seeds.append(seed)
        arrays = explore_partition(seeds, partial(build_potential, "emt", {}, "cpu", "float64"), DYNAMICS, Guards(), 0)[
            0
        ].arrays
        stops = np.cumsum(arrays["n_atoms"])
        starts = stops - arrays["n_atoms"]
        counts[name] = len(stops)
        for frame, (lo, hi) in enumerate(zip(starts, stops, strict=True)):
            frames.append(
                Atoms(
                    numbers=arrays["numbers"][lo:hi],
                    positions=arrays["positions"][lo:hi],
                    cell=arrays["cell"][frame],
                    pbc=arrays["pbc"][frame],
                )
            )
    return frames, counts


def reduced(rows: np.ndarray) -> np.ndarray:
    """Rows of length one on their principal axes, in units of the RMS distance from the mean."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    features = fit_axes(rows[:: max(1, len(rows) // 4096)], DIMS)(rows)
    return features / np.sqrt(features.var(axis=0).sum())


def main() -> None:
    with Path("/proc/cpuinfo").open() as lines:
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    print(f"# {time.strftime('%Y-%m-%d')}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}")
    frames, counts = pool()
    n_atoms = np.array([len(atoms) for atoms in frames])
    soap = daskpipe.SOAP(species=["Cu", "Au"], r_cut=5.0, n_max=6, l_max=4, sigma=0.5, average="off", dtype="float64")
    atoms = np.asarray(soap.compute(frames))
    starts = np.cumsum(n_atoms) - n_atoms
    features = reduced(np.add.reduceat(atoms, starts, axis=0) / n_atoms[:, None])
    atoms = reduced(atoms)
    made = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"# {len(frames):,} frames ({made}), {len(atoms):,} atoms; SOAP, {DIMS} axes; mean of 3 seeds")
    owner = np.repeat(np.arange(len(frames)), n_atoms)
    for n in (50, 250):
        print(f"\n{n} picks")
        print(f"{'method':<22}{'bins':>7}{'clusters':>10}{'entropy':>9}{'mean':>8}{'p95':>8}{'max':>8}", end="")
        print(f" |{'atom clusters':>15}{'atom max':>10}")
        for method, params in METHODS:
            figures = []
            for seed in range(3):
                if method == "environments":
                    picked = daskpipe.pick(atoms, n, method, seed, n_atoms=n_atoms)
                else:
                    picked = daskpipe.pick(features, n, method, seed, **params)
                of_frames = measure_coverage(features, picked, seed=100)
                of_atoms = measure_coverage(atoms, np.flatnonzero(np.isin(owner, picked)), seed=100)
                figures.append(
                    [
                        *(of_frames.bins_hit, of_frames.clusters_hit, of_frames.entropy),
                        *(of_frames.nearest_mean, of_frames.nearest_p95, of_frames.nearest_max),
                        *(of_atoms.clusters_hit, of_atoms.nearest_max),
                    ]
                )
            bins, clusters, entropy, mean, p95, most, atom_clusters, atom_max = np.mean(figures, axis=0)
            name = " ".join([method, *params.values()])
            print(f"{name:<22}{bins:>7.3f}{clusters:>10.3f}{entropy:>9.3f}{mean:>8.3f}{p95:>8.3f}{most:>8.3f}", end="")
            print(f" |{atom_clusters:>15.3f}{atom_max:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
