"""Relaxation of 60 mixed structures: ASE's FIRE one by one, and daskpipe's FIRE in batches.

Run: ``python benchmarks/relaxation.py``. Rattled and strained bulk alloys, slabs, octahedral clusters, dimers and wires
of the EMT elements; positions alone, then bulk cells too (ASE: `FrechetCellFilter`). Both stop at the same largest
force; both use one thread; in each round all take turns. ASE has its own EMT. daskpipe has its batched one, on one
structure after another and in batches: so one sees what is batching and what is the other implementation. Energies are
those of ASE's EMT at either end.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.cluster import Octahedron
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from threadpoolctl import threadpool_limits

from daskpipe import potentials
from daskpipe.core.structures import round_positions
from daskpipe.stages.explore.capacity import CPU_ATOMS, BatchCapacity
from daskpipe.stages.explore.relaxation import RelaxationTrajectory, choose_cell_strains
from daskpipe.stages.explore.runner import BatchRunner
from daskpipe.stages.explore.settings import Exploration
from daskpipe.stages.explore.settings import Relaxation as Relax
from daskpipe.stages.explore.trajectory import Condition

FMAX = 0.01
"""eV/Å."""
STEPS = 2000
ROUNDS = 3
TOLERANCE = 1e-4
"""eV an atom."""
ELEMENTS = ("Cu", "Ag", "Au", "Ni", "Pd", "Pt")


def structures(n: int = 60) -> list[Atoms]:
    """Return mixed structures out of equilibrium."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        symbol, other = rng.choice(ELEMENTS, 2, replace=False)
        kind = number % 5
        if kind in (0, 1):
            atoms = bulk(symbol, cubic=True).repeat([(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)][number // 5 % 4])
            atoms.symbols[rng.random(len(atoms)) < 0.4] = other
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), scale_atoms=True)
        elif kind == 2:
            atoms = fcc111(symbol, (2, 2, int(rng.integers(3, 6))), vacuum=6.0)
            atoms.symbols[rng.random(len(atoms)) < 0.3] = other
        elif kind == 3:
            atoms = Octahedron(symbol, *[(3, 1), (4, 1), (4, 0)][number // 5 % 3])
            atoms = Atoms(atoms.symbols, atoms.positions)
        else:
            atoms = Atoms(f"{symbol}{other}", positions=[[0, 0, 0], [0, 0, 2.4]])
            if number // 5 % 2:
                atoms = Atoms(symbol, cell=[0, 0, 2.6], pbc=[False, False, True]).repeat((1, 1, 6))
        atoms.positions += rng.normal(scale=0.12, size=atoms.positions.shape)
        found.append(round_positions(atoms))
    return found


def ase_one_by_one(seeds: Sequence[Atoms], cell: bool) -> tuple[float, list[Atoms], list[int]]:
    """Return seconds, what is relaxed, and steps."""
    ends, steps = [], []
    started = time.perf_counter()
    for seed in seeds:
        atoms = seed.copy()
        atoms.calc = EMT()
        strained = cell and choose_cell_strains(seed, "auto") != "fixed"
        optimizer = FIRE(FrechetCellFilter(atoms) if strained else atoms, logfile=None)
        optimizer.run(fmax=FMAX, steps=STEPS)
        ends.append(atoms)
        steps.append(optimizer.nsteps)
    return time.perf_counter() - started, ends, steps


def ours(seeds: Sequence[Atoms], cell: bool, capacity: float) -> tuple[float, list[Atoms], list[int]]:
    """Return seconds, what is relaxed, and steps."""
    settings = Exploration(relax=Relax(fmax=FMAX, steps=STEPS, cell="auto" if cell else "fixed", stride=None))
    model = potentials.batched_model(potentials.build_potential("emt", {}, "cpu", "float64"), stress=cell)
    started = time.perf_counter()
    relaxations = []
    for seed in seeds:
        atoms = seed.copy()
        atoms.info["condition"] = Condition(temperature=0.0)
        relaxations.append(
            RelaxationTrajectory(seed=atoms, run_seed=0, cell=choose_cell_strains(seed, "auto") if cell else "fixed")
        )
    BatchRunner(relaxations, model, settings, BatchCapacity(len, capacity)).run()
    seconds = time.perf_counter() - started
    assert not [stop for each in relaxations for stop in each.stops]
    return seconds, [each.relaxed_atoms for each in relaxations], [each.step for each in relaxations]


def energies(ends: Sequence[Atoms]) -> np.ndarray:
    """Return energies of ASE's EMT, eV an atom, shape (structure,)."""
    found = []
    for atoms in ends:
        atoms.calc = EMT()
        found.append(atoms.get_potential_energy() / len(atoms))
    return np.array(found)


def main() -> int:
    """Print energies and times; return 1 if a minimum is another one."""
    torch.set_num_threads(1)
    threadpool_limits(1)  # of scipy's matrix functions in ASE's filter, whose threads would only wait
    seeds = structures()
    sizes = [len(atoms) for atoms in seeds]
    print(
        f"{len(seeds)} structures of {min(sizes)} to {max(sizes)} atoms, {sum(sizes)} together, fmax {FMAX} eV/Å, EMT"
    )
    worst = 0.0
    for cell in (False, True):
        ways: dict[str, Callable[[], tuple[float, list[Atoms], list[int]]]] = {
            "ASE one by one": lambda cell=cell: ase_one_by_one(seeds, cell),
            "daskpipe one by one": lambda cell=cell: ours(seeds, cell, 1),
            "daskpipe in batches": lambda cell=cell: ours(seeds, cell, CPU_ATOMS),
        }
        rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS)]
        print(f"\n{'positions and cells of bulk' if cell else 'positions'}, medians of {ROUNDS} rounds")
        reference = statistics.median(each["ASE one by one"][0] for each in rounds)
        for name in ways:
            seconds = [each[name][0] for each in rounds]
            median, (_, _, steps) = statistics.median(seconds), rounds[0][name]
            spread = " ".join(f"{value:.2f}" for value in seconds)
            print(
                f"{name:<20}{median:8.2f} s {reference / median:6.2f} x ASE   ({spread})   steps: {min(steps)} to "
                f"{max(steps)}, {sum(steps):,} together"
            )
        ends = {name: energies(rounds[0][name][1]) for name in ways}
        apart = np.abs(ends["daskpipe in batches"] - ends["ASE one by one"])
        same = all(
            np.array_equal(one.positions, other.positions) and np.array_equal(one.cell.array, other.cell.array)
            for one, other in zip(rounds[0]["daskpipe one by one"][1], rounds[0]["daskpipe in batches"][1], strict=True)
        )
        worst = max(worst, float(apart.max()))
        print(
            f"energies at the minima: {int((apart <= TOLERANCE).sum())} of {len(seeds)} within {TOLERANCE:g} eV an "
            f"atom of ASE's, largest difference {apart.max():.2g}; one by one and in batches the same bits: {same}"
        )
        if not same:
            return 1
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
