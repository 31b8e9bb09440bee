"""Faults planted in teachers, found by the checks of ``daskpipe label``; and false alarms without one.

python benchmarks/label_faults.py [TEACHER ...]

Each teacher labels the same disordered structures, once as it is and once with each fault of `faulty_teachers.py`,
through the command's function, on two workers, with the checks at their defaults except that finite differences are
taken of as many structures as the table says. A fault is found if any label is refused or has a ``label_status``
other than ok. Without a fault finite differences are taken of all structures, and each status is a false alarm.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.collections import g2
from faulty_teachers import FAULTS

from daskpipe.core.structures import round_positions
from daskpipe.core.variables import decode_names
from daskpipe.pipeline.label_files import label_files
from daskpipe.store.reader import open_dataset

PARAMS: dict[str, dict[str, Any]] = {"pyscf": {"functional": "pbe", "basis": "def2-svp"}}


def make_molecules(n: int, most_atoms: int) -> list[Atoms]:
    """Return disordered molecules of G2 without unpaired electrons."""
    closed = [name for name in g2.names if not g2[name].get_initial_magnetic_moments().any()]
    names = [name for name in closed if 3 <= len(g2[name]) <= most_atoms]
    structures = []
    for seed in range(n):
        atoms = g2[names[seed % len(names)]].copy()
        atoms.rattle(0.08, seed=seed)
        structures.append(round_positions(atoms))
    return structures


def make_crystals(cells: list[Atoms], n: int) -> list[Atoms]:
    """Return disordered and strained supercells."""
    structures = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        atoms = cells[seed % len(cells)].copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), scale_atoms=True)
        atoms.rattle(0.08, seed=seed)
        structures.append(round_positions(atoms))
    return structures


METALS = [bulk(symbol, cubic=True).repeat((2, 1, 1)) for symbol in ("Cu", "Au", "Ag")]
OXIDES = [bulk("MgO", "rocksalt", a=4.21, cubic=True), bulk("CaO", "rocksalt", a=4.8, cubic=True),
          bulk("ZnO", "wurtzite", a=3.25, c=5.2)]  # fmt: skip

STRUCTURES: dict[str, Callable[[], list[Atoms]]] = {
    "xtb": lambda: make_molecules(120, 14),
    "mace": lambda: make_crystals(METALS, 80),
    "chgnet": lambda: make_crystals(OXIDES, 60),
    "pyscf": lambda: make_molecules(24, 5),
}


def run(teacher: str, fault: str, structures: list[Atoms], checked: float) -> tuple[Counter[str], dict[str, int]]:
    """Return how often each status was given, refusals included, and the outcomes of finite differences."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "structures.extxyz"), Path(folder, "out.zarr")
        ase.io.write(source, structures)
        arguments = {
            "teacher": teacher, "params": PARAMS.get(teacher, {}), "fault": fault,
            "counter": str(Path(folder, "counter")), "swapped_at": len(structures) // 2,
        }  # fmt: skip
        words = json.dumps(arguments, separators=(",", ":")).replace('"', "")
        overrides = [
            "cluster.workers=2", "label.batch_size=8", f"label.checks.finite_differences.share={checked}",
            "label.potential.params.calculator=faulty_teachers:FaultyTeacher",
            f"label.potential.params.arguments={words}", "label.isolated_atoms=false",
        ]  # fmt: skip
        result = label_files([str(source)], out, overrides, teacher="ase")
        statuses = Counter(decode_names(open_dataset(out)["label_status"]).tolist())
        refused = Counter({f"refused ({reason})": n for reason, n in result.rejected.items()})
        return statuses + refused, result.report["differences"]


def main(teachers: list[str]) -> None:
    """Print a line for each teacher and fault."""
    for teacher in teachers:
        structures = STRUCTURES[teacher]()
        periodic = bool(structures[0].pbc.any())
        for fault in FAULTS:
            if fault == "stress in GPa" and not periodic:
                continue
            checked = 1.0 if fault == "none" else 0.1
            statuses, differences = run(teacher, fault, structures, checked)
            told = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
            print(f"{teacher:7} {fault:17} {sum(differences.values()):3} compared with energies; {told}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(STRUCTURES))
