"""What ends a trajectory: numbers that are not finite, too large a force, runaway temperature."""

from __future__ import annotations

import numpy as np
import torch
from torch_sim.integrators.md import MDState

from daskpipe import units


def temperature_limit(thermostat: np.ndarray, n_atoms: np.ndarray, ratio: float) -> np.ndarray:
    """Return the highest sane instantaneous temperature of each system, K.

    Small systems fluctuate: the standard deviation of the instantaneous temperature is T sqrt(2 / 3N), so the
    limit is `ratio` times T, or eight standard deviations above T where that is more.

    Parameters
    ----------
    thermostat, n_atoms
        Temperature of the thermostat (K) and number of atoms, shape (system,).
    ratio
        See `daskpipe.explore.settings.Guards`.
    """
    return thermostat * np.maximum(ratio, 1 + 8 * np.sqrt(2 / (3 * n_atoms)))


def temperatures(state: MDState) -> torch.Tensor:
    """Return the instantaneous temperature of each system, K, shape (system,); 3N degrees of freedom."""
    kinetic = 0.5 * (state.momenta**2).sum(dim=1) / state.masses
    n_systems = state.cell.shape[0]
    total = torch.zeros(n_systems, dtype=state.dtype, device=state.device).index_add_(0, state.system_idx, kinetic)
    n_atoms = torch.bincount(state.system_idx, minlength=n_systems)
    return total / (1.5 * n_atoms * units.KB)


def check(state: MDState, limits: torch.Tensor, max_force: float) -> dict[int, tuple[str, str]]:
    """Return the systems that went wrong: ``{system: (reason, evidence)}``.

    Parameters
    ----------
    state
        The batch after a step.
    limits
        Highest sane temperature of each system, K, shape (system,).
    max_force
        Largest sane force on an atom, eV/Å.
    """
    n_systems = state.cell.shape[0]
    force = torch.zeros(n_systems, dtype=state.dtype, device=state.device)
    norm = state.forces.square().sum(dim=1).sqrt()
    norm = torch.where(state.positions.isfinite().all(dim=1) & norm.isfinite(), norm, torch.inf)
    force.scatter_reduce_(0, state.system_idx, norm, "amax")
    temperature = temperatures(state)
    sane = (force <= max_force) & (temperature <= limits) & state.energy.isfinite()
    wrong: dict[int, tuple[str, str]] = {}
    for system in torch.nonzero(~sane).flatten().tolist():
        f, t, limit = float(force[system]), float(temperature[system]), float(limits[system])
        if not np.isfinite([f, t, float(state.energy[system])]).all():
            wrong[system] = ("not_finite", "positions, momenta, forces or energy are not finite")
        elif f > max_force:
            wrong[system] = ("force", f"a force of {f:.4g} eV/Å (limit {max_force:g})")
        else:
            wrong[system] = ("temperature", f"an instantaneous temperature of {t:.4g} K (limit {limit:.4g})")
    return wrong
