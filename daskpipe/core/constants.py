"""Define physical constants and conversions in ASE's units: eV, Å, amu; fs, K and GPa where people type them.

The values are CODATA 2014, the set that ASE uses. They are written out so that ``import daskpipe`` need not import ASE;
a test compares them with ``ase.units``.
"""

from __future__ import annotations

KB = 8.617330337217213e-05
"""Boltzmann constant, eV/K."""

FS = 0.09822694788464063
"""One femtosecond in ASE's time unit, Å sqrt(amu/eV)."""

GPA = 0.006241509125883258
"""One gigapascal in eV/Å^3."""

HARTREE = 27.211386024367243
"""One Hartree in eV."""

RYDBERG = 13.605693012183622
"""One Rydberg in eV."""

BOHR = 0.5291772105638411
"""One Bohr in Å."""

KCAL_PER_MOL = 0.04336410390059322
"""One kcal/mol in eV."""

KJ_PER_MOL = 0.010364269574711572
"""One kJ/mol in eV."""
