"""All labels of a run are judged together, and the rows of the dataset say how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from daskpipe.core.structures import round_positions
from daskpipe.engine.commit import commit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit
from daskpipe.potentials import build_potential
from daskpipe.stages.label.checking import CheckPlan, TeacherCall, check_labels
from daskpipe.stages.label.judging import judge_labels
from daskpipe.stages.label.settings import FiniteDifferences, LabelChecks
from daskpipe.stages.label.stage import label_partition
from daskpipe.store.stage import LabelledUnit, iter_labelled_rows

FIRST, SECOND, CHECK, JUDGE = (digit * 32 for digit in "0123")


def build():
    return build_potential("emt", {}, "cpu", "float64")


def build_second():
    return build_potential("mace", {}, "cpu", "float64")


def structures(seeds: range) -> list[Atoms]:
    made = []
    for seed in seeds:
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        made.append(round_positions(atoms))
    return made


def commit_labels(directory: RunDirectory, key: str, atoms: list[Atoms], **changes: tuple[int, float]) -> None:
    (payload,) = label_partition(atoms, build, "emt", LabelChecks())
    arrays = {name: array.copy() for name, array in payload.arrays.items()}
    for name, (row, change) in changes.items():
        if name == "energy":
            arrays["energy"][row] += change
        else:
            arrays["forces"][4 * row : 4 * row + 4] *= change
    unit = Unit(stage="label", index=int(key[0]), key=key, n_inputs=len(atoms))
    commit(directory.root, unit, Payload(arrays=arrays, n_out=len(atoms)), seconds=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two units: in the first, forces of row 1 have the wrong sign; in the second, the energy of row 2 is 20 eV off."""
    directory = RunDirectory(tmp_path_factory.mktemp("judging") / "run")
    directory.root.mkdir()
    commit_labels(directory, FIRST, structures(range(8)), forces=(1, -1.0))
    commit_labels(directory, SECOND, [*structures(range(8, 14)), Atoms("Cu")], energy=(2, 20.0))
    plan = CheckPlan(differences=(1,), second=tuple(range(8)))
    second = TeacherCall(build=build_second)
    checked = check_labels(directory.root, FIRST, plan, TeacherCall(build=build), second, FiniteDifferences(), 0)
    unit = Unit(stage="label-check", index=0, key=CHECK, n_inputs=8, upstream=(FIRST,))
    commit(directory.root, unit, checked, seconds=0.0)
    return directory.root


def test_outliers_of_all_units_are_found_and_what_was_found_before_stays(root):
    judged = judge_labels(root, [FIRST, SECOND], [CHECK, None], LabelChecks())
    assert judged.n_out == 15
    assert np.flatnonzero(judged.arrays["energy_outlier_check"] == "outlier").tolist() == [10]
    assert judged.arrays["energy_outlier_check"][14] == "not_checked", "an isolated atom has no bonds"
    assert "second_teacher_check" not in judged.arrays, "eight are too few to tell"
    status = judged.arrays["label_status"].tolist()
    assert {row: word for row, word in enumerate(status) if word != "ok"} == {
        1: "finite_differences",
        10: "energy_outlier",
    }


def test_checks_that_are_turned_off_check_nothing(root):
    none = LabelChecks(energy_outliers=None, force_outliers=None, agreement=None)
    judged = judge_labels(root, [FIRST, SECOND], [CHECK, None], none)
    assert judged.arrays.keys() == {"label_status"}
    few = judge_labels(root, [FIRST], [CHECK], LabelChecks())
    assert few.arrays.keys() == {"label_status"}, "eight are too few to tell outliers"
    assert judged.arrays["label_status"].tolist() == ["ok", "finite_differences", *["ok"] * 13]


def test_the_rows_of_the_dataset_have_their_verdicts(root):
    payload = judge_labels(root, [FIRST, SECOND], [CHECK, None], LabelChecks())
    unit = Unit(stage="label-judge", index=0, key=JUDGE, n_inputs=15, upstream=(FIRST, SECOND, CHECK))
    commit(root, unit, payload, seconds=0.0)
    sources = [
        LabelledUnit(stage="label", key=FIRST, checks=CHECK, verdicts=(JUDGE, 0)),
        LabelledUnit(stage="label", key=SECOND, verdicts=(JUDGE, 8)),
    ]
    first, second = iter_labelled_rows(root, sources)
    assert first["label_status"].values.tolist() == ["ok", "finite_differences", *["ok"] * 6]
    assert second["energy_outlier_check"].values.tolist() == [*["ok"] * 2, "outlier", *["ok"] * 3, "not_checked"]
