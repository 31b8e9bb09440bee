"""What a dataset holds, in numbers: per-atom arrays are streamed in blocks, histograms accumulate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.structures import cut
from daskpipe.units import GPA

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

BLOCK_ATOMS = 2**20
BLOCK_STRUCTURES = 16_384
"""What is in memory at once of the per-atom arrays."""

N_ELEMENTS = 119
MOST_TYPES = 8
"""Kinds of system that are told apart; the rarer ones are drawn together."""
REST = "all other types"

FORCE_EDGES = np.logspace(-6, 4, 201)
"""Bins of forces, eV/Å: 20 a decade, so that a quantile is known to 12 %."""

PAIR_EDGES = np.linspace(0.0, 6.0, 121)
"""Bins of distances, Å."""
MOST_PAIRS = 6
PAIR_SAMPLE = (400, 12_000)
"""Most structures, and about how many atoms, that distances are measured in."""

MAP_SAMPLE = 2_000
"""Most points of the map."""

THUMBNAILS = 4
"""Pictures of each kind of system."""
LARGEST_PICTURE = 400
"""Most atoms of a structure that is drawn."""


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
        Extremes and median of all values, those beyond the edges too.
    """

    edges: np.ndarray
    counts: dict[str, np.ndarray]
    n_outside: int = 0
    low: float = np.nan
    high: float = np.nan
    median: float = np.nan

    @property
    def n_values(self) -> int:
        """How many values there are, those outside too."""
        return self.n_outside + sum(int(counts.sum()) for counts in self.counts.values())


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
        """Pairs within the bins; those of an element with itself are counted once."""
        return {
            name: int(row.sum()) // (2 if len(set(name.split("-"))) == 1 else 1) for name, row in self.counts.items()
        }


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a dataset holds.

    Parameters
    ----------
    attributes
        Root attributes.
    types
        Number of structures by kind of system, the most frequent first.
    elements, holders
        Atoms, and structures that hold it, by symbol in the order of the periodic table.
    compositions
        Structures by formula, the most frequent first, at most 15; and how many formulas there are.
    sizes, energies, temperature, pressure, stress_pressure
        Histograms by kind of system: atoms a structure; eV an atom after a linear fit to the composition; K; GPa of
        the barostat; GPa from the labels' stress. ``None`` where the dataset has no such values.
    forces, forces_of_elements
        Histograms of the norms of forces over `FORCE_EDGES`, by kind of system and by element.
    n_unlabelled
        Structures without an energy.
    pairs
        Distances.
    points, n_points_of
        Features on the first two axes by kind of system, shape (point, 2), a sample; and of how many.
    strata
        Number of structures by stratum, largest first; ``None`` if there are none.
    splits
        Structures, atoms and groups of each split; structures by kind of system.
    torn_groups
        Groups that lie in more than one split.
    pictures
        Some structures by kind of system.
    """

    path: Path
    attributes: dict[str, Any]
    n_structures: int
    n_atoms: int
    types: dict[str, int]
    elements: dict[str, int]
    holders: dict[str, int]
    compositions: dict[str, int]
    n_compositions: int
    sizes: Histogram | None
    energies: Histogram | None
    n_unlabelled: int
    forces: Histogram | None
    forces_of_elements: Histogram | None
    temperature: Histogram | None
    pressure: Histogram | None
    stress_pressure: Histogram | None
    pairs: Pairs
    points: dict[str, np.ndarray]
    n_points_of: int
    strata: np.ndarray | None
    splits: dict[str, dict[str, Any]]
    torn_groups: int
    pictures: dict[str, list[Atoms]]


def contents(path: Path) -> Contents:
    """Measure a dataset.

    Per-atom arrays are read twice at most, `BLOCK_ATOMS` atoms at a time; of each structure some 60 bytes stay in
    memory. Samples are chosen by the hash of the structures' ids: the same dataset gives the same numbers.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.

    Raises
    ------
    InputError
        If it is none.
    """
    import dask

    from daskpipe.store import open_dataset

    # A cluster that happens to be connected shall not do this.
    with dask.config.set(scheduler="synchronous"):
        return _contents(path, open_dataset(path))


def _contents(path: Path, ds: xr.Dataset) -> Contents:
    n_atoms = ds["n_atoms"].values
    names, kind = _kinds(ds)
    order = order_by_hash(0, "report", ds["structure_id"].values)
    elements, holders, forces, forces_of_elements, extremes, fit = _of_atoms(ds, names, kind)
    energies = _residuals(ds, fit) if "energy" in ds else np.full(len(n_atoms), np.nan)
    codes, formulas = _codes(ds, "composition")
    by_formula = Counter(dict(zip(formulas, np.bincount(codes, minlength=len(formulas)).tolist(), strict=True)))

    def column(name: str) -> np.ndarray:
        return ds[name].values if name in ds else np.full(len(n_atoms), np.nan)

    stress = ds["stress"].values[:, :3].mean(axis=1) if "stress" in ds else column("stress")
    points, n_points_of = _points(ds, names, kind, order)
    strata = np.unique(ds["cluster"].values, return_counts=True) if "cluster" in ds else None
    splits, torn = _splits(ds, names, kind)
    return Contents(
        path=path,
        attributes=dict(ds.attrs),
        n_structures=len(n_atoms),
        n_atoms=int(n_atoms.sum(dtype=np.int64)),
        types=dict(zip(names, np.bincount(kind, minlength=len(names)).tolist(), strict=True)),
        elements=_by_symbol(elements),
        holders=_by_symbol(holders),
        compositions=dict(by_formula.most_common(15)),
        n_compositions=len(formulas),
        sizes=histogram(n_atoms, kind, names),
        energies=histogram(energies, kind, names),
        n_unlabelled=int(np.isnan(energies).sum()),
        forces=_force_histogram(forces, names, extremes),
        forces_of_elements=_force_histogram(*_most(forces_of_elements, elements), extremes),
        temperature=histogram(column("temperature"), kind, names),
        pressure=histogram(column("pressure"), kind, names),
        stress_pressure=histogram(-stress / GPA, kind, names),
        pairs=pair_distances(structures(ds, _pair_sample(order, n_atoms))),
        points=points,
        n_points_of=n_points_of,
        strata=None if strata is None else np.sort(strata[1][strata[0] >= 0])[::-1],
        splits=splits,
        torn_groups=torn,
        pictures={
            name: structures(ds, order[(kind[order] == number) & (n_atoms[order] <= LARGEST_PICTURE)][:THUMBNAILS])
            for number, name in enumerate(names)
        },
    )


def structures(ds: xr.Dataset, rows: np.ndarray) -> list[Atoms]:
    """Read some structures of a dataset, without labels."""
    from daskpipe.structures import take, to_atoms

    names = ["n_atoms", "atom_start", "numbers", "positions", "cell", "pbc", "structure_id"]
    found = take(ds[names], np.sort(rows)).load()
    return [to_atoms(found, index) for index in range(len(rows))]


def blocks(ds: xr.Dataset, names: Sequence[str]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Read some variables, per-atom ones among them, in blocks of whole structures; give rows and arrays."""
    n_atoms = ds["n_atoms"].values
    bounds = np.append(0, np.cumsum(n_atoms, dtype=np.int64))
    for rows in cut(n_atoms, BLOCK_ATOMS, BLOCK_STRUCTURES):
        atoms = slice(int(bounds[rows.start]), int(bounds[rows.stop]))
        block = ds[list(names)].isel(structure=rows, atom=atoms).load()
        yield rows, {name: block[name].values for name in names}


def histogram(values: np.ndarray, group: np.ndarray, names: Sequence[str], n_bins: int = 40) -> Histogram | None:
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


def pair_distances(frames: Sequence[Atoms]) -> Pairs:
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
            found = distance[(atoms.numbers[i] == one) & (atoms.numbers[j] == other)]
            if len(found):
                counts[name] = counts.get(name, 0) + np.histogram(found, PAIR_EDGES)[0]
                shortest[name] = min(shortest.get(name, np.inf), float(found.min()))
    frequent = sorted(counts, key=lambda name: (-int(counts[name].sum()), name))[:MOST_PAIRS]
    return Pairs(
        counts={name: counts[name] for name in frequent},
        shortest={name: shortest[name] for name in frequent},
        n_structures=len(frames),
        n_atoms=sum(map(len, frames)),
    )


def _kinds(ds: xr.Dataset) -> tuple[list[str], np.ndarray]:
    """Names of the kinds of system, the most frequent first, and the kind of each structure, shape (structure,)."""
    codes, names = _codes(ds, "system_type")
    counts = np.bincount(codes, minlength=len(names))
    order = [code for code in np.argsort(-counts, kind="stable").tolist() if counts[code]]
    place = np.full(len(names), MOST_TYPES)
    place[order[:MOST_TYPES]] = np.arange(len(order[:MOST_TYPES]))
    listed = [names[code] for code in order[:MOST_TYPES]]
    return listed + [REST] * (len(order) > MOST_TYPES), place[codes]


def _codes(ds: xr.Dataset, name: str) -> tuple[np.ndarray, list[str]]:
    """Codes of a coded variable, shape (structure,), and their names; one name for all if there is no such variable."""
    if name not in ds:
        return np.zeros(ds.sizes["structure"], dtype=np.int64), ["unknown"]
    return ds[name].values.astype(np.int64), str(ds[name].attrs["flag_meanings"]).split()


def _of_atoms(
    ds: xr.Dataset, names: Sequence[str], kind: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[float, float], np.ndarray]:
    """Stream the atoms once.

    Returns
    -------
    elements, holders : numpy.ndarray
        Atoms, and structures that hold it, by atomic number.
    forces, forces_of_elements : numpy.ndarray
        Counts over `FORCE_EDGES`, shape (kind, bin) and (atomic number, bin).
    extremes : tuple of float
        Smallest and largest force, eV/Å.
    fit : numpy.ndarray
        Energy of an atom of each element, eV, by least squares to the energies an atom.
    """
    elements, holders = np.zeros(N_ELEMENTS, np.int64), np.zeros(N_ELEMENTS, np.int64)
    n_bins = len(FORCE_EDGES) - 1
    forces = np.zeros((len(names), n_bins), np.int64)
    forces_of_elements = np.zeros((N_ELEMENTS, n_bins), np.int64)
    least, most = np.inf, 0.0
    products, moments = np.zeros((N_ELEMENTS, N_ELEMENTS)), np.zeros(N_ELEMENTS)
    wanted = ["numbers", "n_atoms", *(name for name in ("energy", "forces") if name in ds)]
    for rows, block in blocks(ds, wanted):
        shares = _shares(block["numbers"], block["n_atoms"])
        elements += np.bincount(block["numbers"], minlength=N_ELEMENTS)
        holders += (shares > 0).sum(axis=0)
        if "energy" in block:
            known = np.isfinite(block["energy"])
            products += shares[known].T @ shares[known]
            moments += shares[known].T @ (block["energy"] / block["n_atoms"])[known]
        if "forces" in block:
            norm = np.linalg.norm(block["forces"].astype(np.float64), axis=1)
            known = np.isfinite(norm)
            least, most = min(least, norm[known].min(initial=np.inf)), max(most, norm[known].max(initial=0))
            place = np.clip(np.searchsorted(FORCE_EDGES, norm, side="right") - 1, 0, n_bins - 1)[known]
            kinds = np.repeat(kind[rows], block["n_atoms"])[known]
            np.add.at(forces, (kinds, place), 1)
            np.add.at(forces_of_elements, (block["numbers"][known], place), 1)
    fit = np.linalg.lstsq(products, moments, rcond=1e-12)[0]
    return elements, holders, forces, forces_of_elements, (float(least), float(most)), fit


def _shares(numbers: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Share of each element in each structure, shape (structure, atomic number)."""
    row = np.repeat(np.arange(len(n_atoms)), n_atoms)
    counts = np.bincount(row * N_ELEMENTS + numbers, minlength=len(n_atoms) * N_ELEMENTS)
    return counts.reshape(-1, N_ELEMENTS) / n_atoms[:, None]


def _residuals(ds: xr.Dataset, fit: np.ndarray) -> np.ndarray:
    """Energies an atom less what the composition explains, eV, shape (structure,)."""
    found = [
        block["energy"] / block["n_atoms"] - _shares(block["numbers"], block["n_atoms"]) @ fit
        for _, block in blocks(ds, ["numbers", "n_atoms", "energy"])
    ]
    return np.concatenate(found) if found else np.zeros(0)


def _by_symbol(counts: np.ndarray) -> dict[str, int]:
    from ase.data import chemical_symbols

    return {chemical_symbols[number]: int(counts[number]) for number in np.flatnonzero(counts).tolist()}


def _most(forces: np.ndarray, elements: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Keep the histograms of the most frequent elements, in the order of the periodic table."""
    from ase.data import chemical_symbols

    numbers = np.sort(np.argsort(-elements, kind="stable")[: min(MOST_TYPES, int((elements > 0).sum()))])
    return forces[numbers], [chemical_symbols[number] for number in numbers.tolist()]


def _force_histogram(counts: np.ndarray, names: Sequence[str], extremes: tuple[float, float]) -> Histogram | None:
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


def _pair_sample(order: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    most_structures, most_atoms = PAIR_SAMPLE
    fits = np.cumsum(n_atoms[order[:most_structures]]) <= most_atoms
    return order[:most_structures][fits | (np.arange(len(fits)) == 0)]


def _points(
    ds: xr.Dataset, names: Sequence[str], kind: np.ndarray, order: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """Features on the first two axes of a sample, by kind of system; and of how many structures."""
    if "features" not in ds or ds["features"].shape[1] < 2:
        return {}, 0
    rows = np.sort(order[:MAP_SAMPLE])
    points = ds["features"].isel(structure=rows, feature=slice(0, 2)).values
    known = np.isfinite(points).all(axis=1)
    return {name: points[known & (kind[rows] == number)] for number, name in enumerate(names)}, len(order)


def _splits(ds: xr.Dataset, names: Sequence[str], kind: np.ndarray) -> tuple[dict[str, dict[str, Any]], int]:
    """Say what each split holds, and how many groups lie in more than one."""
    if "split" not in ds:
        return {}, 0
    codes, split_names = _codes(ds, "split")
    n_atoms = ds["n_atoms"].values
    group = ds["group"].values if "group" in ds else np.arange(len(codes))
    pairs = np.unique(np.stack([group, codes]), axis=1)
    table = {}
    for code, name in enumerate(split_names):
        here = codes == code
        table[name] = {
            "structures": int(here.sum()),
            "atoms": int(n_atoms[here].sum(dtype=np.int64)),
            "groups": int((pairs[1] == code).sum()),
            "types": dict(zip(names, np.bincount(kind[here], minlength=len(names)).tolist(), strict=True)),
        }
    return table, int((np.bincount(pairs[0] - pairs[0].min()) > 1).sum()) if len(codes) else 0
