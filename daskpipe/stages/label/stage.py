"""Labelling as a Dask bag: a partition of picked frames goes in, one payload of labelled frames comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from daskpipe.core.errors import Rejection
from daskpipe.core.structures import from_atoms, spin_multiplicity, structure_id, to_atoms
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_rows
from daskpipe.engine.units import Payload
from daskpipe.stages.label.checks import find_label_fault
from daskpipe.stages.label.settings import LabelChecks

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from dask.bag import Bag

    from daskpipe.potentials import Potential

VERSION = 2


def label_frames(frames: Bag, build: Callable[[], Potential], method: str, checks: LabelChecks) -> Bag:
    """Label frames; lazy.

    Parameters
    ----------
    frames
        Bag of `ase.Atoms`; a partition is a batch.
    build
        Builds the teacher on the worker (or returns the one that its process built before).
    method
        Name of the teacher, stored as ``label_method``.
    checks
        What a label must satisfy.

    Returns
    -------
    dask.bag.Bag
        One `daskpipe.engine.units.Payload` a partition.
    """
    return frames.map_partitions(label_partition, build, method, checks)


def label_partition(
    frames: list[Atoms], build: Callable[[], Potential], method: str, checks: LabelChecks
) -> list[Payload]:
    """Label one partition; the order of the frames is kept."""
    from ase.calculators.singlepoint import SinglePointCalculator

    from daskpipe.potentials import Failure, evaluate

    labelled, rejected = [], []
    potential = build()
    for atoms, found in zip(frames, evaluate(potential, frames), strict=True):
        if isinstance(found, Failure):
            rejected.append(_reject_frame(atoms, found.reason, found.evidence))
        elif fault := find_label_fault(found.energy, found.forces, found.stress, bool(atoms.pbc.all()), checks):
            rejected.append(_reject_frame(atoms, *fault))
        else:
            frame = atoms.copy()
            frame.info |= {"label_method": method, "label_status": "ok"}
            if potential.knows_charge:
                frame.info["spin_multiplicity"] = spin_multiplicity(atoms)  # what the label was computed for
            names = ("energy", "forces", "stress", "magmoms")
            results = {name: value for name in names if (value := getattr(found, name)) is not None}
            frame.calc = SinglePointCalculator(frame, **results)
            labelled.append(frame)
    arrays = dataset_to_arrays(from_atoms(labelled))
    return [Payload(arrays=arrays, n_out=len(labelled), rejected=rejected)]


def load_picks(root: Path, pieces: list[UnitRows], select_key: str, start: int, stop: int) -> list[Atoms]:
    """Read picks `start` to `stop` from the run directory, with their features, stratum and reason."""
    from daskpipe.engine.run_directory import RunDirectory

    ds = read_rows(root, pieces)
    picks = RunDirectory(root).load_arrays("select", select_key, ["features", "cluster", "selection_reason"])
    frames = []
    for index in range(stop - start):
        atoms = to_atoms(ds, index)
        atoms.info["features"] = picks["features"][start + index]
        atoms.info["cluster"] = int(picks["cluster"][start + index])
        atoms.info["selection_reason"] = str(picks["selection_reason"][start + index])
        frames.append(atoms)
    return frames


def name_frames(root: Path, pieces: list[UnitRows]) -> list[str]:
    """Return what the quarantine calls the frames of a partition."""
    return [structure.hex() for structure in read_rows(root, pieces)["structure_id"].values.tolist()]


def _reject_frame(atoms: Atoms, reason: str, evidence: str) -> Rejection:
    return Rejection(stage="label", structure=structure_id(atoms).hex(), reason=reason, evidence=evidence)
