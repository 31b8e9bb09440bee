"""What works on this machine: tried, not looked up."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from daskpipe.cluster.sites import known_sites, read_site
from daskpipe.core.errors import ConfigError, DaskpipeError

# PBS and SGE both submit with qsub.
SCHEDULERS = {
    "Slurm": "sbatch",
    "PBS": "pbsnodes",
    "LSF": "bsub",
    "SGE": "qconf",
    "HTCondor": "condor_submit",
    "OAR": "oarsub",
}


def examine() -> dict[str, dict[str, dict[str, Any]]]:
    """Try what a run may need.

    Returns
    -------
    dict
        Sections of ``{"name": {"ok": bool, "says": str}}``; JSON types. A potential is ok if it gave a finite
        energy here.
    """
    return {
        "machine": _machine(),
        "potentials": {name: _try(attempt) for name, attempt in _potentials().items()},
        "schedulers": {name: _command(program) for name, program in SCHEDULERS.items()},
        "sites": {name: _site(path) for name, path in sorted(known_sites().items())},
    }


def _row(ok: bool, says: str) -> dict[str, Any]:
    return {"ok": ok, "says": says}


def _machine() -> dict[str, dict[str, Any]]:
    import psutil
    import torch

    disk = shutil.disk_usage(".")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "Python": _row(sys.version_info >= (3, 12), sys.version.split()[0]),
        "cores": _row(True, str(os.cpu_count())),
        "memory": _row(True, f"{psutil.virtual_memory().available / 1e9:.1f} GB free"),
        "disk": _row(disk.free > 1e9, f"{disk.free / 1e9:.1f} GB free here"),
        "GPU": _row(bool(gpus), ", ".join(gpus) or "none that torch can use; potentials run on the CPU"),
        "packages": _row(
            True, ", ".join(f"{name} {version(name)}" for name in ("torch", "mace-torch", "dask", "zarr"))
        ),
    }


def _potentials() -> dict[str, Callable[[], str]]:
    from ase.build import bulk, molecule

    metal, water = bulk("Cu", cubic=True), molecule("H2O")

    def energy(name: str, atoms: Any, **params: Any) -> Callable[[], str]:
        def attempt() -> str:
            from daskpipe import potentials

            identity = potentials.identify_potential(name, params)
            found = potentials.evaluate(potentials.build_potential(name, params, "auto", "float64"), [atoms])[0]
            if isinstance(found, potentials.Failure):
                raise DaskpipeError(f"{identity.name}: {found.reason}: {found.evidence}")
            value = found.energy / len(atoms)
            return f"{identity.name}: {value:.4f} eV/atom for {atoms.get_chemical_formula()}"

        return attempt

    return {
        "emt": energy("emt", metal),
        "mace (bundled)": energy("mace", metal),
        "chgnet": energy("chgnet", metal),
        "xtb": energy("xtb", water),
    }


def _try(attempt: Callable[[], str]) -> dict[str, Any]:
    from daskpipe.core.third_party import quiet

    try:
        # What libraries deprecate is not what was asked.
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _row(True, attempt())
    except Exception as error:  # whatever goes wrong is what the doctor is asked to report
        return _row(False, f"{type(error).__name__}: {error}")


def _site(path: Path) -> dict[str, Any]:
    try:
        site = read_site(str(path))
    except ConfigError as error:
        return _row(False, str(error))
    pools = ", ".join(f"{name} (at most {pool.jobs} jobs)" for name, pool in site.pools.items())
    return _row(shutil.which(site.submit_command) is not None, f"{path}: {site.kind}, pools {pools}")


def _command(program: str) -> dict[str, Any]:
    path = shutil.which(program)
    return _row(path is not None, path or f"no {program} on the PATH")
