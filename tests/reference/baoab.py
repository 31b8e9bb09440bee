"""Langevin dynamics in the BAOAB splitting (Leimkuhler and Matthews, DOI 10.1098/rspa.2016.0138), in plain NumPy."""

import numpy as np
from ase import Atoms
from ase.units import fs, kB


def baoab(
    atoms: Atoms, noise: np.random.Generator, *, temperature: float, timestep: float, friction: float, n_steps: int
) -> np.ndarray:
    """Positions after each step, shape (step, atom, 3), Å.

    `atoms` has a calculator; `noise` gives the momenta first and then each step's normal numbers;
    `timestep` in fs, `friction` in 1/fs.
    """
    dt = timestep * fs
    mass = atoms.get_masses()[:, None]
    spread = np.sqrt(kB * temperature * mass)
    p = noise.standard_normal((len(atoms), 3)) * spread
    p -= mass * p.sum(axis=0) / mass.sum()
    force = atoms.get_forces()
    trace = []
    for _ in range(n_steps):
        p = p + force * dt / 2  # B
        atoms.positions += p / mass * dt / 2  # A
        kept = np.exp(-friction * timestep)
        p = kept * p + np.sqrt(1 - kept**2) * spread * noise.standard_normal((len(atoms), 3))  # O
        atoms.positions += p / mass * dt / 2  # A
        force = atoms.get_forces()
        p = p + force * dt / 2  # B
        trace.append(atoms.positions.copy())
    return np.array(trace)
