"""Compare forces and stresses with differences of energies, along one direction and one strain of each structure.

A wrong sign, a factor, a permuted order of the atoms, a stress in another unit, or noise of energies that did not
converge makes them disagree. Along forces alone an error perpendicular to them would not be seen, and along a random
direction a factor hardly; so the direction is half of each. The same holds for the strain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from daskpipe.core.constants import GPA
from daskpipe.core.seeds import random_stream
from daskpipe.core.structures import structure_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

STEP = 0.005
"""Root mean square displacement of an atom, Å: energies in float32 still resolve it, and it hardly sees third
derivatives."""

STRAIN = 0.002
"""Norm of the strain."""

SMALL = 1e-6
"""Norm below which forces (eV/Å) or stresses (eV/Å^3) give no direction."""

OK, FORCES, STRESS, BOTH, ENERGY, FAILED = "ok", "forces", "stress", "forces_and_stress", "energy", "failed"
"""Outcomes: all agree, one of them or both do not, the energy is not that of the structure, or the teacher failed on a
displaced structure."""

CURVATURE = 0.002
"""Largest change of the energy by the displacement, eV an atom: that of twice the stiffest bond, 160 eV/Å^2."""


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Disagreements that are allowed.

    Parameters
    ----------
    relative
        Share of the force, or stress, along the direction: DFT with its usual grids stays below it.
    force
        Along the direction, eV/Å: noise of energies in float32.
    stress
        GPa: plane waves and grids of a fixed cutoff give such stresses (Pulay).
    energy
        eV: the mean energy of the displaced structures is that of the label, but for `CURVATURE`.
    """

    relative: float
    force: float
    stress: float
    energy: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Structures displaced from one structure to either side, and what its label says of their energies.

    Parameters
    ----------
    structures
        Two for the forces, and two more for the stress of a crystal that has one.
    force
        Force along the direction, eV/Å.
    length
        Length of the displacement, Å.
    work
        Stress times volume along the strain, eV; ``None`` without a stress.
    volume
        Å^3.
    energy
        eV.
    """

    structures: Sequence[Atoms]
    force: float
    length: float
    work: float | None
    volume: float
    energy: float


def displace_structure(
    atoms: Atoms, energy: float, forces: np.ndarray, stress: np.ndarray | None, *, seed: int
) -> Probe:
    """Displace a structure along its forces and at random, and strain it along its stress and at random.

    Parameters
    ----------
    atoms
        The structure.
    energy, forces, stress
        Its label: eV; shape (atom, 3), eV/Å; shape (6,), eV/Å^3, or ``None``.
    seed
        Seed of the run; with the structure's id it decides the random part.
    """
    rng = random_stream(seed, "finite-differences", structure_id(atoms))
    noise = rng.normal(size=forces.shape)
    if len(atoms) > 1:
        noise -= noise.mean(axis=0)  # moving all atoms alike changes no energy
    direction = _mix_directions(forces, noise)
    length = STEP * len(atoms) ** 0.5
    structures = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.set_constraint()
        moved.positions += sign * length * direction
        structures.append(moved)
    work, volume = None, 0.0
    if stress is not None and atoms.pbc.all():
        tensor, random = voigt_6_to_full_3x3_stress(stress), rng.normal(size=(3, 3))
        strain = _mix_directions(tensor, random + random.T)
        volume = float(atoms.get_volume())
        work = volume * float(np.sum(tensor * strain))
        for sign in (-1, 1):
            strained = atoms.copy()
            strained.set_constraint()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + sign * STRAIN * strain), scale_atoms=True)
            structures.append(strained)
    force = float(np.sum(forces * direction))
    return Probe(structures=structures, force=force, length=length, work=work, volume=volume, energy=energy)


def judge_probe(probe: Probe, energies: Sequence[float], tolerances: Tolerances) -> tuple[str, float]:
    """Compare a label with the energies of the displaced structures.

    Parameters
    ----------
    probe
        From `displace_structure`.
    energies
        Of its structures, eV; NaN where the teacher failed.
    tolerances
        What is allowed.

    Returns
    -------
    outcome : str
        `OK`, `FORCES`, `STRESS`, `BOTH`, `ENERGY` or `FAILED`.
    error : float
        Force along the direction by finite differences minus that of the label, eV/Å.
    """
    if not np.all(np.isfinite(energies)):
        return FAILED, float("nan")
    error = -(energies[1] - energies[0]) / (2 * probe.length) - probe.force
    n_atoms = len(probe.structures[0])
    if abs(float(np.mean(energies[:2])) - probe.energy) > tolerances.energy + CURVATURE * n_atoms:
        return ENERGY, float(error)
    wrong_forces = abs(error) > tolerances.force + tolerances.relative * abs(probe.force)
    wrong_stress = False
    if probe.work is not None:
        difference = (energies[3] - energies[2]) / (2 * STRAIN) - probe.work
        allowed = tolerances.stress * GPA * probe.volume + tolerances.relative * abs(probe.work)
        wrong_stress = abs(difference) > allowed
    outcome = {(False, False): OK, (True, False): FORCES, (False, True): STRESS, (True, True): BOTH}
    return outcome[wrong_forces, wrong_stress], float(error)


def _mix_directions(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a unit array half along each of two, or along the second alone where the first is about zero."""
    parts = [array / np.linalg.norm(array) for array in (first, second) if np.linalg.norm(array) > SMALL]
    if not parts:
        return np.zeros_like(second)
    mixed = sum(parts[1:], start=parts[0])
    norm = np.linalg.norm(mixed)
    return np.asarray(mixed / norm if norm > SMALL else parts[-1])
