"""Train a MACE on a dataset: export, ``mace_run_train``, evaluate, publish."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from daskpipe import load, store
from daskpipe.core.errors import ConfigError, InputError, Interrupted, describe_unknown
from daskpipe.core.events import Emit, Event, Notice, fan_out
from daskpipe.core.outputs import resolve_output, swap_in
from daskpipe.core.third_party import silence_libraries
from daskpipe.core.variables import SPLITS, decode_names
from daskpipe.potentials import build_potential, identify_potential
from daskpipe.potentials.catalogue import DTYPES, resolve_device
from daskpipe.potentials.identity import file_hash
from daskpipe.store.reader import dataset_of
from daskpipe.train.accuracy import measure_accuracy
from daskpipe.train.card import dataset_facts, model_card, model_facts
from daskpipe.train.mace_run import NAME, run_mace
from daskpipe.train.options import Options, choose_options, cutoff_of

MODEL, CARD, METRICS, LOG = "model.model", "MODEL_CARD.md", "metrics.json", "train.log"
"""Files in the folder of a model."""

FOUNDATION = "foundation.model"
"""File in the work folder with the model whose weights are the first ones."""

IN_MEMORY = 500_000
"""Most atoms of the training split for which MACE keeps all graphs in memory, about 5 kB per atom; beyond, it reads
HDF5 and searches for neighbours in each epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """MACE starts. It writes to the file `log`; `counts` are the structures of the splits."""

    log: str
    counts: dict[str, int]
    n_epochs: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model and its errors.

    Parameters
    ----------
    out, model
        Folder, and the model in it: a value for ``explore.potential.params.model`` of the next run, or the first
        argument of ``MACECalculator`` of MACE.
    metrics
        Content of ``metrics.json``: the errors ``metrics["splits"]["test"]["all"]["forces"]["rmse"]`` (see
        `daskpipe.train.accuracy.measure_errors`), the ``history`` of the validation, ``sha256`` of the model,
        ``epochs``, ``best_epoch``, ``seconds``, dataset, options and versions.
    """

    out: Path
    model: Path
    metrics: dict[str, Any]


def train(
    dataset: Path | str,
    out: Path | str | None = None,
    *,
    size: str = "small",
    epochs: int | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    seed: int = 0,
    r_max: float | None = None,
    foundation: str | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    subscribers: Iterable[Emit] = (),
) -> Trained:
    """Train a MACE on the training split of a dataset with ``mace_run_train``, and measure its errors on all splits.

    Energies of single atoms are those of the isolated atoms of the dataset; for other elements they are fitted to the
    training split by least squares. Interactions are scaled by the RMS force of the training split. The weights of the
    epoch with the lowest loss on the validation split are kept. MACE never reads the test split.

    Parameters
    ----------
    dataset
        Path of a ``dataset.zarr``, or of a run directory.
    out
        Folder to make; by default ``RUN/model``, or ``NAME.mace`` beside ``NAME.zarr``. It appears when it is complete.
        Until then, and if the training fails, the log is beside it: ``OUT.train.log``.
    size
        ``small`` or ``medium``; see `daskpipe.train.options.SIZES`.
    epochs
        Passes over the training split; by default chosen from its size.
    max_minutes
        Stop after the first epoch that ends later than this, and keep the best one.
    device
        ``auto``, ``cpu`` or ``cuda``.
    dtype
        ``float32`` or ``float64``.
    seed
        Seed of the weights and of the order of the data. On a CPU the same seed, number of threads and versions give
        the same file, bit for bit, unless `max_minutes` ends the training.
    r_max
        Cutoff in Å; by default that of the preset.
    foundation
        Begin with the weights and the architecture of this MACE: ``bundled``, a file, or a name, as for the potential
        ``mace``.
    overrides
        ``KEY=VALUE`` for ``mace_run_train``, such as ``lr=0.005``.
    force
        Replace `out` if it is the folder of a model.
    subscribers
        Receive `TrainingStarted` and `EpochFinished`.

    Raises
    ------
    ConfigError
        If an argument or override is wrong, or `out` exists.
    InputError
        If `dataset` is not a dataset, has no labels, no training or no validation structures, or elements that only the
        validation split has or that `foundation` does not know; if MACE fails or diverges.
    Interrupted
        If the training was interrupted. The log stays.

    """
    path = dataset_of(dataset)
    out = Path(out) if out is not None else _default_out(path)
    _check_free(out, force)
    if dtype not in DTYPES:
        raise ConfigError(describe_unknown("dtype", dtype, list(DTYPES)))
    if max_minutes is not None and not max_minutes > 0:
        raise ConfigError(f"max_minutes={max_minutes:g}: give a time greater than 0")
    cutoff, device = cutoff_of(size, r_max, overrides), resolve_device(device)
    counts = _check_splits(path)
    emit = fan_out(*subscribers)

    started = time.perf_counter()
    place = resolve_output(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=place.parent))
    log = out.with_name(f"{out.name}.train.log")
    log.unlink(missing_ok=True)
    try:
        known = None
        if foundation is not None:
            cutoff, known = _save_foundation(foundation, work / FOUNDATION, dtype)
        spec = _read_spec(path, cutoff, emit)
        _check_elements(path, spec, known)
        if not spec.rms_force > 0:
            raise InputError(
                f"{path}: all forces of split train are 0, and MACE takes its scale from them; label structures whose "
                "atoms are pulled, or split anew, e.g. daskpipe merge "
                f"{quote(str(path))} -o new.zarr seed=1"
            )
        options = _write_data(path, spec, work) | {"seed": seed, "device": device, "default_dtype": dtype}
        options |= choose_options(size, spec, epochs, overrides, None if foundation is None else FOUNDATION)
        n_epochs = int(options["max_num_epochs"])
        emit(TrainingStarted(log=str(log), counts=counts, n_epochs=n_epochs, device=device))
        history = run_mace(options, work, log, emit, max_minutes)

        result = work / "whole"
        result.mkdir()
        os.rename(work / f"{NAME}.model", result / MODEL)
        model = build_potential("mace", {"model": str(result / MODEL)}, device, dtype)
        splits = measure_accuracy(path, model, spec.e0s)
        facts = {
            "sha256": file_hash(result / MODEL), "seed": seed, "device": device, "dtype": dtype,
            "size": size if foundation is None else None, "foundation": _name_foundation(foundation),
            "epochs": len(history), "best_epoch": min(history, key=lambda item: item.loss).epoch,
            "seconds": round(time.perf_counter() - started, 1),
            "dataset": {**dataset_facts(path), "splits": counts}, **model_facts(spec, options),
            "units": {"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"},
            "splits": splits, "history": [item.as_json() for item in history],
        }  # fmt: skip
        (result / METRICS).write_text(json.dumps(facts, indent=1) + "\n")
        (result / CARD).write_text(model_card(out.name, facts, splits))
        shutil.copyfile(log, result / LOG)
        swap_in(result, place)
        log.unlink()
    except BaseException as error:
        if isinstance(error, Exception | SystemExit):
            raise
        # Ctrl-C, or the exception that the command line makes of it.
        where = f"; the log is {log}" if log.exists() else ""
        raise Interrupted(f"interrupted{where}. To train again type the same command") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Trained(out=out, model=out / MODEL, metrics=facts)


def _default_out(path: Path) -> Path:
    """Return the default folder for the model of a dataset: in its run directory, or beside the dataset."""
    if path.with_name("ledger").is_dir():
        return path.with_name("model")
    return path.with_suffix(".mace")


def _check_free(out: Path, force: bool) -> None:
    """Refuse to replace a folder without `force`, or one that is not the folder of a model."""
    if not out.exists():
        return
    if not force:
        raise ConfigError(f"{out} exists; give another --out, or --force to replace it")
    if not (out / MODEL).is_file():
        raise ConfigError(f"{out} is not the folder of a model (it holds no {MODEL}); give another --out")


def _check_splits(path: Path) -> dict[str, int]:
    """Count the structures of each split, and refuse a dataset that MACE cannot be trained on."""
    ds = store.open_dataset(path)
    load.TorchDataset(path, verify=False)  # raises if labels are missing
    names = decode_names(ds["split"].compute(scheduler="synchronous")).tolist() if "split" in ds else []
    counts = {split: names.count(split) for split in SPLITS}
    for split in ("train", "val"):
        if not counts[split]:
            listed = ", ".join(f"{number} {name}" for name, number in counts.items())
            raise InputError(
                f"{path} has no structures of split {split!r} ({listed}); MACE needs both train and val. Split anew: "
                f"daskpipe merge {quote(str(path))} -o new.zarr 'store.split={{train:0.8,val:0.1,test:0.1}}'"
            )
    return counts


def _read_spec(path: Path, cutoff: float, emit: Emit) -> load.Spec:
    """Compute the scales of split train; emit what `daskpipe.load.spec` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = load.spec(path, "train", cutoff)
    for warning in caught:
        if warning.category is UserWarning:
            emit(Notice(message=str(warning.message)))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return spec


def _check_elements(path: Path, spec: load.Spec, known: frozenset[str] | None) -> None:
    """Refuse elements that only the validation split has, or that the foundation model does not know."""
    with warnings.catch_warnings():
        # Of energies that the few compositions of val do not determine: they are not used.
        warnings.filterwarnings("ignore", "the compositions of", UserWarning)
        of_val = load.spec(path, "val", verify=False).e0s
    if missing := sorted(set(of_val) - set(spec.e0s)):
        raise InputError(
            f"{path}: no structure of split train holds {', '.join(missing)}, and some of val do; split anew, e.g. "
            f"daskpipe merge {quote(str(path))} -o new.zarr seed=1"
        )
    if known is not None and (missing := sorted(set(spec.e0s) - known)):
        raise InputError(
            f"the foundation model does not know {', '.join(missing)}; take one that does, or train without"
        )


def _save_foundation(model: str, file: Path, dtype: str) -> tuple[float, frozenset[str] | None]:
    """Write a model in the form that MACE loads, and return its cutoff in Å and its elements."""
    import torch

    potential = build_potential("mace", {"model": model}, "cpu", dtype)
    calculator: Any = potential.calculator
    with silence_libraries():  # e3nn writes TorchScript
        torch.save(calculator.models[0], file)
    assert potential.cutoff is not None
    return potential.cutoff, potential.elements


def _name_foundation(foundation: str | None) -> str | None:
    """Return the name of a model without its path on this machine."""
    if foundation is None:
        return None
    model = identify_potential("mace", {"model": foundation})
    return f"{model.name} (SHA-256 {model.hash})"


def _write_data(path: Path, spec: load.Spec, work: Path) -> Options:
    """Export the splits train and val, write the statistics of train, and return the options that name the files."""
    from ase.data import atomic_numbers

    to, suffix = ("extxyz", "extxyz") if spec.n_atoms <= IN_MEMORY else ("mace-hdf5", "h5")
    for split in ("train", "val"):
        store.export(path, to, work / f"{split}.{suffix}", split=split)
    statistics = {
        "atomic_numbers": str(spec.elements),
        "atomic_energies": str({atomic_numbers[symbol]: energy for symbol, energy in spec.e0s.items()}),
        "avg_num_neighbors": spec.avg_num_neighbors,
        "mean": 0.0,
        "std": spec.rms_force,
    }
    (work / "statistics.json").write_text(json.dumps(statistics))
    files = {"train_file": f"train.{suffix}", "valid_file": f"val.{suffix}", "statistics_file": "statistics.json"}
    # Without an option of that name MACE computes the scale itself.
    return {**files, "std": spec.rms_force}
