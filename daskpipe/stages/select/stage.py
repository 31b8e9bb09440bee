"""Selection as one unit: features stream from the run directory through a Dask array, a chunk at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core import seeds
from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import STATE_VARIABLES, electronic_states
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.stages.select import SELECTORS
from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.pick import canonical_order
from daskpipe.stages.select.settings import Select

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da

VERSION = 3

REFERENCE = "reference"
"""Reason of a pick that is reference data, which is labelled in any case."""

CANDIDATE = "candidate"
"""Reason of a pick that exploration had marked because the committee disagreed."""

AGAINST_VERSION = 4
"""Version of units that pick against an existing dataset; the others are of `VERSION`."""

BY_ATOMS = ("environments",)
"""Methods whose rows are atoms."""


def select(
    root: Path,
    frames: Sequence[str],
    features: Sequence[tuple[str, int]],
    dims: int,
    settings: Select,
    run_seed: int,
    *,
    frames_stage: str,
    features_stage: str,
    against: np.ndarray | None = None,
) -> Payload:
    """Pick all reference data; leave out near-duplicates, and pick from the others, first candidates of exploration.

    Against an existing dataset, frames that it does not cover (`daskpipe.stages.select.steering`) come before those
    that it does.

    Parameters
    ----------
    root
        Run directory.
    frames
        Keys of the exploration units, in canonical order.
    features
        Key and number of frames of the descriptions of these units, in the same order.
    dims
        Features a frame.
    settings, run_seed
        Parameters of the selection and seed of the run.
    frames_stage, features_stage
        Stages whose units hold the frames and their features.
    against
        Features of an existing dataset in the same space, shape (structure, feature).

    Returns
    -------
    daskpipe.engine.units.Payload
        ``unit`` (position in `frames`) and ``row`` of each pick, its ``features``, ``cluster`` and
        ``selection_reason``; ordered by unit and row. ``report`` is JSON text: method, counts, numbers of
        near-duplicates, and the `daskpipe.stages.select.coverage.Coverage` of the pool.

    Raises
    ------
    daskpipe.core.errors.ConfigError
        If all frames are near-duplicates of the dataset.
    """
    from daskpipe.stages.select.coverage import measure_coverage_of
    from daskpipe.stages.select.steering import find_covered_frames

    ids, n_atoms, elements, candidate, reference, states = _read_frames(root, frames_stage, frames)
    table = feature_table(root, features_stage, features, dims)
    low = np.ones(len(ids), dtype=np.bool_)
    if settings.energy_window is not None:
        low = _read_low_energies(root, frames_stage, frames, settings.energy_window) | reference
    always = np.flatnonzero(reference)
    n_wanted = max(settings.n - len(always), 0)
    in_pool = low & ~reference if not reference.all() else low
    pool = Blocks(table, canonical_order(run_seed, ids[in_pool]), keep=in_pool)
    keep = in_pool.copy()
    keep[in_pool], duplicates = _without_duplicates(pool, states[in_pool], settings, against)
    kept = np.flatnonzero(keep)
    if len(kept) == 0:
        raise ConfigError(
            f"all {len(ids)} frames lie within select.duplicate_distance={settings.duplicate_distance} of the existing "
            "dataset, so that none is left to pick. Explore further, or type a smaller select.duplicate_distance"
        )
    marked = kept[candidate[kept]]
    first = marked[np.sort(canonical_order(run_seed, ids[marked])[:n_wanted])]
    keep[first] = False
    kept = np.flatnonzero(keep)
    params = SELECTORS.check_params(settings.method, settings.params)
    index, cluster, reason = first, np.full(len(first), -1, dtype=np.int32), np.full(len(first), CANDIDATE)
    rounds = [keep]
    if against is not None and len(against) and len(first) < n_wanted and len(kept):
        blocks = Blocks(table, canonical_order(run_seed, ids[kept]), keep=keep)
        near, radius = find_covered_frames(blocks, against, n_wanted - len(first))
        rounds = [_mask_rows(keep, kept[~near]), _mask_rows(keep, kept[near])]
        duplicates["covered"] = {"n_covered": int(near.sum()), "radius": radius, "n_picked_elsewhere": 0}
    for part in rounds:
        rows, n = np.flatnonzero(part), n_wanted - len(index)
        if n <= 0 or not len(rows):
            continue
        order = canonical_order(run_seed, ids[rows])
        if settings.method in BY_ATOMS:
            atoms = atom_table(root, features_stage, features, n_atoms)
            blocks = Blocks(atoms, order, n_atoms[rows], np.repeat(part, n_atoms))
        else:
            blocks = Blocks(table, order, keep=part)
        picks = SELECTORS.get(settings.method)(n=n, seed=run_seed, **params).pick(blocks)
        strata = picks.cluster + np.where(picks.cluster >= 0, cluster.max(initial=-1) + 1, 0).astype(np.int32)
        index = np.concatenate([index, rows[picks.index]])
        cluster = np.concatenate([cluster, strata.astype(np.int32)])
        reason = np.concatenate([reason, np.full(len(picks.index), picks.reason)])
        if "covered" in duplicates and part is rounds[0]:
            duplicates["covered"]["n_picked_elsewhere"] = len(picks.index)
    if not len(index):  # reference data alone: how they cover all frames
        in_pool = low
    seen = np.sort(index) if len(index) else always
    pool = Blocks(table, seeds.order_by_hash(run_seed, "coverage", ids[in_pool]), keep=in_pool)
    covered = measure_coverage_of(pool, np.searchsorted(np.flatnonzero(in_pool), seen), elements=elements[in_pool])
    index = np.concatenate([always, index])
    cluster = np.concatenate([np.full(len(always), -1, dtype=np.int32), cluster])
    reason = np.concatenate([np.full(len(always), REFERENCE), reason])
    sort = np.argsort(index)
    index, cluster, reason = index[sort], cluster[sort], reason[sort]
    report = {
        "method": settings.method,
        "params": params,
        "n_pool": len(ids) - len(always),
        "n_picked": len(index) - len(always),
        **({"n_reference": len(always)} if len(always) else {}),
        "candidates": {"marked": int(candidate.sum()), "picked": len(first)},
        "duplicates": duplicates,
        **({} if settings.energy_window is None else {"above_energy_window": int((~low).sum())}),
        "coverage": covered.as_dict(),
    }
    sizes = np.array([n_frames for _, n_frames in features])
    ends = np.cumsum(sizes)
    unit = np.searchsorted(ends, index, side="right")
    arrays = {
        "unit": unit.astype(np.int64),
        "row": index - (ends - sizes)[unit],
        "features": Blocks(table, np.arange(len(ids))).gather_rows(index),
        "cluster": cluster,
        "selection_reason": reason,
        "report": np.array(json.dumps(report, sort_keys=True)),
    }
    return Payload(arrays=arrays, n_out=len(index))


def _mask_rows(keep: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a mask of some rows with the length of `keep`."""
    mask = np.zeros_like(keep)
    mask[rows] = True
    return mask


def _without_duplicates(
    blocks: Blocks, states: np.ndarray, settings: Select, against: np.ndarray | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a mask of the frames that are no near-duplicates, and numbers for the report."""
    from daskpipe.stages.select.duplicates import find_near_duplicates_by_state

    if settings.duplicate_distance == 0:
        return np.ones(blocks.n_rows, dtype=np.bool_), {"against_pool": 0, "against_dataset": 0, "threshold": 0.0}
    near = find_near_duplicates_by_state(blocks, states, settings.duplicate_distance, against)
    return ~near.mask, {
        "against_pool": near.n_against_pool,
        "against_dataset": near.n_against_dataset,
        "threshold": near.threshold,
        "scale": near.scale,
    }


def _read_low_energies(root: Path, stage: str, keys: Sequence[str], window: float) -> np.ndarray:
    """Return a mask of all frames within the energy window of their composition.

    Raises
    ------
    daskpipe.core.errors.ConfigError
        If exploration stored no energies.
    """
    from daskpipe.stages.select.energy_window import find_low_energies

    units = [
        RunDirectory(root).load_arrays(stage, key, ["numbers", "n_atoms"], optional=["explore_energy"]) for key in keys
    ]
    energies = [unit.get("explore_energy", np.full(len(unit["n_atoms"]), np.nan)) for unit in units]
    if all(np.isnan(energy).all() for energy in energies):
        raise ConfigError(
            "select.energy_window needs the energies of exploration, which has stored none; "
            "give explore.relax, e.g. explore=relax, or leave the window out"
        )
    numbers, n_atoms = (np.concatenate([unit[name] for unit in units]) for name in ("numbers", "n_atoms"))
    return find_low_energies(np.concatenate(energies), numbers, n_atoms.astype(np.int64), window)


def _read_frames(
    root: Path, stage: str, keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, numbers of atoms, elements (structure, element), candidates, reference data and electronic states."""
    ids, n_atoms, held, candidate, reference = [], [], [], [], []
    states: dict[bytes, int] = {}
    state: list[int] = []
    for key in keys:
        unit = RunDirectory(root).load_arrays(
            stage, key, ["structure_id", "n_atoms", "numbers"], optional=["candidate", "reference", *STATE_VARIABLES]
        )
        state += [states.setdefault(item, len(states)) for item in electronic_states(unit)]
        none = np.zeros(len(unit["n_atoms"]), dtype=np.bool_)
        candidate.append(unit.get("candidate", none))
        reference.append(unit.get("reference", none))
        ids.append(unit["structure_id"])
        n_atoms.append(unit["n_atoms"].astype(np.int64))
        here, number = np.unique(unit["numbers"], return_inverse=True)
        presence = np.zeros((len(n_atoms[-1]), len(here)), dtype=np.bool_)
        presence[np.repeat(np.arange(len(presence)), n_atoms[-1]), number] = True
        held.append((here, presence))
    # Only elements that occur anywhere: a column for each of the periodic table would be the largest array here.
    species = np.unique(np.concatenate([here for here, _ in held]))
    elements = np.zeros((sum(map(len, ids)), len(species)), dtype=np.bool_)
    start = 0
    for here, presence in held:
        elements[start : start + len(presence), np.searchsorted(species, here)] = presence
        start += len(presence)
    marked = np.concatenate(candidate), np.concatenate(reference)
    return np.concatenate(ids), np.concatenate(n_atoms), elements, *marked, np.array(state)


def features_of(root: Path, stage: str, keys: Sequence[str]) -> np.ndarray | None:
    """Read the features of units of a stage, shape (structure, feature); None if there are no units."""
    return (
        np.concatenate([RunDirectory(root).load_arrays(stage, key, ["features"])["features"] for key in keys])
        if keys
        else None
    )


def feature_table(root: Path, stage: str, features: Sequence[tuple[str, int]], dims: int) -> da.Array:
    """Return the features in the run directory as a lazy Dask array, shape (frame, feature), float32."""
    return _make_table(root, stage, "features", features, dims)


def atom_table(root: Path, stage: str, features: Sequence[tuple[str, int]], n_atoms: np.ndarray) -> da.Array:
    """Return the atoms' features in the run directory as a lazy Dask array, shape (atom, feature), float32.

    `n_atoms` holds the atoms of each frame, shape (frame,). The number of features is that of the first unit.
    """
    ends = np.cumsum([n_frames for _, n_frames in features])
    sizes = [(key, int(n_atoms[end - n : end].sum())) for (key, n), end in zip(features, ends.tolist(), strict=True)]
    first = next(key for key, size in sizes if size)
    return _make_table(root, stage, "environments", sizes, _load_array(root, stage, first, "environments").shape[1])


def _make_table(root: Path, stage: str, name: str, sizes: Sequence[tuple[str, int]], dims: int) -> da.Array:
    """Return a lazy concatenation of one array of the description units, whose numbers of rows are given."""
    import dask.array as da
    from dask import delayed

    load = delayed(_load_array, pure=True)
    return da.concatenate(
        [da.from_delayed(load(root, stage, key, name), shape=(n, dims), dtype=np.float32) for key, n in sizes if n]
    )


def _load_array(root: Path, stage: str, key: str, name: str) -> np.ndarray:
    """Read one array of a description unit.

    Raises
    ------
    ValueError
        If the unit does not hold it.
    """
    try:
        return RunDirectory(root).load_arrays(stage, key, [name])[name]
    except KeyError:
        raise ValueError(
            f"description unit {key} holds no {name!r}; method 'environments' needs the features of atoms, "
            "which a descriptor of whole frames does not make"
        ) from None
