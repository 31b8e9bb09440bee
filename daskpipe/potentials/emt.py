"""Effective medium theory for Al Cu Ag Au Ni Pd Pt: cheap, smooth, for tests and first explorations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskpipe.potentials.potential import Identity, Potential, identity_of_version

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

ELEMENTS = frozenset({"Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"})
"""ASE also has toy parameters for H, C, N and O; they are "not for any serious use" and left out."""


def emt(*, device: str, dtype: str) -> Potential:
    """ASE's effective medium theory; float64 on the CPU. Source: Surf. Sci. 366, 394 (1996)."""
    return Potential(calculator=_calculator(), elements=ELEMENTS)


def identify() -> Identity:
    """Identity of EMT: the version of ASE."""
    return identity_of_version("EMT", "ase", {}, elements=ELEMENTS)


def _calculator() -> Calculator:
    import numpy as np
    from ase import Atoms
    from ase.calculators.emt import EMT
    from matscipy.neighbours import neighbour_list

    from daskpipe.potentials.box import boxed

    class Neighbours:
        """ASE's `NeighborList` as far as EMT uses it, five times as fast, and without a memory of earlier steps."""

        def __init__(self, cutoff: float) -> None:
            self.cutoff = cutoff

        def update(self, atoms: Atoms) -> None:
            first, self.second, self.offset = neighbour_list("ijS", boxed(atoms, self.cutoff), self.cutoff)
            self.start = np.searchsorted(first, np.arange(len(atoms) + 1))

        def get_neighbors(self, atom: int) -> tuple[np.ndarray, np.ndarray]:
            rows = slice(self.start[atom], self.start[atom + 1])
            return self.second[rows], self.offset[rows]

    class FastEMT(EMT):
        def initialize(self, atoms: Atoms) -> None:
            super().initialize(atoms)
            self.nl = Neighbours(self.rc_list)

    return FastEMT()
