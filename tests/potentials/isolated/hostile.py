"""Calculators that do what calculators must not do, at structures of one formula each; they run in a child process."""

import ctypes
import os
import sys
import time

import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

REQUIREMENTS = ["ase"]


def make_calculator(device, log=None):
    """Return `Hostile`, as a teacher's file does."""
    return Hostile(log=log)


class Hostile(EMT):
    """EMT, but for structures of some formulas."""

    def __init__(self, log=None, tolerance=1.0):
        super().__init__()
        self.log, self.tolerance = log, tolerance

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(f"{atoms.symbols}\n")
        fault = FAULTS.get(str(atoms.symbols))
        super().calculate(atoms, properties, system_changes)
        if fault is not None:
            fault(self)


def segfault(_):
    print("about to read address 0", file=sys.stderr, flush=True)
    ctypes.string_at(0)


def hang(_):
    ctypes.PyDLL(None).sleep(100_000)  # without releasing the GIL


def give_nan(calculator):
    calculator.results["energy"] = np.nan


def give_up(_):
    raise ValueError("no parameters for this bond")


def print_much(_):
    print("a line on the standard output\n" * 10_000, flush=True)
    os.write(1, b"and bytes that look like a message: \x05\x00\x00\x00{}")


def eat_memory(_):
    kept = []
    while True:
        kept.append(np.ones(1 << 24))
        time.sleep(0.01)


def fork(_):
    os.fork()


def close_pipes(_):
    os.closerange(3, 100)


def drop_stress(calculator):
    calculator.results.pop("stress", None)


def drop_forces(calculator):
    calculator.results.pop("forces")


def not_converge(calculator):
    if calculator.tolerance < 2:
        raise CalculationFailed("SCF did not converge in 50 cycles")


FAULTS = {
    "Cu2": segfault,
    "Cu3": hang,
    "Cu4": give_nan,
    "Cu5": give_up,
    "Cu6": print_much,
    "Cu7": eat_memory,
    "Cu8": fork,
    "Cu9": close_pipes,
    "Ag4": drop_stress,
    "Ag5": drop_forces,
    "Ag6": not_converge,
}
