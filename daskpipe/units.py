"""Physical constants and conversions, in ASE's units: eV, Å, amu; fs, K and GPa where people type them.

The values are CODATA 2014, the set that ASE uses; ``tests/test_units.py`` holds them against ``ase.units``
so that this module (and ``import daskpipe``) need not import ASE.
"""

from __future__ import annotations

KB = 8.617330337217213e-05
"""Boltzmann constant, eV/K."""

FS = 0.09822694788464063
"""One femtosecond in ASE's time unit, Å sqrt(amu/eV)."""

GPA = 0.006241509125883258
"""One gigapascal in eV/Å^3."""
