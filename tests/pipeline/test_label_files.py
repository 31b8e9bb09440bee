"""`daskpipe label`: structures of files in, labelled structures out."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

import daskpipe
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.pipeline.label_files import label_files
from daskpipe.store.quality.gate import judge

FAST = ["cluster.workers=1", "label.batch_size=3"]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    structures: list[Atoms] = []
    for seed in range(7):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        structures.append(atoms)
    structures.append(bulk("Fe", cubic=True))  # EMT does not know it
    path = tmp_path / "frames.extxyz"
    ase.io.write(path, structures)
    return path


def test_labels_are_those_of_the_teacher(frames, tmp_path, client):
    out = tmp_path / "labelled.extxyz"
    done = label_files([str(frames)], out, FAST, teacher="emt", client=client)
    assert (done.n_frames, done.n_out, done.rejected) == (8, 7, {"label/unknown_element": 1})
    assert done.report == {"teacher": "EMT", "differences": {"ok": 5}}
    before = ase.io.read(frames, ":")[:7]
    after = ase.io.read(out, ":")
    for atoms, labelled in zip(before, after, strict=True):
        np.testing.assert_allclose(labelled.positions, atoms.positions, atol=1e-6)
        atoms.calc = EMT()
        assert labelled.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(labelled.get_forces(), atoms.get_forces(), atol=1e-4)


def test_a_dataset_opens_with_xarray(frames, tmp_path, client):
    out = tmp_path / "labelled.zarr"
    overrides = [*FAST, "label.second={name: lj, params: {sigma: 2.3}, share: 0.5}"]
    label_files([str(frames)], out, overrides, teacher="emt", client=client)
    ds = daskpipe.open_dataset(out)
    assert ds.sizes["structure"] == 7
    assert set(np.unique(ds["split"])) <= {0, 1, 2}
    assert json.loads(ds.attrs["label_potential"])["name"] == "EMT"
    assert int(np.isfinite(ds["energy_check"]).sum()) == 4
    assert ds["forces_check"].dims == ("atom", "xyz")
    verdict = judge(out)
    check = next(check for check in verdict.checks if check.name == "finite_differences")
    assert (check.verdict, check.says) == ("pass", "0 of 5 structures that were checked disagree")


def test_a_second_run_with_the_same_cache_pays_for_nothing(frames, tmp_path, client, monkeypatch):
    overrides = [*FAST, f"label.cache_dir={tmp_path / 'kept'}"]
    label_files([str(frames)], tmp_path / "one.extxyz", overrides, teacher="emt", client=client)
    n_kept = len(list((tmp_path / "kept").glob("*/*.npz")))
    assert n_kept == 7 + 5 * 4, "seven labels, and four displaced structures of the five that are checked"

    def never(*_args, **_kwargs):
        raise AssertionError("a structure was computed again")

    monkeypatch.setattr(EMT, "calculate", never)
    label_files([str(frames)], tmp_path / "two.extxyz", overrides, teacher="emt", client=client)
    assert (tmp_path / "two.extxyz").read_bytes() == (tmp_path / "one.extxyz").read_bytes()
    assert len(list((tmp_path / "kept").glob("*/*.npz"))) == n_kept


@pytest.mark.parametrize(
    ("overrides", "teacher", "error", "message"),
    [
        ([], "emtt", ConfigError, "unknown potential 'emtt'. Did you mean 'emt'"),
        (["select.n=3"], "emt", ConfigError, r"'select.n=3' cannot be used here: overrides begin with label, store"),
        (["label.second.name=nonsense"], "emt", ConfigError, "unknown potential 'nonsense'"),
    ],
)
def test_wrong_words_are_refused(frames, tmp_path, overrides, teacher, error, message):
    with pytest.raises(error, match=message):
        label_files([str(frames)], tmp_path / "out.extxyz", overrides, teacher=teacher)


def test_a_teacher_that_labels_nothing_says_why(tmp_path, client):
    path = tmp_path / "iron.extxyz"
    ase.io.write(path, [bulk("Fe")])
    with pytest.raises(InputError, match=r"no structure was labelled: .*unknown_element.*Fe not among"):
        label_files([str(path)], tmp_path / "out.extxyz", FAST, teacher="emt", client=client)
