"""Measure how diverse seeds are: elements, sizes, types, sources, and distances of neighbours."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.geometry import nearest_neighbours

if TYPE_CHECKING:
    import xarray as xr

SAMPLE = 2_000
"""Structures, at most, whose distances are measured; they are spread evenly over all."""


@dataclass
class DiversityTotals:
    """Sums over units of seeds, from which `DiversityTotals.to_report` makes the figures.

    Parameters
    ----------
    stride
        Distances are measured in every such structure.
    """

    stride: int = 1
    n_structures: int = 0
    types: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    compositions: set[str] = field(default_factory=set)
    atoms: np.ndarray = field(default_factory=lambda: np.zeros(119, dtype=np.int64))
    presence: np.ndarray = field(default_factory=lambda: np.zeros(119, dtype=np.int64))
    sizes: list[np.ndarray] = field(default_factory=list)
    ratios: list[np.ndarray] = field(default_factory=list)

    def add(self, ds: xr.Dataset) -> None:
        """Add the structures of a unit, as `daskpipe.core.structures.from_atoms` makes them."""
        n_atoms, numbers = ds["n_atoms"].values, ds["numbers"].values
        owner = np.repeat(np.arange(len(n_atoms)), n_atoms)
        self.types += Counter(ds["system_type"].values.tolist())
        self.sources += Counter(ds["generator"].values.tolist())
        self.compositions |= set(ds["composition"].values.tolist())
        self.atoms += np.bincount(numbers, minlength=119)
        self.presence += np.bincount(np.unique(owner * 119 + numbers) % 119, minlength=119)
        self.sizes.append(n_atoms)
        first = -self.n_structures % self.stride
        self.n_structures += len(n_atoms)
        for row in range(first, len(n_atoms), self.stride):
            if n_atoms[row] > 1:
                self.ratios.append(_nearest_ratios(ds, row))

    def to_report(self, wanted: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return the figures, JSON types.

        Parameters
        ----------
        wanted
            Number of structures asked of each source.

        Returns
        -------
        dict
            ``n_structures``, ``n_compositions``; ``elements``: share of the atoms by symbol; ``presence``: share of the
            structures that hold the element; ``entropy_bits``: Shannon's entropy of the elements of all atoms, bits
            (log2 of the number of elements at most), and ``entropy_presence_bits``, of the shares of structures;
            ``size``: ``mean``, ``cv`` (standard deviation over mean), ``least``, ``most``; ``types`` and ``sources``:
            counts; ``types_cv``: standard deviation over mean of the counts of types; ``missing``: sources with fewer
            structures than asked for, and how many are missing; ``nearest``: distance of an atom to its nearest
            neighbour over the sum of covalent radii: ``least``, ``p5``, ``median``.

        `daskpipe.pipeline.seeds` adds ``features``: the number of effectively different structures among a sample.
        """
        from ase.data import chemical_symbols

        present = np.flatnonzero(self.atoms)
        sizes = np.concatenate(self.sizes) if self.sizes else np.zeros(0)
        counts = np.array(list(self.types.values()), dtype=float)
        ratios = np.concatenate(self.ratios) if self.ratios else np.zeros(0)
        missing = {name: n - self.sources[name] for name, n in (wanted or {}).items() if n > self.sources[name]}
        return {
            "n_structures": self.n_structures,
            "n_compositions": len(self.compositions),
            "elements": {chemical_symbols[z]: round(float(self.atoms[z] / self.atoms.sum()), 4) for z in present},
            "presence": {chemical_symbols[z]: round(float(self.presence[z] / self.n_structures), 4) for z in present},
            "entropy_bits": entropy_bits(self.atoms),
            "entropy_presence_bits": entropy_bits(self.presence),
            "size": {
                "mean": round(float(sizes.mean()), 2),
                "cv": round(float(sizes.std() / sizes.mean()), 4),
                "least": int(sizes.min()),
                "most": int(sizes.max()),
            }
            if len(sizes)
            else {},
            "types": dict(self.types.most_common()),
            "types_cv": round(float(counts.std() / counts.mean()), 4) if len(counts) else 0.0,
            "sources": dict(self.sources.most_common()),
            "missing": missing,
            "nearest": {
                "least": round(float(ratios.min()), 3),
                "p5": round(float(np.quantile(ratios, 0.05)), 3),
                "median": round(float(np.median(ratios)), 3),
            }
            if len(ratios)
            else {},
        }


def measure_diversity(units: Iterable[xr.Dataset], n: int, wanted: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Measure the diversity of seeds.

    Parameters
    ----------
    units
        Seeds, in any number of datasets.
    n
        Number of structures in all; distances are measured in `SAMPLE` of them at most.
    wanted
        Number of structures asked of each source.

    Returns
    -------
    dict
        As `DiversityTotals.to_report`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from daskpipe.core.structures import from_atoms
    >>> seeds = [bulk("NaCl", "rocksalt", a=5.64), bulk("Cu")]
    >>> for atoms in seeds:
    ...     atoms.info |= {"system_type": "crystal", "generator": "mine"}
    >>> report = measure_diversity([from_atoms(seeds)], 2)
    >>> report["entropy_bits"], report["size"]["mean"]
    (1.585, 1.5)
    """
    totals = DiversityTotals(stride=max(1, -(-n // SAMPLE)))
    for ds in units:
        totals.add(ds)
    return totals.to_report(wanted)


def entropy_bits(counts: np.ndarray) -> float:
    """Return Shannon's entropy of counts, bits."""
    shares = counts[counts > 0] / counts.sum()
    return round(float(-(shares * np.log2(shares)).sum()), 3)


def _nearest_ratios(ds: xr.Dataset, row: int) -> np.ndarray:
    """Return the distance of each atom of a structure to its nearest neighbour, over the sum of covalent radii."""
    from ase.data import covalent_radii

    from daskpipe.core.structures import to_atoms

    atoms = to_atoms(ds, row)
    distances, neighbours = nearest_neighbours(atoms)
    known = neighbours >= 0
    radii = covalent_radii[atoms.numbers]
    return distances[known] / (radii[known] + radii[neighbours[known]])


def format_diversity(report: Mapping[str, Any]) -> list[str]:
    """Format the diversity of seeds as lines of plain text."""
    shares = sorted(report["elements"].items(), key=lambda item: -item[1])
    elements = ", ".join(f"{symbol} {share:.1%}" for symbol, share in itertools.islice(shares, 12))
    more = f", and {len(shares) - 12} more" if len(shares) > 12 else ""
    size, nearest = report["size"], report["nearest"]
    lines = [
        f"{report['n_structures']:,} structures of {report['n_compositions']:,} compositions, "
        f"{size['least']} to {size['most']} atoms (mean {size['mean']:.0f}, CV {size['cv']:.2f})",
        f"elements by share of atoms: {elements}{more}; entropy {report['entropy_bits']:.2f} of at most "
        f"{np.log2(len(shares)):.2f} bits",
        "types: " + ", ".join(f"{name} {n:,}" for name, n in report["types"].items()),
    ]
    if nearest:
        lines.append(
            f"nearest neighbours, over the sum of covalent radii: least {nearest['least']:.2f}, "
            f"5 % below {nearest['p5']:.2f}, median {nearest['median']:.2f}"
        )
    if features := report.get("features"):
        lines.append(
            f"features ({features['descriptor']}): {features['effective']:.1f} effectively different among "
            f"{features['sampled']:,} sampled structures"
        )
    lines += [f"{name}: {n:,} fewer than asked for" for name, n in report["missing"].items()]
    return lines
