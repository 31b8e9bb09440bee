"""The potentials by name: who they are, and how one is built, once per process."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.registry import Registry
from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.potential import Potential

POTENTIALS = Registry(
    "potential",
    {
        "chgnet": "daskpipe.potentials.chgnet:chgnet",
        "committee": "daskpipe.potentials.committee:committee",
        "emt": "daskpipe.potentials.emt:emt",
        "lj": "daskpipe.potentials.lj:lj",
        "mace": "daskpipe.potentials.mace:mace",
        "xtb": "daskpipe.potentials.xtb:xtb",
    },
    group="daskpipe.potentials",
    given=("device", "dtype"),
)

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")

_built: dict[tuple[str, ...], Potential] = {}
# Torch's fx tracing in MACE's loader is not thread-safe, and `quiet` changes what belongs to the whole process.
_building = threading.RLock()


def build_potential(name: str, params: Mapping[str, Any], device: str = "auto", dtype: str = "float32") -> Potential:
    """Build a potential, or return the one that this process has built before.

    Parameters
    ----------
    name
        One of ``POTENTIALS.known_names()``.
    params
        Its parameters, as in the config.
    device
        ``auto`` (CUDA if torch sees one), ``cpu`` or ``cuda``. xTB runs on the CPU in any case.
    dtype
        ``float32`` or ``float64``. xTB computes in float64 and CHGNet in float32 in any case.

    Returns
    -------
    Potential
        The same object for the same arguments, unless the model file has changed.

    Raises
    ------
    ConfigError
        For an unknown name, parameter, device or dtype, and if CUDA is asked for and not there.
    InputError
        If the model file is missing or cannot be read.
    """
    device = resolve_device(device)
    if dtype not in DTYPES:
        raise ConfigError(describe_unknown("dtype", dtype, list(DTYPES)))
    params = check_params(name, params)
    # The parameters beside the hash: some change how numbers are computed, and not which.
    key = (name, identify_potential(name, params).hash, json.dumps(params, sort_keys=True), device, dtype)
    with _building:
        if key not in _built:
            with silence_libraries():
                _built[key] = POTENTIALS.get(name)(device=device, dtype=dtype, **params)
        return _built[key]


def identify_potential(name: str, params: Mapping[str, Any]) -> Identity:
    """Say which potential it is without building it.

    Parameters
    ----------
    name, params
        As for `build_potential`.

    Returns
    -------
    Identity
        Torch is imported only for the names of foundation models, which are looked up (and fetched once) by MACE.

    Raises
    ------
    ConfigError
        For an unknown name or parameter.
    InputError
        If the model file does not exist, or a foundation model is neither cached nor can be fetched.
    """
    params = check_params(name, params)
    factory = POTENTIALS.get(name)
    identify = getattr(sys.modules[factory.__module__], "identify", None)
    if identify is not None:
        found: Identity = identify(**params)
        return found
    (point,) = entry_points(group=POTENTIALS.group, name=name)
    return identity_of_package(name, point.dist.name if point.dist else name, params)


def check_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with defaults filled in.

    Raises
    ------
    ConfigError
        Naming each parameter that is unknown, missing or wrong, and what was received.
    """
    try:
        return POTENTIALS.check_params(name, params)
    except ValidationError as error:
        known = sorted(POTENTIALS.params_model(name).model_fields)
        wrong = []
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            if item["type"] == "extra_forbidden":
                wrong.append(describe_unknown("parameter", key, known))
            else:
                wrong.append(f"{key}: {item['msg']}, received {item['input']!r}.")
        raise ConfigError(f"potential {name!r}: {' '.join(wrong)}") from error


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    ConfigError
        For another word, and if CUDA is asked for and torch sees none.
    """
    if device not in DEVICES:
        raise ConfigError(describe_unknown("device", device, list(DEVICES)))
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ConfigError("device=cuda, but torch sees no CUDA device in this process; give device=auto or device=cpu")
    return "cpu"
