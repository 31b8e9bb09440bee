"""Search for picks whose atoms overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.geometry import find_overlap
from daskpipe.core.structures import atom_rows, atom_starts

if TYPE_CHECKING:
    from daskpipe.engine.run_directory import RunDirectory

LEAST_DISTANCE = 0.6
"""Least distance of two atoms, in sums of their covalent radii: the default of ``generate.limits.min_distance``."""

COLUMNS = ("n_atoms", "numbers", "positions", "cell", "pbc", "step")


def find_overlaps(
    directory: RunDirectory, stage: str, units: Sequence[tuple[str, str]], picks: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Find the picks whose atoms overlap.

    Parameters
    ----------
    directory
        Run directory that holds the frames.
    stage
        Stage whose units hold them.
    units
        File of the frames, and key, of each unit.
    picks
        ``unit``, an index into `units`, and ``row`` of each pick; shape (pick,).

    Returns
    -------
    dict
        ``n``, how many there are, and ``example``: the first one and its two closest atoms; JSON types.
    """
    from ase import Atoms

    overlaps: list[str] = []
    for unit in np.unique(picks["unit"]).tolist():
        path, key = units[unit]
        frames = directory.load_arrays(stage, key, COLUMNS)
        first = atom_starts(frames["n_atoms"])
        for row in picks["row"][picks["unit"] == unit].tolist():
            atoms = atom_rows(first[row : row + 1], frames["n_atoms"][row : row + 1])
            frame = Atoms(
                frames["numbers"][atoms],
                frames["positions"][atoms].astype(float),
                cell=frames["cell"][row],
                pbc=frames["pbc"][row],
            )
            if evidence := find_overlap(frame, LEAST_DISTANCE):
                overlaps.append(f"{path}#{frames['step'][row]}: {evidence}")
    return {"n": len(overlaps), "example": overlaps[0] if overlaps else None}
