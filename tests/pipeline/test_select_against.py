"""A run that selects against an existing dataset, or a file of frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import xarray as xr
from distributed import Client
from small_runs import SMALL

import daskpipe
from daskpipe.core.errors import InputError
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result


def read_ids(dataset: Path) -> set[bytes]:
    """Read the ids of the structures of a dataset."""
    return {item.tobytes() for item in xr.open_zarr(dataset)["structure_id"].values}


AGAINST = [*SMALL, "select.duplicate_distance=1e-6"]
"""Two frames of the pool are nearly the same: only what is in the dataset itself shall be out."""


@pytest.fixture(scope="module")
def second(reference: Result, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The reference run once more, against its own dataset, which lies beside the run. Read only."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(reference.dataset, folder / "old.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("daskpipe.pipeline.steps.AGAINST_SIZE", 4)
        return daskpipe.run("emt_alloy", [*AGAINST, "select.against=old.zarr"], run_dir=folder / "run", client=client)


def test_frames_of_the_first_dataset_are_not_labelled_again(reference: Result, second: Result) -> None:
    assert second.stages["explore"]["out"] == 8
    assert not read_ids(second.dataset) & read_ids(reference.dataset)
    explored = {
        item.tobytes()
        for path in (second.run_dir / "units" / "explore").glob("*/*")
        for item in RunDirectory(second.run_dir).load_arrays("explore", path.name, ["structure_id"])["structure_id"]
    }
    assert read_ids(second.dataset) | read_ids(reference.dataset) == explored
    duplicates = second.stages["select"]["report"]["duplicates"]
    assert (duplicates["against_dataset"], duplicates["against_pool"]) == (6, 0)
    row = second.stages["describe-against"]
    assert (row["units"], row["inputs"], row["out"]) == (2, 6, 6)


def test_the_report_of_the_selection_is_kept(reference: Result, second: Result) -> None:
    for result, n_picked in ((reference, 6), (second, 2)):
        kept = json.loads(xr.open_zarr(result.dataset).attrs["selection"])
        assert kept == result.stages["select"]["report"]
        assert (kept["method"], kept["n_pool"], kept["n_picked"]) == ("kmeans", 8, n_picked)
        assert 0 < kept["coverage"]["bins_hit"] <= 1


def test_against_is_found_from_any_directory(second: Result, client: Client, tmp_path: Path) -> None:
    config = daskpipe.config.saved.from_yaml(second.run_dir / "config.yaml")
    assert config.select.against == str(second.run_dir.parent / "old.zarr")
    # Another cut of the dataset would be other units.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("daskpipe.pipeline.steps.AGAINST_SIZE", 4)
        again = daskpipe.resume(second.run_dir, client=client)
    assert sum(row["computed"] for row in again.stages.values()) == 0


def test_against_counts_by_content_and_not_by_path(
    second: Result, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskpipe.pipeline.steps.AGAINST_SIZE", 4)
    shutil.copytree(second.run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("dataset.zarr"))
    old = second.run_dir.parent / "old.zarr"
    moved = tmp_path / "moved.zarr"
    shutil.copytree(old, moved)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(old), str(moved)))
    again = daskpipe.resume(tmp_path / "run", client=client)
    assert {stage for stage, row in again.stages.items() if row["computed"]} == {"store"}  # it holds the config
    # What else there is at that path is another dataset.
    shutil.rmtree(moved)
    shutil.copytree(again.dataset, moved)
    shutil.rmtree(again.dataset)
    other = daskpipe.resume(tmp_path / "run", client=client)
    computed = {stage for stage, row in other.stages.items() if row["computed"]}
    assert computed == {
        "describe-against",
        "select",
        "label",
        "label-check",
        "label-judge",
        "store-sort",
        "store-plan",
        "store-write",
        "store",
    }
    assert read_ids(other.dataset) == read_ids(second.run_dir.parent / "old.zarr")


def test_against_a_file_of_frames(reference: Result, second: Result, client: Client, tmp_path: Path) -> None:
    daskpipe.export(reference.dataset, "extxyz", tmp_path / "old.extxyz")
    overrides = [*AGAINST, f"select.against={tmp_path / 'old.extxyz'}"]
    result = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)
    assert read_ids(result.dataset) == read_ids(second.dataset)


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("lost.zarr", r"lost.zarr does not exist; select.against takes a dataset.zarr or a file of frames"),
        ("notes.txt", r"notes.txt is in no known format; select.against takes a dataset.zarr or one of POSCAR\*"),
        ("", r"is a run and not a dataset; type .*dataset.zarr"),
    ],
)
def test_wrong_against_is_told_before_anything_runs(
    against: str, message: str, reference: Result, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    path = tmp_path / against if against else reference.run_dir
    with pytest.raises(InputError, match=message):
        daskpipe.run("emt_alloy", [*SMALL, f"select.against={path}"], run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
