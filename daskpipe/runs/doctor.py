"""Examine this machine by trying what a run may need."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daskpipe.cluster.queues import all_queue_systems
from daskpipe.cluster.sites import known_sites, read_site
from daskpipe.core.errors import ConfigError, DaskpipeError
from daskpipe.core.versions import read_version


def examine_machine() -> dict[str, dict[str, dict[str, Any]]]:
    """Try what a run may need on this machine.

    Returns
    -------
    dict
        Sections of ``{"name": {"ok": bool, "says": str}}``; JSON types. A potential is ok if it gave a finite
        energy here.
    """
    return {
        "machine": _describe_machine(),
        "potentials": {name: _try_potential(attempt) for name, attempt in _list_attempts().items()},
        "schedulers": {
            queue.title: _find_command(queue.probe_command or queue.submit_command) for queue in all_queue_systems()
        },
        "sites": {name: _describe_site(path) for name, path in sorted(known_sites().items())},
    }


def _make_row(ok: bool, says: str) -> dict[str, Any]:
    return {"ok": ok, "says": says}


def _describe_machine() -> dict[str, dict[str, Any]]:
    import psutil
    import torch

    disk = shutil.disk_usage(".")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "Python": _make_row(sys.version_info >= (3, 12), sys.version.split()[0]),
        "cores": _make_row(True, str(os.cpu_count())),
        "memory": _make_row(True, f"{psutil.virtual_memory().available / 1e9:.1f} GB free"),
        "disk": _make_row(disk.free > 1e9, f"{disk.free / 1e9:.1f} GB free here"),
        "GPU": _make_row(bool(gpus), ", ".join(gpus) or "none that torch can use; potentials run on the CPU"),
        "packages": _make_row(
            True, ", ".join(f"{name} {read_version(name)}" for name in ("torch", "mace-torch", "dask", "zarr"))
        ),
    }


def _list_attempts() -> dict[str, Callable[[], str]]:
    """Return what to run for each potential that names a structure for a trial, by its name and default model."""
    from daskpipe import potentials
    from daskpipe.core.registry import FILE

    def make_attempt(name: str, formula: str) -> Callable[[], str]:
        def compute_energy() -> str:
            from ase.build import bulk, molecule
            from ase.data import chemical_symbols

            atoms = bulk(formula, cubic=True) if formula in chemical_symbols else molecule(formula)
            identity = potentials.identify_potential(name, {})
            result = potentials.evaluate(potentials.build_potential(name, {}, "auto", "float64"), [atoms])[0]
            if isinstance(result, potentials.Failure):
                raise DaskpipeError(f"{identity.name}: {result.reason}: {result.evidence}")
            value = result.energy / len(atoms)
            return f"{identity.name}: {value:.4f} eV/atom for {atoms.get_chemical_formula()}"

        return compute_energy

    attempts = {}
    for name in potentials.POTENTIALS.table:
        if formula := potentials.traits_of(name).trial:
            fields = potentials.POTENTIALS.params_model(name).model_fields.values()
            models = [str(field.default) for field in fields if FILE in field.metadata]
            attempts[f"{name} ({models[0]})" if models else name] = make_attempt(name, formula)
    return attempts


def _try_potential(attempt: Callable[[], str]) -> dict[str, Any]:
    from daskpipe.core.third_party import silence_libraries

    try:
        # Deprecations in libraries are not part of the answer.
        with silence_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _make_row(True, attempt())
    except Exception as error:  # the answer is the error, whatever its class
        return _make_row(False, f"{type(error).__name__}: {error}")


def _describe_site(path: Path) -> dict[str, Any]:
    try:
        site = read_site(str(path))
    except ConfigError as error:
        return _make_row(False, str(error))
    pools = ", ".join(f"{name} (at most {pool.jobs} jobs)" for name, pool in site.pools.items())
    return _make_row(shutil.which(site.queue_system.submit_command) is not None, f"{path}: {site.kind}, pools {pools}")


def _find_command(program: str) -> dict[str, Any]:
    path = shutil.which(program)
    return _make_row(path is not None, path or f"no {program} on the PATH")
