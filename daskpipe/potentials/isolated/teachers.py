"""Teachers that compute in an environment of their own; ``configs/teachers`` says what is installed in it.

Each function is a potential. `isolated` takes any teacher by its name, or by a file of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from daskpipe.core.registry import FileName
from daskpipe.core.validation import SIZE, in_bytes
from daskpipe.potentials.child_process import ChildLimits
from daskpipe.potentials.identity import Identity, file_hash, hash_facts
from daskpipe.potentials.isolated.environments import Teacher, read_teacher, require_environment
from daskpipe.potentials.isolated.process import CalculatorSpec, isolate_calculator
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Seconds that a structure may take; its process is then replaced."""

Memory = Annotated[str, Field(pattern=f"^{SIZE}$")]
"""Memory that the process may hold, e.g. ``8GB``."""


def make_limits(timeout: float, memory: str | None) -> ChildLimits:
    """Return the limits of a process; `memory` is a size with its unit, or ``None`` for 80 % of the machine's."""
    return ChildLimits(silence=timeout, memory=in_bytes(memory) if memory else 0)


def _isolate(
    teacher: Teacher,
    device: str,
    arguments: Mapping[str, Any],
    limits: ChildLimits,
    knows_charge: bool = False,
    elements: frozenset[str] | None = None,
) -> Potential:
    spec = CalculatorSpec(
        place=f"{teacher.file}:make_calculator",
        arguments={"device": device, **arguments},
        python=str(require_environment(teacher).python),
        environment={"OMP_NUM_THREADS": "1"} if device == "cpu" else {},
    )
    return isolate_calculator(spec, limits, elements=elements, knows_charge=knows_charge)


def _identify_named(name: str, **params: Any) -> Identity:
    """Identify a teacher by what its environment holds, its arguments, and the bytes of the files that these name."""
    teacher = read_teacher(params["teacher"] if name == "isolated" else name)
    found = require_environment(teacher)
    deciding = {key: value for key, value in params.items() if key not in ("timeout", "memory", "teacher")}
    files = {
        key: file_hash(Path(value)) for key, value in deciding.items() if isinstance(value, str) and _is_file(value)
    }
    # The package holds the weights, so its version is part of the identity; a file of the user's own is a program.
    program = file_hash(teacher.file) if name == "isolated" else teacher.requirements[0]
    elements = params.get("elements")
    return Identity(
        name=f"{teacher.name} {params.get('model') or ''}".strip(),
        hash=hash_facts(teacher.name, program, {**deciding, **files}),
        elements=frozenset(elements) if elements else None,
        packages=found.packages,
    )


def _is_file(value: str) -> bool:
    return Path(value).is_file()


def named(factory: Callable[..., Potential]) -> Callable[..., Potential]:
    """Give a potential the traits of a costly teacher, and an identity that its environment decides."""
    own: Any = factory
    own.TRAITS = Traits(costly=True)
    own.identify = partial(_identify_named, factory.__name__)
    return factory


@named
def sevennet(
    *, device: str, dtype: str, model: FileName = "7net-0", timeout: Seconds = 600.0, memory: Memory | None = None
) -> Potential:
    """SevenNet, in an environment of its own, with the weights of its package.

    Source: doi.org/10.1021/acs.jctc.4c00190.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    dtype
        Ignored: it computes in float32.
    model
        ``7net-0``, ``7net-l3i5``, another name that the package knows, or a file.
    timeout, memory
        What a structure may take, s and with a unit; its process is then replaced.
    """
    return _isolate(read_teacher("sevennet"), device, {"model": model}, make_limits(timeout, memory))


@named
def orb(
    *,
    device: str,
    dtype: str,
    model: str = "orb_v3_conservative_inf_omat",
    weights: FileName | None = None,
    timeout: Seconds = 600.0,
    memory: Memory | None = None,
) -> Potential:
    """Orb, in an environment of its own; its weights are fetched, or given as a file. Source: arxiv.org/abs/2504.06231.

    Parameters
    ----------
    device, timeout, memory
        As for `sevennet`.
    dtype
        Ignored: it computes in float32.
    model
        Name of a function of ``orb_models.forcefield.pretrained``.
    weights
        File with the weights; by default they are fetched once.
    """
    arguments = {"model": model, "weights": weights}
    return _isolate(read_teacher("orb"), device, arguments, make_limits(timeout, memory))


@named
def fennol(
    *, device: str, dtype: str, model: FileName, timeout: Seconds = 600.0, memory: Memory | None = None
) -> Potential:
    """FeNNol, in an environment of its own, with a model from a file. Source: doi.org/10.1063/5.0217688.

    Parameters
    ----------
    device, timeout, memory
        As for `sevennet`.
    dtype
        Ignored: the model decides.
    model
        File ``*.fnx``.
    """
    return _isolate(read_teacher("fennol"), device, {"model": model}, make_limits(timeout, memory))


@named
def mattersim(
    *,
    device: str,
    dtype: str,
    model: FileName = "MatterSim-v1.0.0-1M.pth",
    timeout: Seconds = 600.0,
    memory: Memory | None = None,
) -> Potential:
    """MatterSim, in an environment of its own; its weights are fetched, or a file. Source: arxiv.org/abs/2405.04967.

    Parameters
    ----------
    device, timeout, memory
        As for `sevennet`.
    dtype
        Ignored: it computes in float32.
    model
        Name of the weights, which are fetched once, or a file.
    """
    return _isolate(read_teacher("mattersim"), device, {"model": model}, make_limits(timeout, memory))


@named
def fairchem(
    *,
    device: str,
    dtype: str,
    model: FileName = "uma-s-1p1",
    task: str = "omat",
    timeout: Seconds = 600.0,
    memory: Memory | None = None,
) -> Potential:
    """Models of fairchem (UMA), in an environment of its own, with charge and spin. Source: arxiv.org/abs/2506.23971.

    Parameters
    ----------
    device, timeout, memory
        As for `sevennet`.
    dtype
        Ignored: it computes in float32.
    model
        Name of the weights, which are fetched once with an account at their host, or a file.
    task
        ``omat``, ``omol``, ``oc20``, ``odac`` or ``omc``.
    """
    arguments = {"model": model, "task": task}
    knows_charge = task == "omol"
    return _isolate(read_teacher("fairchem"), device, arguments, make_limits(timeout, memory), knows_charge)


@named
def isolated(
    *,
    device: str,
    dtype: str,
    teacher: FileName,
    arguments: dict[str, Any] | None = None,
    elements: list[str] | None = None,
    knows_charge: bool = False,
    timeout: Seconds = 600.0,
    memory: Memory | None = None,
) -> Potential:
    """Any ASE calculator, in an environment of its own.

    Parameters
    ----------
    device, timeout, memory
        As for `sevennet`.
    dtype
        Ignored: the calculator decides.
    teacher
        Name of a teacher, or a file ``*.py`` with ``REQUIREMENTS`` and ``make_calculator(device, **arguments)``.
    arguments
        Arguments of that function.
    elements
        Symbols of the elements that it knows; all by default.
    knows_charge
        Whether it reads ``charge`` and ``spin`` from ``atoms.info``. If not, charged structures are rejected.
    """
    known = frozenset(elements) if elements is not None else None
    limits = make_limits(timeout, memory)
    return _isolate(read_teacher(teacher), device, arguments or {}, limits, knows_charge, known)
