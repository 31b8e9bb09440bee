"""Guards that end a trajectory. Each guard measures one quantity of every system and has a limit.

Batch guards are checked after every step (`find_faults`), geometries at every frame (`check_geometry`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from daskpipe.core import constants, geometry
from daskpipe.core.connectivity import periodic_directions
from daskpipe.stages.explore.integrate import BatchState, Systems, cell_determinant, kinetic_energy, sum_per_system
from daskpipe.stages.explore.settings import Guards

if TYPE_CHECKING:
    from ase import Atoms

type Fault = tuple[str, str]
"""Reason, one word, and evidence, for a person."""

FINISHED: Fault = ("finished", "")
"""Fault of a trajectory that has reached its last step."""
CANDIDATE: Fault = ("candidate", "")
"""Fault of a trajectory that ends at a frame about which the committee disagrees: a candidate for a label."""


RARITY = 25.0
"""Minus the logarithm of the chance that a sane system is stopped for its temperature in a step."""


RELEASED_ENERGY = 0.5
"""Potential energy of a start, eV an atom, that may turn into heat. Atoms that a generator has displaced by 0.1 Å hold
0.1 eV in metals and 0.3 eV in molecules; more than this is a hole in the potential."""


BOND_REACH = 1.25
"""Longest bond in sums of covalent radii, or about that."""


@dataclass(frozen=True, kw_only=True)
class BatchView:
    """State of a batch as guards see it."""

    state: BatchState
    systems: Systems
    thermal_energy: torch.Tensor
    """kT of the thermostats, shape (system,)."""
    volume: torch.Tensor
    """Volumes at the start, Å^3, shape (system,)."""
    equilibrating: torch.Tensor
    """Which systems have not reached the end of their equilibration, bool, shape (system,)."""

    def kinetic_temperature(self) -> torch.Tensor:
        """Return instantaneous temperatures, K, shape (system,)."""
        return self._temperature_of(kinetic_energy(self.state.momenta, self.systems))

    def unexplained_temperature(self) -> torch.Tensor:
        """Return temperatures without the heat released from the start's potential energy, K, shape (system,)."""
        released = (self.state.start_energy - self.state.energy).clamp(min=0)
        most = RELEASED_ENERGY * self.systems.n_atoms
        return self._temperature_of(kinetic_energy(self.state.momenta, self.systems) - torch.minimum(released, most))

    def _temperature_of(self, kinetic: torch.Tensor) -> torch.Tensor:
        return 2 * kinetic / (self.systems.degrees_of_freedom * constants.KB)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """One quantity that is measured for each system of a batch, and its limit.

    Parameters
    ----------
    reason
        One word by which stops are counted.
    measure, limit
        Functions of a view, shape (system,). A measure that is NaN is a fault.
    evidence_format
        Evidence, a format string with the fields ``value`` and ``limit``.
    """

    reason: str
    measure: Callable[[BatchView], torch.Tensor]
    limit: Callable[[BatchView], torch.Tensor]
    evidence_format: str


def finite_guard() -> Guard:
    """Guard that positions, momenta, forces, cell and energy are finite."""

    def measure(view: BatchView) -> torch.Tensor:
        state = view.state
        # A sum is finite if all terms are; terms so large that the sum overflows are a fault, too.
        of_atoms = torch.cat([state.positions, state.momenta, state.forces], dim=1)
        total = sum_per_system(of_atoms.abs().sum(dim=1, keepdim=True), view.systems)[:, 0] + state.energy.abs()
        return torch.where((total + state.cell.abs().sum(dim=(1, 2))).isfinite(), 0.0, torch.inf)

    return Guard(
        reason="not_finite",
        measure=measure,
        limit=lambda view: torch.zeros_like(view.thermal_energy),
        evidence_format="positions, momenta, forces, cell or energy are not finite",
    )


def stress_guard() -> Guard:
    """Guard that a system with a barostat has a stress; some potentials give none along open cell vectors."""

    def measure(view: BatchView) -> torch.Tensor:
        strained = view.systems.strain_modes.flatten(1).any(dim=1)
        return torch.where(strained & view.state.stress.flatten(1).isnan().any(dim=1), torch.inf, 0.0)

    return Guard(
        reason="no_stress",
        measure=measure,
        limit=lambda view: torch.zeros_like(view.thermal_energy),
        evidence_format="its barostat needs a stress and the potential gives none for such a cell; give nvt_langevin",
    )


def force_guard(most: float) -> Guard:
    """Guard that the force on each atom is at most `most`, eV/Å."""

    def measure(view: BatchView) -> torch.Tensor:
        square = view.state.forces.square().sum(dim=1, keepdim=True)
        return torch.segment_reduce(square, "max", lengths=view.systems.n_atoms, axis=0)[:, 0].sqrt()

    return Guard(
        reason="force",
        measure=measure,
        limit=lambda view: torch.full_like(view.thermal_energy, most),
        evidence_format="a force of {value:.4g} eV/Å (limit {limit:.4g})",
    )


def temperature_guard(ratio: float) -> Guard:
    """Guard that the instantaneous temperature is at most `ratio` times that of the thermostat.

    Kinetic energy that comes from the potential energy of the start, up to `RELEASED_ENERGY`, does not count.
    Equilibration, in which this heat flows to the thermostat, is exempt.

    Small systems fluctuate: their kinetic energy is chi-square distributed, and the limit is where a sane system comes
    in one of exp(`RARITY`) steps (DOI 10.1214/aos/1015957395, lemma 1) if that is more.
    """

    def limit(view: BatchView) -> torch.Tensor:
        freedom = view.systems.degrees_of_freedom
        fluctuation = 1 + (2 * torch.sqrt(RARITY * freedom) + 2 * RARITY) / freedom
        return view.thermal_energy / constants.KB * fluctuation.clamp(min=ratio)

    return Guard(
        reason="temperature",
        measure=lambda view: torch.where(view.equilibrating, 0.0, view.unexplained_temperature()),
        limit=limit,
        evidence_format="an instantaneous temperature of {value:.4g} K beyond what its start released "
        "(limit {limit:.4g})",
    )


def volume_guard(ratio: float) -> Guard:
    """Guard that the volume stays within a factor of `ratio` of the seed's, larger or smaller."""

    def measure(view: BatchView) -> torch.Tensor:
        moved = view.systems.strain_modes.flatten(1).any(dim=1)
        now = cell_determinant(view.state.cell).abs()
        return torch.where(moved, torch.maximum(now / view.volume, view.volume / now), 1.0)

    return Guard(
        reason="volume",
        measure=measure,
        limit=lambda view: torch.full_like(view.thermal_energy, ratio),
        evidence_format="its volume has changed by a factor of {value:.4g} (limit {limit:.4g})",
    )


def committee_guard(most: float) -> Guard:
    """Guard that the members of a committee agree about all forces to `most`, eV/Å."""
    return Guard(
        reason=CANDIDATE[0],
        # NaN: there is no committee.
        measure=lambda view: view.state.disagreement.nan_to_num(),
        limit=lambda view: torch.full_like(view.thermal_energy, most),
        evidence_format=CANDIDATE[1],
    )


def batch_guards(settings: Guards) -> list[Guard]:
    """Return the guards that are checked after every step; the first one that is violated names the fault."""
    guards = [
        finite_guard(),
        stress_guard(),
        force_guard(settings.max_force),
        temperature_guard(settings.max_temperature_ratio),
        volume_guard(settings.max_volume_ratio),
    ]
    # The committee comes last: a broken geometry is no candidate.
    return guards if settings.max_disagreement is None else [*guards, committee_guard(settings.max_disagreement)]


def find_faults(guards: Sequence[Guard], view: BatchView) -> dict[int, Fault]:
    """Return the fault of each system that violates a guard: ``{system: (reason, evidence)}``."""
    values = torch.stack([guard.measure(view) for guard in guards])
    limits = torch.stack([guard.limit(view) for guard in guards])
    broken = ~(values <= limits)
    if not broken.any():
        return {}
    faults = {}
    for system in torch.nonzero(broken.any(dim=0)).flatten().tolist():
        first = int(torch.nonzero(broken[:, system])[0])
        evidence = guards[first].evidence_format.format(
            value=float(values[first, system]), limit=float(limits[first, system])
        )
        faults[system] = (guards[first].reason, evidence)
    return faults


def check_cell_shape(atoms: Atoms, start: Atoms, ratio: float) -> Fault | None:
    """Return a fault if a cell is stretched or squeezed along one direction by a factor of more than `ratio`.

    A crystal that melts under an anisotropic barostat loses its shape, while its volume hardly changes.
    """
    if not atoms.pbc.all():
        return None
    stretches = np.linalg.svd(np.linalg.solve(start.cell.array, atoms.cell.array), compute_uv=False)
    worst = float(max(stretches.max(), 1 / stretches.min()))
    if worst <= ratio:
        return None
    return "shape", f"its cell is stretched or squeezed by a factor of {worst:.3g} (limit {ratio:g})"


def check_geometry(atoms: Atoms, start: Atoms, settings: Guards) -> Fault | None:
    """Return the fault of a geometry: overlapping atoms, a deformed cell, or a fragment that has left.

    A fragment is part of a molecule that was bonded at the start; a whole molecule that leaves others is none. In
    matter that is connected in three directions nothing can leave.

    Parameters
    ----------
    atoms
        The geometry.
    start
        Geometry at the start: the same atoms in the same order.
    settings
        Limits.
    """
    if evidence := geometry.find_overlap(atoms, settings.min_distance):
        return "overlap", evidence
    if fault := check_cell_shape(atoms, start, settings.max_volume_ratio):
        return fault
    # Atoms connected by bonds are connected by longer reaches, too; the short reach is faster to check.
    if settings.evaporation is not None and geometry.count_parts(atoms, min(BOND_REACH, settings.evaporation)) > 1:
        now, before = (geometry.label_parts(each, settings.evaporation) for each in (atoms, start))
        fragment = (
            _smallest_fragment(now, geometry.label_parts(start, BOND_REACH)) if now.max() > before.max() else None
        )
        if fragment is not None and len(periodic_directions(start)) < 3:
            formula = atoms[fragment].get_chemical_formula()
            apart = f"farther than {settings.evaporation:g} sums of covalent radii from what it was bonded to"
            return "evaporated", f"{formula} (atom {fragment[0]}) is {apart}"
    return None


def _smallest_fragment(parts: np.ndarray, molecules: np.ndarray) -> np.ndarray | None:
    """Return the atoms of the smallest piece of a molecule that lies in several parts; ``None`` if all are whole."""
    pieces, piece = np.unique(np.stack([molecules, parts], axis=1), axis=0, return_inverse=True)
    owner, n_pieces = np.unique(pieces[:, 0], return_counts=True)
    torn = np.isin(pieces[:, 0], owner[n_pieces > 1])
    if not torn.any():
        return None
    size = np.where(torn, np.bincount(piece.ravel()), len(parts) + 1)
    return np.flatnonzero(piece.ravel() == size.argmin())
