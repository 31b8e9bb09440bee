"""A run from end to end on real workers: its dataset, where its units ran, and its files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.data import covalent_radii
from distributed import Client
from small_runs import SMALL, UNITS, committed, files_of, manifests, workers_of
from waiting import PATIENCE, wait_until

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.core.events import Event, Notice, StageFinished
from daskpipe.core.structures import from_atoms
from daskpipe.core.variables import VARIABLES, decode_names
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt
from daskpipe.runs.run import Result

ENERGY_TOLERANCE = 1e-4
"""eV/atom."""

FORCE_TOLERANCE = 1e-3
"""eV/Å."""

RECEIPT_LIMIT = 2048
"""Bytes: what a task may send to the driver."""

STAGES = ("generate-", "explore-", "describe-", "select-", "label-", "store-")


def drop_variables(attrs: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in attrs.items() if name not in names}


def check_labels(dataset: Path, teacher: Calculator) -> None:
    """Recompute the labels with the teacher's own ASE calculator, from the stored geometry alone."""
    ds = daskpipe.open_dataset(dataset)
    assert ds.sizes["structure"] > 0
    for index in range(ds.sizes["structure"]):
        atoms = daskpipe.to_atoms(ds, index)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert np.abs(forces).max() > FORCE_TOLERANCE  # at rest, zeros would pass as labels
        atoms.calc = teacher
        assert abs(atoms.get_potential_energy() - energy) / len(atoms) < ENERGY_TOLERANCE
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=FORCE_TOLERANCE, rtol=0)


# --- the dataset ------------------------------------------------------------------------------------


def test_every_stage_ran_and_the_result_says_so(reference: Result) -> None:
    assert {stage: row["units"] for stage, row in reference.stages.items()} == UNITS
    assert {stage: row["computed"] for stage, row in reference.stages.items()} == UNITS
    assert reference.exit_code == 0
    assert reference.stages["store"]["counts"].keys() == {"alloy", "cluster"}
    assert reference.stages["explore"]["out"] == 8  # 4 seeds, 10 steps, every fifth
    assert reference.stages["store"]["out"] == 6


def test_xarray_opens_the_dataset_without_a_warning(reference: Result) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(reference.dataset)
        ds.load()
    assert ds.attrs["Conventions"].startswith("CF-")
    assert ds.attrs["seed"] == 0
    assert json.loads(ds.attrs["config"]) == load_config("emt_alloy", SMALL).dump_deciding()
    assert {"numpy", "torch", "ase", "daskpipe"} <= json.loads(ds.attrs["versions"]).keys()


def test_names_dims_dtypes_and_units_are_those_of_variables(reference: Result) -> None:
    ds = xr.open_zarr(reference.dataset)
    for name, array in ds.data_vars.items():
        variable = VARIABLES[str(name)]
        assert array.dims == variable.dims
        assert array.dtype == variable.dtype
        assert array.attrs.get("units") == variable.unit
        assert array.attrs["long_name"] == variable.doc
    missing = VARIABLES.keys() - ds.data_vars.keys()
    # EMT gives no moments, no seed brings facts about its atoms or keys of training, none is
    # reference data, nothing is relaxed, there is neither a committee nor a second teacher, and labels are too few to
    # have outliers.
    of_atoms = {"magmoms", "initial_charges", "initial_magmoms", "masses", "fixed"}
    assert missing == of_atoms | {
        "config_type", "head", "config_weight", "force_disagreement", "candidate", "explore_energy", "reference",
        "energy_check", "forces_check", "energy_outlier_check", "force_outlier_check", "second_teacher_check",
    }  # fmt: skip


def test_labels_are_the_teachers(reference: Result) -> None:
    check_labels(reference.dataset, EMT())


@pytest.mark.slow
def test_labels_of_chgnet_are_the_teachers(client: Client, tmp_path: Path) -> None:
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet.model.model import CHGNet

    overrides = [*SMALL, "label=chgnet", "label.batch_size=2", "select.n=3"]
    result = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)
    assert daskpipe.open_dataset(result.dataset)["magmoms"].notnull().all()
    check_labels(
        result.dataset, CHGNetCalculator(CHGNet.load(verbose=False), use_device="cpu", on_isolated_atoms="ignore")
    )


def test_labels_of_xtb_are_the_teachers(client: Client, tmp_path: Path) -> None:
    from tblite.ase import TBLite

    overrides = ["generate.sources.molecules.n=2", "explore.dynamics.steps=30", "select.n=2", "describe.dims=4"]
    result = daskpipe.run("molecules", overrides, run_dir=tmp_path / "run", client=client)
    check_labels(result.dataset, TBLite(method="GFN2-xTB", verbosity=0))


def test_to_atoms_round_trips_exactly(reference: Result) -> None:
    ds = daskpipe.open_dataset(reference.dataset).load()
    again = from_atoms([daskpipe.to_atoms(ds, index) for index in range(ds.sizes["structure"])])
    for name in ds.data_vars:
        stored = daskpipe.core.variables.decode_names(ds[name]) if VARIABLES[str(name)].coded else ds[name].values
        assert np.array_equal(again[name].values, stored, equal_nan=stored.dtype.kind == "f"), name


# --- the same bytes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_worker_makes_the_same_bytes_as_two(reference: Result, tmp_path: Path) -> None:
    config = load_config("emt_alloy", [*SMALL, "cluster.workers=1", "cluster.gpus=0"])
    result = daskpipe.run(config, run_dir=tmp_path / "run")
    assert len(set.union(*workers_of(result.run_dir).values())) == 1
    assert len(set.union(*workers_of(reference.run_dir).values())) == 2
    assert files_of(result.dataset) == files_of(reference.dataset)


def test_sizes_of_partitions_and_batches_do_not_change_the_arrays(
    reference: Result, client: Client, tmp_path: Path
) -> None:
    overrides = ["generate.partition_size=3", "explore.batch_size=3", "label.batch_size=4"]
    result = daskpipe.run("emt_alloy", [*SMALL, *overrides], run_dir=tmp_path / "run", client=client)
    units = {stage: row["units"] for stage, row in result.stages.items()}
    assert units == {**UNITS, "generate": 2, "explore": 2, "describe": 2, "label": 2, "label-check": 2}
    ours, theirs = xr.open_zarr(result.dataset), xr.open_zarr(reference.dataset)
    xr.testing.assert_identical(ours.drop_attrs(deep=False), theirs.drop_attrs(deep=False))
    changing = ("config", "dataset_key", "checksums")
    assert drop_variables(ours.attrs, *changing) == drop_variables(theirs.attrs, *changing)


ALL_OF_EXPLORATION = [
    "explore.potential.name=committee",
    "explore.potential.params={members: [{name: emt}, {name: lj, params: {epsilon: 0.1, sigma: 2.3}}]}",
    "explore.dynamics.ensemble=auto",
    "explore.dynamics.temperatures=[{start: 300, end: 900, cycles: 1}]",
    "explore.dynamics.pressures=[0, 2]",
    "explore.dynamics.change=1e-6",
    "explore.monte_carlo={every: 5, swaps: 3, hops: 3}",
    "explore.repulsion=zbl",
    "explore.guards={on_stop: retry, max_disagreement: 0.8}",
    "select.n=12",
]


def test_all_that_exploration_can_do_and_batches_do_not_change_it(client: Client, tmp_path: Path) -> None:
    overrides = [*SMALL, *ALL_OF_EXPLORATION]
    one_by_one = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "one", client=client)
    in_one = [*overrides, "explore.batch_size=6", "explore.batch_atoms=40"]
    together = daskpipe.run("emt_alloy", in_one, run_dir=tmp_path / "six", client=client)
    assert one_by_one.stages["explore"]["inputs"] == together.stages["explore"]["inputs"] == 2 * 2 + 2
    assert [result.stages["explore"]["units"] for result in (one_by_one, together)] == [6, 1]
    ours, theirs = xr.open_zarr(one_by_one.dataset), xr.open_zarr(together.dataset)
    xr.testing.assert_identical(ours.drop_attrs(deep=False), theirs.drop_attrs(deep=False))
    is_alloy = daskpipe.core.variables.decode_names(ours["system_type"]) == "alloy"
    pressure = ours["pressure"].values
    assert set(pressure[is_alloy].tolist()) == {0.0, 2.0}
    assert np.isnan(pressure[~is_alloy]).all()
    assert set(daskpipe.core.variables.decode_names(ours["ensemble"])[is_alloy]) == {"npt_triclinic"}
    assert set(daskpipe.core.variables.decode_names(ours["ensemble"])[~is_alloy]) == {"nvt_langevin"}
    disagreement, candidate = ours["force_disagreement"].values, ours["candidate"].values
    assert (disagreement > 0).all()
    np.testing.assert_array_equal(candidate, disagreement > 0.8)
    assert candidate.any()
    assert not candidate.all()
    np.testing.assert_array_equal(
        daskpipe.core.variables.decode_names(ours["selection_reason"]) == "candidate", candidate
    )


def test_seeds_that_explode_end_in_the_quarantine_and_the_run_goes_on(client: Client, tmp_path: Path) -> None:
    from ase import Atoms
    from ase.build import bulk
    from ase.io import write

    write(tmp_path / "pair.xyz", Atoms("Pt2", positions=[[0, 0, 0], [0, 0, 1.95]]))
    write(tmp_path / "sane.xyz", bulk("Cu", cubic=True))
    overrides = [*SMALL, f"generate.paths=[{tmp_path}/pair.xyz,{tmp_path}/sane.xyz]", "explore.dynamics.stride=1"]
    result = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)
    assert result.exit_code == 10
    assert result.quarantined == {"explore/temperature": 1}
    (stop,) = RunDirectory(tmp_path / "run").read_quarantine()
    assert "at step" in stop.evidence
    assert stop.details["step"] > 0
    assert len(stop.details["crashed"]["positions"]) == len(stop.details["last_sane"]["positions"]) == 2


def test_another_seed_makes_another_dataset(reference: Result, client: Client, tmp_path: Path) -> None:
    result = daskpipe.run("emt_alloy", [*SMALL, "seed=1"], run_dir=tmp_path / "run", client=client)
    ours, theirs = (
        set(xr.open_zarr(path)["structure_id"].values.tolist()) for path in (result.dataset, reference.dataset)
    )
    assert not ours & theirs


# --- where units run, and what they leave ---------------------------------------------------------------


def test_exploration_is_held_to_the_gpu_worker_and_nothing_else_is(
    reference: Result, client: Client, tmp_path: Path
) -> None:
    pids = client.run(os.getpid)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    (gpu,) = [pids[address] for address, worker in workers.items() if worker["resources"].get("GPU")]
    result = daskpipe.run("emt_alloy", [*SMALL, "explore.device=auto"], run_dir=tmp_path / "run", client=client)
    ran_on = workers_of(result.run_dir)
    assert len(list((tmp_path / "run" / "units" / "explore").glob("*/*"))) == UNITS["explore"]
    assert ran_on["explore"] == {gpu}
    for stage in ("generate", "describe", "label"):
        assert ran_on[stage] == set(pids.values()), stage
    # Where a unit ran decides nothing.
    assert files_of(result.dataset) == files_of(reference.dataset)


def test_without_a_gpu_stage_exploration_runs_on_both(reference: Result, client: Client) -> None:
    assert workers_of(reference.run_dir)["explore"] == set(client.run(os.getpid).values())


def test_a_gpu_worker_without_cuda_is_named(client: Client, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match="device=cuda, but torch sees no CUDA device"):
        daskpipe.run("emt_alloy", [*SMALL, "explore.device=cuda"], run_dir=tmp_path / "run", client=client)


def test_tasks_carry_the_names_of_the_stages(client: Client, tmp_path: Path) -> None:
    # Other tests compute on the same cluster.
    client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_log.clear())
    daskpipe.run("emt_alloy", SMALL, run_dir=tmp_path / "run", client=client)
    keys = client.run_on_scheduler(lambda dask_scheduler: {str(item[0]) for item in dask_scheduler.transition_log})
    assert {prefix for prefix in STAGES if any(key.startswith(prefix) for key in keys)} == set(STAGES)
    assert [key for key in keys if not key.startswith(STAGES)] == []


def test_nothing_stays_on_the_cluster(reference: Result, client: Client) -> None:
    def known(dask_scheduler: Any) -> dict[str, Any]:
        """Tasks, their state, who wants them and where they are."""
        return {
            str(key): (task.state, [one.client_key for one in task.who_wants], str(task.processing_on))
            for key, task in dask_scheduler.tasks.items()
        }

    # Releases travel to the scheduler.
    wait_until(lambda: client.run_on_scheduler(known) == {}, lambda: client.run_on_scheduler(known))
    assert client.who_has() == {}
    assert not any(client.run(lambda dask_worker: len(dask_worker.data)).values())


def test_receipts_are_small(reference: Result) -> None:
    receipts = [Receipt(**json.loads(path.read_text())["receipt"]) for path in manifests(reference.run_dir)]
    assert len(receipts) == sum(UNITS.values())
    assert max(len(pickle.dumps(receipt)) for receipt in receipts) < RECEIPT_LIMIT


def test_the_ledger_tells_what_is_on_disk(reference: Result) -> None:
    events = read_ledger(RunDirectory(reference.run_dir))
    told = [event["key"] for event in events if event["event"] == "UnitCommitted"]
    assert sorted(told) == sorted(committed(reference.run_dir))
    assert [event["stage"] for event in events if event["event"] == "StageFinished"] == list(UNITS)


def test_a_time_step_that_is_too_long_is_told(client: Client, tmp_path: Path) -> None:
    heard: list[Event] = []
    long = [*SMALL, "generate.sources.clusters.n=1", "explore.dynamics.timestep=7"]
    daskpipe.run("emt_alloy", long, run_dir=tmp_path / "run", client=client, subscribers=[heard.append])
    told = [event.message for event in heard if isinstance(event, Notice)]
    assert any(message.startswith("explore.dynamics.timestep=7 fs is long for atoms of 63.5 amu") for message in told)


def test_subscribers_hear_every_stage(reference: Result, client: Client, tmp_path: Path) -> None:
    heard: list[Event] = []
    shutil.copytree(reference.run_dir, tmp_path / "run")
    daskpipe.resume(tmp_path / "run", client=client, subscribers=[heard.append])
    assert [event.stage for event in heard if isinstance(event, StageFinished)] == list(UNITS)


# --- inputs that leave nothing ------------------------------------------------------------------------


def test_seeds_that_all_fail_stop_the_run_with_their_reasons(client: Client, tmp_path: Path) -> None:
    overrides = [*SMALL, "generate.limits.max_atoms=2"]
    with pytest.raises(InputError, match=r"no seed structure passed.*: 4 generate/too_large"):
        daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)


def test_trajectories_that_all_fail_stop_the_run_with_their_reasons(client: Client, tmp_path: Path) -> None:
    overrides = [*SMALL, "explore.guards.max_force=1e-9"]
    with pytest.raises(InputError, match=r"no trajectory survived.*: 4 explore/force"):
        daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)


def test_labels_that_all_fail_stop_the_run_with_their_reasons(client: Client, tmp_path: Path) -> None:
    overrides = [*SMALL, "label.checks.max_force=1e-9"]
    with pytest.raises(InputError, match=r"the teacher labelled no structure.*: 6 label/force"):
        daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)


def test_what_fails_is_quarantined_and_the_rest_goes_on(client: Client, tmp_path: Path) -> None:
    overrides = [*SMALL, "generate.limits.max_atoms=13", "generate.sources.clusters.n_atoms=[14,14]"]
    result = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)
    row = result.stages["generate"]
    assert (row["inputs"], row["out"], row["rejected"]) == (4, 2, 2)  # the two clusters are too large
    assert result.quarantined == {"generate/too_large": 2}
    assert result.exit_code == 10
    (quarantined,) = {item.reason for item in RunDirectory(result.run_dir).read_quarantine()}
    assert quarantined == "too_large"
    attrs = xr.open_zarr(result.dataset).attrs
    assert json.loads(attrs["quarantined"]) == result.quarantined


def test_workers_of_another_start_are_closed(tmp_path: Path) -> None:
    import psutil

    before = set(psutil.Process().children(recursive=True))
    with connect(load_config("emt_alloy", ["cluster.workers=1", "cluster.gpus=0"]).cluster) as workers:
        own = workers.client
        started = set(psutil.Process().children(recursive=True)) - before
        (pid,) = own.run(os.getpid).values()
        assert pid in {process.pid for process in started}
    gone, alive = psutil.wait_procs(started, timeout=PATIENCE)
    # Python's own resource tracker, one a process, serves later clusters too.
    assert all("resource_tracker" in " ".join(process.cmdline()) for process in alive)
    assert pid in {process.pid for process in gone}


def test_two_runs_of_one_config_on_one_scheduler_both_have_their_units(
    reference: Result, client: Client, tmp_path: Path
) -> None:
    """Their units have the same keys, and the first run's futures are still held while the second runs."""
    units = [file for file in (reference.run_dir / "units/label").rglob("manifest.json")]
    held = [
        client.submit(lambda: None, key=f"label-{json.loads(file.read_text())['unit']['key']}", pure=False)
        for file in units
    ]
    result = daskpipe.run("emt_alloy", SMALL, run_dir=tmp_path / "run", client=client)
    assert held
    assert {file.parent.name for file in (result.run_dir / "units/label").rglob("manifest.json")} == {
        file.parent.name for file in units
    }


def write_config(folder: Path, generate: dict[str, Any]) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump({"defaults": ["emt_alloy", "_self_"], "generate": generate}))
    return str(folder / "mine.yaml")


@pytest.mark.slow
def test_reference_data_are_labelled_as_they_are_and_stay_in_train(client: Client, tmp_path: Path) -> None:
    states = {"generator": "reference", "elements": ["Cu"], "of": "Cu", "distances": [0.8, 1.0, 1.5]}
    alloys = {"generator": "alloys", "elements": {"Cu": 1}, "n_atoms": 8, "n": 2}
    file = write_config(tmp_path, {"sources": {"alloys": alloys, "states": states}})
    overrides = [text for text in SMALL if not text.startswith("generate.sources")]
    result = daskpipe.run(file, [*overrides, "select.n=9"], run_dir=tmp_path / "run", client=client)
    ds = daskpipe.open_dataset(result.dataset).load()
    marked = ds["reference"].values
    kinds = decode_names(ds["config_type"])[marked]
    assert Counter(kinds.tolist()) == {"IsolatedAtom": 1, "Dimer": 3, "EquationOfState": 9}
    assert set(ds["split"].values[marked].tolist()) == {0}
    assert set(decode_names(ds["selection_reason"])[marked].tolist()) == {"reference"}
    assert set(decode_names(ds["ensemble"])[marked].tolist()) == {"static"}
    assert not decode_names(ds["selection_reason"])[~marked].tolist()  # n is less than they are
    pairs = [daskpipe.to_atoms(ds, row) for row in np.flatnonzero(marked) if ds["n_atoms"][row] == 2]
    bond = 2 * covalent_radii[29]
    assert sorted(atoms.get_distance(0, 1) / bond for atoms in pairs) == pytest.approx([0.8, 1.0, 1.5], abs=1e-5)
    assert json.loads(ds.attrs["isolated_atom_energies"])["Default"]["Cu"] == pytest.approx(3.51)
    for row in np.flatnonzero(marked):
        atoms = daskpipe.to_atoms(ds, int(row))
        energy = atoms.get_potential_energy()
        atoms.calc = EMT()
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


@pytest.mark.slow
def test_a_random_search_keeps_minima_within_its_window(client: Client, tmp_path: Path) -> None:
    cells = {"generator": "random_crystals", "formula": "Cu", "n_atoms": [2, 4], "n": 6}
    file = write_config(tmp_path, {"sources": {"random": cells}})
    overrides = [
        "explore.dynamics=null",
        "explore.relax={cell: auto, steps: 200, stride: 20}",
        "select.energy_window=0.05",
        "select.n=12",
        "describe.dims=4",
    ]
    result = daskpipe.run(file, overrides, run_dir=tmp_path / "run", client=client)
    ds = daskpipe.open_dataset(result.dataset).load()
    each = ds["explore_energy"].values / ds["n_atoms"].values
    assert np.ptp(each) <= 0.05
    assert ds["explore_energy"].values == pytest.approx(ds["energy"].values, abs=1e-5)  # EMT explores and labels
    assert result.stages["select"]["report"]["above_energy_window"] > 0
