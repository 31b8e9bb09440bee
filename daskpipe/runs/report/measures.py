"""Make histograms of values and of the distances between atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

FORCE_EDGES = np.logspace(-6, 4, 201)
"""Edges of the bins of forces, eV/Å: 20 a decade, so that a quantile is known to 12 %."""

PAIR_EDGES = np.linspace(0.0, 6.0, 121)
"""Edges of the bins of distances, Å."""

MOST_PAIRS = 6
"""Most pairs of elements whose distances are shown."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts in bins, by group.

    Parameters
    ----------
    edges
        Shape (bin + 1,).
    counts
        Shape (bin,) for each group.
    n_outside
        Values beyond the edges.
    low, high, median
        Extremes and median of all values, also of those beyond the edges.
    """

    edges: np.ndarray
    counts: dict[str, np.ndarray]
    n_outside: int = 0
    low: float = np.nan
    high: float = np.nan
    median: float = np.nan

    @property
    def n_values(self) -> int:
        """Number of values, also of those beyond the edges."""
        return self.n_outside + sum(int(counts.sum()) for counts in self.counts.values())

    @property
    def has_one_value(self) -> bool:
        """Whether all values are equal, so that a chart would show one bar."""
        return self.low == self.high


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Distances between atoms, by pair of elements, in a sample of structures.

    Parameters
    ----------
    counts
        Pairs in each bin of `PAIR_EDGES`, shape (bin,), by names such as ``Au-Cu``; the most frequent pairs, in order.
    shortest
        Shortest distance, Å, by pair.
    n_structures, n_atoms
        Size of the sample.
    """

    counts: dict[str, np.ndarray]
    shortest: dict[str, float]
    n_structures: int
    n_atoms: int

    @property
    def n_pairs(self) -> dict[str, int]:
        """Number of pairs within the bins; a pair of atoms of one element counts once."""
        return {
            name: int(row.sum()) // (2 if len(set(name.split("-"))) == 1 else 1) for name, row in self.counts.items()
        }


def make_histogram(values: np.ndarray, group: np.ndarray, names: Sequence[str], n_bins: int = 40) -> Histogram | None:
    """Count values in equal bins by group; ``None`` if no value is finite.

    The bins span all values, but for what lies farther from the central 99 % than half its width.
    """
    finite = np.isfinite(values)
    values, group = values[finite], group[finite]
    if not len(values):
        return None
    least, most = float(values.min()), float(values.max())
    low, high = np.quantile(values, [0.005, 0.995])
    low, high = max(least, low - (high - low) / 2), min(most, high + (high - low) / 2)
    if values.dtype.kind in "iu":
        width = -(-(int(high) - int(low) + 1) // n_bins)
        edges = np.arange(int(low) - 0.5, high + width, width)
    else:
        # A single value stands in the middle.
        low, high, n_bins = (low, high, n_bins) if high > low else (low - 0.5, low + 0.5, n_bins + 1 - n_bins % 2)
        edges = np.linspace(low, high, n_bins + 1)
    counts = {name: np.histogram(values[group == number], edges)[0] for number, name in enumerate(names)}
    n_outside = len(values) - sum(int(count.sum()) for count in counts.values())
    return Histogram(
        edges=edges, counts=counts, n_outside=n_outside, low=least, high=most, median=float(np.median(values))
    )


def count_pairs(frames: Sequence[Atoms]) -> Pairs:
    """Count distances up to 6 Å between the atoms of some structures, by pair of elements."""
    from ase.data import chemical_symbols
    from ase.neighborlist import neighbor_list

    counts: dict[str, np.ndarray] = {}
    shortest: dict[str, float] = {}
    for atoms in frames:
        i, j, distance = neighbor_list("ijd", atoms, PAIR_EDGES[-1])
        here = np.unique(atoms.numbers).tolist()
        for one, other in combinations_with_replacement(here, 2):
            name = "-".join(sorted((chemical_symbols[one], chemical_symbols[other])))
            of_pair = distance[(atoms.numbers[i] == one) & (atoms.numbers[j] == other)]
            if len(of_pair):
                counts[name] = counts.get(name, 0) + np.histogram(of_pair, PAIR_EDGES)[0]
                shortest[name] = min(shortest.get(name, np.inf), float(of_pair.min()))
    frequent = sorted(counts, key=lambda name: (-int(counts[name].sum()), name))[:MOST_PAIRS]
    return Pairs(
        counts={name: counts[name] for name in frequent},
        shortest={name: shortest[name] for name in frequent},
        n_structures=len(frames),
        n_atoms=sum(map(len, frames)),
    )


def make_force_histogram(counts: np.ndarray, names: Sequence[str], extremes: tuple[float, float]) -> Histogram | None:
    """Make a histogram of counts over `FORCE_EDGES`, without the empty bins at both ends; None without forces."""
    total = counts.sum(axis=0)
    if not total.any():
        return None
    filled = np.flatnonzero(total)
    first, last = int(filled[0]), int(filled[-1])
    middles = np.sqrt(FORCE_EDGES[:-1] * FORCE_EDGES[1:])
    return Histogram(
        edges=FORCE_EDGES[first : last + 2],
        counts={name: row[first : last + 1] for name, row in zip(names, counts, strict=True)},
        low=extremes[0],
        high=extremes[1],
        median=float(middles[np.searchsorted(np.cumsum(total), total.sum() / 2)]),
    )
