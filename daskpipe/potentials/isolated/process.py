"""Evaluate structures in a process of their own, which is replaced when a structure kills it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.core.errors import ConfigError
from daskpipe.potentials.child_process import TRIES, ChildEnded, ChildLimits, ChildProcess
from daskpipe.potentials.evaluate import calculator_of
from daskpipe.potentials.isolated import child
from daskpipe.potentials.isolated.child import read_message, write_message
from daskpipe.potentials.isolated.messages import write_structures
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, checked_results, is_unconverged, refuse_periodic

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

START_SECONDS = 600.0
"""Seconds that a calculator may take to be made at least: packages are imported, and a model is loaded."""

NORMAL, ROBUST = "normal", "robust"
"""Names of the settings: those of the config, and those for a structure that did not converge with them."""


@dataclass(frozen=True, kw_only=True)
class CalculatorSpec:
    """Say how a calculator is made in a process of its own.

    Parameters
    ----------
    place
        ``module:function`` or ``/path/to/file.py:function``; returns an ASE calculator.
    arguments
        Keyword arguments, JSON types.
    robust
        Keyword arguments for a structure that did not converge; ``None`` for no second try.
    facts
        Parameter of the calculator that is set from each structure: ``charge`` or ``spin_multiplicity``, by name.
    python
        Interpreter.
    environment
        Variables that are added to the environment.
    find_fault
        Reads the folder of the calculation, and returns why its numbers do not count; ``None`` to take all. With it,
        structures are sent one by one.
    """

    place: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    robust: Mapping[str, Any] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    find_fault: Callable[[Path], Failure | None] | None = None


def isolate_calculator(
    spec: CalculatorSpec,
    limits: ChildLimits,
    *,
    elements: frozenset[str] | None = None,
    knows_charge: bool = False,
    periodic: bool = True,
) -> Potential:
    """Return a potential that computes in a process of its own.

    Parameters
    ----------
    spec, limits
        How its calculator is made, and what its process may take.
    elements, knows_charge
        As `daskpipe.potentials.Potential` has them.
    periodic
        Whether it takes periodic structures; if not, they fail.

    Raises
    ------
    ConfigError
        When the first structure is evaluated, if the calculator cannot be made.
    """
    process = CalculatorProcess(spec, limits)

    def label(structures: Sequence[Atoms]) -> list[Evaluation]:
        refused = [None if periodic else refuse_periodic(atoms) for atoms in structures]
        taken = iter(process.evaluate([a for a, why in zip(structures, refused, strict=True) if why is None]))
        return [why or next(taken) for why in refused]

    return Potential(calculator=calculator_of(label), label=label, elements=elements, knows_charge=knows_charge)


class CalculatorProcess:
    """Process of a calculator, started when the first structure comes and kept until it ends.

    Parameters
    ----------
    spec, limits
        As for `isolate_calculator`.
    """

    def __init__(self, spec: CalculatorSpec, limits: ChildLimits) -> None:
        self.spec = spec
        self.limits = limits
        self._child: ChildProcess | None = None
        self._folder: Path | None = None

    def evaluate(self, structures: Sequence[Atoms]) -> list[Evaluation]:
        """Return the results of structures, or why there are none."""
        out: dict[int, Evaluation] = {}
        order = range(len(structures))
        self._evaluate_variant(NORMAL, structures, order, out)
        again = [index for index in order if is_unconverged(out[index])] if self.spec.robust is not None else []
        if again:
            first = {index: out.pop(index) for index in again}
            self._evaluate_variant(ROBUST, structures, again, out)
            for index in again:
                now, before = out[index], first[index]
                if isinstance(now, Failure) and isinstance(before, Failure):
                    evidence = f"{before.evidence}; with robust settings: {now.evidence}"
                    out[index] = Failure(reason=now.reason, evidence=evidence)
        return [out[index] for index in range(len(structures))]

    def _evaluate_variant(
        self, variant: str, structures: Sequence[Atoms], order: Sequence[int], out: dict[int, Evaluation]
    ) -> None:
        """Evaluate the structures at `order` with one of the settings; start again after the one that ended it."""
        todo, tries = list(order), 0
        while todo:
            batch = todo[:1] if self.spec.find_fault is not None else todo
            n_done = 0
            try:
                running = self._start()
                running.write(write_structures(variant, [structures[index] for index in batch]))
                for index in batch:
                    header, arrays = read_message(running.read)
                    out[index] = self._judge(header, arrays)
                    n_done += 1
            except ChildEnded as error:
                self._close()
                tries = 1 if n_done else tries + 1
                if tries == TRIES:
                    evidence = f"{error.evidence}, {TRIES} times"
                    out[batch[n_done]] = Failure(reason=error.reason, evidence=evidence)
                    n_done, tries = n_done + 1, 0
            except BaseException:  # the answers that are left belong to no question
                self._close()
                raise
            else:
                tries = 0
            todo = todo[n_done:]

    def _judge(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Evaluation:
        if self.spec.find_fault is not None:
            assert self._folder is not None
            if fault := self.spec.find_fault(self._folder):
                return fault
        if header["failure"] is not None:
            return Failure(**header["failure"])
        if missing := [name for name in ("energy", "forces") if name not in arrays]:
            return Failure(reason="failed", evidence=f"the calculator gave no {' and no '.join(missing)}")
        return checked_results(
            energy=float(arrays["energy"]),
            forces=arrays["forces"],
            stress=arrays.get("stress"),
            magmoms=arrays.get("magmoms"),
        )

    def _start(self) -> ChildProcess:
        """Return the process, started and with its calculator made."""
        if self._child is not None and self._child.lives:
            return self._child
        self._close()
        spec = self.spec
        self._folder = Path(tempfile.mkdtemp(prefix="daskpipe-teacher-"))
        patient = replace(self.limits, silence=max(self.limits.silence, START_SECONDS))
        self._child = ChildProcess(
            [spec.python, child.__file__], patient, folder=self._folder, environment=spec.environment
        )
        variants = {NORMAL: dict(spec.arguments)} | ({} if spec.robust is None else {ROBUST: dict(spec.robust)})
        header = {"calculator": spec.place, "variants": variants, "facts": dict(spec.facts)}
        try:
            self._child.write(write_message(header, {}))
            answer, _ = read_message(self._child.read)
        except ChildEnded as error:
            raise ConfigError(
                f"the calculator {spec.place} cannot be made with {spec.python}: {error.evidence}"
            ) from error
        if "error" in answer:
            self._close()
            raise ConfigError(f"the calculator {spec.place} cannot be made with {spec.python}: {answer['error']}")
        self._child.limits = self.limits
        return self._child

    def _close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
