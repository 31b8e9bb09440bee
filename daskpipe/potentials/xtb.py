"""Extended tight binding (GFN1, GFN2) of tblite, for molecules and insulators in wide cells, elements 1 to 86.

tblite has one k-point, Gamma. So a cell must be wide enough, which ``min_width`` checks, and no level may be partly
filled: with GFN1, MgO with 2, 16, 54 and 128 atoms has -68.6, -73.2, -74.0 and -74.1 eV an atom, and aluminium
with 1 atom +36 (`benchmarks/results/physics.txt`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from daskpipe.core import structures
from daskpipe.core.geometry import cell_widths, full_cell
from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

TRAITS = Traits(packages=("tblite",), trial="H2O")

VACUUM = 15.0
"""Å between images along open axes of a structure that has periodic ones."""

PARTLY_FILLED = 0.01
"""Electrons an atom in partly filled levels above which one k-point is not enough.

Insulators have less than 0.0002, MgO in a cell of 7 Å 0.04, metals 0.06 and more.
"""


def xtb(
    *,
    device: str,
    dtype: str,
    method: Literal["GFN1-xTB", "GFN2-xTB"] = "GFN2-xTB",
    accuracy: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
    electronic_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0,
    max_iterations: Annotated[int, Field(ge=1)] = 250,
    min_width: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 12.0,
) -> Potential:
    """GFN-xTB with charge and spin from each structure; float64 on the CPU, at the Gamma point.

    Source: doi.org/10.1021/acs.jctc.7b00118 (GFN1), doi.org/10.1021/acs.jctc.8b01176 (GFN2).

    Parameters
    ----------
    device, dtype
        Ignored: tblite runs on the CPU in float64.
    method
        Hamiltonian.
    accuracy
        tblite's factor on its thresholds; smaller is tighter.
    electronic_temperature
        Temperature of the Fermi smearing, K.
    max_iterations
        SCF cycles, after which the structure fails as ``unconverged``.
    min_width
        Least distance of opposite faces of the cell along periodic vectors, Å. A periodic structure in a narrower cell,
        or a metal, fails as ``one_k_point``. At 12 Å energies still change by 0.01 to 0.1 eV an atom with the width, so
        compare cells of similar widths. 0 takes all structures, and energies may then be wrong.
    """
    calculator = _make_calculator(
        min_width,
        method=method,
        accuracy=accuracy,
        electronic_temperature=electronic_temperature,
        max_iterations=max_iterations,
        verbosity=0,
    )
    return Potential(calculator=calculator, elements=_known_elements())


def identify(**params: Any) -> Identity:
    """Identify xTB by its method and parameters."""
    return identity_of_package(params["method"], "tblite", params, elements=_known_elements())


def _known_elements() -> frozenset[str]:
    from ase.data import chemical_symbols

    return frozenset(chemical_symbols[1:87])


def _make_calculator(min_width: float, **params: Any) -> Calculator:
    from ase.calculators.calculator import CalculationFailed, all_changes
    from tblite.ase import TBLite

    from daskpipe.potentials.box import make_periodic

    class OneKPoint(CalculationFailed):
        """Raised for a structure that needs more than one k-point."""

        reason = "one_k_point"

    class XTB(TBLite):
        """`TBLite` with charge and spin from ``atoms.info``, without memory, and right for slabs."""

        def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
            changes: list[str] = super().check_state(atoms, tol)
            # Results depend on info as well, which ASE does not compare.
            return (
                changes
                if changes or self.atoms is None or _electrons_of(atoms) == _electrons_of(self.atoms)
                else ["info"]
            )

        def calculate(
            self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
        ) -> None:
            # The last density would be the first guess, and results would depend on earlier structures.
            self._xtb = self._res = None
            if why := _explain_narrow_cell(atoms, min_width):
                raise OneKPoint(why)
            self.parameters["charge"], self.parameters["multiplicity"] = _electrons_of(atoms)
            # tblite treats a structure with any periodic axis as periodic along three, and a slab's third vector may be
            # short or missing.
            inside = make_periodic(atoms, VACUUM) if atoms.pbc.any() else atoms
            super().calculate(inside, list(properties), list(system_changes))
            self.atoms = atoms.copy()
            solved: Any = self._res
            if min_width and (why := _explain_partial_filling(atoms, solved["orbital-occupations"])):
                self.results.clear()
                raise OneKPoint(why)

    def _electrons_of(atoms: Atoms) -> tuple[int, int]:
        return structures.total_charge(atoms), structures.spin_multiplicity(atoms)

    return XTB(**params)


def _explain_narrow_cell(atoms: Atoms, min_width: float) -> str | None:
    """Return the reason why a cell is too narrow for one k-point; ``None`` if it is wide enough."""
    if not atoms.pbc.any():
        return None
    width = cell_widths(full_cell(atoms))
    axis = int(np.where(atoms.pbc, width, np.inf).argmin())
    if width[axis] >= min_width:
        return None
    return (
        f"the cell is {width[axis]:.1f} Å wide along {'abc'[axis]}; tblite's xTB has one k-point, for which a "
        f"cell must be at least {min_width:g} Å wide: repeat it, or give params.min_width=0 to take it anyway"
    )


def _explain_partial_filling(atoms: Atoms, occupations: np.ndarray) -> str | None:
    """Return how many electrons are in partly filled levels, if so many make a metal; else ``None``."""
    if not atoms.pbc.any():
        return None
    filled = np.asarray(occupations)
    electrons = float(np.sum(filled * (2 - filled))) - (structures.spin_multiplicity(atoms) - 1)
    if electrons <= PARTLY_FILLED * len(atoms):
        return None
    return (
        f"{electrons / len(atoms):.2f} electrons an atom are in partly filled levels: a metal, for which one k-point "
        "is too few in any cell that tblite can do; give another potential, or params.min_width=0 to take it anyway"
    )
