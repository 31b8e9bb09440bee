"""Datasets are merged, exported and imported: each structure once, with the labels that it had."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from distributed import Client
from store.conftest import make_structures

import daskpipe
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.core.structures import from_atoms, take
from daskpipe.pipeline import existing_data, workspace
from daskpipe.pipeline.datasets import export_on_cluster
from daskpipe.store import arrange_and_write, open_dataset, verify
from daskpipe.store.reader import read_rows

QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"]
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
LEFT_BEHIND = {"features", "cluster", "group", "split", "atom_start"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three datasets; the second has four structures of the first, of which one has another energy."""
    folder = tmp_path_factory.mktemp("datasets")
    one, two, three = (from_atoms(make_structures(n, seed)) for n, seed in ((24, 0), (9, 1), (10, 2)))
    again = take(one, [0, 1, 2, 3])
    again["energy"][2] += 0.25
    two = daskpipe.core.structures.concat([two, again])
    for name, ds in (("one", one), ("two", two), ("three", three)):
        arrange_and_write(
            ds, folder / f"{name}.zarr", seed=3, fractions=FRACTIONS, attrs={"dataset_key": name, "seed": 3}
        )
    return [folder / f"{name}.zarr" for name in ("one", "two", "three")]


def merge_with(datasets: list[Path], out: Path, client: Client, *overrides: str, **rest: Any) -> workspace.FilesResult:
    return daskpipe.merge(datasets, out, [*QUICK, *overrides], client=client, **rest)


def read_by_id(path: Path) -> dict[bytes, dict[str, bytes]]:
    """Read the stored variables of each structure by its id, without those that belong to the dataset."""
    ds = read_rows(path, 0, open_dataset(path).sizes["structure"])
    stored = {}
    for index, key in enumerate(ds["structure_id"].values.tolist()):
        row = take(ds, [index]).drop_vars(LEFT_BEHIND, errors="ignore")
        stored[key] = {str(name): str(array.values.tolist()).encode() for name, array in row.items()}
    return stored


def test_each_structure_once_with_its_labels(datasets: list[Path], client: Client, tmp_path: Path) -> None:
    done = merge_with(datasets, tmp_path / "all.zarr", client)
    assert verify(tmp_path / "all.zarr") == []
    assert os.listdir(tmp_path) == ["all.zarr"]
    expected = {key: row for path in reversed(datasets) for key, row in read_by_id(path).items()}
    assert read_by_id(tmp_path / "all.zarr") == expected
    assert (done.n_frames, done.n_out, len(expected)) == (24 + 13 + 10, 24 + 9 + 10, 24 + 9 + 10)
    assert (done.report["n_doubled"], done.report["n_conflicts"]) == (4, 1)
    stored = open_dataset(tmp_path / "all.zarr")
    assert stored["features"].shape == (43, 4)
    assert np.isfinite(stored["features"].values).all()
    sources = json.loads(stored.attrs["sources"])
    assert [row["name"] for row in sources] == ["one.zarr", "two.zarr", "three.zarr"]
    assert [row["checksum"] for row in sources] == [open_dataset(path).attrs["checksums"]["root"] for path in datasets]


def test_the_bytes_do_not_depend_on_how_it_was_read(
    datasets: list[Path], client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_with(datasets, tmp_path / "a.zarr", client)
    merge_with(datasets, tmp_path / "b.zarr", client)
    monkeypatch.setattr(existing_data, "ROWS_A_UNIT", 7)
    merge_with(datasets, tmp_path / "c.zarr", client)
    assert read_by_id(tmp_path / "c.zarr") == read_by_id(tmp_path / "a.zarr")
    a, b, c = (open_dataset(tmp_path / f"{name}.zarr").load() for name in "abc")
    assert a.attrs["checksums"] == b.attrs["checksums"]
    assert c.drop_vars("features").equals(a.drop_vars("features"))  # the axes are fitted in blocks of a unit


def test_groups_reach_across_datasets(datasets: list[Path], client: Client, tmp_path: Path) -> None:
    ds = open_dataset(datasets[0]).load()
    halves = [np.arange(0, 24, 2), np.arange(1, 24, 2)]
    for name, half in zip(("odd", "even"), halves, strict=True):
        part = read_rows(datasets[0], 0, 24)
        arrange_and_write(
            take(part, half), tmp_path / f"{name}.zarr", seed=0, fractions=FRACTIONS, attrs={"dataset_key": name}
        )
    merge_with(
        [tmp_path / "odd.zarr", tmp_path / "even.zarr"], tmp_path / "both.zarr", client, "store.near_duplicates=0"
    )
    both = open_dataset(tmp_path / "both.zarr").load()
    assert both.sizes["structure"] == ds.sizes["structure"]
    seeds = daskpipe.store.splits.seed_ids_of({name: both[name].values for name in ("structure_id", "parent_id")})
    pairs = set(zip(seeds.tolist(), both["split"].values.tolist(), strict=True))
    assert len(pairs) == len(set(seeds.tolist())) == 8


def test_of_one_dataset_only_the_split_is_new(datasets: list[Path], client: Client, tmp_path: Path) -> None:
    merge_with(
        datasets[:1],
        tmp_path / "again.zarr",
        client,
        "store.split_by=composition",
        "store.split={train: 0.5, val: 0, test: 0.5}",
    )
    assert read_by_id(tmp_path / "again.zarr") == read_by_id(datasets[0])
    again = open_dataset(tmp_path / "again.zarr").load()
    assert set(again["split"].values.tolist()) == {0, 2}
    assert len(set(zip(again["composition"].values.tolist(), again["split"].values.tolist(), strict=True))) == len(
        set(again["composition"].values.tolist())
    )


@pytest.mark.slow
def test_commands(
    datasets: list[Path], tmp_path: Path, type_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = type_command("merge", datasets[0], datasets[1], "-o", "out.zarr", *QUICK, "cluster.workers=1")
    assert typed.code == 0, typed.err
    assert "doubled structures left out: 4, 1 of them with another energy" in typed.out
    assert "all frames of a seed and near-duplicates kept together" in typed.out
    assert "Wrote out.zarr: 33 structures" in typed.out
    typed = type_command("verify", "out.zarr")
    assert (typed.code, "out.zarr is as it was written" in " ".join(typed.out.split())) == (0, True)
    file = tmp_path / "out.zarr/energy/c/0"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    typed = type_command("verify", "out.zarr", "--json")
    assert (typed.code, json.loads(typed.out)["problems"]) == (1, ["energy/c/0: differs"])
    typed = type_command("verify", "out.zarr")
    assert (typed.code, typed.out.splitlines()[0]) == (1, "energy/c/0: differs")


def test_wrong_input(datasets: list[Path], client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing does not exist; give the path of a dataset"):
        merge_with([datasets[0], tmp_path / "nothing"], tmp_path / "out.zarr", client)
    with pytest.raises(ConfigError, match=r"out.h5 must end in .zarr"):
        merge_with(datasets, tmp_path / "out.h5", client)
    with pytest.raises(ConfigError, match=r"'select.n=3' cannot be used here: overrides begin with store, describe"):
        merge_with(datasets, tmp_path / "out.zarr", client, "select.n=3")
    with pytest.raises(ConfigError, match="one.zarr exists; give another name, or --force to replace it"):
        merge_with(datasets, datasets[0], client)
    assert os.listdir(tmp_path) == []


def test_the_dataset_that_a_link_leads_to_is_replaced(datasets: list[Path], client: Client, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shutil.copytree(datasets[2], scratch / "kept")
    out = tmp_path / "link.zarr"
    out.symlink_to(scratch / "kept")
    with pytest.raises(ConfigError, match=r"link.zarr exists; give another name, or --force to replace it"):
        merge_with([datasets[0], out], out, client)
    daskpipe.merge([datasets[0], out], out, QUICK, client=client, force=True)
    assert out.is_symlink()
    assert len(daskpipe.open_dataset(out)["energy"]) == 24 + 10
    assert verify(out) == []
    assert (os.listdir(scratch), sorted(os.listdir(tmp_path))) == (["kept"], ["link.zarr", "scratch"])


# --- exports and imports --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "out"),
    [
        ("extxyz", "out.extxyz"),
        pytest.param("csv", "out.csv", marks=pytest.mark.slow),
        pytest.param("cold", "out.zarr", marks=pytest.mark.slow),
    ],
)
def test_parts_made_by_workers_are_those_made_here(
    to: str, out: str, datasets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = export_on_cluster(datasets[0], to, out)
    before = read_contents(tmp_path / out)
    shutil.rmtree(out) if Path(out).is_dir() else os.remove(out)
    monkeypatch.setattr(sys.modules["daskpipe.store.export"], "PART_STRUCTURES", 7)
    assert export_on_cluster(datasets[0], to, out, overrides=["cluster.workers=2"]) == whole
    assert read_contents(tmp_path / out) == before
    assert whole["structures"] == 24
    assert os.listdir(tmp_path) == [out]


def read_contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("out", ["all.extxyz", "all.db"])
def test_what_is_exported_and_imported_is_what_it_was(
    out: str, datasets: list[Path], client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    daskpipe.export(datasets[0], {".extxyz": "extxyz", ".db": "ase-db"}[Path(out).suffix], out)
    done = daskpipe.import_labelled([out], "back.zarr", QUICK, method="another", client=client)
    assert (done.n_out, done.rejected) == (24, {})
    before, after = read_by_id(datasets[0]), read_by_id(tmp_path / "back.zarr")
    assert before.keys() == after.keys()
    carried = (
        "numbers",
        "positions",
        "forces",
        "energy",
        "stress",
        "cell",
        "pbc",
        "charge",
        "parent_id",
        "label_method",
    )
    for key, row in before.items():
        assert {name: row[name] for name in carried} == {name: after[key][name] for name in carried}
    (source,) = json.loads(open_dataset(tmp_path / "back.zarr").attrs["sources"])
    assert (source["name"], source["label_method"]) == (out, "another")


def test_frames_without_labels_are_named(datasets: list[Path], client: Client, tmp_path: Path) -> None:
    daskpipe.export(datasets[2], "extxyz", tmp_path / "some.extxyz")
    frames = ase.io.read(tmp_path / "some.extxyz", ":")
    bare = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])
    ase.io.write(tmp_path / "some.extxyz", [*frames[:3], bare, *frames[3:]])
    done = daskpipe.import_labelled(
        [str(tmp_path / "some.extxyz")], tmp_path / "out.zarr", QUICK, method="emt", client=client
    )
    assert (done.n_out, done.exit_code) == (10, 10)
    ((kind, count),) = done.rejected.items()
    assert (kind, count) == ("import/no_energy", 1)
    rejected = json.loads(open_dataset(tmp_path / "out.zarr").attrs["rejected"])
    assert [name.rpartition("/")[2] for name in rejected["import/no_energy"]] == ["some.extxyz#3"]


def test_wrong_imports(datasets: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label method 'two words': use one word without white space"):
        daskpipe.import_labelled(["x.extxyz"], tmp_path / "out.zarr", method="two words")
    (tmp_path / "x.cif").write_text("")
    with pytest.raises(ConfigError, match=r"x.cif holds no labels that can be read; give \*.extxyz, \*.xyz, \*.traj"):
        daskpipe.import_labelled([str(tmp_path / "x.cif")], tmp_path / "out.zarr", method="one")
    with pytest.raises(ConfigError, match=r"unknown export format 'npz'.*csv, cold"):
        export_on_cluster(datasets[0], "npz", tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="a cold copy holds the whole dataset; leave --split out"):
        export_on_cluster(datasets[0], "cold", tmp_path / "x.zarr", split="train")
