"""The table of potentials, and how one is checked, identified and built by its name.

A new potential is one file, with its factory, ``identify`` and ``TRAITS``, and one line in `POTENTIALS`. All else that
daskpipe says or asks about potentials comes from there.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from pydantic import ValidationError

from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.registry import Registry, find_entry_points
from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

POTENTIALS = Registry(
    "potential",
    {
        "emt": "daskpipe.potentials.emt:emt",
        "lj": "daskpipe.potentials.lj:lj",
        "mace": "daskpipe.potentials.mace:mace",
        "chgnet": "daskpipe.potentials.chgnet:chgnet",
        "xtb": "daskpipe.potentials.xtb:xtb",
        "diep": "daskpipe.potentials.diep:diep",
        "pyscf": "daskpipe.potentials.pyscf:pyscf",
        "cp2k": "daskpipe.potentials.cp2k:cp2k",
        "espresso": "daskpipe.potentials.espresso:espresso",
        "orca": "daskpipe.potentials.orca:orca",
        "vasp": "daskpipe.potentials.vasp:vasp",
        "ase": "daskpipe.potentials.ase_calculator:ase",
        "sevennet": "daskpipe.potentials.isolated.teachers:sevennet",
        "orb": "daskpipe.potentials.isolated.teachers:orb",
        "fennol": "daskpipe.potentials.isolated.teachers:fennol",
        "mattersim": "daskpipe.potentials.isolated.teachers:mattersim",
        "fairchem": "daskpipe.potentials.isolated.teachers:fairchem",
        "isolated": "daskpipe.potentials.isolated.teachers:isolated",
        "committee": "daskpipe.potentials.committee:committee",
    },
    group="daskpipe.potentials",
    given=("device", "dtype"),
)
"""Potentials by name; those of plugins come from the entry points ``daskpipe.potentials``."""

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")

_built: dict[tuple[str, ...], Potential] = {}
# Torch's fx tracing in MACE's loader is not thread-safe, and `silence_libraries` changes the whole process.
_building = threading.RLock()


# --- facts --------------------------------------------------------------------------------------------


def traits_of(name: str) -> Traits:
    """Return the facts about a potential that its file states.

    Raises
    ------
    ConfigError
        For an unknown name.

    Examples
    --------
    >>> traits_of("xtb").packages
    ('tblite',)
    """
    traits: Traits = POTENTIALS.find_companion(name, "TRAITS") or Traits()
    return traits


def describe_potential(name: str) -> str:
    """Return the first sentence of a potential's docstring.

    Raises
    ------
    ConfigError
        For an unknown name.

    Examples
    --------
    >>> describe_potential("lj")
    'Lennard-Jones 12-6 that goes smoothly to zero between 0.66 `r_cut` and `r_cut`.'
    """
    lines = (inspect.getdoc(POTENTIALS.get(name)) or "").splitlines()
    return f"{lines[0].split('. ')[0].rstrip('.')}." if lines else ""


def explain_evaluator(name: str, params: Mapping[str, Any], device: str) -> str | None:
    """Return in words what evaluates a potential, and why; ``None`` for a potential that leaves no choice.

    Parameters
    ----------
    name, params
        A known potential and valid parameters of it.
    device
        ``cpu`` or ``cuda``.
    """
    explain = POTENTIALS.find_companion(name, "explain_evaluator")
    return explain and f"{name} by {explain(device, **check_params(name, params))}"


def list_packages() -> list[str]:
    """List the distributions that the potentials of the table compute with, in the order of the table."""
    return list(dict.fromkeys(package for name in POTENTIALS.table for package in traits_of(name).packages))


def make_paths_absolute(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters in which the paths of files do not depend on the current directory, those of members too.

    Parameters
    ----------
    name, params
        A known potential and valid parameters of it, defaults left out or not.
    """
    absolute = POTENTIALS.make_paths_absolute(name, params)
    if (key := traits_of(name).members) in absolute:
        absolute[key] = [
            {**member, "params": make_paths_absolute(member["name"], member["params"])}
            if "params" in member
            else member
            for member in absolute[key]
        ]
    return absolute


# --- by name ------------------------------------------------------------------------------------------


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
        For an unknown name, parameter, device or dtype, for a package that is not installed, and for ``cuda`` where
        torch sees no GPU.
    InputError
        If the model file is missing or cannot be read.

    Examples
    --------
    >>> potential = build_potential("emt", {}, device="cpu")
    >>> sorted(potential.elements)
    ['Ag', 'Al', 'Au', 'Cu', 'Ni', 'Pd', 'Pt']
    """
    device = resolve_device(device)
    if dtype not in DTYPES:
        raise ConfigError(describe_unknown("dtype", dtype, list(DTYPES)))
    return build_checked(name, check_params(name, params), device, dtype)


def build_checked(name: str, params: Mapping[str, Any], device: str, dtype: str) -> Potential:
    """Build a potential as `build_potential` does, from parameters that `check_params` has returned.

    Parameters
    ----------
    name, params, dtype
        As for `build_potential`; defaults are filled in.
    device
        ``cpu`` or ``cuda``.
    """
    # The parameters beside the hash: some change how numbers are computed, and not which.
    key = (name, identify_checked(name, params).hash, json.dumps(params, sort_keys=True), device, dtype)
    with _building:
        if key not in _built:
            with silence_libraries():
                _built[key] = POTENTIALS.get(name)(device=device, dtype=dtype, **params)
        return _built[key]


def identify_potential(name: str, params: Mapping[str, Any]) -> Identity:
    """Identify a potential without building it.

    Parameters
    ----------
    name, params
        As for `build_potential`.

    Returns
    -------
    Identity
        Torch is imported only for the names of foundation models, which MACE looks up and fetches once.

    Raises
    ------
    ConfigError
        For an unknown name or parameter, and for a package that is not installed.
    InputError
        If the model file does not exist, or a foundation model is neither cached nor can be fetched.

    Examples
    --------
    >>> identify_potential("lj", {"sigma": 3.0}).name
    'Lennard-Jones'
    """
    return identify_checked(name, check_params(name, params))


def identify_checked(name: str, params: Mapping[str, Any]) -> Identity:
    """Identify a potential as `identify_potential` does, from parameters that `check_params` has returned."""
    check_packages(name)
    identify = POTENTIALS.find_companion(name, "identify")
    if identify is not None:
        identity: Identity = identify(**params)
        return identity
    (point,) = find_entry_points(POTENTIALS.group).select(name=name)
    return identity_of_package(name, point.dist.name if point.dist else name, params)


# --- checks -------------------------------------------------------------------------------------------


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
        problems = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                problems.append(describe_unknown("parameter", key, known))
            else:
                problems.append(f"{key}: {problem['msg']}, received {problem['input']!r}.")
        raise ConfigError(f"potential {name!r}: {' '.join(problems)}") from error


def check_packages(name: str) -> None:
    """Check that the packages of a potential are installed.

    Raises
    ------
    ConfigError
        Naming the one that is missing, and what to type.
    """
    traits = traits_of(name)
    for package in traits.packages:
        try:
            distribution(package)
        except PackageNotFoundError as error:
            source = f"'daskpipe[{traits.extra}]'" if traits.extra else package
            raise ConfigError(f"potential {name!r} needs the package {package}; pip install {source}") from error


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    ConfigError
        For another word, and for ``cuda`` where torch sees no GPU.
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
