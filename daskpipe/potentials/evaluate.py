"""Evaluate structures with a potential, one by one or in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, run_calculator, unknown_charge, unknown_elements

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from daskpipe.core.torch_sim import ModelInterface


def evaluate(potential: Potential, structures: Sequence[Atoms]) -> list[Evaluation]:
    """Compute energy, forces and stress of each structure.

    Parameters
    ----------
    potential
        From `build`.
    structures
        Potentials that know charge and spin take them from ``info`` (`daskpipe.core.structures`). The structures are
        neither changed nor kept.

    Returns
    -------
    list of Results or Failure
        One for each structure, in order. A structure that fails does not disturb the others. With a batched labeller
        the last bits of a result may depend on the batch.

    Raises
    ------
    RuntimeError
        From the library below, if the machine failed (no memory, a CUDA error) and not a structure.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from daskpipe.potentials import build_potential
    >>> (results,) = evaluate(build_potential("emt", {}, device="cpu"), [bulk("Cu")])
    >>> f"{results.energy:.4f} eV"
    '-0.0057 eV'
    """
    out: list[Evaluation | None] = [
        unknown_elements(atoms, potential.elements) or (None if potential.knows_charge else unknown_charge(atoms))
        for atoms in structures
    ]
    # By size: batches then hold structures of like sizes, and one by one the longest comes first.
    todo = sorted((index for index, failure in enumerate(out) if failure is None), key=lambda i: -len(structures[i]))
    chosen = [structures[index] for index in todo]
    with potential.lock:
        if potential.label is not None:
            evaluations = potential.label(chosen) if chosen else []
        else:
            evaluations = [run_calculator(potential.calculator, atoms) for atoms in chosen]
    for index, evaluation in zip(todo, evaluations, strict=True):
        out[index] = evaluation
    return [evaluation for evaluation in out if evaluation is not None]


def batched_model(potential: Potential, *, stress: bool = False) -> ModelInterface:
    """Return the torch-sim model of a potential, the same object for each call.

    Parameters
    ----------
    potential
        From `build`.
    stress
        Whether the model computes stresses, which costs time.

    Returns
    -------
    torch_sim.models.interface.ModelInterface
        Takes states of any float dtype on its ``device``. The periodicity of each system is its row of the system
        extra ``periodic`` (system, 3), or ``state.pbc`` if there is no such extra. Results have the state's dtype. A
        potential without a batched model gets `daskpipe.potentials.ase_model.AseModel`: float64, one structure after
        another.
    """
    from daskpipe.core.third_party import silence_libraries

    with potential.lock, silence_libraries():  # torch-sim's import prints much
        if stress not in potential._models:
            potential._models[stress] = _make_model(potential, stress)
        return potential._models[stress]


def _make_model(potential: Potential, stress: bool) -> ModelInterface:
    if potential.model is not None:
        return potential.model(stress)
    from daskpipe.potentials.ase_model import AseModel

    return AseModel(potential.calculator, compute_stress=stress)


def mixes_periodicity(model: ModelInterface) -> bool:
    """Return whether the systems of a batch may be periodic along different axes; torch-sim's own models do not say."""
    return bool(getattr(model, "mixes_periodicity", False))


def calculator_of(label: Callable[[Sequence[Atoms]], list[Evaluation]]) -> Calculator:
    """Wrap a labeller as an ASE calculator, which raises ``CalculationFailed`` for a failure."""
    from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

    class Labelled(Calculator):
        implemented_properties = ("energy", "forces", "stress", "magmoms")

        def calculate(
            self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            (evaluation,) = label([atoms])
            if isinstance(evaluation, Failure):
                raise CalculationFailed(f"{evaluation.reason}: {evaluation.evidence}")
            self.results = {name: value for name, value in vars(evaluation).items() if value is not None}
            self.results["free_energy"] = evaluation.energy

    return Labelled()
