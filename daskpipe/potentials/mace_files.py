"""Store MACE models as safetensors and JSON, so that no pickle runs when one is loaded.

``NAME.safetensors`` holds the trained parameters and ``NAME.json`` the arguments of the constructor. The constructor
computes all other tensors of a MACE module (Clebsch-Gordan coefficients, Bessel roots ...) in full precision for either
dtype, so they are not stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daskpipe.core.errors import InputError

FORMAT = "daskpipe-mace/1"

CLASSES = ("interaction_cls", "interaction_cls_first", "readout_cls")
IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
ARRAYS = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")
PLAIN = (
    "r_max", "num_bessel", "num_polynomial_cutoff", "max_ell", "num_interactions", "num_elements", "use_reduced_cg",
    "use_so3", "use_edge_irreps_first", "use_agnostic_product", "use_last_readout_only", "avg_num_neighbors",
    "atomic_numbers", "correlation", "radial_type", "apply_cutoff", "radial_MLP", "pair_repulsion",
    "distance_transform", "heads",
)  # fmt: skip


def hyper_file(path: Path) -> Path:
    """Return the JSON file that belongs to a safetensors file."""
    return path.with_suffix(".json")


def read_hypers(path: Path) -> dict[str, Any]:
    """Return the hyper-parameters of the model whose weights are in `path`.

    Raises
    ------
    InputError
        If the JSON file is missing or not of this format.
    """
    file = hyper_file(path)
    try:
        hypers = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {error}; a MACE model {path.name} needs its hyper-parameters beside it") from error
    received = hypers.get("format") if isinstance(hypers, dict) else None
    if received != FORMAT:
        raise InputError(
            f"{file}: expected format {FORMAT!r}, received {received!r}; write it with mace_files.save_model"
        )
    return dict(hypers)


def load_model(path: Path, dtype: str) -> Any:
    """Rebuild a MACE module from its two files.

    Parameters
    ----------
    path
        ``NAME.safetensors``, with ``NAME.json`` beside it.
    dtype
        ``float32`` or ``float64``.

    Returns
    -------
    mace.modules.ScaleShiftMACE
        On the CPU.

    Raises
    ------
    InputError
        If a file is missing or cannot be read, or if parameters and hyper-parameters do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = build_module(read_hypers(path), dtype)
    try:
        weights = load_file(path)
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).splitlines()[:2])
        raise InputError(f"{path}: {reason}; write both files of a model with mace_files.save_model") from error
    # The constructor computed all tensors that are not parameters.
    missing = sorted(set(missing) & {name for name, _ in model.named_parameters()})
    if missing or unexpected:
        raise InputError(
            f"{path}: the weights do not fit {hyper_file(path).name}: missing {missing}, unexpected {unexpected}; "
            "write both files of a model with mace_files.save_model"
        )
    return model


def save_model(model: Any, path: Path, **facts: Any) -> None:
    """Write a MACE module as ``NAME.safetensors`` and ``NAME.json``, and check that loading restores it.

    Parameters
    ----------
    model
        ``ScaleShiftMACE``, as ``mace_run_train`` makes it.
    path
        ``NAME.safetensors``.
    **facts
        Further JSON values to store beside the hyper-parameters, such as package versions.

    Raises
    ------
    InputError
        For a model that the two files could not restore: another class, or trained constants.
    """
    import torch
    from mace import modules
    from mace.tools.scripts_utils import extract_config_mace_model
    from safetensors.torch import save

    model = model.to("cpu")
    config = extract_config_mace_model(model)
    if "error" in config or type(model).__name__ != "ScaleShiftMACE" or config["embedding_specs"] is not None:
        raise InputError(
            f"a {type(model).__name__} cannot be saved as safetensors and JSON, only a plain ScaleShiftMACE"
        )
    gates = {function: name for name, function in modules.gate_dict.items()}
    hypers = {"format": FORMAT, **facts}
    hypers |= {name: _to_json(config[name]) for name in PLAIN + ARRAYS}
    hypers |= {name: None if config[name] is None else str(config[name]) for name in IRREPS}
    hypers |= {name: config[name].__name__ for name in CLASSES}
    hypers["gate"] = gates[config["gate"]]
    path.write_bytes(save({name: value.detach().contiguous() for name, value in model.named_parameters()}))
    hyper_file(path).write_text(json.dumps(hypers, indent=1) + "\n")

    dtype = next(model.parameters()).dtype
    again = load_model(path, str(dtype).removeprefix("torch.")).state_dict()
    for name, value in model.state_dict().items():
        if not torch.allclose(again[name].to(value.dtype), value, rtol=1e-5, atol=1e-6):
            raise InputError(
                f"the model's {name} does not follow from its hyper-parameters; such a model cannot be saved"
            )


def build_module(hypers: dict[str, Any], dtype: str) -> Any:
    """Build a MACE module with fresh parameters from hyper-parameters in JSON types."""
    import numpy as np
    import torch

    from daskpipe.core.third_party import import_mace

    import_mace()
    from e3nn import o3
    from mace import modules
    from mace.tools.compile import disable_e3nn_codegen
    from mace.tools.torch_tools import default_dtype

    tables = {
        "interaction_cls": modules.interaction_classes,
        "interaction_cls_first": modules.interaction_classes,
        "readout_cls": modules.readout_classes,
    }
    arguments = {name: hypers[name] for name in PLAIN}
    arguments |= {name: np.array(hypers[name]) for name in ARRAYS}
    arguments |= {name: o3.Irreps(hypers[name]) if hypers[name] else None for name in IRREPS}
    arguments |= {name: tables[name][hypers[name]] for name in CLASSES}
    # e3nn's TorchScript is no faster here, takes longer to build, and is deprecated by torch.
    with default_dtype(getattr(torch, dtype)), disable_e3nn_codegen():
        return modules.ScaleShiftMACE(**arguments, gate=modules.gate_dict[hypers["gate"]])


def _to_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
