"""What ends a trajectory. Each guard measures one thing and knows its limit; a list of guards is a guard.

Guards of the batch look at every step, guards of a geometry at every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from daskpipe import geometry, units
from daskpipe.explore.integrate import Configuration, Systems, determinant, kinetic_energy, per_system
from daskpipe.explore.settings import Guards

if TYPE_CHECKING:
    from ase import Atoms

type Fault = tuple[str, str]
"""Reason, one word, and evidence, for a person."""

FINISHED: Fault = ("finished", "")
"""The end of a trajectory that is whole."""
CANDIDATE: Fault = ("candidate", "")
"""Its end at a frame that is worth a label, for the committee disagrees."""


RARE = 25.0
"""Minus the logarithm of the chance that a sane system is stopped for its temperature in a step."""


BOND = 1.25
"""Longest bond in sums of covalent radii, or about that."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What guards look at."""

    state: Configuration
    systems: Systems
    thermal: torch.Tensor
    """kT of the thermostats, shape (system,)."""
    volume: torch.Tensor
    """Volumes of the seeds, Å^3, shape (system,)."""

    def temperature(self) -> torch.Tensor:
        """Instantaneous temperatures, K, shape (system,)."""
        return 2 * kinetic_energy(self.state.momenta, self.systems) / (self.systems.freedom * units.KB)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """One thing that is measured for each system of a batch, and the most that is sane.

    Parameters
    ----------
    reason
        One word for counting.
    measure, limit
        From a view, shape (system,). A measure that is NaN is not sane.
    says
        Evidence, with fields ``value`` and ``limit``.
    """

    reason: str
    measure: Callable[[View], torch.Tensor]
    limit: Callable[[View], torch.Tensor]
    says: str


def finite() -> Guard:
    """See that positions, momenta, forces, cell and energy are numbers."""

    def measure(view: View) -> torch.Tensor:
        state = view.state
        # A sum is finite if all that is summed is; what overflows in it is no trajectory either.
        of_atoms = torch.cat([state.positions, state.momenta, state.forces], dim=1)
        total = per_system(of_atoms.abs().sum(dim=1, keepdim=True), view.systems)[:, 0] + state.energy.abs()
        return torch.where((total + state.cell.abs().sum(dim=(1, 2))).isfinite(), 0.0, torch.inf)

    return Guard(
        reason="not_finite",
        measure=measure,
        limit=lambda view: torch.zeros_like(view.thermal),
        says="positions, momenta, forces, cell or energy are not finite",
    )


def force(most: float) -> Guard:
    """See that the force on no atom is larger than `most`, eV/Å."""

    def measure(view: View) -> torch.Tensor:
        square = view.state.forces.square().sum(dim=1, keepdim=True)
        return torch.segment_reduce(square, "max", lengths=view.systems.n_atoms, axis=0)[:, 0].sqrt()

    return Guard(
        reason="force",
        measure=measure,
        limit=lambda view: torch.full_like(view.thermal, most),
        says="a force of {value:.4g} eV/Å (limit {limit:.4g})",
    )


def temperature(ratio: float) -> Guard:
    """See that the instantaneous temperature is at most `ratio` times that of the thermostat.

    Small systems fluctuate: their kinetic energy is chi-square distributed, and the limit is where a sane system comes
    in one of exp(`RARE`) steps (DOI 10.1214/aos/1015957395, lemma 1) if that is more.
    """

    def limit(view: View) -> torch.Tensor:
        freedom = view.systems.freedom
        fluctuation = 1 + (2 * torch.sqrt(RARE * freedom) + 2 * RARE) / freedom
        return view.thermal / units.KB * fluctuation.clamp(min=ratio)

    return Guard(
        reason="temperature",
        measure=View.temperature,
        limit=limit,
        says="an instantaneous temperature of {value:.4g} K (limit {limit:.4g})",
    )


def volume(ratio: float) -> Guard:
    """See that the volume is at most `ratio` times the seed's, nor the seed's so many times it."""

    def measure(view: View) -> torch.Tensor:
        moved = view.systems.modes.flatten(1).any(dim=1)
        now = determinant(view.state.cell).abs()
        return torch.where(moved, torch.maximum(now / view.volume, view.volume / now), 1.0)

    return Guard(
        reason="volume",
        measure=measure,
        limit=lambda view: torch.full_like(view.thermal, ratio),
        says="its volume has changed by a factor of {value:.4g} (limit {limit:.4g})",
    )


def agreement(most: float) -> Guard:
    """See that the members of a committee agree about all forces to `most`, eV/Å."""
    return Guard(
        reason=CANDIDATE[0],
        # NaN: there is no committee.
        measure=lambda view: view.state.disagreement.nan_to_num(),
        limit=lambda view: torch.full_like(view.thermal, most),
        says=CANDIDATE[1],
    )


def of_batch(settings: Guards) -> list[Guard]:
    """Return the guards that look at every step; the first that finds fault names it."""
    guards = [
        finite(),
        force(settings.max_force),
        temperature(settings.max_temperature_ratio),
        volume(settings.max_volume_ratio),
    ]
    # The last one: what is broken is no candidate.
    return guards if settings.max_disagreement is None else [*guards, agreement(settings.max_disagreement)]


def check(guards: Sequence[Guard], view: View) -> dict[int, Fault]:
    """Return the systems that went wrong: ``{system: (reason, evidence)}``."""
    values = torch.stack([guard.measure(view) for guard in guards])
    limits = torch.stack([guard.limit(view) for guard in guards])
    broken = ~(values <= limits)
    if not broken.any():
        return {}
    faults = {}
    for system in torch.nonzero(broken.any(dim=0)).flatten().tolist():
        first = int(torch.nonzero(broken[:, system])[0])
        evidence = guards[first].says.format(value=float(values[first, system]), limit=float(limits[first, system]))
        faults[system] = (guards[first].reason, evidence)
    return faults


def check_geometry(atoms: Atoms, seed: Atoms, settings: Guards) -> Fault | None:
    """Return what is wrong with a geometry: atoms that overlap, or a part that has left."""
    if evidence := geometry.overlap(atoms, settings.min_distance):
        return "overlap", evidence
    # What hangs together by bonds does so all the more by longer reaches, which take more time to look at.
    if settings.evaporation is not None and geometry.n_parts(atoms, min(BOND, settings.evaporation)) > 1:
        now, before = (geometry.n_parts(each, settings.evaporation) for each in (atoms, seed))
        if now > before:
            apart = f"farther than {settings.evaporation:g} sums of covalent radii apart"
            return "evaporated", f"{now} parts instead of {before} are {apart}"
    return None
