"""Runs and upgrades of packages: versions are provenance, and no part of the identity of a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from distributed import Client
from small_runs import SMALL, UNITS, files_of, manifests

import daskpipe
from daskpipe.config.load import load_config
from daskpipe.config.saved import to_yaml
from daskpipe.core.events import Event, Notice
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.manifests import read_units
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import unit_key
from daskpipe.pipeline import packing
from daskpipe.pipeline.packing import read_package_versions
from daskpipe.potentials import identify_potential
from daskpipe.runs.fsck import check_run
from daskpipe.runs.run import Result
from daskpipe.runs.status import read_status
from daskpipe.store.stage import PLAN_VERSION

OTHER = {"ase": "3.99.0", "zarr": "3.99.0"}
"""Versions after a pretended upgrade."""

LATER = ("label", "store-sort", "store-plan", "store-write", "store")
"""Stages that a run which was stopped half-way has not begun."""


def arrays_of(dataset: Path) -> dict[str, bytes]:
    """Chunk files of a dataset, by name."""
    return {name: data for name, data in files_of(dataset).items() if "/c/" in name}


def stop_half_way(run_dir: Path) -> None:
    """Take away what a run that was stopped before its labels has not made yet."""
    shutil.rmtree(run_dir / "dataset.zarr")
    for stage in LATER:
        shutil.rmtree(run_dir / "units" / stage)


def list_computed(result: Result) -> dict[str, int]:
    return {stage: row["computed"] for stage, row in result.stages.items() if row["computed"]}


@pytest.fixture(scope="module")
def of_before(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run as it was written when versions of packages were part of the hash of EMT and of the key of ``store``."""
    run_dir = tmp_path_factory.mktemp("before") / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(load_config("emt_alloy", SMALL)))
    emt = hashlib.sha256(json.dumps(["EMT", "ase", version("ase"), {}], sort_keys=True).encode()).hexdigest()
    record = {stage: {"name": "EMT", "hash": emt} for stage in ("explore", "label")}
    (run_dir / "potentials.json").write_text(json.dumps(record, indent=1))

    def keys(run: Any, attrs: dict[str, Any], runs: list[str], target: Path) -> tuple[str, str]:
        attrs = {**attrs, "versions": json.dumps(read_package_versions(), sort_keys=True)}
        split = run.config.store.model_dump()
        plan_key = unit_key("store-plan", PLAN_VERSION, split, runs, run.seed)
        return plan_key, unit_key("store", 2, {"attrs": attrs, "split": split}, [plan_key], run.seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_choose_keys", keys)
        return daskpipe.run("emt_alloy", SMALL, run_dir=run_dir, client=client)


@pytest.fixture(scope="module")
def of_other_splits(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run as it was written before splits were stratified: two parameters fewer, and version 2 of the plan."""
    run_dir = tmp_path_factory.mktemp("splits") / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(load_config("emt_alloy", SMALL)))

    def keys(run: Any, attrs: dict[str, Any], runs: list[str], target: Path) -> tuple[str, str]:
        split = run.config.store.model_dump(include={"split", "split_by", "near_duplicates", "clusters"})
        config = json.loads(attrs["config"])
        attrs["config"] = json.dumps({**config, "store": split}, sort_keys=True)
        plan_key = unit_key("store-plan", 2, split, runs, run.seed)
        return plan_key, unit_key("store", 2, {"attrs": attrs, "split": split}, [plan_key], run.seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_choose_keys", keys)
        return daskpipe.run("emt_alloy", SMALL, run_dir=run_dir, client=client)


@pytest.fixture
def upgraded_packages(reference: Result, of_before: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packages have other versions than those with which the runs were made."""
    before = read_package_versions()
    monkeypatch.setattr("daskpipe.potentials.identity.read_version", lambda name: OTHER.get(name, version(name)))
    for module in ("packing", "run_pipeline"):
        monkeypatch.setattr(f"daskpipe.pipeline.{module}.read_package_versions", lambda: before | OTHER)


def test_versions_are_no_part_of_an_identity(upgraded_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identify_potential("emt", {})
    assert identity.packages == {"ase": OTHER["ase"]}
    members = {"members": [{"name": "emt"}, {"name": "mace"}]}
    assert identify_potential("committee", members).packages == {"ase": OTHER["ase"]}
    assert not identify_potential("mace", {}).packages  # its weights tell
    monkeypatch.undo()
    assert identify_potential("emt", {}).packages == {"ase": version("ase")}
    assert identify_potential("emt", {}).hash == identity.hash


@pytest.mark.parametrize("made", ["reference", "of_before", "of_other_splits"])
def test_a_complete_run_stays_complete(
    made: str, request: pytest.FixtureRequest, client: Client, tmp_path: Path, upgraded_packages: None
) -> None:
    run: Result = request.getfixturevalue(made)
    shutil.copytree(run.run_dir, tmp_path / "run")
    result = daskpipe.resume(tmp_path / "run", client=client)
    assert list_computed(result) == {}
    assert files_of(result.dataset) == files_of(run.dataset)
    assert check_run(tmp_path / "run").findings == []
    # The same command goes on with it, too.
    assert list_computed(daskpipe.run("emt_alloy", SMALL, run_dir=tmp_path / "run", client=client)) == {}
    starts = [event for event in read_ledger(RunDirectory(tmp_path / "run")) if event["event"] == "RunStarted"]
    assert [start["versions"]["ase"] for start in starts[-2:]] == [OTHER["ase"]] * 2


@pytest.mark.parametrize(
    "stage",
    [pytest.param("generate", marks=pytest.mark.slow), "explore", pytest.param("label", marks=pytest.mark.slow)],
)
def test_a_complete_run_of_earlier_stages_stays_complete(
    stage: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its units have keys that today's stages would not give them, and its dataset stands."""
    monkeypatch.setattr(f"daskpipe.stages.{stage}.stage.VERSION", 0)
    made = daskpipe.run("emt_alloy", SMALL, run_dir=tmp_path / "run", client=client)
    monkeypatch.undo()
    before, units = files_of(made.dataset), sorted(manifests(made.run_dir))
    heard: list[Event] = []
    result = daskpipe.resume(made.run_dir, client=client, subscribers=[heard.append])
    notice = next(event.message for event in heard if isinstance(event, Notice))
    assert notice.startswith("this run is complete; an earlier version of daskpipe made it")
    assert list_computed(result) == {}
    assert files_of(made.dataset) == before
    assert sorted(manifests(made.run_dir)) == units
    ignored = ("seconds", "computed")
    for name, row in made.stages.items():
        assert {key: row[key] for key in row if key not in ignored} == {
            key: result.stages[name][key] for key in row if key not in ignored
        }, name
    assert read_status(made.run_dir)["state"] == "complete"
    # What is not whole is not complete: it is made again with today's stages, which begin with the dataset's removal.
    shutil.rmtree(made.dataset)
    assert list_computed(daskpipe.resume(made.run_dir, client=client))["store"] == 1
    superseded = [
        event["stage"] for event in read_ledger(RunDirectory(made.run_dir)) if event["event"] == "UnitSuperseded"
    ]
    assert stage in superseded
    assert {path for path in units if path.parents[2].name not in LATER} <= set(manifests(made.run_dir))
    assert check_run(made.run_dir).findings == []


def test_a_complete_run_with_picks_of_an_earlier_version_against_a_dataset_stays_complete(
    reference: Result, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such picks have a version of their own, which the dataset did not name."""
    overrides = [*SMALL, "select.duplicate_distance=1e-6", f"select.against={reference.dataset}"]
    monkeypatch.setattr("daskpipe.stages.select.stage.AGAINST_VERSION", 0)
    made = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)
    monkeypatch.undo()
    before = files_of(made.dataset)
    result = daskpipe.resume(made.run_dir, client=client)
    assert list_computed(result) == {}
    assert result.stages.keys() == made.stages.keys()
    assert files_of(made.dataset) == before


@pytest.mark.parametrize("made", ["reference", "of_before"])
def test_a_dataset_that_was_taken_away_is_made_again_by_one_unit(
    made: str, request: pytest.FixtureRequest, client: Client, tmp_path: Path, upgraded_packages: None
) -> None:
    run: Result = request.getfixturevalue(made)
    shutil.copytree(run.run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "dataset.zarr")
    result = daskpipe.resume(tmp_path / "run", client=client)
    assert list_computed(result) == {"store": 1}
    assert arrays_of(result.dataset) == arrays_of(run.dataset)
    (only,) = read_units(RunDirectory(tmp_path / "run"), "store")
    attrs = xr.open_zarr(result.dataset).attrs
    assert attrs["dataset_key"] == only[1].unit.key
    assert json.loads(attrs["versions"])["zarr"] == OTHER["zarr"]
    assert check_run(tmp_path / "run").findings == []


@pytest.mark.parametrize("made", ["reference", "of_before"])
def test_a_run_that_was_stopped_half_way_ends_with_the_same_arrays(
    made: str, request: pytest.FixtureRequest, client: Client, tmp_path: Path, upgraded_packages: None
) -> None:
    run: Result = request.getfixturevalue(made)
    shutil.copytree(run.run_dir, tmp_path / "run")
    stop_half_way(tmp_path / "run")
    result = daskpipe.resume(tmp_path / "run", client=client)
    assert list_computed(result) == {stage: UNITS[stage] for stage in LATER}
    assert arrays_of(result.dataset) == arrays_of(run.dataset)
    assert len(manifests(tmp_path / "run")) == sum(UNITS.values())


# --- really ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upgraded_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment with other versions of zarr and xarray, and all else as here."""
    folder = tmp_path_factory.mktemp("upgraded")
    wanted = [
        f"{requirement},!={version(name)}"
        for name in ("zarr", "xarray")
        for requirement in requires("daskpipe") or []
        if requirement.startswith(f"{name}>")
    ]
    assert len(wanted) == 2
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder / "packages"), *wanted]
    pip = subprocess.run(install, capture_output=True, text=True, check=False)
    if pip.returncode:
        reason = (pip.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        pytest.skip(f"no other zarr and xarray can be installed here: {reason}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    here = sysconfig.get_path("purelib")
    # Packages that stand first win.
    (site / "upgraded.pth").write_text(f"{folder / 'packages'}\nimport site; site.addsitedir({here!r})\n")
    return python


@pytest.mark.slow
def test_another_environment_resumes_and_verifies(reference: Result, upgraded_python: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(daskpipe.__file__).parents[1])}

    def there(*words: str) -> dict[str, Any]:
        command = [str(upgraded_python), "-m", "daskpipe", *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    for name in ("whole", "half"):
        shutil.copytree(reference.run_dir, tmp_path / name)
    stop_half_way(tmp_path / "half")
    answer = there("resume", str(tmp_path / "whole"), "cluster.workers=2")
    assert {row["computed"] for row in answer["stages"].values()} == {0}
    assert files_of(tmp_path / "whole" / "dataset.zarr") == files_of(reference.dataset)
    there("verify", str(tmp_path / "whole" / "dataset.zarr"))
    there("resume", str(tmp_path / "half"), "cluster.workers=2")
    there("verify", str(tmp_path / "half" / "dataset.zarr"))
    assert arrays_of(tmp_path / "half" / "dataset.zarr") == arrays_of(reference.dataset)
    made_with = json.loads(xr.open_zarr(tmp_path / "half" / "dataset.zarr").attrs["versions"])
    assert {name for name, number in read_package_versions().items() if made_with[name] != number} == {"zarr", "xarray"}
