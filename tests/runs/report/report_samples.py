"""Structures, a verdict, and names that try to be scripts."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from daskpipe.core.structures import round_positions

HOSTILE = "</script><img src=x onerror=alert(1)>"
HOSTILE_WORD = "</script><img/src=x/onerror=alert(1)>"
"""As a code: codes are words without white space."""

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}
N_STRUCTURES = 30


def structure(index: int, rng: np.random.Generator) -> Atoms:
    if index % 3 == 0:
        atoms = bulk("Cu", cubic=True) * (1, 1, 2)
        atoms.info["system_type"] = HOSTILE_WORD
        atoms.info["pressure"] = 2.0
    elif index % 3 == 1:
        atoms = fcc111("Ag", (1, 2, 3), vacuum=6.0)
        atoms.info["system_type"] = "surface"
    else:
        atoms = Atoms("Au4", positions=2.6 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]))
        atoms.info["system_type"] = "cluster"
    atoms.numbers = rng.choice([29, 47, 79], size=len(atoms))
    atoms.rattle(0.1, rng=rng)
    atoms.info |= {
        "generator": HOSTILE_WORD,
        "temperature": float(rng.uniform(300, 900)),
        "features": rng.normal(size=3).astype(np.float32),
        "cluster": index % 5,
        "selection_reason": ("stratum", "candidate")[index % 2],
    }
    round_positions(atoms).calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.cell.rank == 3:
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


VERDICT = {
    "go": False,
    "dataset": "dataset.zarr",
    "dataset_key": "k1",
    "n_structures": 30,
    "checks": [
        {"name": "largest force", "verdict": "pass", "value": 1234.5, "threshold": 50.0, "unit": "eV/Å", "says": "fine",
         "offenders": [], "n_offenders": 0},
        {"name": HOSTILE, "verdict": "fail", "value": 2, "threshold": 0, "unit": None, "says": HOSTILE,
         "offenders": ["ab" * 16, HOSTILE], "n_offenders": 1200},
        {"name": "share of near pairs", "verdict": "warn", "value": 0.015, "threshold": 0.01, "unit": "share",
         "says": "near pairs", "offenders": [], "n_offenders": 0},
        {"name": "leakage", "verdict": "skipped", "value": None, "threshold": None, "unit": None, "says": "no features",
         "offenders": [], "n_offenders": 0},
    ],
}  # fmt: skip
