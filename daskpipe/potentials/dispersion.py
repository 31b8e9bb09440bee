"""Add the dispersion energy of Grimme's D3 or D4 to a potential that lacks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import total_charge
from daskpipe.core.validation import FiniteModel
from daskpipe.core.versions import read_version
from daskpipe.potentials.evaluate import calculator_of, evaluate
from daskpipe.potentials.identity import Identity, hash_facts
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, checked_results, run_calculator

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


class Dispersion(FiniteModel):
    """Dispersion that is added to the results of a potential."""

    method: Literal["d3", "d4"] = Field(description="D3 with rational damping (Becke and Johnson), or D4")
    functional: str = Field(description="Functional that the potential stands for, whose damping is taken, e.g. PBE")


def identify_with_dispersion(name: str, identity: Identity, dispersion: Dispersion) -> Identity:
    """Identify a potential with dispersion.

    Parameters
    ----------
    name, identity
        Of the potential without it.
    dispersion
        What is added.

    Raises
    ------
    ConfigError
        If the package is not installed, there is no damping for the functional, or the potential has a dispersion.
    """
    package = f"dft{dispersion.method}"
    try:
        distribution(package)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"dispersion {dispersion.method} needs the package {package}; pip install 'daskpipe[dispersion]'"
        ) from error
    if name == "xtb":
        raise ConfigError("dispersion: GFN-xTB has a dispersion of its own; leave dispersion out")
    try:
        _check_damping(dispersion)
    except RuntimeError as error:
        raise ConfigError(
            f"dispersion: {dispersion.method} has no damping for the functional {dispersion.functional!r}; give one "
            "that it was fitted to, such as PBE, r2SCAN or B3LYP"
        ) from error
    return replace(
        identity,
        name=f"{identity.name} with {dispersion.method.upper()}",
        hash=hash_facts(identity.hash, dispersion.model_dump()),
        packages={**identity.packages, package: read_version(package)},
    )


def add_dispersion(potential: Potential, dispersion: Dispersion) -> Potential:
    """Return a potential whose energies, forces and stresses have the dispersion added; it has no batched model.

    Source: doi.org/10.1002/jcc.21759 (D3 with rational damping), doi.org/10.1063/1.5090222 (D4), as dftd3 and dftd4
    compute them.
    """
    calculator = _make_calculator(dispersion)

    def add(atoms: Atoms, first: Evaluation) -> Evaluation:
        if isinstance(first, Failure):
            return first
        charged = atoms.copy()
        charged.set_initial_charges([total_charge(atoms), *[0] * (len(atoms) - 1)])  # their sum is what counts
        second = run_calculator(calculator, charged)
        if isinstance(second, Failure):
            return replace(second, evidence=f"{dispersion.method.upper()}: {second.evidence}")
        return checked_results(
            energy=first.energy + second.energy,
            forces=first.forces + second.forces,
            stress=first.stress + second.stress if atoms.pbc.all() else None,
            magmoms=first.magmoms,
        )

    def label(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [add(atoms, each) for atoms, each in zip(structures, evaluate(potential, structures), strict=True)]

    return Potential(
        calculator=calculator_of(label),
        label=label,
        elements=potential.elements,
        knows_charge=potential.knows_charge,
        lock=potential.lock,
    )


def _make_calculator(dispersion: Dispersion) -> Calculator:
    calculator: Calculator
    if dispersion.method == "d3":
        from dftd3.ase import DFTD3

        calculator = DFTD3(method=dispersion.functional, damping="d3bj")
    else:
        from dftd4.ase import DFTD4

        calculator = DFTD4(method=dispersion.functional)
    return calculator


def _check_damping(dispersion: Dispersion) -> None:
    """Load the parameters of the damping.

    Raises
    ------
    RuntimeError
        If there are none for the functional.
    """
    if dispersion.method == "d3":
        from dftd3.interface import RationalDampingParam

        RationalDampingParam(method=dispersion.functional)
    else:
        from dftd4.interface import DampingParam

        DampingParam(method=dispersion.functional)
