"""A dataset made in parts equals the dataset made at once, byte for byte, for any cuts."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskpipe.store.stage as storing
from daskpipe.core.errors import IntegrityError
from daskpipe.core.structures import concat, take
from daskpipe.core.variables import VARIABLES, code_names
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import dataset_to_arrays
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Receipt, Unit, unit_key
from daskpipe.store import arrange_and_write, open_dataset, verify, writer
from daskpipe.store.parts import DatasetPlan, make_chunk, merge_code_names, sort_run
from daskpipe.store.reader import read_rows
from daskpipe.store.splits import Split

SEED = 5
ATTRS = {"dataset_key": "k1"}


def read_files(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def commit_payload(root: Path, stage: str, name: str, payload: Payload) -> Receipt:
    return commit(root, Unit(stage=stage, index=0, key=unit_key(stage, 1, {}, [name], 0), n_inputs=1), payload)


def pack_in_parts(root: Path, ds, cuts: list[int], rule: Split) -> Path:
    """Commit row ranges of a dataset as label units, and run all tasks of the stage on them."""
    (root / "units").mkdir(parents=True)
    runs = []
    for start, stop in zip([0, *cuts], [*cuts, ds.sizes["structure"]], strict=True):
        if stop > start:
            piece = take(ds, np.arange(start, stop))
            unit = commit_payload(
                root, "label", f"{start}", Payload(arrays=dataset_to_arrays(piece), n_out=stop - start)
            )
            source = storing.LabelledUnit(stage="label", key=unit.key)
            runs.append(
                commit_payload(
                    root,
                    storing.SORT,
                    unit.key,
                    storing.sort_rows(root, [source], seed=SEED, features_stage="describe"),
                ).key
            )
    plan = commit_payload(root, storing.PLAN, "plan", storing.plan_dataset(root, runs, rule, seed=SEED)).key
    chunks = []
    for axis, number, n_files in storing.chunks_of(storing.read_plan(root, plan)):
        payload = storing.write_chunks(root, runs, plan, axis, number)
        assert len(payload.files) == n_files
        chunks.append(commit_payload(root, storing.WRITE, f"{axis}{number}", payload).key)
    attrs = {**ATTRS, "split_rule": storing.split_rule(SEED, rule.split, rule)}
    storing.publish_chunks(root, plan, chunks, target=root / "dataset.zarr", attrs=attrs)
    return root / "dataset.zarr"


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 20),
    seed=st.integers(0, 9),
    cuts=st.lists(st.integers(0, 20), max_size=4),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 9)),
)
def test_the_bytes_are_those_of_one_piece(make_dataset, tmp_path_factory, n, seed, cuts, sizes):
    ds = make_dataset(n, seed)
    root = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.lay_out_arrays, "__kwdefaults__", {"atom_chunk": sizes[0], "structure_chunk": sizes[1]})
        patch.setattr(
            storing, "write_dataset", partial(storing.write_dataset, atom_chunk=sizes[0], structure_chunk=sizes[1])
        )
        arrange_and_write(ds, root / "whole.zarr", seed=SEED, fractions=Split().split, attrs=ATTRS)
        made = pack_in_parts(root / "run", ds, sorted(min(cut, n) for cut in cuts), Split())
    assert read_files(made) == read_files(root / "whole.zarr")
    assert verify(made) == []
    if ds["n_atoms"].values.sum() > sizes[0]:
        assert (made / "positions/c/1/0").exists()  # the chunking took effect


def test_features_of_another_unit_and_variables_that_a_run_lacks(make_dataset, tmp_path):
    one, other = make_dataset(6, 0), make_dataset(5, 1).drop_vars(["temperature", "generator", "stress"])
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    runs = []
    for name, ds, described in (("one", one, features), ("other", other, None)):
        unit = commit_payload(tmp_path, "label", name, Payload(arrays=dataset_to_arrays(ds), n_out=len(ds["n_atoms"])))
        key = None
        if described is not None:
            key = commit_payload(tmp_path, "describe", name, Payload(arrays={"features": described}, n_out=6)).key
        source = storing.LabelledUnit(stage="label", key=unit.key, features=key)
        runs.append(
            commit_payload(
                tmp_path, storing.SORT, name, storing.sort_rows(tmp_path, [source], seed=0, features_stage="describe")
            ).key
        )
    plan = commit_payload(tmp_path, storing.PLAN, "p", storing.plan_dataset(tmp_path, runs, Split(), seed=0)).key
    chunks = [
        commit_payload(tmp_path, storing.WRITE, axis, storing.write_chunks(tmp_path, runs, plan, axis, number)).key
        for axis, number, _ in storing.chunks_of(storing.read_plan(tmp_path, plan))
    ]
    storing.publish_chunks(tmp_path, plan, chunks, target=tmp_path / "dataset.zarr", attrs=ATTRS)
    stored = read_rows(tmp_path / "dataset.zarr", 0, 11)
    expected = concat([one.assign(features=(("structure", "feature"), features)), other])
    back = [stored["structure_id"].values.tolist().index(item) for item in expected["structure_id"].values.tolist()]
    again = take(stored, back).drop_vars(["group", "split"])
    assert set(again.data_vars) == set(expected.data_vars)
    for name in expected.data_vars:
        assert again[name].values.tobytes() == expected[name].values.astype(again[name].dtype).tobytes(), name
    assert set(stored["generator"].values) == {*one["generator"].values, "unknown"}


def test_doubled_structures_are_kept_once_the_first_of_them(make_dataset, tmp_path):
    ds = make_dataset(8)
    twice = take(ds, [0, 1, 2])
    changed = twice.assign(energy=twice["energy"] + [0.0, 0.5, 1e-5], label_method=("structure", ["other"] * 3))
    made = pack_in_parts(tmp_path / "run", concat([ds, changed]), [8], Split())
    stored = read_rows(made, 0, 8)
    assert open_dataset(made).sizes["structure"] == 8
    assert set(stored["label_method"].values) == {"emt"}
    report = json.loads(open_dataset(made).attrs["split_report"])
    assert (report["n_doubled"], report["n_conflicts"]) == (3, 1)  # 0.01 meV is rounding, 0.5 eV is not


def test_a_plan_survives_its_arrays(make_dataset, tmp_path):
    made = pack_in_parts(tmp_path / "run", make_dataset(7), [3], Split())
    (unit,) = made.parent.glob("units/store-plan/*/*")
    plan = storing.read_plan(made.parent, unit.name)
    again = DatasetPlan.from_arrays(plan.as_arrays())
    for name in ("run", "row", "n_atoms", "group", "split"):
        assert np.array_equal(getattr(plan, name), getattr(again, name))
    assert plan.layouts == again.layouts
    assert set(plan.layouts) == set(map(str, open_dataset(made).data_vars))


def test_chunks_are_read_from_the_runs_that_they_need_alone(make_dataset):
    ds = make_dataset(12)
    pieces = [take(ds, np.arange(start, start + 4)) for start in (0, 4, 8)]
    names = {
        name: code_names(name, ds[name].values.tolist()) for name in map(str, ds.data_vars) if VARIABLES[name].coded
    }
    asked = set()

    def load(run: int, name: str) -> np.ndarray:
        asked.add(run)
        return pieces[run][name].values

    plan = DatasetPlan(
        run=np.repeat([0, 1, 2], 4).astype(np.int32), row=np.tile(np.arange(4), 3), n_atoms=ds["n_atoms"].values,
        group=np.zeros(12, np.int32), split=np.zeros(12, np.uint8), names=tuple(map(str, ds.data_vars)), codes=names,
        n_features=0,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.lay_out_arrays, "__kwdefaults__", {"atom_chunk": 5, "structure_chunk": 4})
        for number in range(3):
            asked.clear()
            chunk = {layout.name: values for layout, values in make_chunk(plan, "structure", number, load)}
            assert asked == {number}
            assert np.array_equal(chunk["energy"], ds["energy"].values[4 * number : 4 * number + 4])
        whole = [
            dict((layout.name, values) for layout, values in make_chunk(plan, "atom", number, load))
            for number in range(plan.layouts["numbers"].n_chunks)
        ]
    n_atoms = ds.sizes["atom"]
    assert len(whole) == -(-n_atoms // 5)
    assert np.array_equal(np.concatenate([part["positions"] for part in whole])[:n_atoms], ds["positions"].values)
    assert np.isnan(np.concatenate([part["positions"] for part in whole])[n_atoms:]).all()


def test_sorted_runs_leave_out_what_belongs_to_the_dataset(make_dataset, tmp_path):
    ds = make_dataset(4).assign(split=("structure", ["train"] * 4), group=("structure", np.zeros(4, np.int32)))
    files = set(sort_run(ds, seed=0))
    assert not {"group.npy", "atom_start.npy"} & files
    assert "split.npy" in files  # frames may come with one, and keep it


def test_union_of_codes():
    assert merge_code_names([{"generator": ["a", "c"]}, {"generator": ["b"]}])["generator"] == ["a", "b", "c"]
    assert merge_code_names([{"generator": ["a"]}, {}])["generator"] == ["a", "unknown"]


@pytest.mark.parametrize(("stage", "name"), [("store-sort", "positions.npy"), ("store-write", "energy")])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_part_is_named(make_dataset, tmp_path, stage, name, damage):
    made = pack_in_parts(tmp_path / "run", make_dataset(5), [], Split())
    (file,) = made.parent.glob(f"units/{stage}/*/*/{name}")
    file.write_bytes(file.read_bytes()[:-1]) if damage == "cut" else file.unlink()
    directory = RunDirectory(made.parent)
    with pytest.raises(IntegrityError, match=rf"{name} is not what was committed \(it"):
        directory.unit_file(stage, file.parent.name, name)


def test_where_files_have_one_name_only_they_are_copied(make_dataset, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    linked = pack_in_parts(tmp_path / "linked", make_dataset(5), [], Split())
    monkeypatch.setattr(storing, "os", SimpleNamespace(link=no_links))
    copied = pack_in_parts(tmp_path / "copied", make_dataset(5), [], Split())
    assert read_files(copied) == read_files(linked)
    assert (linked / "energy/c/0").stat().st_nlink == 2
    assert (copied / "energy/c/0").stat().st_nlink == 1
