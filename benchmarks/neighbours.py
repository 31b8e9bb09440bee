"""Neighbour search per atom, one thread, next to matscipy and vesin; and how it grows with the number of atoms.

Run: ``pip install vesin`` and ``python benchmarks/neighbours.py``. fcc Cu, displaced by 0.1 Å, within 8.72 Å, which is
what SOAP with ``r_cut`` 5 and ``sigma`` 1 asks for. matscipy and vesin return lists of pairs with their vectors;
daskpipe finds the same pairs atom by atom, as its SOAP kernels use them, and keeps none.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from matscipy.neighbours import neighbour_list
from vesin import NeighborList

from daskpipe.core.accelerate import kernel
from daskpipe.core.neighbours import neighbour_grid
from daskpipe.core.neighbours_kernels import Grid, write_neighbours
from daskpipe.core.simd import WIDTH

CUTOFF = 8.72
ROUNDS = 7


@kernel
def count(grid: Grid, found: np.ndarray) -> int:
    """Pairs of all atoms, each found and forgotten."""
    total = 0
    for atom in range(len(grid.positions)):
        total += write_neighbours(grid.positions[atom], grid, found) - 1
    return total


def ours(atoms: Atoms) -> int:
    grid = neighbour_grid(atoms, CUTOFF)
    return count(grid, np.empty(grid.points.shape[1] + WIDTH, np.int32))


def matscipy(atoms: Atoms) -> int:
    return len(neighbour_list("ijD", atoms, CUTOFF)[0])


def vesin(atoms: Atoms) -> int:
    search = NeighborList(cutoff=CUTOFF, full_list=True)
    return len(search.compute(atoms.positions, atoms.cell.array, periodic=True, quantities="ijD")[0])


PROGRAMS: dict[str, Callable[[Atoms], int]] = {"daskpipe": ours, "matscipy": matscipy, "vesin": vesin}


def main() -> None:
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    print(f"{model.split(': ')[1]}, {os.cpu_count()} cores; within {CUTOFF} Å; median of {ROUNDS}\n")
    print(f"{'atoms':>7}{'pairs':>10}  {'program':<10}{'us/atom':>9}{'x daskpipe':>12}")
    for repeats in (1, 3, 6, 12, 20):
        atoms = bulk("Cu", cubic=True) * (repeats, repeats, repeats)
        atoms.rattle(0.1, rng=np.random.default_rng(0))
        seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        pairs = {}
        for number in range(ROUNDS + 1):
            for name, program in PROGRAMS.items():
                started = time.perf_counter()
                pairs[name] = program(atoms)
                if number:  # the first round compiles
                    seconds[name].append((time.perf_counter() - started) / len(atoms) * 1e6)
        assert len(set(pairs.values())) == 1, f"the programs find different numbers of pairs: {pairs}"
        ratio = statistics.median(seconds["daskpipe"])
        for name, values in seconds.items():
            median = statistics.median(values)
            print(f"{len(atoms):>7}{pairs[name]:>10}  {name:<10}{median:>9.2f}{median / ratio:>12.1f}")


if __name__ == "__main__":
    main()
