"""Any ASE calculator by its place, in a process of its own."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from daskpipe.core.errors import ConfigError
from daskpipe.core.versions import read_version
from daskpipe.potentials.identity import Identity, file_hash, hash_facts
from daskpipe.potentials.isolated.process import CalculatorSpec, isolate_calculator
from daskpipe.potentials.isolated.teachers import Memory, Seconds, make_limits
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

TRAITS = Traits(packages=("ase",), costly=True)


def ase(
    *,
    device: str,
    dtype: str,
    calculator: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")],
    arguments: dict[str, Any] | None = None,
    robust: dict[str, Any] | None = None,
    charge: str | None = None,
    multiplicity: str | None = None,
    elements: list[str] | None = None,
    timeout: Seconds = 3600.0,
    memory: Memory | None = None,
) -> Potential:
    """Any ASE calculator of this environment, in a process of its own that is replaced when it crashes or hangs.

    Parameters
    ----------
    device, dtype
        Ignored: give the calculator's own words among the arguments.
    calculator
        ``module:Class``, or ``module:function`` that returns one. A calculator that does not converge must raise
        ``CalculationFailed``: ASE has no other word for it, and numbers that it gives are taken.
    arguments
        Its arguments, as in the config.
    robust
        Arguments for a second try of a structure that did not converge; by default there is none.
    charge, multiplicity
        Names of its parameters for the charge and the spin multiplicity of a structure. Without the first, charged
        structures are rejected.
    elements
        Symbols of the elements that it knows; all by default.
    timeout, memory
        What a structure may take, s and with a unit, e.g. ``8GB``; its process is then replaced.
    """
    facts = {name: fact for fact, name in (("charge", charge), ("spin_multiplicity", multiplicity)) if name}
    spec = CalculatorSpec(
        place=calculator, arguments=arguments or {}, robust=robust, facts=facts, environment={"OMP_NUM_THREADS": "1"}
    )
    known = frozenset(elements) if elements is not None else None
    return isolate_calculator(spec, make_limits(timeout, memory), elements=known, knows_charge=charge is not None)


def identify(**params: Any) -> Identity:
    """Identify a calculator by its place and arguments, and by its source if it is in no package.

    Raises
    ------
    ConfigError
        If its module cannot be found.
    """
    module = params["calculator"].partition(":")[0]
    top = module.partition(".")[0]
    spec = find_spec(module) if find_spec(top) else None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"calculator: there is no module {module!r} in this environment; install its package, or give a teacher "
            "with an environment of its own (potential isolated)"
        )
    names = _find_packages(top)
    deciding = {key: value for key, value in params.items() if key not in ("timeout", "memory")}
    program = names[0] if names else file_hash(Path(spec.origin))
    elements = params.get("elements")
    return Identity(
        name=params["calculator"],
        hash=hash_facts(program, deciding),
        elements=frozenset(elements) if elements else None,
        packages={name: read_version(name) for name in names},
    )


@cache
def _find_packages(module: str) -> list[str]:
    """Return the names of the installed packages that a module belongs to."""
    try:
        return [distribution(module).name]
    except PackageNotFoundError:  # named otherwise: found in the lists of files of all packages, which takes seconds
        return packages_distributions().get(module, [])
