"""Time steps by the lightest atom of a structure, which limits the fastest vibration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

STEPS = ((6.0, 0.5), (22.0, 1.0), (39.0, 2.0), (np.inf, 4.0))
"""Masses (amu) that the lightest atom is below, and the time step, fs: with hydrogen, with Li to Ne, with Na to Ar, and
beyond. Of the stiffest bond that such a structure can have it is a fourteenth of a period or less: H2 7.6 fs, N2 14 fs,
P2 43 fs, and 100 fs and more in metals."""

TOO_LONG = 1.5
"""Factor of the automatic time step above which a user's is called too long: ten steps a period of H2 or N2."""

LONGEST = STEPS[-1][1]
"""Longest time step of ``auto``, fs."""

type Timestep = float | Literal["auto"]


def timestep_of(timestep: Timestep, masses: np.ndarray) -> float:
    """Return the time step of a structure, fs.

    Parameters
    ----------
    timestep
        As in `daskpipe.stages.explore.settings.Dynamics`.
    masses
        Of its atoms, amu, shape (atom,).
    """
    if timestep != "auto":
        return timestep
    lightest = float(np.min(masses))
    return next(step for mass, step in STEPS if lightest < mass)


def timestep_warning(timestep: Timestep, masses: np.ndarray) -> str | None:
    """Return a warning if a given time step is too long for the lightest atom; ``None`` if it is not.

    Parameters
    ----------
    timestep, masses
        As in `timestep_of`.
    """
    sane = timestep_of("auto", masses)
    if timestep == "auto" or timestep <= TOO_LONG * sane:
        return None
    return (
        f"explore.dynamics.timestep={timestep:g} fs is long for atoms of {float(np.min(masses)):.3g} amu, whose bonds "
        f"vibrate within 8 to 20 fs: trajectories may break; give timestep=auto ({sane:g} fs for such structures)"
    )


def masses_of(symbols: Iterable[str]) -> np.ndarray:
    """Return the standard atomic masses of elements, amu."""
    from ase.data import atomic_masses, atomic_numbers

    return np.array([atomic_masses[atomic_numbers[symbol]] for symbol in symbols])
