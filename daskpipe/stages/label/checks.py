"""Check labels before they are stored."""

from __future__ import annotations

import numpy as np

from daskpipe.stages.label.settings import LabelChecks


def find_label_fault(
    energy: float, forces: np.ndarray, stress: np.ndarray, periodic: bool, checks: LabelChecks
) -> tuple[str, str] | None:
    """Return reason and evidence why a label cannot be used; ``None`` if it can.

    Parameters
    ----------
    energy, forces, stress
        In eV, eV/Å (shape (atom, 3)) and eV/Å^3 (shape (6,)).
    periodic
        Whether the structure is periodic along all cell vectors; only then must the stress be finite.
    checks
        Limits.

    Examples
    --------
    >>> find_label_fault(-1.0, np.full((1, 3), 100.0), np.zeros(6), True, LabelChecks())
    ('force', 'a force of 173.2 eV/Å (limit 50)')
    """
    numbers = {"energy": np.asarray(energy), "forces": forces} | ({"stress": stress} if periodic else {})
    if bad := [name for name, value in numbers.items() if not np.isfinite(value).all()]:
        return "not_finite", f"{', '.join(bad)} not finite"
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > checks.max_force:
        return "force", f"a force of {largest:.4g} eV/Å (limit {checks.max_force:g})"
    return None
