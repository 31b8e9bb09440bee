"""Description within a run: environments, a descriptor with a model, and where they are computed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client
from small_runs import SMALL, manifests, workers_of

import daskpipe
from daskpipe import potentials
from daskpipe.core.errors import ConfigError
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result

OVERRIDES = [*SMALL, "describe=mace", "describe.level=atom", "describe.device=auto"]


@pytest.fixture(scope="module")
def by_mace(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One run that describes atoms with the bundled MACE. Read only."""
    return daskpipe.run("emt_alloy", OVERRIDES, run_dir=tmp_path_factory.mktemp("mace") / "run", client=client)


def payloads(run_dir: Path, stage: str) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of the units of a stage, by the key of the first unit upstream that was explored."""
    found = {}
    for path in manifests(run_dir):
        manifest = json.loads(path.read_text())
        if manifest["unit"]["stage"] == stage:
            found[manifest["unit"]["upstream"][-1]] = RunDirectory(run_dir).load_arrays(stage, path.parent.name)
    return found


def test_units_hold_the_environments_of_their_atoms(by_mace: Result) -> None:
    units = payloads(by_mace.run_dir, "describe")
    assert len(units) == by_mace.stages["describe"]["units"]
    for key, arrays in units.items():
        n_atoms = RunDirectory(by_mace.run_dir).load_arrays("explore", key, ["n_atoms"])["n_atoms"]
        assert arrays["environments"].shape == (n_atoms.sum(), 4)
        assert arrays["features"].shape == (len(n_atoms), 4)
        assert arrays["environments"].dtype == arrays["features"].dtype == np.float32
        assert np.ptp(arrays["environments"], axis=0).min() > 0


def test_level_structure_holds_no_environments(reference: Result) -> None:
    for arrays in payloads(reference.run_dir, "describe").values():
        assert list(arrays) == ["features"]


def test_the_model_is_named_in_the_run_and_in_the_dataset(by_mace: Result, reference: Result) -> None:
    model = potentials.identify_potential("mace", {})
    record = json.loads((by_mace.run_dir / "potentials.json").read_text())
    assert record["describe"] == {"name": model.name, "hash": model.hash}
    attrs = xr.open_zarr(by_mace.dataset).attrs
    assert json.loads(attrs["describe_model"]) == {"name": model.name, "sha256": model.hash}
    assert "describe_model" not in xr.open_zarr(reference.dataset).attrs


def test_another_model_of_the_descriptor_is_refused(by_mace: Result, tmp_path: Path) -> None:
    shutil.copytree(by_mace.run_dir, tmp_path / "run")
    record = tmp_path / "run" / "potentials.json"
    models = json.loads(record.read_text())
    record.write_text(json.dumps({**models, "describe": {**models["describe"], "hash": "0" * 64}}))
    with pytest.raises(ConfigError, match=r"describe.params.model is not the one that .* began with.*\(000000000000\)"):
        daskpipe.resume(tmp_path / "run")


@pytest.mark.slow
def test_the_model_decides_the_keys_and_the_device_does_not(
    by_mace: Result, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(by_mace.run_dir, tmp_path / "run")
    config = daskpipe.config.load.load_config("emt_alloy", [*OVERRIDES, "describe.device=cpu"])
    again = daskpipe.run(config, run_dir=tmp_path / "run", client=client)
    assert sum(row["computed"] for row in again.stages.values()) == 0
    (tmp_path / "run" / "potentials.json").unlink()
    shutil.rmtree(tmp_path / "run" / "dataset.zarr")
    other = potentials.Identity(name="another", hash="1" * 64)
    monkeypatch.setattr("daskpipe.runs.run.describe.identify_model", lambda settings: other)
    changed = daskpipe.run(config, run_dir=tmp_path / "run", client=client)
    assert {stage for stage, row in changed.stages.items() if row["computed"]} >= {"describe-fit", "describe"}
    assert changed.stages["explore"]["computed"] == 0


def test_description_by_a_model_is_held_to_the_gpu_worker(by_mace: Result, client: Client) -> None:
    pids = client.run(os.getpid)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    (gpu,) = [pids[address] for address, worker in workers.items() if worker["resources"].get("GPU")]
    ran_on = workers_of(by_mace.run_dir)
    assert ran_on["describe"] == ran_on["describe-fit"] == {gpu}
    assert ran_on["explore"] == set(pids.values())


def test_description_without_a_model_is_not(client: Client, tmp_path: Path) -> None:
    result = daskpipe.run("emt_alloy", [*SMALL, "describe.device=auto"], run_dir=tmp_path / "run", client=client)
    assert workers_of(result.run_dir)["describe"] == set(client.run(os.getpid).values())
