"""Read a dataset block by block and measure its structures: the columns that the checks of the quality gate take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.isolated_atoms import reference_rows
from daskpipe.core.seeds import order_by_hash
from daskpipe.core.structures import atom_starts, cut_blocks
from daskpipe.core.variables import decode_names
from daskpipe.store.connectivity import IMPORTED, Frame
from daskpipe.store.quality import measures
from daskpipe.store.quality.settings import Quality
from daskpipe.store.quality.split_checks import find_leaks
from daskpipe.store.quality.structure_checks import MIN_PAIRS, SAMPLE
from daskpipe.store.splits import seed_ids_of

if TYPE_CHECKING:
    import xarray as xr

BLOCK_ATOMS = 2**20
BLOCK_STRUCTURES = 65_536
"""Size of a block in memory, about one chunk of each array; besides, 1 to 2 kB per structure are kept."""

BLOCK_VARIABLES = ("numbers", "positions", "forces", "cell", "pbc", "stress", "initial_magmoms")
"""Variables that are read block by block."""

KEPT_VARIABLES = (
    "n_atoms", "structure_id", "parent_id", "energy", "split", "group", "system_type", "label_status", "replica",
    "finite_difference_check",
    "step", "charge", "spin_multiplicity", "generator", "temperature", "pressure", "ensemble",
)  # fmt: skip
"""Variables that are kept in memory for all structures."""


def read_columns(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Read `KEPT_VARIABLES` of all structures, those with names as words; ``reference`` marks reference data."""
    columns = {name: _read_array(ds[name]) for name in KEPT_VARIABLES if name in ds}
    for name in ("system_type", "label_status", "generator", "finite_difference_check"):
        if name in ds:
            columns[name] = decode_names(ds[name].copy(data=columns[name]))
    geometry = {name: _read_array(ds[name]) for name in ("n_atoms", "cell", "pbc")}
    config_type = {"config_type": decode_names(ds["config_type"].load())} if "config_type" in ds else {}
    marked = {"reference": _read_array(ds["reference"])} if "reference" in ds else {}
    columns["reference"] = reference_rows(geometry | config_type | marked)
    return columns


def measure_structures(
    ds: xr.Dataset, columns: Mapping[str, np.ndarray], settings: Quality, exempt: np.ndarray
) -> dict[str, np.ndarray]:
    """Measure all structures in one pass over the dataset (two for pairs of frames).

    Parameters
    ----------
    ds
        Lazy dataset.
    columns
        From `read_columns`.
    settings
        Limits; what no check needs is not measured.
    exempt
        Structures whose forces do not count in the percentile of the forces, shape (structure,), bool.

    Returns
    -------
    dict
        Columns of `daskpipe.store.quality.gate.COLUMNS` that are measured, those that the dataset has data for.
    """
    ids, n_atoms = columns["structure_id"], columns["n_atoms"]
    sampled = np.zeros(len(ids), dtype=bool)
    sampled[order_by_hash(0, "quality", ids)[:SAMPLE]] = True
    keep_features = settings.limit_of("leakage") is not None or settings.limit_of("units") is not None
    forces = _LargestForces(int(n_atoms.sum(dtype=np.int64)))
    parts: dict[str, list[np.ndarray]] = {}
    counts: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, block in iter_blocks(ds, n_atoms, (*BLOCK_VARIABLES, "features")):
        of_block = _measure_block(block, settings)
        if "forces" in block:
            finite, counted = of_block["forces_finite"], ~exempt[rows]
            atom_counts = np.repeat(counted, n_atoms[rows])[np.repeat(finite, n_atoms[rows])]
            forces.add_norms(of_block.pop("force_norms")[atom_counts])
        if "features" in block:
            of_block["features"] = block["features"][sampled[rows]]
            if keep_features:
                of_block["all_features"] = block["features"]
        for name, values in of_block.items():
            parts.setdefault(name, []).append(values)
        element_counts = measures.count_elements(block)
        present = np.flatnonzero(element_counts.any(axis=0))
        counts.append((present, element_counts[:, present]))
    measured = {name: np.concatenate(values) for name, values in parts.items()}
    measured["elements"], measured["counts"] = _join_counts(counts)
    measured["composition"] = np.unique(measured["counts"], axis=0, return_inverse=True)[1].reshape(-1)
    if "features" in measured:
        finite = np.isfinite(measured["features"]).all(axis=1)
        measured["features"], measured["feature_ids"] = measured["features"][finite], ids[sampled][finite]
    if "forces" in ds:
        measured["force_p99"] = np.array(forces.compute_percentile())
    return measured | _relate_structures(ds, columns, measured, settings)


def _measure_block(block: Mapping[str, np.ndarray], settings: Quality) -> dict[str, np.ndarray]:
    """Measure the structures of one block."""
    limits = {name: settings.limit_of(name) for name in ("overlap", "isolated_atoms", "duplicates")}
    measured = measures.measure_cells(block)
    if any(limit is not None for limit in limits.values()):
        reach = max(measures.BONDED, limits["overlap"] or 0, limits["isolated_atoms"] or 0)
        measured |= measures.measure_distances(block, measured["searchable"], reach)
    if "forces" in block:
        measured |= measures.measure_forces(block)
        for row in np.flatnonzero(measured["zero_forces"] & measured["searchable"]).tolist():
            measured["zero_forces"][row] = measures.has_asymmetric_atom(block, row)
    if "stress" in block:
        measured["largest_stress"] = measures.largest_stress(block["stress"])
    if "initial_magmoms" in block:
        measured["magnetic_state"] = measures.hash_magnetic_states(block)
    return measured


class _LargestForces:
    """The largest hundredth of the forces on atoms, which gives the 99th percentile exactly.

    Parameters
    ----------
    n_atoms
        Of the dataset.
    """

    def __init__(self, n_atoms: int) -> None:
        self.n_kept = n_atoms // 100 + 2
        self.n_norms = 0
        self.norms = np.zeros(0)

    def add_norms(self, norms: np.ndarray) -> None:
        """Take in the lengths of forces, eV/Å, shape (atom,)."""
        self.n_norms += len(norms)
        both = np.concatenate([self.norms, norms])
        self.norms = np.partition(both, len(both) - self.n_kept)[-self.n_kept :] if len(both) > self.n_kept else both

    def compute_percentile(self) -> float:
        """Return the 99th percentile of all lengths, eV/Å."""
        return measures.percentile_99(self.norms, self.n_norms)


def _relate_structures(
    ds: xr.Dataset, columns: Mapping[str, np.ndarray], measured: dict[str, np.ndarray], settings: Quality
) -> dict[str, np.ndarray]:
    """Measure what needs several structures: pairs of neighbouring frames, groups, and leaks of a split."""
    ids = columns["structure_id"]
    lineage = {"structure_id": ids, "parent_id": columns.get("parent_id", np.zeros_like(ids))}
    related = {"origin": np.unique(seed_ids_of(lineage), return_inverse=True)[1].astype(np.int64)}
    if settings.limit_of("units") is not None and {"energy", "forces"} <= set(map(str, ds.data_vars)):
        related |= _compare_pairs(ds, {**columns, **measured, **related})
    if "split" in columns and "group" not in columns:
        related["group"] = related["origin"]
    features = measured.pop("all_features", None)
    if features is not None and "split" in columns and settings.limit_of("leakage") is not None:
        known = {**lineage, **columns, "composition": measured["composition"], "features": features}
        related["looked"], related["leaks"] = find_leaks(known, lambda rows: _read_frames(ds, columns["n_atoms"], rows))
    return related


def _join_counts(counts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the atomic numbers that occur, and their counts in all structures, shape (structure, element)."""
    elements = np.unique(np.concatenate([present for present, _ in counts]))
    joined = np.zeros((sum(len(part) for _, part in counts), len(elements)), dtype=np.int32)
    start = 0
    for present, part in counts:
        joined[start : start + len(part), np.searchsorted(elements, present)] = part
        start += len(part)
    return elements, joined


def _compare_pairs(ds: xr.Dataset, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compare the energies of pairs of neighbouring frames with the work of their forces."""
    usable = np.flatnonzero(np.isfinite(columns["energy"]) & columns["forces_finite"] & columns["searchable"])
    names = ("structure_id", "origin", "composition", "n_atoms", "replica", "step")
    chosen = {name: columns[name][usable] for name in names if name in columns}
    if "all_features" in columns and "generator" in columns:  # where lineage is known, it gives the pairs
        imported = (columns["generator"][usable] == IMPORTED)[:, None]
        chosen["features"] = np.where(imported, columns["all_features"][usable], np.nan)
    pairs, energies_and_work = _compare_neighbours(ds, columns, usable[measures.choose_pairs(chosen)].reshape(-1, 2))
    if "features" in chosen and len(pairs) < MIN_PAIRS:
        further = usable[measures.choose_pairs(chosen, further=True)].reshape(-1, 2)
        more = _compare_neighbours(ds, columns, further)
        both = np.concatenate([pairs, more[0]])
        first = np.unique(both, axis=0, return_index=True)[1]  # a near frame of one may be the nearest of the other
        pairs, energies_and_work = both[first], np.concatenate([energies_and_work, more[1]])[first]
    return {
        "pair_ids": columns["structure_id"][pairs],
        "pair_energy": energies_and_work[:, 0],
        "pair_work": energies_and_work[:, 1],
    }


def _compare_neighbours(
    ds: xr.Dataset, columns: Mapping[str, np.ndarray], pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that are neighbours, and the difference of their energies and the work between them, eV."""
    frames: dict[int, dict[str, Any]] = {}
    for rows, block in iter_blocks(ds, columns["n_atoms"], BLOCK_VARIABLES, np.unique(pairs)):
        for row in np.intersect1d(np.unique(pairs), np.arange(rows.start, rows.stop)) - rows.start:
            atoms = slice(start := int(block["atom_start"][row]), start + int(block["n_atoms"][row]))
            frame = {name: block[name][atoms].astype(np.float64) for name in ("numbers", "positions", "forces")}
            frame |= {name: block[name][row] for name in ("cell", "pbc", "stress") if name in block}
            frames[rows.start + int(row)] = frame | {"energy": columns["energy"][rows.start + row]}
    compared = [measures.compare_energy_and_work(frames[a], frames[b]) for a, b in pairs.tolist()]
    near = [index for index, pair in enumerate(compared) if pair is not None]
    return pairs[near], np.array([pair for pair in compared if pair is not None]).reshape(-1, 2)


def _read_frames(ds: xr.Dataset, n_atoms: np.ndarray, wanted: np.ndarray) -> dict[int, Frame]:
    """Read the geometries of some rows."""
    frames = {}
    for rows, block in iter_blocks(ds, n_atoms, ("numbers", "positions", "cell", "pbc"), wanted):
        for row in np.intersect1d(wanted, np.arange(rows.start, rows.stop)).tolist():
            atoms = slice(start := int(block["atom_start"][row - rows.start]), start + int(n_atoms[row]))
            per_atom = {name: block[name][atoms].copy() for name in ("numbers", "positions")}
            per_structure = {name: block[name][row - rows.start] for name in ("cell", "pbc")}
            frames[row] = Frame(**per_atom, **per_structure)
    return frames


def iter_blocks(
    ds: xr.Dataset, n_atoms: np.ndarray, names: Sequence[str], wanted: np.ndarray | None = None
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Read some variables block by block.

    Parameters
    ----------
    ds
        Lazy dataset.
    n_atoms
        Number of atoms of each structure, shape (structure,).
    names
        Variables; those that the dataset lacks are left out.
    wanted
        Rows that are needed; blocks without any are not read. By default all are.

    Yields
    ------
    rows : slice
        Structures of the block.
    block : dict
        Arrays by name, with ``n_atoms`` and ``atom_start``, which counts from the first atom of the block.
    """
    start_atom = atom_starts(n_atoms)
    names = [name for name in names if name in ds]
    for rows in cut_blocks(n_atoms, BLOCK_ATOMS, BLOCK_STRUCTURES):
        if wanted is None or ((wanted >= rows.start) & (wanted < rows.stop)).any():
            first, last = rows.start, rows.stop - 1
            atoms = slice(int(start_atom[first]), int(start_atom[last] + n_atoms[last]))
            block = {name: _read_array(ds[name][atoms if ds[name].dims[0] == "atom" else rows]) for name in names}
            yield rows, {**block, "n_atoms": n_atoms[rows], "atom_start": start_atom[rows] - atoms.start}


def _read_array(array: xr.DataArray) -> np.ndarray:
    """Read an array in this thread: within a task, Dask would send the reading to the cluster."""
    return np.asarray(array.compute(scheduler="synchronous").values)
