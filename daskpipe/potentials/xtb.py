"""Extended tight binding (GFN1, GFN2) through tblite: molecules and solids of elements 1 to 86."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from daskpipe import structures
from daskpipe.potentials.potential import Identity, Potential, identity_of_package

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

VACUUM = 15.0
"""Å, between images along vectors that are not periodic, if others are."""


def xtb(
    *,
    device: str,
    dtype: str,
    method: Literal["GFN1-xTB", "GFN2-xTB"] = "GFN2-xTB",
    accuracy: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
    electronic_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0,
    max_iterations: Annotated[int, Field(ge=1)] = 250,
) -> Potential:
    """GFN-xTB with charge and spin from each structure; float64 on the CPU.

    Source: doi.org/10.1021/acs.jctc.7b00118 (GFN1), doi.org/10.1021/acs.jctc.8b01176 (GFN2).

    Parameters
    ----------
    device, dtype
        Not used.
    method
        Hamiltonian.
    accuracy
        tblite's factor on its thresholds; smaller is tighter.
    electronic_temperature
        Of the Fermi smearing, K.
    max_iterations
        SCF cycles, after which the structure fails as ``unconverged``.
    """
    calculator = _calculator(
        method=method,
        accuracy=accuracy,
        electronic_temperature=electronic_temperature,
        max_iterations=max_iterations,
        verbosity=0,
    )
    return Potential(calculator=calculator, elements=_elements())


def identify(**params: Any) -> Identity:
    """Identity of xTB: method and parameters."""
    return identity_of_package(params["method"], "tblite", params, elements=_elements())


def _elements() -> frozenset[str]:
    from ase.data import chemical_symbols

    return frozenset(chemical_symbols[1:87])


def _calculator(**params: Any) -> Calculator:
    from ase.calculators.calculator import all_changes
    from tblite.ase import TBLite

    from daskpipe.potentials.box import boxed

    class XTB(TBLite):
        """`TBLite` with charge and spin from ``atoms.info``, without memory, and right for slabs."""

        def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
            changes: list[str] = super().check_state(atoms, tol)
            # Results hang on info as well, at which ASE does not look.
            return changes if changes or self.atoms is None or _state(atoms) == _state(self.atoms) else ["info"]

        def calculate(
            self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
        ) -> None:
            # The last density would be the first guess: results would depend on what was computed before.
            self._xtb = self._res = None
            self.parameters["charge"], self.parameters["multiplicity"] = _state(atoms)
            # tblite takes any periodic axis for three, and a slab's third vector may be short or missing.
            inside = boxed(atoms, VACUUM) if atoms.pbc.any() else atoms
            super().calculate(inside, list(properties), list(system_changes))
            self.atoms = atoms.copy()

    def _state(atoms: Atoms) -> tuple[int, int]:
        return structures.charge(atoms), structures.spin_multiplicity(atoms)

    return XTB(**params)
