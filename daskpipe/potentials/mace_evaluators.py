"""Choose what evaluates a MACE model, torch or symmetrix, from facts that need neither of them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from daskpipe.core.errors import ConfigError

TORCH, SYMMETRIX = "torch", "symmetrix"

PACKAGE = "symmetrix-xl"
"""Distribution that holds symmetrix."""

FAST = "pip install 'daskpipe[fast]'"

MAX_ELL, CORRELATION = 3, 3
"""Largest degree of the harmonics, and body order less one, of the models that symmetrix 0.1 takes."""


def choose_evaluator(acceleration: str, device: str, misfit: str | None = None) -> tuple[str, str]:
    """Choose the evaluator of a model.

    Parameters
    ----------
    acceleration
        As in `daskpipe.potentials.mace.mace`.
    device
        ``cpu`` or ``cuda``.
    misfit
        Why symmetrix does not take the model, from `find_misfit`; ``None`` if it may.

    Returns
    -------
    name, why : str
        `TORCH` or `SYMMETRIX`, and why that one.

    Raises
    ------
    ConfigError
        For ``symmetrix`` where it is not installed or cannot run.
    """
    if acceleration not in ("auto", SYMMETRIX):
        return TORCH, f"acceleration={acceleration}"
    if misfit is not None:
        return TORCH, misfit
    if (obstacle := _find_obstacle(device)) is not None:
        if acceleration == SYMMETRIX:
            raise ConfigError(f"potential 'mace': acceleration=symmetrix {obstacle}; or give acceleration=auto")
        return TORCH, f"symmetrix {obstacle}"
    return SYMMETRIX, f"acceleration={acceleration}"


def _find_obstacle(device: str) -> str | None:
    if device != "cpu":
        return f"runs on a CPU here, and device is {device}: give device=cpu"
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"runs on Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    if "avx2" not in _cpu_flags():
        return "needs a CPU with AVX2, which this one has not"
    if find_spec("symmetrix") is None:
        return f"is not installed: {FAST}"
    return None


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def find_misfit(hypers: Mapping[str, Any]) -> str | None:
    """Explain why symmetrix does not take a model; ``None`` if it may.

    Parameters
    ----------
    hypers
        ``max_ell``, and ``correlation`` as one number or one a layer.
    """
    correlation = hypers["correlation"]
    correlations = set(correlation) if isinstance(correlation, list) else {correlation}
    if (hypers["max_ell"], correlations) == (MAX_ELL, {CORRELATION}):
        return None
    return (
        f"symmetrix takes models with max_ell {MAX_ELL} and correlation {CORRELATION}, and this one has "
        f"{hypers['max_ell']} and {', '.join(map(str, sorted(correlations)))}"
    )
