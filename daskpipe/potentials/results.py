"""Results of a potential for one structure, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.heartbeat import send_heartbeat
from daskpipe.core.structures import total_charge
from daskpipe.core.variables import FULL_TO_VOIGT

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

FAILURE_REASONS = (
    "unknown_element", "charge", "spin", "periodic", "isolated_atom", "one_k_point", "unconverged", "not_finite",
    "failed", "crashed", "hung", "memory",
)  # fmt: skip
"""Words for `Failure.reason`."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Energy, forces and stress of one structure.

    Parameters
    ----------
    energy
        Total energy of the structure (not per atom), eV.
    forces
        Shape (atom, 3), eV/Å, float64.
    stress
        Shape (6,), eV/Å^3, order xx yy zz yz xz xy, positive under tension (as in ASE); NaN unless the
        structure is periodic along all three cell vectors.
    magmoms
        Shape (atom,), µB; ``None`` if the potential has none.
    force_disagreement
        Disagreement of the members of a committee, eV/Å; ``None`` for any other potential.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray
    magmoms: np.ndarray | None = None
    force_disagreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Reason why one structure has no results.

    Parameters
    ----------
    reason
        One of `FAILURE_REASONS`.
    evidence
        Explanation for people.
    """

    reason: str
    evidence: str


type Evaluation = Results | Failure


def is_unconverged(evaluation: Evaluation) -> bool:
    """Return whether a structure has no results because its self-consistent field did not converge."""
    return isinstance(evaluation, Failure) and evaluation.reason == "unconverged"


def run_calculator(calculator: Calculator, atoms: Atoms, *, stress: bool = True) -> Evaluation:
    """Run an ASE calculator on one structure from scratch, so that earlier structures do not change the result.

    Parameters
    ----------
    calculator
        ASE calculator; it is reset.
    atoms
        The structure.
    stress
        Whether to compute the stress, where the structure is periodic along all three cell vectors.

    Returns
    -------
    Results or Failure
        A failure if the calculator refuses the structure or does not converge, or if a number is not finite.
    """
    from ase.calculators.calculator import CalculationFailed, CalculatorError, all_changes

    wants_stress = stress and bool(atoms.pbc.all())
    send_heartbeat()
    calculator.reset()
    try:
        calculator.calculate(atoms, ["energy", "forces", *(["stress"] if wants_stress else [])], all_changes)
    except CalculationFailed as error:
        reason = getattr(error, "reason", "unconverged" if "not converged" in str(error) else "failed")
        return Failure(reason=reason, evidence=str(error))
    # A RuntimeError from torch is missing on purpose: the machine is at fault then, and not the structure.
    except (CalculatorError, ValueError, ArithmeticError, NotImplementedError, np.linalg.LinAlgError) as error:
        return Failure(reason="failed", evidence=f"{type(error).__name__}: {error}")
    results = calculator.results
    return checked_results(
        energy=float(results["energy"]),
        forces=np.array(results["forces"], dtype=float),
        stress=np.array(results["stress"], dtype=float) if wants_stress else None,
        magmoms=np.array(results["magmoms"], dtype=float) if "magmoms" in results else None,
    )


def checked_results(
    *, energy: float, forces: np.ndarray, stress: np.ndarray | None, magmoms: np.ndarray | None = None
) -> Evaluation:
    """Return the numbers as `Results` if all are finite, else a `Failure`; a stress of ``None`` becomes NaN.

    Parameters
    ----------
    energy, forces, stress, magmoms
        As in `Results`; the stress may also have the shape (3, 3).
    """
    if stress is not None and stress.shape == (3, 3):  # some calculators give the whole tensor
        stress = stress.reshape(9)[list(FULL_TO_VOIGT)]
    numbers = {"energy": energy, "forces": forces, "stress": stress, "magmoms": magmoms}
    bad = [name for name, value in numbers.items() if value is not None and not np.all(np.isfinite(np.asarray(value)))]
    if bad:
        return Failure(reason="not_finite", evidence=f"NaN or infinite: {', '.join(bad)}")
    return Results(
        energy=energy, forces=forces, stress=np.full(6, np.nan) if stress is None else stress, magmoms=magmoms
    )


def unknown_elements(atoms: Atoms, elements: frozenset[str] | None) -> Failure | None:
    """Return a failure that names the elements of a structure beyond `elements`; ``None`` if there are none."""
    strange = sorted(set(atoms.symbols) - elements) if elements is not None else []
    if not strange:
        return None
    assert elements is not None
    known = " ".join(sorted(elements)) if len(elements) <= 12 else f"{len(elements)} elements"
    return Failure(reason="unknown_element", evidence=f"{', '.join(strange)} not among {known}")


def refuse_periodic(atoms: Atoms) -> Failure | None:
    """Return a failure for a periodic structure, for a potential that takes molecules alone; else ``None``."""
    if not atoms.pbc.any():
        return None
    return Failure(
        reason="periodic",
        evidence="it is periodic, and the potential takes molecules alone; take another one, e.g. cp2k or chgnet",
    )


def unknown_charge(atoms: Atoms) -> Failure | None:
    """Return a failure that names the charge of a structure; ``None`` if it is neutral."""
    if not (total := total_charge(atoms)):
        return None
    return Failure(
        reason="charge",
        evidence=f"a charge of {total:+d} e, and the potential does not know charges: its labels would be those "
        "of the neutral structure; take a potential that does, e.g. xtb",
    )
