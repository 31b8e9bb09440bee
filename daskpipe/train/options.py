"""Choose the options of ``mace_run_train`` by the size of the model and of the dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daskpipe.core.errors import ConfigError, describe_unknown

if TYPE_CHECKING:
    from daskpipe.load import Spec

Options = dict[str, Any]
"""Options of ``mace_run_train`` by name, without dashes."""

SIZES: dict[str, Options] = {
    "small": {
        "num_channels": 32, "max_L": 0, "max_ell": 2, "correlation": 2, "num_interactions": 2, "num_radial_basis": 6,
        "radial_MLP": "[32, 32]", "r_max": 5.0,
    },
    "medium": {
        "num_channels": 64, "max_L": 1, "max_ell": 3, "correlation": 3, "num_interactions": 2, "num_radial_basis": 8,
        "radial_MLP": "[64, 64, 64]", "r_max": 5.0,
    },
}  # fmt: skip
"""Architectures by size: ``small`` trains on two cores without a GPU, ``medium`` needs a GPU or many hours."""

COMMON: Options = {
    "model": "MACE", "pair_repulsion": True, "scaling": "rms_forces_scaling",
    "loss": "universal", "energy_weight": 10, "forces_weight": 10, "stress_weight": 100,
    "lr": 0.02, "amsgrad": True, "scheduler": "ExponentialLR", "clip_grad": 10, "ema": True, "ema_decay": 0.99,
    "error_table": "PerAtomRMSE", "plot": False, "save_cpu": True,
}  # fmt: skip
"""Options of all sizes. The loss is that of the MACE-MP models; the ZBL repulsion (``pair_repulsion``) keeps atoms
apart where there is no data."""

STEPS, EPOCHS = 1_500, (30, 400)
"""Updates of the weights for a small dataset, and the fewest and most passes over the data."""

BATCHES, MAX_BATCH = 12, 32
"""Number of batches in an epoch, and most structures in a batch, which takes precedence."""

DECAY = 0.01
"""Learning rate at the end over that at the beginning."""

FOUNDATION_LR = 0.001
"""Learning rate where training begins with the weights of a model."""

OURS = (
    "name", "seed", "device", "default_dtype", "work_dir", "log_dir", "model_dir", "checkpoints_dir", "results_dir",
    "config", "train_file", "valid_file", "valid_fraction", "test_file", "test_dir", "statistics_file", "E0s", "std",
    "mean", "atomic_numbers", "avg_num_neighbors", "compute_avg_num_neighbors", "max_num_epochs", "foundation_model",
    "multiheads_finetuning", "heads", "dry_run", "restart_latest", "energy_key", "forces_key", "stress_key", "plot",
    "save_cpu", "distributed", "launcher", "help",
)  # fmt: skip
"""Options that daskpipe sets itself, or that its training excludes."""


def cutoff_of(size: str, r_max: float | None, overrides: Sequence[str]) -> float:
    """Return the cutoff in Å: from an override, `r_max`, or the preset.

    Raises
    ------
    ConfigError
        If the size is unknown, or the cutoff is not a positive number.

    Examples
    --------
    >>> cutoff_of("small", None, []), cutoff_of("small", 6.0, [])
    (5.0, 6.0)
    """
    if size not in SIZES:
        raise ConfigError(describe_unknown("size", size, list(SIZES)))
    given = parse_overrides(overrides).get("r_max", SIZES[size]["r_max"] if r_max is None else r_max)
    try:
        cutoff = float(given)
    except ValueError:
        cutoff = math.nan
    if not 0 < cutoff < math.inf:
        raise ConfigError(f"r_max={given}: give a cutoff in Å, e.g. r_max=5")
    return cutoff


def choose_options(
    size: str, spec: Spec, epochs: int | None, overrides: Sequence[str], foundation: str | None = None
) -> Options:
    """Choose hyper-parameters for a training set.

    Parameters
    ----------
    size
        A key of `SIZES`.
    spec
        Normalisation of the training split, with its cutoff.
    epochs
        Passes over the data; by default as many as give about `STEPS` updates.
    overrides
        ``KEY=VALUE`` with names of MACE, e.g. ``lr=0.005``; they take precedence.
    foundation
        File of the model with whose weights training begins; its architecture replaces that of `size`.

    Raises
    ------
    ConfigError
        If an override is not an option of MACE, or is one that daskpipe sets itself.
    """
    given = parse_overrides(overrides)
    batch_size = given.get("batch_size", str(max(1, min(MAX_BATCH, spec.n_structures // BATCHES))))
    if not (batch_size.isdecimal() and 0 < int(batch_size) <= spec.n_structures):
        raise ConfigError(
            f"batch_size={batch_size}: there are {spec.n_structures} training structures; give a number from 1 to that"
        )
    fewest, most = EPOCHS
    if epochs is None:
        epochs = max(fewest, min(most, STEPS // (spec.n_structures // int(batch_size))))
    if epochs < 1:
        raise ConfigError(f"epochs={epochs}: give at least 1")
    chosen = COMMON | ({} if foundation is not None else SIZES[size]) | {
        "r_max": spec.cutoff, "batch_size": int(batch_size), "valid_batch_size": MAX_BATCH, "max_num_epochs": epochs,
        "lr_scheduler_gamma": round(DECAY ** (1 / epochs), 6),
    }  # fmt: skip
    if foundation is not None:
        chosen |= {"foundation_model": foundation, "multiheads_finetuning": False, "lr": FOUNDATION_LR}
    return chosen | given


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Parse ``KEY=VALUE`` overrides into a dict; raises as `choose_options`."""
    if not overrides:
        return {}
    known = _list_options()
    parsed = {}
    for override in overrides:
        key, equals, value = override.lstrip("-").partition("=")
        if not equals:
            raise ConfigError(f"{override!r}: options of mace_run_train are typed KEY=VALUE, e.g. lr=0.005")
        if key in OURS:
            raise ConfigError(f"{override!r}: daskpipe gives {key} itself; see `daskpipe train --help`")
        if key not in known:
            raise ConfigError(describe_unknown("option of mace_run_train", key, known))
        parsed[key] = value
    return parsed


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Format options as words of the command line; flags appear only if they are true."""
    flags = _list_flags()
    words = []
    for key, value in options.items():
        if key not in flags:
            words.append(f"--{key}={value}")
        elif str(value).lower() in ("true", "1", "yes"):
            words.append(f"--{key}")
    return words


def _list_actions() -> list[Any]:
    """Return the options of the argument parser of MACE."""
    from daskpipe.core.third_party import import_mace

    import_mace()
    from mace.tools import build_default_arg_parser

    return list(build_default_arg_parser()._actions)


def _list_options() -> list[str]:
    """Return the names of the options of ``mace_run_train`` that may be overridden."""
    return sorted(
        name for action in _list_actions() for word in action.option_strings if (name := word.lstrip("-")) not in OURS
    )


def _list_flags() -> set[str]:
    """Return the names of the options that take no value."""
    return {word.lstrip("-") for action in _list_actions() if action.nargs == 0 for word in action.option_strings}
