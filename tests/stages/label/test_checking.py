"""Labels of committed units are checked by finite differences and with a second teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from daskpipe.core.structures import round_positions
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import arrays_to_dataset
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit
from daskpipe.potentials import build_potential
from daskpipe.stages.label.checking import CheckPlan, TeacherCall, check_labels, draw_checks
from daskpipe.stages.label.settings import FiniteDifferences, LabelChecks
from daskpipe.stages.label.stage import label_partition
from daskpipe.store.stage import LabelledUnit, iter_labelled_rows

KEY = "0" * 32
N = 4


def build():
    return build_potential("emt", {}, "cpu", "float64")


def build_second():
    return build_potential("lj", {"sigma": 2.3, "epsilon": 0.2}, "cpu", "float64")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A run directory with one unit of labels; the forces of the last structure have the wrong sign."""
    structures = []
    for seed in range(N):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        structures.append(round_positions(atoms))
    (payload,) = label_partition(structures, build, "emt", LabelChecks())
    arrays = dict(payload.arrays)
    forces = arrays["forces"].copy()
    forces[-4:] *= -1
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    unit = Unit(stage="label", index=0, key=KEY, n_inputs=N)
    commit(directory.root, unit, Payload(arrays=arrays | {"forces": forces}, n_out=N), seconds=0.0)
    return directory.root


def check(root: Path, plan: CheckPlan, second: TeacherCall | None = None) -> Payload:
    return check_labels(root, KEY, plan, TeacherCall(build=build), second, FiniteDifferences(), 0)


def test_what_disagrees_has_a_status_of_its_own(labelled):
    payload = check(labelled, CheckPlan(differences=(1, 3)))
    assert payload.arrays["finite_difference_check"].tolist() == ["ok", "forces"]
    assert payload.arrays["label_status"].tolist() == ["ok", "finite_differences"]
    small, large = np.abs(payload.arrays["finite_difference_error"])
    assert small < 0.01 < 1 < large


def test_the_second_teacher_differs_by_its_own_numbers(labelled):
    payload = check(labelled, CheckPlan(differences=(0,), second=(0, 2)), TeacherCall(build=build_second))
    ds = arrays_to_dataset(payload.arrays)
    assert ds["finite_difference_check"].values.tolist() == ["ok", "not_checked"]
    assert np.isfinite(ds["energy_check"].values).all()
    assert np.abs(ds["forces_check"].values).max() > 0.1


def test_the_rows_of_the_dataset_have_the_checks(labelled):
    payload = check(labelled, CheckPlan(differences=(1, 3), second=(1,)), TeacherCall(build=build_second))
    unit = Unit(stage="label-check", index=0, key="1" * 32, n_inputs=2, upstream=(KEY,))
    commit(labelled, unit, payload, seconds=0.0)
    checked, plain = LabelledUnit(stage="label", key=KEY, checks="1" * 32), LabelledUnit(stage="label", key=KEY)
    ds, before = iter_labelled_rows(labelled, [checked, plain])
    for name in ("structure_id", "positions", "forces", "energy", "atom_start"):
        np.testing.assert_array_equal(ds[name].values, before[name].values)
    assert ds["finite_difference_check"].values.tolist() == ["not_checked", "ok", "not_checked", "forces"]
    assert ds["label_status"].values.tolist() == ["ok", "ok", "ok", "finite_differences"]
    assert np.isfinite(ds["energy_check"].values).tolist() == [False, True, False, False]
    assert np.isfinite(ds["forces_check"].values).any(axis=1).tolist() == [False] * 4 + [True] * 4 + [False] * 8


def test_a_source_without_checks_has_the_key_that_it_had_before_there_were_any():
    assert LabelledUnit(stage="label", key=KEY).list_upstream() == {"stage": "label", "key": KEY, "features": None}


def test_one_percent_and_five_at_least_are_drawn():
    drawn = draw_checks([300, 0, 500, 200], FiniteDifferences(), None, seed=0)
    assert sum(len(plan.differences) for plan in drawn.values()) == 10
    assert 1 not in drawn, "an empty unit has nothing to check"
    assert all(max(plan.rows) < size for size, plan in zip([300, 500, 200], drawn.values(), strict=False) if plan.rows)
    few = draw_checks([3, 9], FiniteDifferences(), None, seed=0)
    assert sum(len(plan.differences) for plan in few.values()) == 5
    assert sum(len(plan.rows) for plan in draw_checks([2], FiniteDifferences(), None, seed=0).values()) == 2
    assert draw_checks([0, 0], FiniteDifferences(), 1.0, seed=0) == {}
    assert draw_checks([10], None, None, seed=0) == {}


def test_a_share_is_drawn_for_the_second_teacher():
    drawn = draw_checks([100, 100], None, 0.25, seed=3)
    assert sum(len(plan.second) for plan in drawn.values()) == 50
    assert drawn == draw_checks([100, 100], None, 0.25, seed=3)
    assert drawn != draw_checks([100, 100], None, 0.25, seed=4)
    every = draw_checks([2, 3], None, 1.0, seed=0)
    assert [plan.second for plan in every.values()] == [(0, 1), (0, 1, 2)]
