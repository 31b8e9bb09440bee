"""MACE's ASE calculator with daskpipe's names for charge and spin, and without wrong stresses.

Import it after `daskpipe.core.third_party.import_mace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import all_changes
from mace.calculators import MACECalculator

from daskpipe.potentials.mace_electrons import INFO_KEYS, find_unknown_electrons, specs_of, with_electrons

if TYPE_CHECKING:
    from ase import Atoms


class Calculator(MACECalculator):
    """``MACECalculator`` of one model.

    The stress of a structure that is not periodic along all vectors is NaN: MACE 0.3.16 divides by the volume of a cell
    that it has lengthened along open axes (ACEsuit/mace#1509). The batched model gives the right stress.
    """

    def __init__(self, *, models: Any, **options: Any) -> None:
        super().__init__(models=models, info_keys=dict(INFO_KEYS), **options)
        self._specs = specs_of(models)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Compare a structure with the last one, its charge and spin included, which ASE does not compare."""
        changes: list[str] = super().check_state(atoms, tol)
        if changes or self.atoms is None:
            return changes
        now, before = with_electrons(atoms).info, with_electrons(self.atoms).info
        return [] if all(now[key] == before[key] for key in INFO_KEYS.values()) else ["info"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy, forces and stress.

        Raises
        ------
        ValueError
            If the model has no embedding for the structure's charge or spin.
        """
        complete = with_electrons(atoms if atoms is not None else self.atoms)
        if why := find_unknown_electrons(self._specs, complete.info["charge"], complete.info["spin_multiplicity"]):
            raise ValueError(why)
        super().calculate(complete, properties, system_changes)
        if not complete.pbc.all() and "stress" in self.results:
            self.results["stress"] = np.full(6, np.nan)
