"""Full descriptors of the structures of a dataset, a group at a time, so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.structures import from_atoms
from daskpipe.stages.describe.catalogue import Descriptor, build_descriptor, has_atom_rows
from daskpipe.stages.describe.reduction import Reduction, mean_over_atoms, unit_length

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

    from daskpipe.stages.describe.settings import Describe

GROUP_BYTES = 4 * 2**20
"""Largest size of the rows of one group, small enough to be reduced while they are in a cache. A structure is never
split."""


def describe_groups(
    frames: xr.Dataset, settings: Describe, species: list[str]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Describe the structures of a dataset, group by group.

    Where there are rows of atoms a structure's row is their mean, at either level, so that both levels describe a
    structure by the same numbers.

    Parameters
    ----------
    frames
        Structures in memory.
    settings, species
        Descriptor and the elements that occur.

    Yields
    ------
    structures : slice
        Range of the structures.
    descriptors : numpy.ndarray
        Shape (structure, descriptor), not normalised.
    environments : numpy.ndarray or None
        Shape (atom, descriptor), not normalised; None for a descriptor of whole structures.
    """
    of_atoms = has_atom_rows(settings)
    descriptor = build_descriptor(settings, species, "off" if of_atoms else "outer")
    n_atoms = frames["n_atoms"].values
    structures = make_structures(frames)
    for group in split_groups(n_atoms, most_atoms(descriptor)):
        atom_rows = descriptor.compute(structures[group])
        yield (group, mean_over_atoms(atom_rows, n_atoms[group]), atom_rows) if of_atoms else (group, atom_rows, None)


def describe_frames(
    frames: xr.Dataset, settings: Describe, species: list[str], reduction: Reduction, of_atoms: Reduction | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of structures and of their atoms.

    Parameters
    ----------
    frames, settings, species
        As in `describe_groups`.
    reduction, of_atoms
        Axes of structures and of atoms; without the latter there are no features of atoms.

    Returns
    -------
    features : numpy.ndarray
        Shape (structure, feature), float32.
    environments : numpy.ndarray
        Shape (atom, feature), float32; no rows without `of_atoms`.
    """
    features = np.empty((frames.sizes["structure"], settings.dims), dtype=np.float32)
    n_rows = int(frames["n_atoms"].values.sum()) if of_atoms else 0
    environments = np.empty((n_rows, settings.dims), dtype=np.float32)
    start = 0
    for group, descriptors, atom_descriptors in describe_groups(frames, settings, species):
        features[group] = reduction(descriptors, normalise=settings.normalise)
        if of_atoms is not None and atom_descriptors is not None:
            environments[start : start + len(atom_descriptors)] = of_atoms(
                atom_descriptors, normalise=settings.normalise
            )
            start += len(atom_descriptors)
    return features, environments


def compute_fingerprints(structures: list[Atoms], settings: Describe, species: list[str]) -> np.ndarray:
    """Return descriptors at unit length, before any axes are fitted; shape (structure, component)."""
    blocks = [descriptors for _, descriptors, _ in describe_groups(from_atoms(structures), settings, species)]
    return unit_length(np.concatenate(blocks))


def most_atoms(descriptor: Descriptor) -> int:
    """Return the number of atoms whose rows fit `GROUP_BYTES`."""
    return max(1, GROUP_BYTES // (descriptor.n_features * descriptor.dtype.itemsize))


def split_groups(n_atoms: np.ndarray, most: int) -> Iterator[slice]:
    """Yield groups of consecutive structures with at most `most` atoms, or of one structure if it has more."""
    start, total = 0, 0
    for index, n in enumerate(n_atoms.tolist()):
        if index > start and total + n > most:
            yield slice(start, index)
            start, total = index, 0
        total += n
    if len(n_atoms):
        yield slice(start, len(n_atoms))


def make_structures(frames: xr.Dataset) -> list[Atoms]:
    """Return all structures with numbers, positions, cell, pbc and charge, and no other variables of the dataset.

    For small structures `daskpipe.core.structures.to_atoms` would take longer than the descriptor.
    """
    from ase import Atoms

    numbers, positions = frames["numbers"].values.astype(int), frames["positions"].values.astype(float)
    cells, pbc, starts, n_atoms = (frames[name].values for name in ("cell", "pbc", "atom_start", "n_atoms"))
    charges = frames["charge"].values if "charge" in frames else np.zeros(len(cells))
    return [
        Atoms(
            numbers=numbers[start : start + n],
            positions=positions[start : start + n],
            cell=cells[index],
            pbc=pbc[index],
            info={"charge": int(charges[index])},
        )
        for index, (start, n) in enumerate(zip(starts.tolist(), n_atoms.tolist(), strict=True))
    ]
