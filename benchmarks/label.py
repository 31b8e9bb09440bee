"""Labels an hour by teacher, on two workers, and what labelling costs beyond a bare loop over the same calculator.

python benchmarks/label.py TEACHER ...

The bare loop sets ASE's calculator on one structure after another, in one process with one thread. The same structures
then go through `daskpipe.stages.label.stage.label_partition` in the same process: with its checks, and for teachers
that can, in batches. Both are repeated in turns, and medians are compared. Last, `daskpipe label` runs them on two
workers; its rate counts from the first to the last unit, without the start of the workers.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.collections import g2

from daskpipe.core.events import Event, UnitCommitted
from daskpipe.core.structures import round_positions
from daskpipe.pipeline.label_files import label_files
from daskpipe.potentials import build_potential
from daskpipe.stages.label.settings import LabelChecks
from daskpipe.stages.label.stage import label_partition

REPEATS = 3

DEFAULTS: dict[str, dict[str, Any]] = {"pyscf": {"basis": "def2-svp"}, "cp2k": {}}
"""Parameters of teachers, where they differ from the defaults."""


def make_molecules(n: int) -> list[Atoms]:
    """Return molecules of G2, disordered, in their order of size."""
    names = sorted(g2.names, key=lambda name: (len(g2[name]), name))
    chosen = [names[i] for i in np.linspace(20, len(names) - 1, n).astype(int)]
    structures = [g2[name].copy() for name in chosen]
    for seed, atoms in enumerate(structures):
        atoms.info["spin_multiplicity"] = 1 + round(abs(float(atoms.get_initial_magnetic_moments().sum())))
        atoms.arrays.pop("initial_magmoms", None)
        atoms.rattle(0.03, seed=seed)
    return structures


def make_crystals(n: int) -> list[Atoms]:
    """Return disordered crystals of 8 to 64 atoms."""
    structures = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True).repeat((1 + seed % 4, 2, 1 + seed % 2))
        atoms.rattle(0.05, seed=seed)
        structures.append(atoms)
    return structures


STRUCTURES: dict[str, Callable[[], list[Atoms]]] = {
    "emt": lambda: make_crystals(200),
    "mace": lambda: make_crystals(96),
    "chgnet": lambda: make_crystals(96),
    "diep": lambda: make_crystals(48),
    "sevennet": lambda: make_crystals(48),
    "xtb": lambda: make_molecules(140),
    "pyscf": lambda: [atoms for atoms in make_molecules(60) if len(atoms) <= 6][:20],
    "cp2k": lambda: [atoms for atoms in make_molecules(60) if len(atoms) <= 5][:6],
}


def run_loop(calculator: Any, structures: list[Atoms]) -> float:
    """Return the seconds of a bare loop."""
    started = time.perf_counter()
    for atoms in structures:
        calculator.reset()
        calculator.calculate(atoms, ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])], all_changes)
    return time.perf_counter() - started


def run_stage(name: str, params: dict[str, Any], structures: list[Atoms], device: str = "cpu") -> float:
    """Return the seconds of the stage."""

    def build() -> Any:
        return build_potential(name, params, device, "float64")

    started = time.perf_counter()
    for start in range(0, len(structures), 16):
        (payload,) = label_partition(structures[start : start + 16], build, name, LabelChecks())
        assert not payload.rejected, payload.rejected
    return time.perf_counter() - started


def run_workers(name: str, params: dict[str, Any], structures: list[Atoms]) -> float:
    """Return labels an hour of ``daskpipe label`` on two workers."""
    units: list[tuple[float, float, int]] = []

    def watch(event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.stage == "label":
            units.append((time.perf_counter(), event.seconds, event.n_out))

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "structures.extxyz")
        ase.io.write(source, structures)
        given = [f"label.potential.params.{key}={value}" for key, value in params.items()]
        size = max(1, min(16, len(structures) // 6))
        overrides = [*given, "cluster.workers=2", f"label.batch_size={size}", "label.checks.finite_differences=null"]
        label_files([str(source)], Path(folder, "out.extxyz"), overrides, teacher=name, subscribers=[watch])
    # The first unit of each worker builds the teacher.
    rest = sorted(units)[2:]
    started = sorted(units)[1][0]
    return 3600 * sum(n for _, _, n in rest) / (rest[-1][0] - started)


def main(names: list[str]) -> None:
    """Print a line for each teacher."""
    import torch

    torch.set_num_threads(1)
    for name in names:
        structures = [round_positions(atoms) for atoms in STRUCTURES[name]()]
        params = DEFAULTS.get(name, {})
        potential = build_potential(name, params, "cpu", "float64")
        run_loop(potential.calculator, structures[:2])
        run_stage(name, params, structures[:2])
        loops, stages = [], []
        for _ in range(REPEATS if name not in ("pyscf", "cp2k") else 1):
            loops.append(run_loop(potential.calculator, structures))
            stages.append(run_stage(name, params, structures))
        loop, stage = statistics.median(loops), statistics.median(stages)
        rate = run_workers(name, params, structures)
        sizes = [len(atoms) for atoms in structures]
        print(
            f"{name:9} {len(structures):4} structures of {min(sizes)} to {max(sizes)} atoms: bare loop {loop:7.2f} s, "
            f"stage {stage:7.2f} s ({stage / loop:.3f} of it); {rate:9,.0f} labels an hour on 2 workers",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teachers", nargs="+", choices=sorted(STRUCTURES))
    main(parser.parse_args().teachers)
