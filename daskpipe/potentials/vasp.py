"""VASP, for solids, through its ASE calculator, with a check that the field converged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from daskpipe.potentials.ase_codes import identity_of_program, require_program
from daskpipe.potentials.identity import Identity
from daskpipe.potentials.isolated.process import CalculatorSpec, isolate_calculator
from daskpipe.potentials.isolated.teachers import Memory, Seconds, make_limits
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Failure
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

TRAITS = Traits(packages=("ase",), costly=True, batch_size=2)

ROBUST = {"algo": "All", "nelm": 300}
"""All bands together by conjugate gradients: slow and sure, with the same result."""


def vasp(
    *,
    device: str,
    dtype: str,
    command: str = "vasp_std",
    pseudopotentials: str = "recommended",
    xc: str = "PBE",
    cutoff: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 520.0,
    k_spacing: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.22,
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6,
    settings: dict[str, Any] | None = None,
    timeout: Seconds = 7200.0,
    memory: Memory | None = None,
) -> Potential:
    """VASP, for solids. Source: doi.org/10.1103/PhysRevB.54.11169.

    Its pseudopotentials are found by ASE: set ``VASP_PP_PATH``. A structure counts only if VASP says that the required
    accuracy was reached; if not, it is tried once more with ``ALGO = All`` and 300 steps.

    Parameters
    ----------
    device, dtype
        Ignored: the program decides.
    command
        Starts VASP, e.g. ``mpirun -n 16 vasp_std``.
    pseudopotentials
        ASE's set: ``minimal``, ``recommended``, ``materialsproject`` or ``gw``.
    xc
        Functional, as ASE names it.
    cutoff
        Of the plane waves, eV.
    k_spacing
        Between k-points, 1/Å (``KSPACING``).
    tolerance
        Change of the energy at which the field counts as converged, eV (``EDIFF``).
    settings
        Further keys of INCAR in lower case, e.g. ``{ispin: 2, ismear: 0, sigma: 0.05}``.
    timeout, memory
        What a structure may take, s and with a unit, e.g. ``8GB``; its process is then replaced.
    """
    require_program("vasp", command)
    normal = {
        "command": command, "setups": pseudopotentials, "xc": xc, "encut": cutoff, "kspacing": k_spacing,
        "ediff": tolerance, "nsw": 0, "lwave": False, "lcharg": False, **(settings or {}),
    }  # fmt: skip
    spec = CalculatorSpec(
        place=f"{__name__}:make_calculator",
        arguments={"settings": normal},
        robust={"settings": {**normal, **ROBUST}},
        facts={"charge": "charge"},
        find_fault=find_unconverged,
    )
    return isolate_calculator(spec, make_limits(timeout, memory), knows_charge=True)


def identify(**params: Any) -> Identity:
    """Identify a method by its input; raise ConfigError if there is no VASP."""
    require_program("vasp", params["command"])
    return identity_of_program(f"VASP {params['xc']}", "vasp", params)


def make_calculator(settings: dict[str, Any]) -> Calculator:
    """Return ASE's calculator, which computes in the current directory."""
    from ase.calculators.vasp import Vasp

    return Vasp(directory=".", **settings)


def find_unconverged(folder: Path) -> Failure | None:
    """Return why the calculation in a folder does not count; ``None`` if it converged."""
    file = folder / "OUTCAR"
    text = file.read_text(errors="replace") if file.exists() else ""
    if not text or "aborting loop because EDIFF is reached" in text:
        return None
    steps = re.findall(r"^-+ Iteration\s+\d+\(\s*(\d+)\)", text, re.MULTILINE)
    changes = re.findall(r"total energy-change \(2\. order\)\s*:\s*(\S+)", text)
    last = f"; its last change was {changes[-1]} eV" if changes else ""
    return Failure(
        reason="unconverged", evidence=f"the SCF did not converge in {steps[-1] if steps else 0} steps{last}"
    )
