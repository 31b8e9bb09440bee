"""Exploration as a Dask bag: a partition of seeds goes in, one payload of frames comes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

from daskpipe.errors import Rejection
from daskpipe.explore.settings import Dynamics, Guards
from daskpipe.structures import from_atoms, structure_id
from daskpipe.work import Payload, Rows, arrays_of, read_rows

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from dask.bag import Bag

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
    from daskpipe.explore.dynamics import run_batch
    from daskpipe.potentials import batched

    started = time.perf_counter()
    potential = build()
    rejected = []
    known = []
    for atoms in seeds:
        if missing := sorted(set(atoms.symbols) - (potential.elements or set(atoms.symbols))):
            rejected.append(_unknown_elements(atoms, missing))
        else:
            known.append(atoms)
    frames = []
    # torch-sim has one periodicity a batch; sorting is stable, and the order of the output is restored below.
    known.sort(key=lambda atoms: tuple(atoms.pbc))
    done = {}
    for _, group in groupby(known, key=lambda atoms: tuple(atoms.pbc)):
        members = list(group)
        trajectories = run_batch(members, batched(potential), dynamics, guards, run_seed)
        done |= {id(atoms): trajectory for atoms, trajectory in zip(members, trajectories, strict=True)}
    for atoms in seeds:
        if trajectory := done.get(id(atoms)):
            if trajectory.rejection:
                rejected.append(trajectory.rejection)
            else:
                frames += trajectory.frames
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


def _unknown_elements(atoms: Atoms, missing: list[str]) -> Rejection:
    return Rejection(
        stage="explore",
        structure=f"{structure_id(atoms).hex()}@{atoms.info['temperature']:g}K#{atoms.info['replica']}",
        reason="unknown_element",
        evidence=f"the potential does not know {', '.join(missing)}",
    )


