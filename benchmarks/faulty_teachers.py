"""Teachers with planted faults, for `label_faults.py`: calculators that are started by the potential ``ase``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from daskpipe.core.constants import GPA
from daskpipe.potentials import build_potential

FAULTS = ("none", "forces negated", "forces x 1.05", "atoms permuted", "stress in GPa", "1 eV off", "swapped half-way")

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "xtb": ("xtb", {"method": "GFN1-xTB"}),
    "mace": ("emt", {}),
    "chgnet": ("chgnet", {"model": "r2scan"}),
    "pyscf": ("pyscf", {"functional": "blyp", "basis": "def2-svp"}),
}
"""Name and parameters of the potential that replaces each teacher."""

SHARE = 0.1
"""Of the structures whose energy is 1 eV off."""


class FaultyTeacher(Calculator):
    """A teacher, and what is wrong with it.

    Parameters
    ----------
    teacher, params
        Name and parameters of the potential.
    fault
        One of `FAULTS`.
    counter
        File that grows by a byte at each structure of any process.
    swapped_at
        Its size from which the other teacher answers.
    """

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, teacher: str, params: dict[str, Any], fault: str, counter: str, swapped_at: int) -> None:
        super().__init__()
        self.fault, self.counter, self.swapped_at = fault, Path(counter), swapped_at
        self.teacher = build_potential(teacher, params, "cpu", "float64").calculator
        if fault == "swapped half-way":
            name, other = OTHERS[teacher]
            self.other = build_potential(name, other, "cpu", "float64").calculator

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        assert atoms is not None
        super().calculate(atoms, properties, system_changes)
        with open(self.counter, "ab") as file:
            file.write(b".")
        swapped = self.fault == "swapped half-way" and os.path.getsize(self.counter) > self.swapped_at
        calculator = self.other if swapped else self.teacher
        calculator.reset()
        calculator.calculate(atoms, ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])], all_changes)
        results = dict(calculator.results)
        if self.fault == "forces negated":
            results["forces"] = -results["forces"]
        elif self.fault == "forces x 1.05":
            results["forces"] = 1.05 * results["forces"]
        elif self.fault == "atoms permuted":
            results["forces"] = results["forces"][::-1]
        elif self.fault == "stress in GPa" and "stress" in results:
            results["stress"] = np.asarray(results["stress"]) / GPA
        elif self.fault == "1 eV off" and np.abs(atoms.positions).sum() * 1e4 % 1 < SHARE:
            results["energy"] += 1.0
        self.results = {name: results[name] for name in self.implemented_properties if name in results}
