"""Label structures of a run, and check some of the labels: the steps between selection and the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.bag as db

import daskpipe.stages.label.checking as checking
import daskpipe.stages.label.isolated_atoms as isolated_atoms
import daskpipe.stages.label.judging as judging
import daskpipe.stages.label.stage as labelling
import daskpipe.store.stage as storing
from daskpipe import potentials
from daskpipe.config.models import Config, Teacher
from daskpipe.core.errors import ConfigError
from daskpipe.core.events import Notice
from daskpipe.engine.driver import PlannedUnit, cut_batches
from daskpipe.engine.rows import UnitRows
from daskpipe.engine.units import Receipt, Unit, unit_key
from daskpipe.pipeline.context import Run
from daskpipe.potentials.dispersion import add_dispersion, identify_with_dispersion
from daskpipe.stages.generate.reference import Item, make_item
from daskpipe.stages.label.cache import LabelCache

ATOM_VACUUM = 12.0
"""Width of the cell around an isolated atom, Å."""


def label_picks(run: Run, frames: list[Receipt], picks: Receipt) -> list[Receipt]:
    """Label the picks, a batch a unit, in canonical order."""
    keys = [receipt.key for receipt in frames if receipt.n_out]
    chosen = run.directory.load_arrays("select", picks.key, ["unit", "row"])
    pieces = [
        UnitRows(stage="explore", key=keys[unit], rows=(row,))
        for unit, row in zip(chosen["unit"].tolist(), chosen["row"].tolist(), strict=True)
    ]
    return label_rows(run, pieces, picks)


def label_rows(run: Run, pieces: Sequence[UnitRows], picks: Receipt | None = None) -> list[Receipt]:
    """Label structures of committed units, a batch a unit.

    Parameters
    ----------
    run
        The run.
    pieces
        The structures, one row each.
    picks
        Unit of selection with a row for each of them; ``None`` if they were not picked.
    """
    settings, root = run.config.label, run.directory.root
    teacher = _make_teacher_call(run, settings.potential, run.identities["label"])
    identity = run.identities["label"]

    def make_task(batch: Sequence[UnitRows], start: int) -> Any:
        rows = None
        if picks is not None:
            rows = UnitRows(stage="select", key=picks.key, rows=tuple(range(start, start + len(batch))))
        loaded = dask.delayed(labelling.load_frames)(root, list(batch), rows)
        bag = db.from_delayed([loaded])
        return labelling.label_frames(bag, teacher.build, settings.potential.name, settings.checks, teacher.cache)

    checks = settings.checks.list_deciding()
    plan = []
    for index, batch in enumerate(cut_batches(pieces, settings.batch_size)):
        start = index * settings.batch_size
        params = {"potential": identity.hash, "dtype": settings.dtype, "checks": checks}
        rows = [[piece.key, *piece.rows] for piece in batch]
        key = unit_key(
            "label", labelling.VERSION, params, [None if picks is None else picks.key, start, rows], run.seed
        )
        above = tuple(dict.fromkeys(piece.key for piece in batch)) if picks is None else (picks.key,)
        unit = Unit(stage="label", index=index, key=key, n_inputs=len(batch), upstream=above)
        one = [partial(make_task, [piece], start + row) for row, piece in enumerate(batch)]
        plan.append(
            PlannedUnit(unit, partial(make_task, batch, start), one, partial(labelling.name_frames, root, list(batch)))
        )
    return run.driver.run_stage("label", plan, "frames")


def identify_teachers(config: Config) -> dict[str, potentials.Identity]:
    """Identify the teacher, ``label``, and the one it is compared with, ``second``, if there is one."""
    choices = {"label": config.label.potential, "second": config.label.second}
    return {name: _identify_teacher(choice) for name, choice in choices.items() if choice is not None}


def _identify_teacher(choice: Teacher) -> potentials.Identity:
    identity = potentials.identify_potential(choice.name, choice.params)
    if choice.dispersion is None:
        return identity
    return identify_with_dispersion(choice.name, identity, choice.dispersion)


def build_teacher(choice: Teacher, expected: str, device: str, dtype: str) -> potentials.Potential:
    """Build a teacher on a worker.

    Parameters
    ----------
    choice
        Name, parameters and dispersion.
    expected
        Hash of its identity when the run began.
    device, dtype
        As for `daskpipe.potentials.build_potential`.

    Raises
    ------
    ConfigError
        If it is another one by now: half of the labels would be those of one, and half of the other.
    """
    if _identify_teacher(choice).hash != expected:
        raise ConfigError(
            f"the teacher {choice.name!r} has changed since the run began: a file that it reads is another one now. "
            "Put the file back and resume, or start another run"
        )
    potential = potentials.build_potential(choice.name, choice.params, device, dtype)
    return potential if choice.dispersion is None else add_dispersion(potential, choice.dispersion)


def check_labels(run: Run, labels: list[Receipt]) -> list[storing.LabelledUnit]:
    """Check some of the labels; return where the labels of each unit that has any are, and the results of checks."""
    settings, root = run.config.label, run.directory.root
    differences = settings.checks.finite_differences
    share = None if settings.second is None else settings.second.share
    drawn = checking.draw_checks([receipt.n_out for receipt in labels], differences, share, seed=run.seed)
    teacher = _make_teacher_call(run, settings.potential, run.identities["label"])
    second = None
    params: dict[str, Any] = {
        "potential": run.identities["label"].hash,
        "dtype": settings.dtype,
        "finite_differences": None if differences is None else differences.model_dump(),
    }
    if settings.second is not None:
        second = _make_teacher_call(run, settings.second, run.identities["second"])
        params["second"] = run.identities["second"].hash
    plan, checks = [], {}
    for index, (number, rows) in enumerate(drawn.items()):
        label = labels[number]
        key = unit_key(checking.STAGE, checking.VERSION, params, [label.key, rows.differences, rows.second], run.seed)
        unit = Unit(stage=checking.STAGE, index=index, key=key, n_inputs=len(rows.rows), upstream=(label.key,))
        make_lazy = partial(
            dask.delayed(checking.check_labels), root, label.key, rows, teacher, second, differences, run.seed
        )
        plan.append((unit, make_lazy))
        checks[label.key] = key
    if plan:
        run.driver.run_stage(checking.STAGE, plan, "labels")
    return _judge_labels(run, [receipt for receipt in labels if receipt.n_out], checks)


def _judge_labels(run: Run, labels: list[Receipt], checks: dict[str, str]) -> list[storing.LabelledUnit]:
    """Judge all labels together; return where those of each unit are."""
    if not labels:
        return []
    settings, root = run.config.label.checks, run.directory.root
    keys = [receipt.key for receipt in labels]
    of_keys = [checks.get(key) for key in keys]
    params = settings.model_dump(include={"energy_outliers", "force_outliers", "agreement"})
    key = unit_key(judging.STAGE, judging.VERSION, params, [keys, of_keys], run.seed)
    n_labels = sum(receipt.n_out for receipt in labels)
    upstream = (*keys, *(check for check in of_keys if check is not None))
    unit = Unit(stage=judging.STAGE, index=0, key=key, n_inputs=n_labels, upstream=upstream)
    judge = partial(dask.delayed(judging.judge_labels), root, keys, of_keys, settings)
    run.driver.run_stage(judging.STAGE, [(unit, judge)], "labels")
    sources, start = [], 0
    for receipt, check in zip(labels, of_keys, strict=True):
        sources.append(storing.LabelledUnit(stage="label", key=receipt.key, checks=check, verdicts=(key, start)))
        start += receipt.n_out
    return sources


def label_isolated_atoms(run: Run, elements: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Label an isolated atom of each element; return the energies that there are by symbol, eV, and the units."""
    settings = run.config.label
    if not settings.isolated_atoms:
        return {}, []
    teacher = _make_teacher_call(run, settings.potential, run.identities["label"])
    params = {"potential": run.identities["label"].hash, "dtype": settings.dtype}
    plan = []
    for index, symbol in enumerate(sorted(elements)):
        key = unit_key(isolated_atoms.STAGE, isolated_atoms.VERSION, params, [symbol], run.seed)
        unit = Unit(stage=isolated_atoms.STAGE, index=index, key=key, n_inputs=1)
        atom = make_item(Item("atom", (symbol,)), None, ATOM_VACUUM)
        plan.append((unit, partial(dask.delayed(isolated_atoms.label_isolated_atoms), [atom], teacher)))
    run.driver.run_stage(isolated_atoms.STAGE, plan, "atoms")
    keys = [unit.key for unit, _ in plan]
    energies, missing = isolated_atoms.read_energies(run.directory.root, keys)
    if missing:
        first, evidence = next(iter(missing.items()))
        run.driver.emit(
            Notice(
                message=f"the teacher gives no energy of an isolated atom of {', '.join(missing)} "
                f"({first}: {evidence}); training fits it to the energies of the structures"
            )
        )
    return dict(energies), keys


def _make_teacher_call(run: Run, choice: Teacher, identity: potentials.Identity) -> checking.TeacherCall:
    """Return how a teacher is called; results of costly ones are kept in the run directory, or in the cache folder."""
    settings = run.config.label
    costly = choice.name in potentials.POTENTIALS.table and potentials.traits_of(choice.name).costly
    folder = run.directory.root / "labels" if settings.cache_dir is None else Path(settings.cache_dir)
    cache = None
    if costly or settings.cache_dir is not None:
        cache = LabelCache(folder=folder, teacher=f"{identity.hash} {settings.dtype}")
    build = partial(build_teacher, choice, identity.current or identity.hash, settings.device, settings.dtype)
    return checking.TeacherCall(build=build, cache=cache)
