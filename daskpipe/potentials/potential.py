"""What a potential is, and how structures are evaluated with one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from daskpipe.attempts import come_on
from daskpipe.structures import charge

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from torch_sim.models.interface import ModelInterface

FAILURE_REASONS = (
    "unknown_element", "charge", "isolated_atom", "one_k_point", "unconverged", "not_finite", "failed",
)  # fmt: skip
"""The words that a `Failure` may carry."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which potential it is: what people call it, and a hash of what decides its numbers.

    Parameters
    ----------
    name
        For people, such as ``"CHGNet 0.3.0"``.
    hash
        SHA-256 in hex: of the weights' bytes, or of package, name and parameters where there are no weights.
    elements
        Symbols of the elements that it knows; ``None`` if any, or if only loading the model would tell.
    packages
        Packages that hold its formulas, where there are no weights, and their versions here: where its numbers came
        from, and no part of `hash`. An upgrade does not make another potential of it.
    """

    name: str
    hash: str
    elements: frozenset[str] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a potential says about one structure.

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
        Of the members of a committee, eV/Å; ``None`` for any other potential.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray
    magmoms: np.ndarray | None = None
    force_disagreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one structure has no results.

    Parameters
    ----------
    reason
        One of `FAILURE_REASONS`.
    evidence
        What happened, for a person.
    """

    reason: str
    evidence: str


type Evaluation = Results | Failure


@dataclass(frozen=True, kw_only=True, eq=False)
class Potential:
    """A potential that has been built in this process, for one thread at a time.

    Parameters
    ----------
    calculator
        ASE calculator. It owes nothing to the structures that it saw before.
    model
        Makes the batched torch-sim model, given whether it shall compute stresses; ``None`` if the potential
        has no batched model (`batched` then runs the calculator on one structure after another).
    label
        Evaluates many structures at once; ``None`` to run the calculator on one after another.
    elements
        Symbols of the elements that it knows; ``None`` for any.
    cutoff
        Atoms farther apart than this (Å) share no edge, so that `boxed` with it changes no number;
        ``None`` for a potential without such a distance.
    knows_charge
        Whether charge and spin multiplicity of a structure decide its results; `evaluate` refuses charged structures
        if not, for their energies would be those of neutral ones.
    lock
        Held by `evaluate`; to be held by whoever runs the calculator or the model beside other threads.
    """

    calculator: Calculator
    model: Callable[[bool], ModelInterface] | None = None
    label: Callable[[Sequence[Atoms]], list[Evaluation]] | None = None
    elements: frozenset[str] | None = None
    cutoff: float | None = None
    knows_charge: bool = True
    lock: Any = field(default_factory=threading.RLock, repr=False)
    _models: dict[bool, ModelInterface] = field(default_factory=dict, repr=False, init=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Potential is never pickled: send its name and parameters, and call daskpipe.potentials.build "
            "in the process that needs it"
        )


def evaluate(potential: Potential, structures: Sequence[Atoms]) -> list[Evaluation]:
    """Energy, forces and stress of each structure, or why there are none.

    Parameters
    ----------
    potential
        From `build`.
    structures
        Charge and spin are read from ``info`` by potentials that know them (`daskpipe.structures`). They are
        neither changed nor kept.

    Returns
    -------
    list of Results or Failure
        One for each structure, in order. A structure that fails does not disturb the others. For batched
        labellers the last bits of a result may depend on the batch; the rest of it does not.

    Raises
    ------
    RuntimeError
        From the library below, where it is the machine that failed (no memory, a CUDA error) and not a structure.
    """
    out: list[Evaluation | None] = [
        unknown_elements(atoms, potential.elements) or (None if potential.knows_charge else charged(atoms))
        for atoms in structures
    ]
    todo = [index for index, failure in enumerate(out) if failure is None]
    chosen = [structures[index] for index in todo]
    with potential.lock:
        if potential.label is not None:
            found = potential.label(chosen) if chosen else []
        else:
            found = [calculate(potential.calculator, atoms) for atoms in chosen]
    for index, evaluation in zip(todo, found, strict=True):
        out[index] = evaluation
    return [evaluation for evaluation in out if evaluation is not None]


def batched(potential: Potential, *, stress: bool = False) -> ModelInterface:
    """Return the torch-sim model of a potential, the same one whenever it is asked for.

    Parameters
    ----------
    potential
        From `build`.
    stress
        Whether the model computes stresses, which costs time.

    Returns
    -------
    torch_sim.models.interface.ModelInterface
        Takes states of any float dtype on its ``device``, with systems of any periodicities: those that the system
        extra ``periodic`` (system, 3) tells, else ``state.pbc`` for all. Results have the state's dtype. A potential
        without a batched model gets `daskpipe.potentials.ase_model.AseModel`: float64, one structure after another.
    """
    from daskpipe.foreign import quiet

    with potential.lock, quiet():  # torch-sim's import has a good deal to say
        if stress not in potential._models:
            potential._models[stress] = _model(potential, stress)
        return potential._models[stress]


def _model(potential: Potential, stress: bool) -> ModelInterface:
    if potential.model is not None:
        return potential.model(stress)
    from daskpipe.potentials.ase_model import AseModel

    return AseModel(potential.calculator, compute_stress=stress)


def mixes_periodicity(model: ModelInterface) -> bool:
    """Whether the systems of a batch may be periodic along different axes; torch-sim's own models say nothing."""
    return bool(getattr(model, "mixes_periodicity", False))


def calculate(calculator: Calculator, atoms: Atoms, *, stress: bool = True) -> Evaluation:
    """Run an ASE calculator on one structure, from scratch: the result owes nothing to earlier ones."""
    from ase.calculators.calculator import CalculationFailed, CalculatorError, all_changes

    wants_stress = stress and bool(atoms.pbc.all())
    come_on()
    calculator.reset()
    try:
        calculator.calculate(atoms, ["energy", "forces", *(["stress"] if wants_stress else [])], all_changes)
    except CalculationFailed as error:
        reason = getattr(error, "reason", "unconverged" if "not converged" in str(error) else "failed")
        return Failure(reason=reason, evidence=str(error))
    # What a calculator raises about a structure. A RuntimeError from torch is not in the list: it is the machine's.
    except (CalculatorError, ValueError, ArithmeticError, NotImplementedError, np.linalg.LinAlgError) as error:
        return Failure(reason="failed", evidence=f"{type(error).__name__}: {error}")
    found = calculator.results
    return checked_results(
        energy=float(found["energy"]),
        forces=np.array(found["forces"], dtype=float),
        stress=np.array(found["stress"], dtype=float) if wants_stress else None,
        magmoms=np.array(found["magmoms"], dtype=float) if "magmoms" in found else None,
    )


def calculator_of(label: Callable[[Sequence[Atoms]], list[Evaluation]]) -> Calculator:
    """Return a labeller as an ASE calculator, which raises ``CalculationFailed`` for a failure."""
    from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

    class Labelled(Calculator):
        implemented_properties = ("energy", "forces", "stress", "magmoms")

        def calculate(
            self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            (found,) = label([atoms])
            if isinstance(found, Failure):
                raise CalculationFailed(f"{found.reason}: {found.evidence}")
            self.results = {name: value for name, value in vars(found).items() if value is not None}
            self.results["free_energy"] = found.energy

    return Labelled()


def checked_results(
    *, energy: float, forces: np.ndarray, stress: np.ndarray | None, magmoms: np.ndarray | None = None
) -> Evaluation:
    """Results if all numbers are finite, else a failure; a stress of ``None`` becomes NaN."""
    numbers = {"energy": energy, "forces": forces, "stress": stress, "magmoms": magmoms}
    bad = [name for name, value in numbers.items() if value is not None and not np.all(np.isfinite(np.asarray(value)))]
    if bad:
        return Failure(reason="not_finite", evidence=f"NaN or infinite: {', '.join(bad)}")
    return Results(
        energy=energy, forces=forces, stress=np.full(6, np.nan) if stress is None else stress, magmoms=magmoms
    )


def unknown_elements(atoms: Atoms, elements: frozenset[str] | None) -> Failure | None:
    """Failure that names the elements of a structure outside `elements`, if there are any."""
    strange = sorted(set(atoms.symbols) - elements) if elements is not None else []
    if not strange:
        return None
    assert elements is not None
    known = " ".join(sorted(elements)) if len(elements) <= 12 else f"{len(elements)} elements"
    return Failure(reason="unknown_element", evidence=f"{', '.join(strange)} not among {known}")


def charged(atoms: Atoms) -> Failure | None:
    """Failure that names the charge of a structure, if it has one."""
    if not (total := charge(atoms)):
        return None
    return Failure(
        reason="charge",
        evidence=f"a charge of {total:+d} e, and the potential knows none: its labels would be those of "
        "the neutral structure; take a potential that does, e.g. xtb",
    )


def identity_of_package(name: str, distribution: str, params: Mapping[str, Any], **rest: Any) -> Identity:
    """Return the identity of a potential whose formulas a package holds: package, name and parameters."""
    facts = json.dumps([name, distribution, dict(params)], sort_keys=True)
    packages = {distribution: version(distribution)}
    return Identity(name=name, hash=hashlib.sha256(facts.encode()).hexdigest(), packages=packages, **rest)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes in hex; hashed again only if its size or time of change differs."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
