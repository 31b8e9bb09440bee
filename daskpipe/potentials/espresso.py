"""Quantum ESPRESSO, for solids, through its ASE calculator, with a check that the field converged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from daskpipe.core.errors import ConfigError
from daskpipe.core.registry import FolderName
from daskpipe.potentials.ase_codes import identity_of_program, require_program
from daskpipe.potentials.identity import Identity, file_hash
from daskpipe.potentials.isolated.process import CalculatorSpec, isolate_calculator
from daskpipe.potentials.isolated.teachers import Memory, Seconds, make_limits
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Failure
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

TRAITS = Traits(packages=("ase",), costly=True, batch_size=2)

ROBUST = {"mixing_beta": 0.2, "electron_maxstep": 300, "diagonalization": "cg"}
"""Slow mixing and conjugate gradients, with the same result."""


def espresso(
    *,
    device: str,
    dtype: str,
    pseudopotentials: dict[str, str],
    pseudo_dir: FolderName,
    command: str = "pw.x",
    cutoff: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0,
    density_cutoff: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    k_spacing: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25,
    smearing: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-9,
    settings: dict[str, dict[str, Any]] | None = None,
    timeout: Seconds = 7200.0,
    memory: Memory | None = None,
) -> Potential:
    """Quantum ESPRESSO, for solids. Source: doi.org/10.1088/1361-648X/aa8f79.

    A structure counts only if the program says that convergence was achieved; if not, it is tried once more with slow
    mixing and 300 steps.

    Parameters
    ----------
    device, dtype
        Ignored: the program decides.
    pseudopotentials
        File of each element, in `pseudo_dir`: the elements that it knows.
    pseudo_dir
        Folder with these files.
    command
        Starts the program, e.g. ``mpirun -n 8 pw.x``.
    cutoff, density_cutoff
        Of wave functions and of the density, Ry; the second is four times the first by default.
    k_spacing
        Between k-points, 1/Å.
    smearing
        Marzari-Vanderbilt width, Ry; 0 for fixed occupations.
    tolerance
        Error of the energy at which the field counts as converged, Ry.
    settings
        Further input by namelist, e.g. ``{system: {nspin: 2}}``.
    timeout, memory
        What a structure may take, s and with a unit, e.g. ``8GB``; its process is then replaced.
    """
    require_program("espresso", command)
    occupations = (
        {"occupations": "smearing", "smearing": "mv", "degauss": smearing} if smearing else {"occupations": "fixed"}
    )
    given = settings or {}
    data = {
        "control": {"tprnfor": True, "tstress": True, "disk_io": "none", **given.get("control", {})},
        "system": {
            "ecutwfc": cutoff, "ecutrho": density_cutoff or 4 * cutoff, **occupations, **given.get("system", {})
        },
        "electrons": {"conv_thr": tolerance, "electron_maxstep": 100, **given.get("electrons", {})},
    }  # fmt: skip
    normal = {
        "command": command, "pseudo_dir": pseudo_dir, "pseudopotentials": pseudopotentials, "k_spacing": k_spacing,
        "data": data,
    }  # fmt: skip
    robust = {**normal, "data": {**data, "electrons": {**data["electrons"], **ROBUST}}}
    spec = CalculatorSpec(
        place=f"{__name__}:make_calculator",
        arguments=normal,
        robust=robust,
        environment={"OMP_NUM_THREADS": "1"},
        find_fault=find_unconverged,
    )
    return isolate_calculator(spec, make_limits(timeout, memory), elements=frozenset(pseudopotentials))


def identify(**params: Any) -> Identity:
    """Identify a method by its input and the bytes of its pseudopotentials.

    Raises
    ------
    ConfigError
        If there is no Quantum ESPRESSO, or no such file.
    """
    require_program("espresso", params["command"])
    hashes = {}
    for symbol, name in params["pseudopotentials"].items():
        file = Path(params["pseudo_dir"], name)
        if not file.is_file():
            raise ConfigError(f"potential 'espresso': pseudopotentials.{symbol}: there is no {file}")
        hashes[symbol] = file_hash(file)
    deciding = {**params, "pseudopotentials": hashes, "pseudo_dir": ""}
    elements = frozenset(params["pseudopotentials"])
    return identity_of_program("Quantum ESPRESSO", "espresso", deciding, elements=elements)


def make_calculator(
    command: str, pseudo_dir: str, pseudopotentials: dict[str, str], k_spacing: float, data: dict[str, Any]
) -> Calculator:
    """Return ASE's calculator, which computes in the current directory."""
    import math

    from ase.calculators.espresso import Espresso, EspressoProfile

    return Espresso(
        profile=EspressoProfile(command=command, pseudo_dir=pseudo_dir),
        pseudopotentials=pseudopotentials,
        kspacing=k_spacing / (2 * math.pi),  # ASE counts without 2 pi
        input_data=data,
        directory=".",
    )


def find_unconverged(folder: Path) -> Failure | None:
    """Return why the calculation in a folder does not count; ``None`` if it converged."""
    file = folder / "espresso.pwo"
    text = file.read_text(errors="replace") if file.exists() else ""
    if not text or ("convergence has been achieved" in text and "convergence NOT achieved" not in text):
        return None
    errors = re.findall(r"estimated scf accuracy\s+<\s+(\S+) Ry", text)
    if not errors:
        return None  # the program's own error is the reason
    return Failure(
        reason="unconverged",
        evidence=f"the SCF did not converge in {len(errors)} steps; its estimated error was {errors[-1]} Ry",
    )
