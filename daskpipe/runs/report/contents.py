"""Measure what a dataset holds: counts, histograms and samples, with per-atom arrays streamed in blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.constants import GPA
from daskpipe.core.seeds import order_by_hash
from daskpipe.runs.report.atom_totals import AtomTotals, add_up_atoms, subtract_fit
from daskpipe.runs.report.measures import (
    Histogram,
    Pairs,
    count_pairs,
    make_force_histogram,
    make_histogram,
)

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

MOST_TYPES = 8
"""Most kinds of system that are drawn apart; the rarer ones are drawn together."""

REST = "all other types"
"""Name of the rarer kinds of system together."""

PAIR_SAMPLE = (400, 12_000)
"""Most structures, and most atoms about, in which distances are measured."""

MAP_SAMPLE = 2_000
"""Most points of the map."""

THUMBNAILS = 4
"""Pictures of each kind of system."""

LARGEST_PICTURE = 400
"""Most atoms of a structure that is drawn."""

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
"""Components of the stress, in their order in a dataset."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Energies and forces of one kind of system.

    Parameters
    ----------
    name
        Name of the kind of system.
    n_structures, n_atoms
        Number of its structures, and of their atoms.
    energy_low, energy_mean, energy_deviation, energy_high
        Smallest, mean, standard deviation and largest energy of an atom less the linear fit, eV; None without energies.
    force_mean_square, force_high
        Root mean square of the norms of forces, and the largest, eV/Å; None without forces.
    """

    name: str
    n_structures: int
    n_atoms: int
    energy_low: float | None
    energy_mean: float | None
    energy_deviation: float | None
    energy_high: float | None
    force_mean_square: float | None
    force_high: float | None


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """Structures on the first two axes of their features, and the groups that colour them.

    Parameters
    ----------
    points
        Shape (point, 2): all structures with features, or a sample.
    colourings
        By title, and by name of a group: which points belong to it, shape (point,), bool.
    n_structures
        Structures that the sample was drawn from.
    """

    points: np.ndarray
    colourings: dict[str, dict[str, np.ndarray]]
    n_structures: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Contents of a dataset, in numbers.

    Parameters
    ----------
    path, attributes
        Path of the dataset, and its root attributes.
    n_structures, n_atoms
        Number of structures, and of their atoms.
    types
        Number of structures by kind of system, the most frequent first.
    kinds
        Energies and forces of each kind of system, in the same order.
    elements, holders
        Number of atoms, and of structures that contain the element, by symbol in the order of the periodic table.
    compositions, n_compositions
        Structures by formula, the 15 most frequent, and number of formulas.
    sizes, energies, temperature, pressure, stress_pressure
        Histograms by kind of system: atoms a structure; eV an atom after a linear fit to the composition; K; GPa of
        the barostat; GPa from the labels' stress. ``None`` where the dataset has no such values.
    forces, forces_of_elements
        Histograms of the norms of forces over `FORCE_EDGES`, by kind of system and by element.
    n_unlabelled
        Structures without an energy.
    stress_components
        Histogram of the labels' stress, GPa, by component, positive under tension as in ASE; or ``None``.
    volumes
        Volume and energy less the fit, Å^3 and eV an atom, of structures that are periodic in three directions, by
        kind of system, shape (point, 2): all, or a sample of `n_volumes_of`.
    pairs
        Distances between atoms.
    features
        Map of the features; ``None`` without features.
    strata
        Number of structures by stratum, largest first; ``None`` if there are none.
    splits
        Structures, atoms and groups of each split, and structures by kind of system.
    torn_groups
        Groups that lie in more than one split.
    pictures
        Structures to draw, by kind of system.
    """

    path: Path
    attributes: dict[str, Any]
    n_structures: int
    n_atoms: int
    types: dict[str, int]
    kinds: list[Kind]
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
    stress_components: Histogram | None
    volumes: dict[str, np.ndarray]
    n_volumes_of: int
    pairs: Pairs
    features: FeatureMap | None
    strata: np.ndarray | None
    splits: dict[str, dict[str, Any]]
    torn_groups: int
    pictures: dict[str, list[Atoms]]


def measure_contents(path: Path) -> Contents:
    """Measure a dataset.

    Per-atom arrays are read twice at most, `BLOCK_ATOMS` atoms at a time; of each structure some 60 bytes stay in
    memory. Samples are chosen by the hash of the structures' ids: the same dataset gives the same numbers.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.

    Raises
    ------
    InputError
        If it is no dataset.
    """
    import dask

    from daskpipe.store import open_dataset

    # A cluster that happens to be connected must not do this work.
    with dask.config.set(scheduler="synchronous"):
        return _measure_dataset(path, open_dataset(path))


def _measure_dataset(path: Path, ds: xr.Dataset) -> Contents:
    """Measure an open dataset."""
    n_atoms = ds["n_atoms"].values
    names, kind = _rank_kinds(ds)
    order = order_by_hash(0, "report", ds["structure_id"].values)
    totals = add_up_atoms(ds, names, kind)
    energies = subtract_fit(ds, totals.fit) if "energy" in ds else np.full(len(n_atoms), np.nan)
    codes, formulas = _read_codes(ds, "composition")
    by_formula = Counter(dict(zip(formulas, np.bincount(codes, minlength=len(formulas)).tolist(), strict=True)))

    def read_column(name: str) -> np.ndarray:
        return ds[name].values if name in ds else np.full(len(n_atoms), np.nan)

    stress = ds["stress"].values / GPA if "stress" in ds else np.full((len(n_atoms), len(VOIGT)), np.nan)
    strata = np.unique(ds["cluster"].values, return_counts=True) if "cluster" in ds else None
    splits, torn = _count_splits(ds, names, kind)
    volumes, n_volumes_of = _sample_volumes(ds, energies, names, kind, order)
    return Contents(
        path=path,
        attributes=dict(ds.attrs),
        n_structures=len(n_atoms),
        n_atoms=int(n_atoms.sum(dtype=np.int64)),
        types=dict(zip(names, np.bincount(kind, minlength=len(names)).tolist(), strict=True)),
        kinds=_describe_kinds(names, kind, n_atoms, energies, totals),
        elements=_key_by_symbol(totals.elements),
        holders=_key_by_symbol(totals.holders),
        compositions=dict(by_formula.most_common(15)),
        n_compositions=len(formulas),
        sizes=make_histogram(n_atoms, kind, names),
        energies=make_histogram(energies, kind, names),
        n_unlabelled=int(np.isnan(energies).sum()),
        forces=make_force_histogram(totals.forces, names, totals.force_extremes),
        forces_of_elements=make_force_histogram(
            *_keep_frequent(totals.forces_of_elements, totals.elements), totals.force_extremes
        ),
        temperature=make_histogram(read_column("temperature"), kind, names),
        pressure=make_histogram(read_column("pressure"), kind, names),
        stress_pressure=make_histogram(-stress[:, :3].mean(axis=1), kind, names),
        stress_components=make_histogram(stress.T.ravel(), np.repeat(np.arange(len(VOIGT)), len(stress)), VOIGT, 24),
        volumes=volumes,
        n_volumes_of=n_volumes_of,
        pairs=count_pairs(read_structures(ds, _sample_pairs(order, n_atoms))),
        features=_map_features(ds, names, kind, order),
        strata=None if strata is None else np.sort(strata[1][strata[0] >= 0])[::-1],
        splits=splits,
        torn_groups=torn,
        pictures={
            name: read_structures(ds, order[(kind[order] == number) & (n_atoms[order] <= LARGEST_PICTURE)][:THUMBNAILS])
            for number, name in enumerate(names)
        },
    )


def read_structures(ds: xr.Dataset, rows: np.ndarray) -> list[Atoms]:
    """Read some structures of a dataset, without labels."""
    from daskpipe.core.structures import take, to_atoms

    names = ["n_atoms", "atom_start", "numbers", "positions", "cell", "pbc", "structure_id"]
    chosen = take(ds[names], np.sort(rows)).load()
    return [to_atoms(chosen, index) for index in range(len(rows))]


def _rank_kinds(ds: xr.Dataset) -> tuple[list[str], np.ndarray]:
    """Return the kinds of system, the most frequent first, and the kind of each structure, shape (structure,)."""
    codes, names = _read_codes(ds, "system_type")
    counts = np.bincount(codes, minlength=len(names))
    order = [code for code in np.argsort(-counts, kind="stable").tolist() if counts[code]]
    place = np.full(len(names), MOST_TYPES)
    place[order[:MOST_TYPES]] = np.arange(len(order[:MOST_TYPES]))
    listed = [names[code] for code in order[:MOST_TYPES]]
    return listed + [REST] * (len(order) > MOST_TYPES), place[codes]


def _read_codes(ds: xr.Dataset, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the codes of a variable, shape (structure,), and their names; one name for all if it is absent."""
    if name not in ds:
        return np.zeros(ds.sizes["structure"], dtype=np.int64), ["unknown"]
    return ds[name].values.astype(np.int64), str(ds[name].attrs["flag_meanings"]).split()


def _describe_kinds(
    names: Sequence[str], kind: np.ndarray, n_atoms: np.ndarray, energies: np.ndarray, totals: AtomTotals
) -> list[Kind]:
    """Measure the energies and forces of each kind of system."""
    kinds = []
    for number, name in enumerate(names):
        own = energies[(kind == number) & np.isfinite(energies)]
        n_forces = int(totals.n_forces[number])
        kinds.append(
            Kind(
                name=name,
                n_structures=int((kind == number).sum()),
                n_atoms=int(n_atoms[kind == number].sum(dtype=np.int64)),
                energy_low=float(own.min()) if len(own) else None,
                energy_mean=float(own.mean()) if len(own) else None,
                energy_deviation=float(own.std()) if len(own) else None,
                energy_high=float(own.max()) if len(own) else None,
                force_mean_square=float(np.sqrt(totals.force_squares[number] / n_forces)) if n_forces else None,
                force_high=float(totals.force_high[number]) if n_forces else None,
            )
        )
    return kinds


def _key_by_symbol(counts: np.ndarray) -> dict[str, int]:
    """Return counts that are not zero, given by atomic number, by chemical symbol."""
    from ase.data import chemical_symbols

    return {chemical_symbols[number]: int(counts[number]) for number in np.flatnonzero(counts).tolist()}


def _keep_frequent(forces: np.ndarray, elements: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Keep the histograms of the most frequent elements, in the order of the periodic table."""
    from ase.data import chemical_symbols

    numbers = np.sort(np.argsort(-elements, kind="stable")[: min(MOST_TYPES, int((elements > 0).sum()))])
    return forces[numbers], [chemical_symbols[number] for number in numbers.tolist()]


def _sample_pairs(order: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Return the rows of the structures in which distances are measured."""
    most_structures, most_atoms = PAIR_SAMPLE
    fits = np.cumsum(n_atoms[order[:most_structures]]) <= most_atoms
    return order[:most_structures][fits | (np.arange(len(fits)) == 0)]


def _map_features(ds: xr.Dataset, names: Sequence[str], kind: np.ndarray, order: np.ndarray) -> FeatureMap | None:
    """Map a sample of the features, coloured by kind of system, split and reason of the pick."""
    if "features" not in ds or ds["features"].shape[1] < 2:
        return None
    rows = np.sort(order[:MAP_SAMPLE])
    points = ds["features"].isel(structure=rows, feature=slice(0, 2)).values
    known = np.isfinite(points).all(axis=1)
    rows, points = rows[known], points[known]
    if not len(points):
        return None
    colourings = {"kind": {name: kind[rows] == number for number, name in enumerate(names)}}
    for title, variable in (("split", "split"), ("reason", "selection_reason")):
        if variable in ds:
            codes, code_names = _read_codes(ds, variable)
            groups = {name: codes[rows] == code for code, name in enumerate(code_names)}
            colourings[title] = {name: here for name, here in groups.items() if here.any()}
    return FeatureMap(points=points, colourings=colourings, n_structures=len(order))


def _sample_volumes(
    ds: xr.Dataset, energies: np.ndarray, names: Sequence[str], kind: np.ndarray, order: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """Sample volumes and energies per atom of crystals and liquids, by kind of system; return also their number."""
    volume = np.abs(np.linalg.det(ds["cell"].values)) / ds["n_atoms"].values
    known = ds["pbc"].values.all(axis=1) & np.isfinite(energies) & (volume > 0)
    rows = np.sort(order[known[order]][:MAP_SAMPLE])
    points = np.stack([volume, energies], axis=1)[rows]
    clouds = {name: points[kind[rows] == number] for number, name in enumerate(names)}
    return {name: cloud for name, cloud in clouds.items() if len(cloud)}, int(known.sum())


def _count_splits(ds: xr.Dataset, names: Sequence[str], kind: np.ndarray) -> tuple[dict[str, dict[str, Any]], int]:
    """Count what each split holds, and the groups that lie in more than one split."""
    if "split" not in ds:
        return {}, 0
    codes, split_names = _read_codes(ds, "split")
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
