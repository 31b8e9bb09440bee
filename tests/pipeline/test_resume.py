"""A complete or damaged run is resumed; a run directory belongs to one config and one owner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from distributed import Client
from small_runs import SMALL, committed, files_of
from waiting import wait_until

import daskpipe
from daskpipe.core.errors import ConfigError
from daskpipe.core.events import Event
from daskpipe.runs.run import Result


def test_a_complete_run_is_resumed_for_nothing(reference: Result, client: Client, tmp_path: Path) -> None:
    shutil.copytree(reference.run_dir, tmp_path / "run")
    before = committed(tmp_path / "run")
    result = daskpipe.resume(tmp_path / "run", client=client)
    assert sum(row["computed"] for row in result.stages.values()) == 0
    assert committed(tmp_path / "run") == before
    same = {name: {**row, "computed": 0, "seconds": 0} for name, row in reference.stages.items()}
    assert {name: {**row, "seconds": 0} for name, row in result.stages.items()} == same


def test_a_dataset_that_was_taken_away_is_made_again(reference: Result, client: Client, tmp_path: Path) -> None:
    shutil.copytree(reference.run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "dataset.zarr")
    result = daskpipe.resume(tmp_path / "run", client=client)
    assert {stage for stage, row in result.stages.items() if row["computed"]} == {"store"}
    assert files_of(result.dataset) == files_of(reference.dataset)


def test_a_damaged_unit_stops_the_run_and_is_named(reference: Result, client: Client, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference.run_dir, run_dir)
    shutil.rmtree(run_dir / "units" / "label")
    payload = min((run_dir / "units" / "explore").glob("*/*/payload.npz"))
    payload.write_bytes(payload.read_bytes()[:-1] + b"!")
    with pytest.raises(
        daskpipe.core.errors.IntegrityError, match=f"(?s){payload.parent}.*fsck .*--mend.*daskpipe resume"
    ):
        daskpipe.resume(run_dir, client=client)
    wait_until(lambda: not any(client.processing().values()))  # a unit that still ran would wait for what is removed
    shutil.rmtree(payload.parent)
    result = daskpipe.resume(run_dir, client=client)
    assert result.stages["explore"]["computed"] == 1
    assert files_of(result.dataset) == files_of(reference.dataset)


@pytest.mark.parametrize("mode", [None, 0o755, 0o777])
def test_a_run_directory_is_its_owners_alone(mode: int | None, client: Client, tmp_path: Path) -> None:
    """Whether it is made by the run, or was an empty folder of another mode."""
    root = tmp_path / "run"
    if mode is not None:
        root.mkdir()
        root.chmod(mode)

    def stop(event: Event) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        daskpipe.run("emt_alloy", SMALL, run_dir=root, client=client, subscribers=[stop])
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_run_directory_of_another_config_is_refused(reference: Result) -> None:
    before = files_of(reference.run_dir)
    with pytest.raises(ConfigError, match=r"holds a run of another config \(select.n: 5 here, 6 there\).*--run-dir"):
        daskpipe.run("emt_alloy", [*SMALL, "select.n=5"], run_dir=reference.run_dir)
    assert files_of(reference.run_dir) == before


def test_another_model_under_the_same_name_is_refused(reference: Result, tmp_path: Path) -> None:
    shutil.copytree(reference.run_dir, tmp_path / "run")
    record = tmp_path / "run" / "potentials.json"
    potentials = json.loads(record.read_text())
    record.write_text(json.dumps({**potentials, "label": {**potentials["label"], "hash": "0" * 64}}))
    with pytest.raises(ConfigError, match=r"label.potential is not the one that .* began with.*\(000000000000\) then"):
        daskpipe.resume(tmp_path / "run")


def test_paths_are_resumed_from_any_directory(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Result
) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    daskpipe.export(reference.dataset, "extxyz", tmp_path / "mine" / "data" / "few.extxyz")
    monkeypatch.chdir(tmp_path / "mine")
    overrides = [*SMALL, "generate=files", "generate.paths=[data]", "~generate.sources", "select.n=2"]
    overrides = [item for item in overrides if not item.startswith("generate.sources")]
    first = daskpipe.run("emt_alloy", overrides, run_dir="run", client=client)
    assert first.stages["generate"]["out"] == 6
    # What the files hold and seeds have no place for is counted, and still known when the run goes on.
    not_taken = first.stages["generate"]["tallies"]
    assert {"left_out/energy": 6, "left_out/forces": 6}.items() <= not_taken.items()
    assert not not_taken.keys() & {"left_out/config_type", "left_out/charge", "left_out/structure_id"}
    monkeypatch.chdir(tmp_path)
    again = daskpipe.resume("mine/run", client=client)
    assert sum(row["computed"] for row in again.stages.values()) == 0
    assert again.stages["generate"]["tallies"] == not_taken
