"""One step of molecular dynamics for a batch whose systems differ in ensemble, temperature and pressure.

The step is the splitting BAOAB of Leimkuhler and Matthews (DOI 10.1098/rspa.2016.0138): half a kick, half a drift,
the thermostat, half a drift, half a kick. All thermostats act in the middle (DOI 10.1063/1.5124010); without one it is
velocity Verlet. The barostat, stochastic cell rescaling, acts beside them, so that the forces are those of the cell
that the step ends in.

A system's numbers do not depend on its neighbours in the batch, to the last bit: all arithmetic is element-wise
multiplication, addition, division and square root, which round in one way only, exponentials of one element, and sums
over the atoms of one system in their order. torch-sim's own integrators draw noise for the batch as a whole and take
one ensemble a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from daskpipe.core.torch_sim import torch_sim
from daskpipe.potentials.batches import sum_segments

CHAIN_LENGTH = 3
"""Thermostats of a Nosé-Hoover chain."""


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """Positions, momenta and results of the model: float64, Å, eV, amu and the units that follow from them."""

    positions: torch.Tensor
    """Shape (atom, 3)."""
    momenta: torch.Tensor
    """Shape (atom, 3)."""
    forces: torch.Tensor
    """Shape (atom, 3)."""
    cell: torch.Tensor
    """Shape (system, 3, 3); rows are vectors."""
    energy: torch.Tensor
    """Shape (system,)."""
    stress: torch.Tensor
    """Shape (system, 3, 3), positive under tension; NaN where the model gives none."""
    disagreement: torch.Tensor
    """Largest disagreement of a committee about a force, eV/Å, shape (system,); NaN without one."""
    start_energy: torch.Tensor
    """Energy at the start of the trajectory, shape (system,)."""


@dataclass(frozen=True, kw_only=True)
class DynamicsState(BatchState):
    """State of molecular dynamics after a step."""

    chain: torch.Tensor
    """Positions and momenta of the Nosé-Hoover chain, shape (system, 2, `CHAIN_LENGTH`)."""


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Constants of the systems of a batch."""

    masses: torch.Tensor
    """Shape (atom, 1), amu."""
    system: torch.Tensor
    """System of each atom, shape (atom,)."""
    n_atoms: torch.Tensor
    """Shape (system,)."""
    degrees_of_freedom: torch.Tensor
    """Shape (system,): 3N - 3, since no thermostat moves the centre of mass; 3 for a single atom. With fixed atoms see
    `daskpipe.stages.explore.fixed_atoms`."""
    langevin: torch.Tensor
    """Mask of systems with a Langevin thermostat, bool, shape (system,)."""
    nose_hoover: torch.Tensor
    """Mask of systems with a Nosé-Hoover chain, bool, shape (system,)."""
    rescale: torch.Tensor
    """Mask of systems with stochastic velocity rescaling, bool, shape (system,)."""
    strain_modes: torch.Tensor
    """Strains that the barostat of each system may make, shape (system, 6, 3, 3); see `ensembles.strain_modes`."""
    has_chain: bool
    """Whether any system has a chain."""
    has_rescale: bool
    """Whether any system is rescaled."""
    has_barostat: bool
    """Whether any system has a barostat."""
    free: torch.Tensor | None = None
    """1 for components of atoms that may move and 0 for fixed ones, shape (atom, 3); None if nothing is fixed."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Temperatures, pressures and random numbers with which thermostats and barostats act in one step."""

    thermal_energy: torch.Tensor
    """kT, shape (system,)."""
    langevin_momenta: torch.Tensor
    """Momenta that the Langevin thermostat adds, shape (atom, 3); zero for fixed components."""
    rescaling_numbers: torch.Tensor
    """A standard normal number and a sum of 3N - 4 squares of such, shape (system, 2)."""
    pressure: torch.Tensor
    """Shape (system,)."""
    strain_numbers: torch.Tensor
    """Standard normal numbers of the barostat, shape (system, 6)."""


@dataclass(frozen=True, kw_only=True)
class CouplingRates:
    """Time steps and the rates at which thermostats and barostats act."""

    dt: torch.Tensor
    """Time steps, shape (system,)."""
    damping: torch.Tensor
    """exp(-friction dt), shape (system,)."""
    thermostat_time: float
    """Relaxation time of velocity rescaling and of the chain."""
    barostat_rate: float
    """Compressibility over relaxation time."""


type Evaluate = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
"""Function from positions and cells to energy, forces, stress and disagreement."""


def baoab_step(
    state: DynamicsState, systems: Systems, coupling: Coupling, rates: CouplingRates, evaluate: Evaluate
) -> DynamicsState:
    """Make one step of molecular dynamics; nothing is changed in place, so that a failed step can be repeated.

    Parameters
    ----------
    state
        State before the step.
    systems
        The members of the batch.
    coupling
        Temperatures, pressures and random numbers of this step.
    rates
        Time steps and rates of thermostats and barostats.
    evaluate
        The model. It is called once.

    Returns
    -------
    DynamicsState
        State after the step.
    """
    half = (rates.dt / 2)[systems.system, None]
    momenta = state.momenta + half * forces_on_free(state.forces, systems)
    positions = state.positions + half * momenta / systems.masses
    cell, chain = state.cell, state.chain
    scale = torch.where(systems.langevin, rates.damping, 1.0)
    if systems.has_chain or systems.has_rescale:
        kinetic = kinetic_energy(momenta, systems)
        if systems.has_rescale:
            scale = torch.where(systems.rescale, rescaling_factor(kinetic, coupling, rates), scale)
        if systems.has_chain:
            chain_scale, moved = nose_hoover_factor(
                kinetic, chain, systems.degrees_of_freedom, coupling.thermal_energy, rates
            )
            chain = torch.where(systems.nose_hoover[:, None, None], moved, chain)
            scale = torch.where(systems.nose_hoover, chain_scale, scale)
    momenta = scale[systems.system, None] * momenta + coupling.langevin_momenta
    if systems.has_barostat:
        strain = cell_strain(state, momenta, systems, coupling, rates)
        stretch, shrink = matrix_exponential(strain), matrix_exponential(-strain)
        cell = multiply_matrices(cell, stretch)
        positions = transform_vectors(stretch, positions, systems.system)
        momenta = transform_vectors(shrink, momenta, systems.system)
    positions = positions + half * momenta / systems.masses
    evaluated = evaluate(positions, cell)
    momenta = momenta + half * forces_on_free(evaluated["forces"], systems)
    return replace(state, positions=positions, momenta=momenta, cell=cell, chain=chain, **evaluated)


def forces_on_free(forces: torch.Tensor, systems: Systems) -> torch.Tensor:
    """Return the forces with zeros on fixed components."""
    return forces if systems.free is None else forces * systems.free


def rescaling_factor(kinetic: torch.Tensor, coupling: Coupling, rates: CouplingRates) -> torch.Tensor:
    """Return the factor of the momenta in stochastic velocity rescaling. Source: DOI 10.1063/1.2408420, equation A7.

    Parameters
    ----------
    kinetic
        Kinetic energy, shape (system,).
    coupling, rates
        As in `baoab_step`.
    """
    keep = torch.exp(-rates.dt / rates.thermostat_time)
    quantum = 0.5 * coupling.thermal_energy * (1 - keep)
    normal, squares = coupling.rescaling_numbers[:, 0], coupling.rescaling_numbers[:, 1]
    root = torch.sqrt(keep * kinetic)
    added = normal * torch.sqrt(quantum)
    wanted = (root + added) * (root + added) + quantum * squares
    return torch.where(root + added < 0, -1.0, 1.0) * torch.sqrt(wanted / kinetic)


def nose_hoover_factor(
    kinetic: torch.Tensor,
    chain: torch.Tensor,
    degrees_of_freedom: torch.Tensor,
    thermal: torch.Tensor,
    rates: CouplingRates,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factor of the momenta, and the chain, after one step of torch-sim's Nosé-Hoover chain.

    Parameters
    ----------
    kinetic
        Kinetic energy, shape (system,).
    chain, degrees_of_freedom, thermal, rates
        As in `baoab_step`.
    """
    # torch-sim's chains have one time step for all systems, and go half of it. In units of its own each has 1.
    dt = rates.dt[:, None]
    functions = torch_sim.integrators.md.construct_nose_hoover_chain(
        dt=2.0, chain_length=CHAIN_LENGTH, chain_steps=1, sy_steps=3, tau=rates.thermostat_time / rates.dt
    )
    start = functions.initialize(degrees_of_freedom, kinetic, thermal)
    start = torch_sim.integrators.md.NoseHooverChain(
        chain[:, 0], chain[:, 1] / dt, start.masses, start.tau, kinetic, degrees_of_freedom
    )
    one = torch.ones_like(kinetic)[:, None]
    scale, end = functions.half_step(one, start, thermal, torch.arange(len(kinetic), device=kinetic.device))
    return scale[:, 0], torch.stack([end.positions, end.momenta * dt], dim=1)


def cell_strain(
    state: DynamicsState, momenta: torch.Tensor, systems: Systems, coupling: Coupling, rates: CouplingRates
) -> torch.Tensor:
    """Return the logarithmic strain of the cells in one step of stochastic cell rescaling, shape (system, 3, 3).

    Isotropic: DOI 10.1063/5.0020514; anisotropic: DOI 10.3390/app12031139. In logarithmic strain there is no term
    of the noise in the drift, for any set of modes. Sampled is V^(N+1) exp(-(U + PV) / kT) per logarithmic strain:
    with one isotropic mode the isothermal-isobaric ensemble, with all six the fully flexible one. The step is Euler's:
    the variance of the volume is too large by half of dt over its relaxation time (measured: 4 % at a thirtieth, and
    nothing at the default of a thousandth).

    Parameters
    ----------
    state
        Stress and cells before the step.
    momenta
        Momenta in the middle of the step.
    systems, coupling, rates
        As in `baoab_step`.
    """
    volume = cell_determinant(state.cell).abs()
    inner = torch.stack(
        [sum_per_system(momenta * momenta[:, i : i + 1] / systems.masses, systems) for i in range(3)], 1
    )
    # The centre of mass rests, so its share kT of the ideal gas is added.
    share = torch.where(systems.n_atoms > 1, coupling.thermal_energy, 0.0) / volume - coupling.pressure
    excess = inner / volume[:, None, None] - state.stress + share[:, None, None] * torch.eye(3).to(inner)
    width = torch.sqrt(2 * rates.barostat_rate * rates.dt / 3 * coupling.thermal_energy / volume)
    strain = torch.zeros_like(state.cell)
    for number in range(systems.strain_modes.shape[1]):
        mode = systems.strain_modes[:, number]
        # Unused modes are masked: the stress of a structure that is not periodic is NaN.
        push = torch.where(mode != 0, mode * excess, 0.0).flatten(1)
        push = rates.barostat_rate * rates.dt / 3 * ordered_sum(push)
        strain = strain + (push + width * coupling.strain_numbers[:, number])[:, None, None] * mode
    return torch.where(systems.strain_modes.flatten(1).any(dim=1)[:, None, None], strain, 0.0)


def sum_per_system(values: torch.Tensor, systems: Systems) -> torch.Tensor:
    """Sum rows of atoms, shape (atom, n), over each system, in their order."""
    return sum_segments(values, systems.n_atoms)


def kinetic_energy(momenta: torch.Tensor, systems: Systems) -> torch.Tensor:
    """Return the kinetic energy of each system, shape (system,)."""
    return 0.5 * sum_per_system(momenta * momenta / systems.masses, systems).sum(dim=1)


def ordered_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over the second axis from left to right."""
    total = values[:, 0]
    for column in range(1, values.shape[1]):
        total = total + values[:, column]
    return total


def transform_vectors(matrices: torch.Tensor, vectors: torch.Tensor, system: torch.Tensor) -> torch.Tensor:
    """Multiply each atom's vector by the matrix of its system."""
    columns = [matrices[:, :, i][system] * vectors[:, i : i + 1] for i in range(3)]
    return columns[0] + columns[1] + columns[2]


def multiply_matrices(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply 3 x 3 matrices, with a fixed order of the sums."""
    terms = [left[:, :, i : i + 1] * right[:, i : i + 1, :] for i in range(3)]
    return terms[0] + terms[1] + terms[2]


def matrix_exponential(matrices: torch.Tensor) -> torch.Tensor:
    """Return the exponential of small 3 x 3 matrices: five terms are exact to rounding below a strain of a percent."""
    term = total = torch.eye(3).to(matrices).expand_as(matrices)
    for order in range(1, 6):
        term = multiply_matrices(term, matrices) / order
        total = total + term
    return total


def cell_determinant(cell: torch.Tensor) -> torch.Tensor:
    """Return the determinants of 3 x 3 matrices, shape (system,)."""
    a, b, c = cell[:, 0], cell[:, 1], cell[:, 2]
    cross = b[:, [1, 2, 0]] * c[:, [2, 0, 1]] - b[:, [2, 0, 1]] * c[:, [1, 2, 0]]
    return ordered_sum(a * cross)
