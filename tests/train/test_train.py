"""Training a MACE on a dataset: most tests inspect one tiny training; others check refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cluster import Octahedron
from distributed import Client
from small_runs import SMALL

import daskpipe
from daskpipe import load
from daskpipe.cli.dataset import format_errors
from daskpipe.core.errors import ConfigError, InputError, Interrupted
from daskpipe.core.events import Event, Notice
from daskpipe.core.structures import from_atoms
from daskpipe.core.variables import SPLITS
from daskpipe.potentials import Failure, Results, batched_model, build_potential, evaluate, identify_potential
from daskpipe.potentials.identity import file_hash
from daskpipe.store import arrange_and_write, write_dataset
from daskpipe.train import EpochFinished, Trained, TrainingStarted, train, training
from daskpipe.train.accuracy import measure_accuracy, measure_errors
from daskpipe.train.card import model_card
from daskpipe.train.options import (
    BATCHES,
    EPOCHS,
    MAX_BATCH,
    SIZES,
    STEPS,
    choose_options,
    command_line,
    parse_overrides,
)

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
ATTRS = {"dataset_key": "k1", "label_potential": json.dumps({"name": "EMT", "sha256": "0123"})}
N_EPOCHS = 5
TINY: dict[str, Any] = {
    "epochs": N_EPOCHS,
    "r_max": 3.6,
    "device": "cpu",
    "overrides": ["num_channels=4", "max_ell=1", "correlation=1", "radial_MLP=[8]", "batch_size=6", "lr=0.02"],
}
"""A model that learns something in a second."""


def make_structures(n: int) -> list[Atoms]:
    """Make displaced crystals and clusters of copper and gold with EMT labels."""
    rng = np.random.default_rng(0)
    structures = []
    for index in range(n):
        crystal = index % 3 > 0
        atoms = bulk("Cu", cubic=True, a=3.8) if crystal else Octahedron("Cu", 2)
        atoms.symbols[rng.choice(len(atoms), 1 + index % 2, replace=False)] = "Au"
        atoms.rattle(0.12, seed=index)
        atoms.calc = EMT()
        names = ("energy", "forces", "stress") if crystal else ("energy", "forces")
        results = {name: atoms.calc.get_property(name, atoms) for name in names}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["system_type"] = "alloy" if crystal else "cluster"
        structures.append(atoms)
    return structures


def write_structures(path: Path, structures: list[Atoms], fractions: dict[str, float] = FRACTIONS) -> Path:
    arrange_and_write(from_atoms(structures), path, seed=0, fractions=fractions, attrs=ATTRS)
    return path


@dataclass(frozen=True)
class Session:
    """A training and its events."""

    trained: Trained
    events: list[Event]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_structures(tmp_path_factory.mktemp("train") / "small.zarr", make_structures(30))


@pytest.fixture(scope="module")
def session(dataset: Path) -> Session:
    events: list[Event] = []
    return Session(train(dataset, subscribers=[events.append], **TINY), events)


def test_the_folder_is_whole_and_nothing_else_is_left(session: Session, dataset: Path) -> None:
    out = session.trained.out
    assert out == dataset.with_suffix(".mace"), "beside a dataset that belongs to no run"
    assert {file.name for file in out.iterdir()} == {"model.model", "MODEL_CARD.md", "metrics.json", "train.log"}
    assert {path.name for path in out.parent.iterdir()} == {dataset.name, out.name}
    assert json.loads((out / "metrics.json").read_text()) == session.trained.metrics


def test_progress(session: Session) -> None:
    first, *epochs = session.events
    assert isinstance(first, TrainingStarted)
    assert first.counts == {"train": 24, "val": 3, "test": 3}
    assert first.log.endswith("small.mace.train.log")
    assert [event.epoch for event in epochs if isinstance(event, EpochFinished)] == list(range(N_EPOCHS))
    assert epochs[-1].loss < epochs[0].loss
    assert str(epochs[0]).startswith("epoch    0 of 5  loss ")
    assert session.trained.metrics["epochs"] == N_EPOCHS
    assert session.trained.metrics["history"] == [event.as_json() for event in epochs]


def test_errors_are_those_of_the_written_model(session: Session, dataset: Path) -> None:
    potential = build_potential("mace", {"model": str(session.trained.model)}, "cpu", "float64")
    ds = daskpipe.open_dataset(dataset)
    held_out = [atoms for atoms in (daskpipe.to_atoms(ds, row) for row in range(30)) if atoms.info["split"] == "test"]
    deltas = [
        evaluation.forces - atoms.get_forces()
        for atoms, evaluation in zip(held_out, evaluate(potential, held_out), strict=True)
        if isinstance(evaluation, Results)
    ]
    splits = session.trained.metrics["splits"]
    rmse = float(np.sqrt(np.mean(np.concatenate(deltas) ** 2)))
    assert splits["test"]["all"]["forces"]["rmse"] == pytest.approx(rmse, rel=1e-3)
    assert splits["test"]["all"]["n_structures"] == len(held_out)
    assert set(splits["train"]) == {"all", "alloy", "cluster"}
    assert splits["train"]["cluster"]["stress"] is None
    assert splits["train"]["alloy"]["stress"]["rmse"] > 0


def test_the_mean_predictor_is_that_of_the_training_split(session: Session, dataset: Path) -> None:
    spec = load.spec(dataset, "train")
    errors = session.trained.metrics["splits"]["train"]["all"]
    assert errors["forces"]["mean_predictor_rmse"] == pytest.approx(spec.rms_force, rel=1e-6)
    assert errors["energy"]["mean_predictor_rmse"] == pytest.approx(spec.std_residual_per_atom, rel=1e-6)
    assert session.trained.metrics["e0s"] == spec.e0s


def test_mace_receives_the_values_of_the_dataset(session: Session, dataset: Path) -> None:
    spec = load.spec(dataset, "train", TINY["r_max"])
    module = build_potential("mace", {"model": str(session.trained.model)}, "cpu", "float64").calculator.models[0]
    assert module.atomic_numbers.tolist() == [29, 79]
    assert float(module.r_max) == pytest.approx(TINY["r_max"])
    assert module.atomic_energies_fn.atomic_energies.ravel().tolist() == pytest.approx(
        list(spec.e0s.values()), rel=1e-5
    )
    assert float(module.scale_shift.scale) == pytest.approx(spec.rms_force, rel=1e-5)
    assert float(module.interactions[0].avg_num_neighbors) == pytest.approx(spec.avg_num_neighbors, rel=1e-5)


def test_the_test_split_is_not_shown(session: Session) -> None:
    command = (session.trained.out / "train.log").read_text().splitlines()[0]
    assert command.startswith("mace_run_train --name=model --train_file=train.extxyz --valid_file=val.extxyz")
    assert "test_file" not in command


def test_card(session: Session, dataset: Path) -> None:
    card = (session.trained.out / "MODEL_CARD.md").read_text()
    sha256 = identify_potential("mace", {"model": str(session.trained.model)}).hash
    assert f"`{sha256}`" in card
    assert session.trained.metrics["sha256"] == sha256 == file_hash(session.trained.model)
    for words in ("A MACE for Cu, Au", "key `k1`", "24 train, 3 val, 3 test", "Teacher: EMT (SHA-256 `0123`)"):
        assert words in card
    assert "| test | 3 | all |" in card
    assert "| `lr` | `0.02` |" in card
    assert str(dataset.parent) not in card, "a card has no place on one machine"


def test_the_model_moves_atoms(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move atoms with the calculator of MACE, and in a batch of torch-sim."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as MACE sets it where daskpipe does not prevent it
    import torch
    from mace.calculators import MACECalculator

    from daskpipe.core.torch_sim import torch_sim

    atoms = make_structures(2)[1]
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        calculator = MACECalculator(str(session.trained.model), device="cpu", default_dtype="float64")
    atoms.calc = calculator
    potential = build_potential("mace", {"model": str(session.trained.model)}, "cpu", "float64")
    state = torch_sim.io.atoms_to_state([atoms, atoms], torch.device("cpu"), torch.float64)
    energies = batched_model(potential)(state)["energy"].tolist()
    assert energies == pytest.approx([atoms.get_potential_energy()] * 2, abs=1e-6)


@pytest.mark.slow
def test_a_run_explores_with_it(session: Session, client: Client, tmp_path: Path) -> None:
    overrides = [
        *SMALL,
        f"explore.potential={{name: mace, params: {{model: {session.trained.model}}}}}",
        "explore.dtype=float64",
    ]
    result = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run", client=client)
    attributes = daskpipe.open_dataset(result.dataset).attrs
    assert json.loads(attributes["explore_potential"])["sha256"] == session.trained.metrics["sha256"]
    assert training._default_out(tmp_path / "run" / "dataset.zarr") == tmp_path / "run" / "model"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(session: Session, dataset: Path, tmp_path: Path) -> None:
    again = train(dataset, tmp_path / "again", **TINY)
    assert again.metrics["splits"] == session.trained.metrics["splits"]
    assert again.metrics["sha256"] == session.trained.metrics["sha256"]
    other = train(dataset, tmp_path / "other", **TINY | {"seed": 1})
    assert other.metrics["splits"] != session.trained.metrics["splits"]


@pytest.mark.slow
def test_a_training_that_runs_out_of_time_keeps_its_best_epoch(dataset: Path, tmp_path: Path) -> None:
    no_time, endless = 1e-6, 100_000
    trained = train(dataset, tmp_path / "short", max_minutes=no_time, **TINY | {"epochs": endless})
    assert 1 <= trained.metrics["epochs"] < endless
    assert trained.metrics["splits"]["test"]["all"]["forces"]["rmse"] > 0
    log = (trained.out / "train.log").read_text()
    assert f"Loaded Stage one model from epoch {trained.metrics['best_epoch']} " in log


@pytest.mark.slow
def test_training_goes_on_from_a_foundation(session: Session, dataset: Path, tmp_path: Path) -> None:
    overrides = ["batch_size=6"]
    trained = train(
        dataset, tmp_path / "tuned", epochs=1, device="cpu", foundation=str(session.trained.model), overrides=overrides
    )
    before = session.trained.metrics["history"][-1]["loss"]
    assert trained.metrics["history"][0]["loss"] < 1.2 * before, "one epoch from scratch is far worse"
    assert trained.metrics["foundation"] == f"MACE model.model (SHA-256 {session.trained.metrics['sha256']})"
    assert trained.metrics["history"][0]["loss"] < session.trained.metrics["history"][0]["loss"]


@pytest.mark.slow
def test_large_datasets_are_read_from_hdf5(
    session: Session, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "IN_MEMORY", 0)
    trained = train(dataset, tmp_path / "streamed", **TINY)
    assert "--train_file=train.h5" in (trained.out / "train.log").read_text()
    rmse = trained.metrics["splits"]["test"]["all"]["forces"]["rmse"]
    assert rmse == pytest.approx(session.trained.metrics["splits"]["test"]["all"]["forces"]["rmse"], rel=0.05)


@pytest.mark.slow
def test_a_failure_of_mace_is_reported_and_its_log_stays(dataset: Path, tmp_path: Path) -> None:
    wrong = TINY | {"overrides": [*TINY["overrides"], "scheduler=nonsense"]}
    with pytest.raises(InputError, match="Unknown scheduler: 'nonsense'") as failure:
        train(dataset, tmp_path / "model", **wrong)
    log = tmp_path / "model.train.log"
    assert f"mace_run_train failed with exit code 1; the end of its log {log} is" in str(failure.value)
    assert "VERIFYING SETTINGS" in log.read_text()
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.slow
def test_a_training_that_diverges_is_stopped(dataset: Path, tmp_path: Path) -> None:
    wild = TINY | {"overrides": [*TINY["overrides"][:-1], "lr=1e30"]}
    with pytest.raises(InputError, match="diverged in epoch 0: the loss is nan; give a smaller learning rate"):
        train(dataset, tmp_path / "model", **wild)


class Signal(BaseException):
    """An exception that is not an `Exception`, as the command line raises on SIGTERM."""


def test_an_interruption_before_mace_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    def stop(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="^interrupted. To train again type the same command"):
        train(dataset, tmp_path / "model", subscribers=[stop], **TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interruption_stops_mace_and_names_its_log(dataset: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, EpochFinished):
            raise Signal

    with pytest.raises(
        Interrupted, match="interrupted; the log is .*model.train.log. To train again type the same command"
    ):
        train(dataset, tmp_path / "model", subscribers=[stop], **TINY | {"epochs": 100_000})
    assert "Started training" in (tmp_path / "model.train.log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model.train.log"]
    left = [child for child in psutil.Process().children() if "mace.cli.run_train" in child.cmdline()]
    assert not left, "MACE has ended"


def test_an_existing_folder_is_refused(session: Session, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="small.mace exists; give another --out, or --force to replace it"):
        train(dataset)
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ConfigError, match="is not the folder of a model"):
        train(dataset, tmp_path, force=True)


def test_wrong_arguments(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(ConfigError, match="unknown size 'smal'. Did you mean 'small'"):
        train(dataset, out, size="smal")
    with pytest.raises(ConfigError, match="unknown dtype 'float16'.*Known: float32, float64"):
        train(dataset, out, dtype="float16")
    with pytest.raises(ConfigError, match="max_minutes=0: give a time greater than 0"):
        train(dataset, out, max_minutes=0)
    with pytest.raises(ConfigError, match="r_max=-1: give a cutoff in Å"):
        train(dataset, out, r_max=-1)
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        train(dataset, out, device="gpu")
    with pytest.raises(InputError, match="does not exist; give the path of a dataset"):
        train(dataset.with_name("none.zarr"))


def test_wrong_overrides(dataset: Path) -> None:
    spec = load.spec(dataset, "train", 4.0)
    for override, message in (
        ("lr", "'lr': options of mace_run_train are typed KEY=VALUE"),
        ("leaning_rate=1", "unknown option of mace_run_train 'leaning_rate'"),
        ("seed=3", "'seed=3': daskpipe gives seed itself"),
        ("batch_size=25", "batch_size=25: there are 24 training structures; give a number from 1 to that"),
        ("batch_size=few", "batch_size=few: there are 24"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose_options("small", spec, None, [override])
    with pytest.raises(ConfigError, match="epochs=0: give at least 1"):
        choose_options("small", spec, 0, [])


def test_datasets_that_cannot_be_trained_on(tmp_path: Path) -> None:
    structures = make_structures(10)
    no_val = write_structures(tmp_path / "no_val.zarr", structures, {"train": 0.8, "val": 0.0, "test": 0.2})
    with pytest.raises(InputError, match=r"no structures of split 'val' \(8 train, 0 val, 2 test\).*daskpipe merge"):
        train(no_val)
    for atoms in structures:
        atoms.calc = None
    with pytest.raises(InputError, match="holds no energy and no forces; label it first"):
        train(write_structures(tmp_path / "bare.zarr", structures))


def test_compositions_that_do_not_determine_the_energies_of_atoms_are_told(tmp_path: Path) -> None:
    structures = []
    for seed in range(10):
        atoms = bulk("NaCl", "rocksalt", a=5.6 + 0.01 * seed)
        forces = np.zeros((2, 3))  # which end the training once the energies are read
        atoms.calc = SinglePointCalculator(atoms, energy=-6.8, forces=forces)
        structures.append(atoms)
    events: list[Event] = []
    with pytest.raises(InputError, match="all forces of split train are 0"):
        train(write_structures(tmp_path / "salt.zarr", structures), subscribers=[events.append])
    (notice,) = events
    assert isinstance(notice, Notice)
    assert "do not determine the energies of Na, Cl" in notice.message


def test_elements_that_cannot_be_learnt(dataset: Path, tmp_path: Path) -> None:
    ds = daskpipe.open_dataset(dataset).load()
    of_split = {split: np.flatnonzero(ds["split"].values == code) for code, split in enumerate(SPLITS)}
    for split, message in (
        ("val", "no structure of split train holds Pt, and some of val do; split anew, e.g. daskpipe merge"),
        ("train", "the foundation model does not know Pt; take one that does, or train without"),
    ):
        ds["numbers"][int(ds["atom_start"][of_split[split][0]])] = 78
        path = tmp_path / f"{split}.zarr"
        write_dataset(ds, path, attrs=ATTRS)
        with pytest.raises(InputError, match=message):
            train(path, foundation="bundled")


def test_hyper_parameters_follow_the_size_of_the_dataset(dataset: Path) -> None:
    from dataclasses import replace

    spec = load.spec(dataset, "train", 4.0)
    quickstart = choose_options("small", replace(spec, n_structures=58), None, [])
    assert quickstart["batch_size"] == 58 // BATCHES
    assert quickstart["max_num_epochs"] == STEPS // (58 // quickstart["batch_size"])
    assert "num_channels" not in choose_options("small", spec, None, [], foundation="f.model"), "the model has its own"
    large = choose_options("medium", replace(spec, n_structures=100_000), None, [])
    assert (large["batch_size"], large["max_num_epochs"]) == (MAX_BATCH, EPOCHS[0])
    assert choose_options("small", replace(spec, n_structures=2), None, [])["batch_size"] == 1
    assert large["num_channels"] == SIZES["medium"]["num_channels"]
    for chosen in (quickstart, large):
        last = chosen["lr_scheduler_gamma"] ** chosen["max_num_epochs"]
        assert last == pytest.approx(0.01, rel=0.05), "the learning rate ends at a hundredth"
    assert choose_options("small", spec, None, ["lr=0.5", "r_max=6"])["lr"] == "0.5"


def test_options_as_mace_takes_them() -> None:
    from mace.tools import build_default_arg_parser

    chosen = {"name": "m", "ema": "false", "amsgrad": True, "plot": False, "hidden_irreps": "8x0e + 8x1o"}
    words = command_line(chosen)
    assert words == ["--name=m", "--amsgrad", "--plot=False", "--hidden_irreps=8x0e + 8x1o"]
    parsed = build_default_arg_parser().parse_args(words)
    assert (parsed.ema, parsed.amsgrad, parsed.plot, parsed.hidden_irreps) == (False, True, False, "8x0e + 8x1o")
    assert parse_overrides(["--swa=true"]) == {"swa": "true"}


def label_structure(energy: float, force: float, stress: float | None) -> Atoms:
    atoms = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 3]])
    labels: dict[str, Any] = {"energy": energy, "forces": np.full((2, 3), force)}
    if stress is not None:
        labels["stress"] = np.full(6, stress)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def test_errors_by_hand() -> None:
    results = Results(energy=1.0, forces=np.zeros((2, 3)), stress=np.zeros(6))
    cases = [
        (label_structure(3.0, 2.0, 0.5), results),
        (label_structure(1.0, -4.0, None), results),
        (label_structure(0.0, 0.0, None), Failure(reason="failed", evidence="")),
    ]
    result = measure_errors(cases, {"Cu": 1.0, "Au": 0.0})
    assert (result["n_structures"], result["n_atoms"], result["failures"]) == (3, 6, {"failed": 1})
    assert result["energy"]["mae"] == pytest.approx(0.5)
    assert result["energy"]["rmse"] == pytest.approx(np.sqrt(0.5))
    assert result["energy"]["mean_predictor_mae"] == pytest.approx(0.5), "(|1 - 3| + |1 - 1|) / 2 atoms / 2"
    assert result["forces"]["mae"] == pytest.approx(3.0)
    assert result["forces"]["rmse"] == result["forces"]["mean_predictor_rmse"] == pytest.approx(np.sqrt(10))
    assert result["forces"]["times_better"] == pytest.approx(1.0)
    assert result["stress"]["mae"] == pytest.approx(0.5)
    assert measure_errors([], {})["forces"] is None


def test_labels_without_forces_are_reported() -> None:
    still = [(label_structure(3.0, 0.0, None), Results(energy=1.0, forces=np.full((2, 3), 0.25), stress=None))]
    exact = [(label_structure(3.0, 0.0, None), Results(energy=1.0, forces=np.zeros((2, 3)), stress=None))]
    pulled = [(label_structure(3.0, 2.0, None), Results(energy=1.0, forces=np.zeros((2, 3)), stress=None))]
    right = [
        (
            label_structure(3.0, 2.0, None),
            Results(energy=1.0, forces=label_structure(3.0, 2.0, None).get_forces(), stress=None),
        )
    ]
    failed = [(label_structure(0.0, 0.0, None), Failure(reason="unknown_element", evidence=""))]
    said = {
        "forces RMSE 0.2500 eV/Å: all forces of its labels are 0": still,
        "forces RMSE 0.0000 eV/Å: all forces of its labels are 0": exact,
        "1.0 times better than no forces at all": pulled,
        "forces RMSE 0.0000 eV/Å: those of its labels, exactly": right,
        "test   no errors, for the model failed on all of its structures: 1 unknown_element": failed,
    }
    for end, cases in said.items():
        errors = measure_errors(cases, {"Cu": 1.0, "Au": 0.0})
        line = format_errors("test", errors)
        assert line.startswith("test   ")
        assert line.endswith(end)


def test_a_training_split_without_forces_is_refused(dataset: Path, tmp_path: Path) -> None:
    ds = daskpipe.open_dataset(dataset).load()
    ds["forces"][:] = 0.0
    write_dataset(ds, tmp_path / "still.zarr", attrs=ATTRS)
    with pytest.raises(InputError, match=r"all forces of split train are 0.*daskpipe merge .*still.zarr -o new.zarr"):
        train(tmp_path / "still.zarr")
    assert not (tmp_path / "still.mace").exists()


def test_structures_that_a_potential_does_not_know_are_counted(dataset: Path) -> None:
    potential = build_potential("mace", {}, "cpu", "float32")  # Cu, Ag and Au
    strange = make_structures(10)
    for atoms in strange[:5]:
        atoms.symbols[0] = "Pt"
    path = write_structures(dataset.with_name("strange.zarr"), strange)
    splits = measure_accuracy(path, potential, load.spec(path, None).e0s)
    assert sum(groups["all"]["failures"].get("unknown_element", 0) for groups in splits.values()) == 5
    assert sum(groups["all"]["n_structures"] for groups in splits.values()) == 10


def test_no_more_than_a_sample_of_a_split_is_evaluated(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from daskpipe.train import accuracy

    monkeypatch.setattr(accuracy, "MOST", 2)
    monkeypatch.setattr(accuracy, "BLOCK", 7)
    splits = measure_accuracy(dataset, build_potential("emt", {}, "cpu", "float64"), {"Cu": 0.0, "Au": 0.0})
    assert [splits[split]["all"]["n_structures"] for split in ("train", "val", "test")] == [2, 2, 2]
    assert splits["train"]["all"]["forces"]["rmse"] < 1e-5, "the labels are EMT's own"


def test_a_card_lists_failures(session: Session) -> None:
    facts = session.trained.metrics
    splits = {
        "test": {"all": measure_errors([(label_structure(0, 1, None), Failure(reason="not_finite", evidence=""))], {})}
    }
    card = model_card("m", facts, splits)
    assert "| test | 1 | all | - | - | - | - | - |" in card
    assert "Structures without a result: {'test': {'not_finite': 1}}." in card
