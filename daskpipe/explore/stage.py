"""Exploration as a Dask bag: a partition of seeds goes in, one payload of frames comes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.errors import Rejection
from daskpipe.explore.settings import Dynamics, Guards
from daskpipe.structures import from_atoms, structure_id
from daskpipe.work import Payload, Rows, arrays_of, read_rows

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from dask.bag import Bag

    from daskpipe.explore.dynamics import Trajectory
    from daskpipe.potentials import Potential

VERSION = 1


def explore(seeds: Bag, build: Callable[[], Potential], dynamics: Dynamics, guards: Guards, run_seed: int) -> Bag:
    """Explore around seeds; lazy.

    Parameters
    ----------
    seeds
        Bag of `ase.Atoms` with ``temperature`` and ``replica`` in ``info``; a partition is a batch.
    build
        Builds the potential on the worker (or returns the one that its process built before).
    dynamics, guards, run_seed
        See `daskpipe.explore.dynamics.run_batch`.

    Returns
    -------
    dask.bag.Bag
        One `daskpipe.work.Payload` a partition.
    """
    return seeds.map_partitions(explore_partition, build, dynamics, guards, run_seed)


def explore_partition(
    seeds: list[Atoms], build: Callable[[], Potential], dynamics: Dynamics, guards: Guards, run_seed: int
) -> list[Payload]:
    """Run the trajectories of one partition; frames are ordered by seed, then time."""
    from daskpipe.potentials import batched
    from daskpipe.potentials.potential import unknown_elements
    from daskpipe.potentials.quiet import quiet

    with quiet():  # torch-sim's import has a good deal to say
        from daskpipe.explore.dynamics import run_batch

    started = time.perf_counter()
    potential = build()
    outcomes: dict[int, Trajectory | Rejection] = {}
    # torch-sim has one periodicity a batch.
    groups: dict[tuple[bool, ...], list[int]] = {}
    for index, atoms in enumerate(seeds):
        if unknown := unknown_elements(atoms, potential.elements):
            outcomes[index] = _rejected(atoms, unknown.reason, unknown.evidence)
        elif not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
            # Neighbour lists take their time, or more, with such a structure.
            outcomes[index] = _rejected(atoms, "not_finite", "positions or cell of the seed are not finite")
        else:
            groups.setdefault(tuple(atoms.pbc), []).append(index)
    # The threads of a worker share the potential.
    with potential.lock:
        for members in groups.values():
            batch = [seeds[index] for index in members]
            trajectories = run_batch(batch, batched(potential), dynamics, guards, run_seed)
            outcomes |= zip(members, trajectories, strict=True)
    frames, rejected = [], []
    for index in range(len(seeds)):
        outcome = outcomes[index]
        if isinstance(outcome, Rejection):
            rejected.append(outcome)
        elif outcome.rejection:
            rejected.append(outcome.rejection)
        else:
            frames += outcome.frames
    arrays = arrays_of(from_atoms(frames))
    return [Payload(arrays=arrays, n_out=len(frames), rejected=rejected, seconds=time.perf_counter() - started)]


def load_seeds(root: Path, pieces: list[Rows], conditions: list[tuple[float, int]]) -> list[Atoms]:
    """Read one partition of seeds from the unit tree and give each its temperature (K) and replica."""
    from daskpipe.structures import to_atoms

    ds = read_rows(root, pieces)
    seeds = []
    for index, (temperature, replica) in enumerate(conditions):
        atoms = to_atoms(ds, index)
        atoms.info |= {"temperature": temperature, "replica": replica}
        seeds.append(atoms)
    return seeds


def _rejected(atoms: Atoms, reason: str, evidence: str) -> Rejection:
    name = f"{structure_id(atoms).hex()}@{atoms.info['temperature']:g}K#{atoms.info['replica']}"
    return Rejection(stage="explore", structure=name, reason=reason, evidence=evidence)
