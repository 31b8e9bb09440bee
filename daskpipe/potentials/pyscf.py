"""Density functional theory of molecules with Gaussian basis sets, by PySCF."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from daskpipe.core.heartbeat import send_heartbeat
from daskpipe.core.structures import spin_multiplicity, total_charge
from daskpipe.potentials.evaluate import calculator_of
from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, checked_results, refuse_periodic
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase import Atoms

TRAITS = Traits(packages=("pyscf",), extra="pyscf", trial="H2", costly=True, batch_size=4)


def pyscf(
    *,
    device: str,
    dtype: str,
    functional: str = "PBE",
    basis: str = "def2-svp",
    density_fitting: bool = True,
    grid_level: Annotated[int, Field(ge=0, le=9)] = 3,
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-9,
    max_cycles: Annotated[int, Field(ge=1)] = 100,
    threads: Annotated[int, Field(ge=1)] = 1,
) -> Potential:
    """Density functional theory of PySCF, for molecules: with charge and spin, one after another.

    Source: doi.org/10.1063/5.0006074. A structure that is periodic along any axis fails. The gradient holds the
    response of the integration grid, so that forces sum to zero. An SCF that does not converge is tried once more with
    a second-order solver (doi.org/10.1016/j.cplett.2017.01.004), and then fails as ``unconverged``.

    Parameters
    ----------
    device, dtype
        Ignored: PySCF runs on the CPU in float64.
    functional
        Any name that PySCF's libxc interface knows, e.g. ``PBE``, ``r2SCAN``, ``B3LYP``, ``wB97X``.
    basis
        Any basis set that comes with PySCF, e.g. ``def2-svp``, ``def2-tzvp``; with its effective core potentials.
    density_fitting
        Whether Coulomb integrals are fitted, which changes energies by some 0.1 meV an atom.
    grid_level
        PySCF's level of the integration grid.
    tolerance
        Change of the energy at which the SCF counts as converged, Hartree.
    max_cycles
        SCF cycles of each of the two tries.
    threads
        Threads of a calculation.
    """
    from pyscf import dft, gto, lib
    from pyscf.lib.exceptions import BasisNotFoundError
    from pyscf.scf import hf

    lib.num_threads(threads)
    hf.MUTE_CHKFILE = True  # nobody reads its checkpoints, one file in /tmp for each structure

    def make_method(atoms: Atoms) -> Any:
        multiplicity = spin_multiplicity(atoms)
        mol = gto.M(
            atom=list(zip(atoms.symbols, atoms.positions.tolist(), strict=True)),
            unit="Angstrom", basis=basis, ecp=_core_potentials(atoms, basis),
            charge=total_charge(atoms), spin=multiplicity - 1, verbose=0,
        )  # fmt: skip
        method = (dft.RKS if multiplicity == 1 else dft.UKS)(mol, xc=functional)
        method = method.density_fit() if density_fitting else method
        method.grids.level = grid_level
        method.conv_tol, method.max_cycle = tolerance, max_cycles
        method.callback = lambda _: send_heartbeat()
        return method

    def compute(atoms: Atoms) -> Evaluation:
        if refused := refuse_periodic(atoms):
            return refused
        n_electrons, n_open = int(atoms.numbers.sum()) - total_charge(atoms), spin_multiplicity(atoms) - 1
        if n_electrons < n_open or (n_electrons - n_open) % 2:
            return Failure(
                reason="spin", evidence=f"{n_electrons} electrons have no state of multiplicity {n_open + 1}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on where else a basis set may be found
                method = make_method(atoms)
        except BasisNotFoundError as error:
            return Failure(reason="unknown_element", evidence=f"the basis {basis} lacks an element: {error}")
        method.kernel()
        if not method.converged:
            first = method.e_tot
            method = method.newton()
            method.callback = lambda _: send_heartbeat()
            method.max_cycle = max_cycles
            method.kernel()
            if not method.converged:
                return Failure(
                    reason="unconverged",
                    evidence=f"the SCF did not converge in {max_cycles} cycles, nor in as many with a second-order "
                    f"solver; the energies were {first:.6f} and {method.e_tot:.6f} Hartree (tolerance {tolerance:g})",
                )
        gradient = method.nuc_grad_method()
        gradient.grid_response = True  # without it the forces of ethanol sum to 3 meV/Å
        forces = -np.asarray(gradient.kernel()) * (HARTREE / BOHR)
        return checked_results(energy=float(method.e_tot) * HARTREE, forces=forces, stress=None)

    def label(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [compute(atoms) for atoms in structures]

    return Potential(calculator=calculator_of(label), label=label)


HARTREE, BOHR = 27.211386245988, 0.529177210903
"""eV and Å, CODATA 2018, as PySCF has them."""


def identify(**params: Any) -> Identity:
    """Identify a method by functional, basis and all else that decides its numbers."""
    deciding = {key: value for key, value in params.items() if key != "threads"}
    name = f"PySCF {params['functional']}/{params['basis']}"
    return identity_of_package(name, "pyscf", deciding)


def _core_potentials(atoms: Atoms, basis: str) -> dict[str, str]:
    """Return the effective core potentials that belong to a basis set, by element; empty for light elements."""
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    potentials = {}
    for symbol in set(atoms.symbols):
        try:
            if gto.basis.load_ecp(basis, symbol):
                potentials[symbol] = basis
        except BasisNotFoundError:
            continue
    return potentials
