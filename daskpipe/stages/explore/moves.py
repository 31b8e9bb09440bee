"""Monte Carlo trial moves between segments of dynamics: swaps of unlike atoms and hops of single atoms.

A swap exchanges the positions of two atoms. Charge, magnetic moment, mass and all other
properties of an atom move with it; the order of atoms never changes.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from daskpipe.core import constants
from daskpipe.core.geometry import cell_widths, full_cell
from daskpipe.stages.explore.vacancies import HopSites

HOP_RANGE = (0.8, 1.2)
"""Least and largest length of a hop, in hop lengths."""

STATE_UNIT = 1e-6
"""e; states are compared as whole numbers of it, so that i may trade with j exactly where j may with i."""


@dataclass(frozen=True)
class Swaps:
    """Pairs of atoms that may trade places, as runs of atoms sorted by species and oxidation state.

    Each atom has one run of partners in each species: memory grows with atoms times species, not with pairs.

    Parameters
    ----------
    order
        Atoms sorted by species, then state, shape (atom,).
    begin
        Place in `order` where the partners of an atom (rows) in a species (columns) begin, flat.
    end
        Number of partners up to and with that run, flat: a pair counts from either side.
    n_species
        Columns of the two.
    """

    order: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    n_species: int

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs."""
        return int(self.end[-1]) // 2 if self.end.size else 0

    def draw_pairs(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Return `n` pairs of atoms, each drawn uniformly from all pairs, shape (n, 2).

        Atoms keep species and state when they trade places, so the pairs are the same before and after a swap: a swap
        and its reversal are proposed equally often.

        Raises
        ------
        ValueError
            If there are no pairs.
        """
        if not self.n_pairs:
            raise ValueError("no two atoms may trade places; ask n_pairs first")
        number = rng.integers(self.end[-1], size=n)
        run = np.searchsorted(self.end, number, side="right")
        partner = self.order[self.begin[run] + self.end[run] - 1 - number]
        return np.stack([run // self.n_species, partner], axis=1)


def swaps_allowed(numbers: np.ndarray, states: np.ndarray, tolerance: float = 0.1) -> Swaps:
    """Return the pairs of atoms of unlike species whose oxidation states agree; no others can be drawn.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (atom,).
    states
        Oxidation states, e, shape (atom,); see `daskpipe.stages.explore.oxidation`.
    tolerance
        Largest difference of two states, e.
    """
    numbers = np.asarray(numbers)
    state = np.rint(np.asarray(states) / STATE_UNIT).astype(np.int64)
    reach = round(tolerance / STATE_UNIT)
    order = np.lexsort((state, numbers))
    species, start = np.unique(numbers[order], return_index=True)
    begin = np.empty((len(numbers), len(species)), dtype=np.int64)
    count = np.empty_like(begin)
    for column, (own, members) in enumerate(zip(species, np.split(order, start[1:]), strict=True)):
        low = np.searchsorted(state[members], state - reach, side="left")
        high = np.searchsorted(state[members], state + reach, side="right")
        begin[:, column] = start[column] + low
        count[:, column] = np.where(numbers == own, 0, high - low)
    return Swaps(order=order, begin=begin.ravel(), end=np.cumsum(count), n_species=len(species))


@dataclass(frozen=True)
class Trial:
    """Positions whose energy a segment needs.

    Parameters
    ----------
    positions
        Å, shape (atom, 3); a fresh array.
    moved
        Atoms that were moved: two for a swap, one for a hop.
    """

    positions: np.ndarray
    moved: tuple[int, ...]


@dataclass
class TrialCounts:
    """Numbers of trials of one kind by outcome; `overlapping` and `blocked` ones need no evaluation of the energy.

    A hop is blocked if no vacant site is in reach, or if the atom would not be assigned to the site it hops to.
    """

    tried: int = 0
    overlapping: int = 0
    blocked: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class SegmentResult:
    """State at the end of a segment, and counts of its trials.

    Parameters
    ----------
    positions
        Å, shape (atom, 3).
    energy
        eV.
    moved
        Atoms of the accepted trials, sorted, each once.
    swaps, hops
        Counts of the trials.
    """

    positions: np.ndarray
    energy: float
    moved: np.ndarray
    swaps: TrialCounts
    hops: TrialCounts


def trial_segment(
    positions: np.ndarray,
    energy: float,
    *,
    numbers: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    temperature: float,
    swaps: Swaps,
    n_swaps: int,
    n_hops: int,
    hop_length: float | np.ndarray,
    min_distance: float,
    rng: np.random.Generator,
    sites: HopSites | None = None,
    movable: np.ndarray | None = None,
) -> Generator[Trial, float, SegmentResult]:
    """Make swap trials, then hop trials, each accepted or not by Metropolis' rule (DOI 10.1063/1.1699114).

    A coroutine: it yields trials, is sent the energy of each (eV; one that is not finite rejects the trial) and
    returns a `SegmentResult`.

    Each trial obeys detailed balance. Swaps are drawn from pairs that no swap changes. A hop to a vacant site is drawn
    from those that are possible, and the ratio of their numbers before and after multiplies the Boltzmann factor (DOI
    10.1093/biomet/57.1.97); without vacant sites a hop has an isotropic direction and a length that does not depend on
    where the atom is. Overlaps count as infinite energy. A fixed sequence of such
    trials leaves the Boltzmann distribution as it is. The number of trials is therefore fixed, and none is repeated
    because it overlapped or was refused: stopping at the first success would visit states by how easily they are left.

    All random numbers are drawn before the first trial, so they depend on `rng` and the numbers of trials alone.

    Parameters
    ----------
    positions
        Å, shape (atom, 3); not changed.
    energy
        Of these positions, eV.
    numbers
        Atomic numbers, shape (atom,).
    cell, pbc
        Cell vectors as rows, Å, shape (3, 3), and periodicity, shape (3,); vectors along open axes may be zero.
    temperature
        K, above zero.
    swaps
        From `swaps_allowed`. If it holds no pair, no swap is tried.
    n_swaps, n_hops
        Numbers of trials.
    hop_length
        Å, of all atoms or of each, shape (atom,); a hop is `HOP_RANGE` times as long. It must stay the same all along a
        trajectory.
    min_distance
        A trial is rejected where a moved atom comes closer to another one, or its image, than this fraction of the sum
        of their covalent radii. Distances of an atom to its own images do not change and are not looked at.
    rng
        Stream of the trajectory.
    sites
        Sites of the trajectory, if some are vacant: atoms hop to these, and `hop_length` does not matter.
    movable
        Atoms that may be moved, which `swaps` counts; by default all.

    Raises
    ------
    ValueError
        If the temperature is not above zero or the energy is not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} K; Metropolis' rule needs one above zero")
    if not np.isfinite(energy):
        raise ValueError(f"the energy to start from is {energy} eV; evaluate the positions first")
    movable = np.arange(len(positions)) if movable is None else movable
    n_swaps = n_swaps if len(movable) and swaps.n_pairs else 0
    n_hops = n_hops if len(movable) else 0
    pairs = movable[swaps.draw_pairs(rng, n_swaps)] if n_swaps else np.zeros((0, 2), dtype=np.int64)
    hoppers = movable[rng.integers(len(movable), size=n_hops)] if n_hops else np.zeros(0, dtype=np.int64)
    directions = rng.standard_normal((n_hops, 3))
    lengths = np.broadcast_to(hop_length, len(positions))[hoppers] * rng.uniform(*HOP_RANGE, size=n_hops)
    choices = rng.random(n_hops) if sites else np.zeros(n_hops)
    hops = directions * (lengths / np.linalg.norm(directions, axis=1))[:, None]
    # u < exp(-x) for uniform u is x < e for exponential e: no overflow, and NaN compares false.
    allowance = constants.KB * temperature * rng.standard_exponential(n_swaps + n_hops)

    distances = _OverlapCheck(numbers, cell, pbc, min_distance)
    here = np.array(positions, dtype=float)
    moved: set[int] = set()
    swapped, hopped = TrialCounts(), TrialCounts()
    for number, allowed in enumerate(allowance.tolist()):
        counts = swapped if number < n_swaps else hopped
        if number < n_swaps:
            atoms = pairs[number]
            places = here[atoms[::-1]]
        elif sites is not None:
            hop = _vacancy_hop(here, distances.cell, sites, choices[number - n_swaps])
            if hop is None:
                counts.tried += 1
                counts.blocked += 1
                continue
            atoms, places, ratio = hop
            allowed += constants.KB * temperature * np.log(ratio)
        else:
            atoms = hoppers[number - n_swaps, None]
            places = here[atoms] + hops[number - n_swaps]
        counts.tried += 1
        if distances.has_overlap(here, atoms, places):
            counts.overlapping += 1
            continue
        there = here.copy()
        there[atoms] = places
        trial_energy = yield Trial(there.copy(), tuple(atoms.tolist()))
        if np.isfinite(trial_energy) and trial_energy - energy <= allowed:
            here, energy = there, float(trial_energy)
            moved.update(atoms.tolist())
            counts.accepted += 1
    return SegmentResult(here, energy, np.array(sorted(moved), dtype=np.int64), swapped, hopped)


def _vacancy_hop(
    positions: np.ndarray, cell: np.ndarray, sites: HopSites, choice: float
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Draw a hop to a vacant site; return atom, new position, and the ratio of possible hops before and after."""
    before = sites.assign_sites(positions, cell)
    hoppers, pairs = sites.possible_hops(before)
    if not len(pairs):
        return None
    chosen = int(choice * len(pairs))
    atom, pair = hoppers[chosen], pairs[chosen]
    place = positions[atom] + sites.hop_vector(pair, cell)
    after = before.copy()
    after[atom] = sites.assign_sites(place[None], cell)[0]
    if after[atom] != sites.second[pair]:
        return None
    return np.array([atom]), place[None], len(pairs) / len(sites.possible_hops(after)[1])


class _OverlapCheck:
    """Test whether moved atoms come too close to the others."""

    def __init__(self, numbers: np.ndarray, cell: np.ndarray, pbc: np.ndarray, min_distance: float) -> None:
        from ase import Atoms
        from ase.data import covalent_radii

        box = Atoms(cell=cell, pbc=pbc)
        self.cell = full_cell(box)
        self.inverse = np.linalg.inv(self.cell)
        self.periodic = box.pbc.astype(float)
        self.radii = min_distance * covalent_radii[numbers]
        # The nearest lattice coordinates lie within half a cell. Other images are closer than the limit only in small
        # cells: by 1 along an axis only if it is less than twice as wide, and so on.
        reach = 2 * self.radii.max() / cell_widths(self.cell)
        most = np.where(box.pbc, np.ceil(reach - 0.5), 0).astype(int)
        shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), axis=-1).reshape(-1, 3)
        self.images = shifts @ self.cell

    def has_overlap(self, positions: np.ndarray, atoms: np.ndarray, places: np.ndarray) -> bool:
        """Return True if `atoms` moved to `places` overlap others; atoms that trade places are not compared."""
        for atom, place in zip(atoms.tolist(), places, strict=True):
            scaled = (positions - place) @ self.inverse
            scaled -= np.rint(scaled) * self.periodic
            away = scaled @ self.cell
            limit = (self.radii + self.radii[atom]) ** 2
            if len(self.images) == 1:
                close = np.einsum("ij,ij->i", away, away) < limit
            else:
                away = away[:, None] + self.images
                close = np.einsum("ijk,ijk->ij", away, away).min(axis=1) < limit
            close[atoms] = False
            if close.any():
                return True
        return False


def redraw_momentum(
    momenta: np.ndarray, masses: np.ndarray, atom: int, normal: np.ndarray, temperature: float
) -> np.ndarray:
    """Return momenta with that of one atom, relative to all others, drawn anew from Maxwell and Boltzmann.

    The atom and the rest are two bodies: their relative momentum, of reduced mass mu = m (M - m) / M, is drawn with
    variance kT mu along each axis. The total momentum stays what it was, and so do the momenta of the other atoms
    relative to their common centre of mass. A single atom is drawn with variance kT m.

    Parameters
    ----------
    momenta
        sqrt(amu eV) (ASE's units), shape (atom, 3).
    masses
        amu, shape (atom,).
    atom
        Which one.
    normal
        Standard normal numbers, shape (3,).
    temperature
        K.

    Returns
    -------
    numpy.ndarray
        Shape (atom, 3); a fresh array.
    """
    mass, total_mass = masses[atom], masses.sum()
    if len(masses) == 1:
        return np.array([np.sqrt(constants.KB * temperature * mass) * normal])
    rest = np.arange(len(masses)) != atom
    # The total is split as if all moved together; what the atom has beyond its part is the relative momentum.
    rest_mass = masses[rest].sum()
    relative = np.sqrt(constants.KB * temperature * mass * rest_mass / total_mass) * normal
    change = mass / total_mass * momenta.sum(axis=0) + relative - momenta[atom]
    out = np.array(momenta, dtype=float)
    out[atom] += change
    out[rest] -= masses[rest, None] / rest_mass * change
    return out
