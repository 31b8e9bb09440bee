"""Check some of the labels: by finite differences, and with a second teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.structures import from_atoms, to_atoms
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_rows
from daskpipe.engine.units import Payload
from daskpipe.potentials import Failure, Potential, Results
from daskpipe.stages.label.cache import LabelCache, evaluate_cached
from daskpipe.stages.label.checks.finite_differences import OK, Tolerances, displace_structure, judge_probe
from daskpipe.stages.label.checks.second_teacher import compare_labels
from daskpipe.stages.label.settings import FiniteDifferences

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

STAGE = "label-check"
"""Name of the stage."""

VERSION = 2

COLUMNS = ("finite_difference_check", "finite_difference_error", "energy_check", "forces_check", "label_status")
"""Variables that the checks give; those of structures that were not checked are missing."""

WRONG = "finite_differences"
"""``label_status`` of a structure whose forces or stress disagree with its energies."""


@dataclass(frozen=True, kw_only=True)
class TeacherCall:
    """Build a teacher on the worker, and keep its results.

    Parameters
    ----------
    build
        Builds it, or returns the one that its process has built before.
    cache
        Results that are kept; ``None`` for none.
    """

    build: Callable[[], Potential]
    cache: LabelCache | None = None


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """Rows of a unit of labels that are checked.

    Parameters
    ----------
    differences, second
        Rows to check by finite differences, and with the second teacher.
    """

    differences: tuple[int, ...] = ()
    second: tuple[int, ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """All rows that are checked."""
        return tuple(sorted({*self.differences, *self.second}))


def draw_checks(
    sizes: Sequence[int], differences: FiniteDifferences | None, second_share: float | None, *, seed: int
) -> dict[int, CheckPlan]:
    """Draw the labels that are checked.

    Parameters
    ----------
    sizes
        Number of labels of each unit.
    differences
        How many are checked by finite differences; ``None`` for none.
    second_share
        Share that a second teacher labels; ``None`` if there is none.
    seed
        Seed of the run.

    Returns
    -------
    dict
        By index of the unit, for the units with such labels.
    """
    total = int(np.sum(sizes))
    ends = np.cumsum(sizes)

    def draw(n: int, purpose: int) -> np.ndarray:
        rng = np.random.default_rng([seed, purpose])
        return np.sort(rng.choice(total, size=min(n, total), replace=False))

    n_differences = 0 if differences is None else max(differences.at_least, round(differences.share * total))
    n_second = 0 if second_share is None else max(1, round(second_share * total))
    chosen: dict[int, list[list[int]]] = {}
    for purpose, n in enumerate((n_differences, n_second)):
        for number in draw(n, purpose).tolist() if total else []:
            unit = int(np.searchsorted(ends, number, side="right"))
            chosen.setdefault(unit, [[], []])[purpose].append(number - int(ends[unit]) + sizes[unit])
    return {unit: CheckPlan(differences=tuple(rows[0]), second=tuple(rows[1])) for unit, rows in sorted(chosen.items())}


def check_labels(
    root: Path,
    key: str,
    plan: CheckPlan,
    teacher: TeacherCall,
    second: TeacherCall | None,
    settings: FiniteDifferences | None,
    seed: int,
) -> Payload:
    """Check labels of one unit.

    Parameters
    ----------
    root, key
        Run directory, and key of the unit of labels.
    plan
        Its rows that are checked.
    teacher, second
        The teacher that made the labels, and the other one.
    settings
        Of finite differences.
    seed
        Seed of the run.

    Returns
    -------
    Payload
        The labelled structures that were checked, with `COLUMNS`.
    """
    ds = read_rows(root, [UnitRows(stage="label", key=key, rows=plan.rows)])
    structures = [to_atoms(ds, index) for index in range(len(plan.rows))]
    place = {row: index for index, row in enumerate(plan.rows)}
    for atoms in structures:
        atoms.info["label_status"] = "ok"
    if settings is not None and plan.differences:
        _check_differences([structures[place[row]] for row in plan.differences], teacher, settings, seed)
    if second is not None and plan.second:
        _check_second([structures[place[row]] for row in plan.second], second)
    return Payload(arrays=dataset_to_arrays(from_atoms(structures)), n_out=len(structures))


def _check_differences(
    structures: Sequence[Atoms], teacher: TeacherCall, settings: FiniteDifferences, seed: int
) -> None:
    """Write the outcome of finite differences into the structures."""
    tolerances = Tolerances(**settings.model_dump(exclude={"share", "at_least"}))
    probes = []
    for atoms in structures:
        results = atoms.calc.results
        probes.append(displace_structure(atoms, results["energy"], results["forces"], results.get("stress"), seed=seed))
    displaced = [each for probe in probes for each in probe.structures]
    evaluations = evaluate_cached(teacher.build(), displaced, teacher.cache)
    energies = [each.energy if isinstance(each, Results) else np.nan for each in evaluations]
    start = 0
    for atoms, probe in zip(structures, probes, strict=True):
        stop = start + len(probe.structures)
        outcome, error = judge_probe(probe, energies[start:stop], tolerances)
        start = stop
        atoms.info |= {"finite_difference_check": outcome, "finite_difference_error": error}
        if outcome != OK:
            atoms.info["label_status"] = WRONG


def _check_second(structures: Sequence[Atoms], second: TeacherCall) -> None:
    """Write the differences from the second teacher into the structures; they stay missing where that fails."""
    for atoms, other in zip(structures, evaluate_cached(second.build(), structures, second.cache), strict=True):
        if isinstance(other, Failure):
            continue
        first = Results(energy=atoms.calc.results["energy"], forces=atoms.calc.results["forces"], stress=other.stress)
        atoms.info["energy_check"], atoms.arrays["forces_check"] = compare_labels(first, other)
