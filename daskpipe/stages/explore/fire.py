"""One step of FIRE, the fast inertial relaxation engine, for a batch of systems with fixed or relaxing cells.

Source: DOI 10.1103/PhysRevLett.97.170201, in the form and with the constants of ASE's `ase.optimize.FIRE`: masses are
1, velocities are mixed before they are increased (semi-implicit Euler), and the displacement of a whole system in a
step is limited. Each system has a time step of its own.

Where the cell relaxes, its coordinates are the components of the logarithmic strain times the number of atoms, which is
the scale of ASE's `ase.filters.FrechetCellFilter`: cell and atoms share one velocity and one time step. The strain is
relative to the present cell, not to the first one; the minima are the same.

All arithmetic is element-wise or sums over one system in the order of its atoms, as in
`daskpipe.stages.explore.integrate`: a system is relaxed to the same bits in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from daskpipe.stages.explore.integrate import (
    BatchState,
    Evaluate,
    Systems,
    cell_determinant,
    forces_on_free,
    matrix_exponential,
    multiply_matrices,
    ordered_sum,
    sum_per_system,
    transform_vectors,
)

DT_START = 0.1
"""First time step, in Å / sqrt(eV) (all masses are 1)."""
DT_MAX = 1.0
"""Longest time step."""
FASTER, SLOWER = 1.1, 0.5
"""Factors of the time step after steps downhill, and after one uphill."""
N_DOWNHILL = 5
"""Steps downhill before the time step grows."""
ALPHA_START = 0.1
"""Mixing of the velocities with the direction of the forces after a step uphill."""
ALPHA_FACTOR = 0.99
"""Factor of the mixing while the time step grows."""


@dataclass(frozen=True, kw_only=True)
class FireState(BatchState):
    """State of a relaxation after a step; ``momenta`` are velocities, since all masses are 1."""

    strain_rate: torch.Tensor
    """Velocities of the cells' coordinates, shape (system, 3, 3)."""
    dt: torch.Tensor
    """Time steps, shape (system,)."""
    alpha: torch.Tensor
    """Mixing, shape (system,)."""
    n_downhill: torch.Tensor
    """Steps downhill since the last one uphill, shape (system,)."""


def fire_step(
    state: FireState, systems: Systems, pressure: torch.Tensor, max_step: float, evaluate: Evaluate
) -> FireState:
    """Make one step of FIRE; nothing is changed in place, so that a failed step can be repeated.

    Parameters
    ----------
    state
        State before the step; in the first step the velocities are zero and ``dt`` is ``DT_START / SLOWER``.
    systems
        The members of the batch; ``modes`` are the strains in which a cell relaxes.
    pressure
        Pressure on cells that relax, eV/Å^3, shape (system,).
    max_step
        Longest displacement of a system, over the coordinates of all of its atoms and its cell, Å.
    evaluate
        The model. It is called once.

    Returns
    -------
    FireState
        State after the step.
    """
    forces, pull = forces_on_free(state.forces, systems), cell_forces(state, systems, pressure)
    power = scalar_product(forces, state.momenta, pull, state.strain_rate, systems)
    strength = scalar_product(forces, forces, pull, pull, systems).sqrt()
    speed = scalar_product(state.momenta, state.momenta, state.strain_rate, state.strain_rate, systems).sqrt()
    downhill = power > 0
    # Where the power is positive neither is the force zero.
    steer = torch.where(downhill, state.alpha * speed / strength, 0.0)
    keep = torch.where(downhill, 1 - state.alpha, 0.0)
    steady = downhill & (state.n_downhill > N_DOWNHILL)
    dt = torch.where(steady, (state.dt * FASTER).clamp(max=DT_MAX), torch.where(downhill, state.dt, state.dt * SLOWER))
    push = steer + dt
    momenta = keep[systems.system, None] * state.momenta + push[systems.system, None] * forces
    rate = keep[:, None, None] * state.strain_rate + push[:, None, None] * pull
    length = dt * scalar_product(momenta, momenta, rate, rate, systems).sqrt()
    pace = torch.where(length > max_step, max_step / length, 1.0) * dt
    positions, cell = state.positions + pace[systems.system, None] * momenta, state.cell
    if systems.has_barostat:
        stretch = matrix_exponential((pace / systems.n_atoms)[:, None, None] * rate)
        cell = multiply_matrices(cell, stretch)
        positions = transform_vectors(stretch, positions, systems.system)
    alpha = torch.where(steady, state.alpha * ALPHA_FACTOR, torch.where(downhill, state.alpha, ALPHA_START))
    return replace(
        state,
        positions=positions,
        momenta=momenta,
        cell=cell,
        strain_rate=rate,
        dt=dt,
        alpha=alpha,
        n_downhill=torch.where(downhill, state.n_downhill + 1, 0.0),
        **evaluate(positions, cell),
    )


def cell_forces(state: BatchState, systems: Systems, pressure: torch.Tensor) -> torch.Tensor:
    """Return the forces on the coordinates of the cells: minus virial over number of atoms, eV, shape (system, 3, 3).

    They are zero for fixed cells.
    """
    if not systems.has_barostat:
        return torch.zeros_like(state.cell)
    excess = -state.stress - pressure[:, None, None] * torch.eye(3).to(state.stress)
    scale = cell_determinant(state.cell).abs() / systems.n_atoms
    total = torch.zeros_like(state.cell)
    for number in range(systems.strain_modes.shape[1]):
        mode = systems.strain_modes[:, number]
        # Unused modes are masked: the stress of a structure that is not periodic is NaN.
        along = ordered_sum(torch.where(mode != 0, mode * excess, 0.0).flatten(1))
        total = total + (scale * along)[:, None, None] * mode
    return torch.where(systems.strain_modes.flatten(1).any(dim=1)[:, None, None], total, 0.0)


def scalar_product(
    left: torch.Tensor, right: torch.Tensor, left_cell: torch.Tensor, right_cell: torch.Tensor, systems: Systems
) -> torch.Tensor:
    """Return scalar products over the coordinates of all atoms and of the cell, shape (system,)."""
    of_atoms = ordered_sum(sum_per_system(left * right, systems))
    return of_atoms + ordered_sum((left_cell * right_cell).flatten(1))


def largest_force(state: BatchState, systems: Systems) -> torch.Tensor:
    """Return the largest force on an atom, eV/Å, shape (system,)."""
    squares = ordered_sum(state.forces * state.forces)[:, None]
    return torch.segment_reduce(squares, "max", lengths=systems.n_atoms, axis=0)[:, 0].sqrt()


def largest_residual(state: BatchState, systems: Systems, pressure: torch.Tensor) -> torch.Tensor:
    """Return the residual that is compared with ``fmax``, shape (system,).

    It is the largest force on a free atom, eV/Å, or the largest row of the forces on the cell, eV, whichever is larger,
    as in ASE's cell filters.
    """
    pull = cell_forces(state, systems, pressure)
    squares = pull * pull
    rows = squares[:, :, 0] + squares[:, :, 1] + squares[:, :, 2]
    moving = replace(state, forces=forces_on_free(state.forces, systems))
    return torch.maximum(largest_force(moving, systems), rows.amax(dim=1).sqrt())
