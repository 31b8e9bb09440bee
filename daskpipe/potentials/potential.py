"""The object that a potential's factory returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from daskpipe.potentials.results import Evaluation

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from daskpipe.core.torch_sim import ModelInterface


@dataclass(frozen=True, kw_only=True, eq=False)
class Potential:
    """A potential built in this process, for one thread at a time.

    Parameters
    ----------
    calculator
        ASE calculator, whose results do not depend on earlier structures.
    model
        Makes the batched torch-sim model; its argument says whether the model computes stresses. ``None`` if the
        potential has no batched model: `daskpipe.potentials.batched_model` then wraps the calculator.
    label
        Evaluates many structures at once; ``None`` to run the calculator on one after another.
    elements
        Symbols of the elements that it knows; ``None`` for any.
    cutoff
        Distance, Å, beyond which atoms share no edge, so that `daskpipe.potentials.make_periodic` with it changes no
        number; ``None`` for a potential without such a distance.
    knows_charge
        Whether charge and spin multiplicity of a structure decide its results. If not,
        `daskpipe.potentials.evaluate` refuses charged structures, whose energies would be those of neutral ones.
    lock
        Held by `daskpipe.potentials.evaluate`. Hold it to run the calculator or the model beside other threads.
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
            "a Potential is never pickled: send its name and parameters, and call daskpipe.potentials.build_potential "
            "in the process that needs it"
        )
