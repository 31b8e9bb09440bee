"""Potentials move the atoms in ``explore`` and label the frames in ``label``.

Needs   a name, parameters, a device (auto, cpu, cuda) and a dtype (float32, float64).
Makes   a `Potential`: an ASE calculator, a batched torch-sim model where there is one, a batched labeller.
Plugins entry-point group ``daskpipe.potentials``: a keyword-only factory
        ``(*, device: str, dtype: str, **params) -> Potential``; its module may define
        ``identify(**params) -> Identity``, which names the bytes that decide its numbers, and ``TRAITS``.
Entry   `build_potential` on the worker, once per process, never pickled; `identify_potential` in the driver, before
        anything runs; `evaluate` for labels; `batched_model` for molecular dynamics.
Memory  bundled MACE and CHGNet: below 0.1 GB of weights; a batch takes about 0.5 MB an atom with them.
"""

from daskpipe.potentials.box import make_periodic
from daskpipe.potentials.catalogue import (
    POTENTIALS,
    build_potential,
    describe_potential,
    explain_evaluator,
    identify_potential,
    list_packages,
    traits_of,
)
from daskpipe.potentials.evaluate import batched_model, evaluate
from daskpipe.potentials.identity import Identity
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import FAILURE_REASONS, Evaluation, Failure, Results
from daskpipe.potentials.traits import Traits

__all__ = [
    "FAILURE_REASONS",
    "POTENTIALS",
    "Evaluation",
    "Failure",
    "Identity",
    "Potential",
    "Results",
    "Traits",
    "batched_model",
    "build_potential",
    "describe_potential",
    "evaluate",
    "explain_evaluator",
    "identify_potential",
    "list_packages",
    "make_periodic",
    "traits_of",
]
