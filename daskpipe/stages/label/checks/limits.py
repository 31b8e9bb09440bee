"""Refuse labels that are not finite, or beyond a limit."""

from __future__ import annotations

import numpy as np

from daskpipe.core.constants import GPA
from daskpipe.stages.label.settings import LabelChecks


def find_label_fault(
    energy: float, forces: np.ndarray, stress: np.ndarray, periodic: bool, checks: LabelChecks
) -> tuple[str, str] | None:
    """Return reason and evidence why a label cannot be used; ``None`` if it can.

    Parameters
    ----------
    energy, forces, stress
        In eV, eV/Å (shape (atom, 3)) and eV/Å^3 (shape (6,)). A stress of NaN alone was not given by the teacher.
    periodic
        Whether the structure is periodic along all cell vectors; only then must the stress be finite.
    checks
        Limits.

    Examples
    --------
    >>> find_label_fault(-1.0, np.full((1, 3), 100.0), np.zeros(6), True, LabelChecks())
    ('force', 'a force of 173.2 eV/Å (limit 50)')
    """
    numbers = {"energy": np.asarray(energy), "forces": forces}
    if periodic and not np.isnan(stress).all():
        numbers["stress"] = stress
    if bad := [name for name, value in numbers.items() if not np.isfinite(value).all()]:
        return "not_finite", f"{', '.join(bad)} not finite"
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > checks.max_force:
        return "force", f"a force of {largest:.4g} eV/Å (limit {checks.max_force:g})"
    pressure = float(np.abs(stress).max()) / GPA if "stress" in numbers else 0.0
    if pressure > checks.max_stress:
        return "stress", f"a stress of {pressure:.4g} GPa (limit {checks.max_stress:g})"
    per_atom = energy / len(forces)
    if checks.energy_per_atom is not None and not checks.energy_per_atom[0] <= per_atom <= checks.energy_per_atom[1]:
        low, high = checks.energy_per_atom
        return "energy", f"an energy of {per_atom:.6g} eV per atom (limits {low:g} and {high:g})"
    net = float(np.linalg.norm(forces.sum(axis=0))) / len(forces)
    if len(forces) > 1 and net > checks.max_net_force:
        return "net_force", (
            f"its forces sum to {net:.2g} eV/Å per atom (limit {checks.max_net_force:g}), as with a grid that is too "
            "coarse: raise the cutoff"
        )
    return None
