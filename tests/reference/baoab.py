"""Langevin dynamics in the BAOAB splitting (Leimkuhler and Matthews, DOI 10.1098/rspa.2016.0138), in plain NumPy."""

import numpy as np
from ase import Atoms
from ase.units import fs, kB


def run_baoab(
    atoms: Atoms, first: np.ndarray, normals: np.ndarray, *, temperature: float, timestep: float, friction: float
) -> np.ndarray:
    """Positions after each step, shape (step, atom, 3), Å.

    `atoms` has a calculator; `first` are the normal numbers of the momenta, shape (atom, 3), and `normals` those of
    the steps, shape (step, atom, 3). The centre of mass is kept at rest. `timestep` in fs, `friction` in 1/fs.
    """
    dt = timestep * fs
    mass = atoms.get_masses()[:, None]
    broadcast = np.sqrt(kB * temperature * mass)
    p = remove_drift(first * broadcast, mass)
    force = atoms.get_forces()
    trace = []
    for normal in normals:
        p = p + force * dt / 2  # B
        atoms.positions += p / mass * dt / 2  # A
        kept = np.exp(-friction * timestep)
        p = kept * p + remove_drift(np.sqrt(1 - kept**2) * broadcast * normal, mass)  # O
        atoms.positions += p / mass * dt / 2  # A
        force = atoms.get_forces()
        p = p + force * dt / 2  # B
        trace.append(atoms.positions.copy())
    return np.array(trace)


def remove_drift(p: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Momenta without those of the centre of mass."""
    return p - mass * p.sum(axis=0) / mass.sum()
