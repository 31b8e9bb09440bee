"""ORCA, for molecules, through its ASE calculator, with a check that the field converged."""

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


def orca(
    *,
    device: str,
    dtype: str,
    method: str = "PBE def2-SVP TightSCF",
    blocks: str = "",
    command: str = "orca",
    n_ranks: Annotated[int, Field(ge=1)] = 1,
    timeout: Seconds = 3600.0,
    memory: Memory | None = None,
) -> Potential:
    """ORCA, for molecules, with charge and spin. Source: doi.org/10.1002/wcms.1606.

    A structure counts only if ORCA says that the field converged and that it ended normally. If the field did not
    converge, it is tried once more with ``SlowConv`` and 500 steps.

    Parameters
    ----------
    device, dtype
        Ignored: ORCA runs on the CPU in float64.
    method
        Words of its simple input line; ``EnGrad`` is added.
    blocks
        Further input, e.g. ``%scf MaxIter 300 end``.
    command
        Path of the program: in full where it has several ranks, as ORCA wants it.
    n_ranks
        MPI ranks that it starts.
    timeout, memory
        What a structure may take, s and with a unit, e.g. ``8GB``; its process is then replaced.
    """
    more = f"{blocks}\n%pal nprocs {n_ranks} end" if n_ranks > 1 else blocks
    normal = {"command": require_program("orca", command), "method": f"{method} EnGrad", "blocks": more}
    robust = {**normal, "method": f"{method} EnGrad SlowConv", "blocks": f"{more}\n%scf MaxIter 500 end"}
    spec = CalculatorSpec(
        place=f"{__name__}:make_calculator",
        arguments=normal,
        robust=robust,
        facts={"charge": "charge", "mult": "spin_multiplicity"},
        find_fault=find_unconverged,
    )
    return isolate_calculator(spec, make_limits(timeout, memory), knows_charge=True, periodic=False)


def identify(**params: Any) -> Identity:
    """Identify a method by its input; raise ConfigError if there is no ORCA."""
    require_program("orca", params["command"])
    return identity_of_program(f"ORCA {params['method']}", "orca", params)


def make_calculator(command: str, method: str, blocks: str) -> Calculator:
    """Return ASE's calculator, which computes in the current directory."""
    from ase.calculators.orca import ORCA, OrcaProfile

    return ORCA(
        profile=OrcaProfile(command=command), orcasimpleinput=method, orcablocks=blocks, charge=0, mult=1, directory="."
    )


def find_unconverged(folder: Path) -> Failure | None:
    """Return why the calculation in a folder does not count; ``None`` if it converged."""
    file = folder / "orca.out"
    text = file.read_text(errors="replace") if file.exists() else ""
    cycles = re.findall(r"SCF (NOT )?CONVERGED AFTER\s+(\d+) CYCLES", text)
    if cycles and cycles[-1][0]:
        changes = re.findall(r"Last Energy change\s+\.\.\.\s+(\S+)", text)
        last = f"; its last change was {changes[-1]} Hartree" if changes else ""
        return Failure(reason="unconverged", evidence=f"the SCF did not converge in {cycles[-1][1]} cycles{last}")
    if not cycles or "ORCA TERMINATED NORMALLY" not in text:
        return None if not text else Failure(reason="failed", evidence=f"ORCA did not end normally: {text[-500:]}")
    return None
